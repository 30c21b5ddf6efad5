//! Refusals by Microsoft: each has its page, none of them is a failure of ours, and a consent that was given is named.

use serde_json::json;
use sim::{Decision, Fault, FaultKind, Host};

use super::harness::{ADMIN, Browser, CLERK, CONTOSO, ConsentHarness, FABRIKAM, Reply, request};

const GERMAN: [(&str, &str); 1] = [("accept-language", "de")];
const STAYS: &str = "A consent that was given at Microsoft stays there. To withdraw it, delete the application";

fn state_of(url: &str) -> String {
    let url = url::Url::parse(url).unwrap();
    url.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned()
}

/// A token endpoint that refuses with this body.
fn refusal(status: u16, error: &str, code: u64) -> Fault {
    let body = json!({"error": error, "error_codes": [code], "error_description": format!("AADSTS{code}: x")});
    let kind = FaultKind::Status { status, body: Some(body.to_string()), headers: Vec::new() };
    Fault::new(kind).on(Host::Entra).path("/organizations/oauth2/v2.0/token")
}

/// Starts an attempt and returns from the sign-in with a code that nobody issued.
async fn make_up_a_code(browser: &mut Browser<'_>, link: &str) -> Reply {
    let state = state_of(browser.post(link).await.location());
    browser.get(&format!("/consent/callback?code=made-up&state={state}")).await
}

fn code_requests(harness: &ConsentHarness) -> usize {
    harness.sim.calls().iter().filter(|call| call.path == "/organizations/oauth2/v2.0/token").count()
}

#[tokio::test]
async fn made_up_code_is_refused_by_one_request_and_no_failure() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    let mut browser = harness.browser();
    make_up_a_code(&mut browser, &link).await.says(400, "could not be verified");
    browser.get("/consent/result").await.says(400, "could not be verified");
    assert_eq!(code_requests(&harness), 1);
    assert!(!harness.logged().contains("InternalFailure"));
    harness.browser().walk(&link, CONTOSO, ADMIN).await.says(200, "can read your incidents");
}

#[tokio::test]
async fn refused_code_is_no_failure_of_ours_whatever_the_number() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    // Errors of a request, of a code, of a state at Microsoft, and one of tomorrow.
    for code in [9_002_313, 900_144, 50_001, 70_011, 70_000, 54_005, 70_008, 501_481, 90_033, 7_000_218, 9_999_999] {
        for error in ["invalid_grant", "invalid_client", "invalid_request", "x"] {
            let before = code_requests(&harness);
            harness.sim.fault(refusal(400, error, code));
            make_up_a_code(&mut harness.browser(), &link).await.says(400, "could not be verified");
            harness.sim.clear_faults();
            assert_eq!(code_requests(&harness) - before, 1, "{code} {error}");
        }
    }
    assert!(!harness.logged().contains("InternalFailure"));
}

#[tokio::test]
async fn refused_credential_at_sign_in_is_a_failure_of_ours() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    harness.sim.fault(refusal(401, "invalid_client", 7_000_215));
    let mut browser = harness.browser();
    let state = state_of(browser.post(&link).await.location());
    let callback = format!("/consent/callback?code=made-up&state={state}");
    let page = request(&harness.app, "GET", &callback, browser.cookie.as_deref(), &[]).await;
    assert_eq!((page.status, page.title()), (500, "Something went wrong here"));
    assert!(harness.logged().contains("InternalFailure"));
}

#[tokio::test]
async fn principal_disabled_at_sign_in_is_named() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    for (code, title) in [(7_000_112, "is switched off in your tenant"), (53_003, "A policy of your organization")] {
        harness.sim.fault(refusal(400, "invalid_grant", code));
        make_up_a_code(&mut harness.browser(), &link).await.says(403, title);
        harness.sim.clear_faults();
    }
}

#[tokio::test]
async fn each_refusal_of_microsoft_has_its_page_in_both_languages() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    let mut browser = harness.browser();
    let consent = state_of(&browser.reach_consent(&link, CONTOSO, ADMIN).await);
    let table = [
        ("consent_required", 65_004, "You have declined", "Sie haben abgelehnt"),
        ("access_denied", 0, "You have declined", "Sie haben abgelehnt"),
        ("access_denied", 50_020, "This account does not belong", "Dieses Konto gehört nicht"),
        ("access_denied", 65_005, "Your tenant has no license", "Ihrem Mandanten fehlt die Lizenz"),
        ("invalid_client", 650_052, "Your tenant has no license", "Ihrem Mandanten fehlt die Lizenz"),
        ("access_denied", 500_014, "Defender is switched off", "Defender ist in Ihrem Mandanten abgeschaltet"),
        ("access_denied", 7_000_112, "is switched off in your tenant", "ist in Ihrem Mandanten abgeschaltet"),
        ("access_denied", 90_094, "Your account may not consent", "Ihr Konto darf nicht zustimmen"),
        ("access_denied", 53_003, "A policy of your organization", "Eine Richtlinie Ihrer Organisation"),
        ("access_denied", 50_011, "is not set up right", "ist nicht richtig eingerichtet"),
        ("unauthorized_client", 0, "is not set up right", "ist nicht richtig eingerichtet"),
        ("server_error", 0, "Microsoft cannot do this now", "Microsoft kann das gerade nicht"),
        ("x", 0, "Microsoft has not granted it", "Microsoft hat es nicht erteilt"),
    ];
    for (error, number, english, german) in table {
        let description = if number == 0 { String::new() } else { format!("&error_description=AADSTS{number}%3a+x") };
        let url = format!("/consent/callback?admin_consent=True&error={error}{description}&state={consent}");
        let page = browser.get(&url).await;
        page.says(403, english);
        assert!(!page.body.contains("Nothing was changed"), "{}", page.body);
        browser.send("GET", &url, &GERMAN).await.says(403, german);
        let steps = page.body.matches("class=\"next\"").count() + page.body.matches("class=\"button\"").count();
        assert_eq!(steps, 1, "{error} {number}");
    }
    assert!(!harness.logged().contains("InternalFailure"));
    // None of it used the attempt or the invitation up.
    browser.get("/consent/result").await.says(200, "One step is left");
    assert!(harness.invitation(&link).await.used_at.is_none());
}

#[tokio::test]
async fn refused_consent_is_said_to_stay_at_microsoft() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;

    // The tenant of the consent is not the one of the sign-in.
    let mut browser = harness.browser();
    let back = browser.decide(&link, CONTOSO, ADMIN, Decision::Accept).await;
    let forged = back.replace(CONTOSO, FABRIKAM);
    for page in [browser.get(&forged).await, browser.get("/consent/result").await] {
        page.says(403, "not the tenant that was invited");
        assert!(page.body.contains(STAYS) && !page.body.contains("Nothing was changed"), "{}", page.body);
    }
    let page = browser.send("GET", "/consent/result", &GERMAN).await;
    let german = page.body.contains("Eine Zustimmung, die bei Microsoft erteilt wurde, bleibt dort bestehen.");
    assert!(german && !page.body.contains("Nichts wurde geändert"), "{}", page.body);

    // An administrator who follows somebody else's link to the consent.
    let page = harness.browser().get(&back).await;
    page.says(400, "does not belong together");
    assert!(page.body.contains(STAYS) && !page.body.contains("Nothing was changed"), "{}", page.body);

    // A consent that comes too late.
    let mut late = harness.browser();
    let back = late.decide(&link, CONTOSO, ADMIN, Decision::Accept).await;
    harness.advance(25 * 3600);
    let page = late.get(&back).await;
    page.says(410, "has expired");
    assert!(page.body.contains(STAYS), "{}", page.body);
}

#[tokio::test]
async fn refusal_before_a_consent_says_that_nothing_was_changed() {
    let harness = ConsentHarness::new().await;
    harness.onboard("Contoso").await;
    let mut browser = harness.browser();
    let back = browser.sign_in(&harness.invite("Mallory", None).await, CONTOSO, CLERK).await;
    for page in [browser.get(&back).await, browser.get("/consent/result").await, harness.browser().get(&back).await] {
        assert!(page.status >= 400 && page.body.contains("Nothing was changed."), "{}", page.body);
        assert!(!page.body.contains(STAYS), "{}", page.body);
    }
}

#[tokio::test]
async fn outcomes_of_consents_are_counted() {
    let harness = ConsentHarness::new().await;
    let counted = || {
        let lines = harness.logged();
        let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let embedded = lines.iter().filter(|line| line.get("_aws").is_some());
        ["ConsentRecorded", "ConsentRefused", "ConsentRejected"]
            .map(|name| embedded.clone().filter(|line| line[name] == json!(1.0)).count())
    };
    let link = harness.invite("Contoso", None).await;
    let mut browser = harness.browser();
    let declined = browser.decide(&link, CONTOSO, ADMIN, Decision::Cancel).await;
    browser.get(&declined).await.says(403, "You have declined");
    assert_eq!(counted(), [0, 1, 0]);
    let mut other = harness.browser();
    let forged = other.decide(&link, CONTOSO, ADMIN, Decision::Accept).await.replace(CONTOSO, FABRIKAM);
    other.get(&forged).await.says(403, "not the tenant that was invited");
    assert_eq!(counted(), [0, 1, 1]);
    harness.browser().walk(&link, CONTOSO, ADMIN).await.says(200, "can read your incidents");
    assert_eq!(counted(), [1, 1, 1]);
}

#[tokio::test]
async fn secret_that_is_not_filled_is_no_failure_of_the_release() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    harness.backends.double.account().set_secret(crate::backends::SECRET, &json!("canary"));
    let page = request(&harness.app, "POST", &link, None, &[("sec-fetch-site", "same-origin")]).await;
    assert_eq!((page.status, page.title()), (500, "Something went wrong here"));
    assert!(!page.body.contains("canary") && !page.body.contains("put-secret-value"), "{}", page.body);
    let logged = harness.logged();
    assert!(
        logged.contains("CredentialUnusable") && logged.contains("aws secretsmanager put-secret-value"),
        "{logged}"
    );
    assert!(!logged.contains("InternalFailure") && !logged.contains("canary"), "{logged}");
}
