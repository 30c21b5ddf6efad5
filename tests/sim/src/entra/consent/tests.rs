use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    CallbackErrors, Decision, Host,
    entra::keys::{Jwt, s256},
    http::decode_pairs,
    testing::{CLIENT, CONTOSO, FABRIKAM, REDIRECT, Rig, SECRET, rig},
};

const ADMIN: &str = "admin@contoso.example";

fn consent_url(rig: &Rig, authority: &str, resource: &str) -> String {
    format!(
        "{}/{authority}/v2.0/adminconsent?client_id={CLIENT}&redirect_uri={REDIRECT}&scope=https://{resource}/.default&state=s%26t",
        rig.sim.entra_url()
    )
}

fn callback(location: &str) -> BTreeMap<String, String> {
    let query = location.strip_prefix(REDIRECT).unwrap().strip_prefix('?').unwrap();
    decode_pairs(query).unwrap().into_iter().collect()
}

#[tokio::test]
async fn consent_grants_the_requested_roles_of_the_resource() {
    let rig = rig().await;
    let url = consent_url(&rig, CONTOSO, "graph.microsoft.com");
    let back = callback(&rig.sim.consent(&url, CONTOSO, ADMIN, Decision::Accept).unwrap());
    assert_eq!(back["admin_consent"], "True");
    assert_eq!((back["tenant"].as_str(), back["state"].as_str()), (CONTOSO, "s&t"));
    assert_eq!(back["scope"], "https://graph.microsoft.com/.default");
    assert_eq!(rig.sim.granted(CONTOSO, CLIENT), Some(vec!["SecurityIncident.Read.All".to_owned()]));
}

#[tokio::test]
async fn declined_consent_has_three_forms_and_grants_nothing() {
    let rig = rig().await;
    let url = consent_url(&rig, CONTOSO, "graph.microsoft.com");
    for (shape, error) in [
        (CallbackErrors::ConsentRequired, "consent_required"),
        (CallbackErrors::PermissionDenied, "permission_denied"),
        (CallbackErrors::AccessDenied, "access_denied"),
    ] {
        rig.sim.update_tenant(CONTOSO, |tenant| tenant.callback_errors = shape);
        let back = callback(&rig.sim.consent(&url, CONTOSO, ADMIN, Decision::Cancel).unwrap());
        assert_eq!((back["error"].as_str(), back["state"].as_str()), (error, "s&t"));
        assert_eq!(back.contains_key("admin_consent"), shape == CallbackErrors::ConsentRequired);
    }
    assert_eq!(rig.sim.granted(CONTOSO, CLIENT), None);
}

#[tokio::test]
async fn missing_resource_and_foreign_account_are_refused() {
    let rig = rig().await;
    rig.sim.update_tenant(CONTOSO, |tenant| tenant.defender_licensed = false);
    let url = consent_url(&rig, CONTOSO, "api.security.microsoft.com");
    let back = callback(&rig.sim.consent(&url, CONTOSO, ADMIN, Decision::Accept).unwrap());
    assert!(back["error_description"].starts_with("AADSTS650052"));
    let page = rig.sim.consent(&url, FABRIKAM, "admin@fabrikam.example", Decision::Accept).unwrap_err();
    assert!(page.contains("AADSTS50020"), "{page}");
    let page = rig.sim.consent(&consent_url(&rig, "common", "graph.microsoft.com"), CONTOSO, ADMIN, Decision::Accept);
    assert!(page.is_err());
    let foreign = url.replace("partner.example.com", "evil.example");
    assert!(rig.sim.consent(&foreign, CONTOSO, ADMIN, Decision::Accept).unwrap_err().contains("AADSTS50011"));
}

#[tokio::test]
async fn person_without_a_directory_role_cannot_consent() {
    let rig = rig().await;
    let url = consent_url(&rig, "organizations", "graph.microsoft.com");
    let back = rig.sim.consent(&url, CONTOSO, "user@contoso.example", Decision::Accept).unwrap();
    assert_eq!(callback(&back)["error"], "consent_required");
    assert_eq!(rig.sim.granted(CONTOSO, CLIENT), None);
}

#[tokio::test]
async fn consent_pages_work_for_a_browser_with_cookies() {
    let rig = rig().await;
    let picker = rig.send(rig.http.get(consent_url(&rig, CONTOSO, "graph.microsoft.com"))).await;
    assert!(picker.text.contains(r#"data-user="admin@contoso.example""#));
    let value = |text: &str, before: &str| {
        let start = text.find(before).unwrap() + before.len();
        text[start..].split('"').next().unwrap().to_owned()
    };
    let flow = value(&picker.text, r#"name="flow" value=""#);
    let user = format!("{CONTOSO}/{}", value(&picker.text, &format!(r#"value="{CONTOSO}/"#)));
    let login = format!("{}/login", rig.sim.entra_url());
    let page = rig.send(rig.http.post(login).form(&[("flow", &flow), ("user", &user)])).await;
    assert!(page.text.contains(r#"id="accept""#) && page.text.contains(r#"id="cancel""#));
    assert!(page.text.contains("Partner &lt;b&gt;"));
    let cookie = page.header("set-cookie").split(';').next().unwrap().to_owned();
    let consent = format!("{}/consent", rig.sim.entra_url());
    let form = [("flow", flow.as_str()), ("decision", "accept")];
    let stranger = rig.send(rig.http.post(&consent).form(&form)).await;
    assert_eq!(stranger.status, 400);
    let back = rig.send(rig.http.post(&consent).header("cookie", &cookie).form(&form)).await;
    assert_eq!((back.status, callback(back.header("location"))["tenant"].as_str()), (302, CONTOSO));
    let again = rig.send(rig.http.post(&consent).header("cookie", &cookie).form(&form)).await;
    assert_eq!(again.status, 400);
    assert_eq!(rig.sim.count(Host::Entra, CONTOSO), 1);
}

#[tokio::test]
async fn sign_in_issues_a_code_that_works_once() {
    let rig = rig().await;
    let verifier = "v".repeat(43);
    let url = format!(
        "{}/organizations/oauth2/v2.0/authorize?client_id={CLIENT}&response_type=code&redirect_uri={REDIRECT}\
         &response_mode=query&scope=openid%20profile&state=abc&nonce=n1&code_challenge={}&code_challenge_method=S256\
         &prompt=select_account",
        rig.sim.entra_url(),
        s256(&verifier)
    );
    let sign_in = || callback(&rig.sim.sign_in(&url, CONTOSO, ADMIN).unwrap());
    let redeem = async |code: &str, verifier: &str, redirect: &str, authority: &str| {
        let form = [
            ("grant_type", "authorization_code"),
            ("client_id", CLIENT),
            ("client_secret", SECRET),
            ("code", code),
            ("redirect_uri", redirect),
            ("code_verifier", verifier),
        ];
        rig.token(authority, &form).await.json()
    };
    let back = sign_in();
    assert_eq!(back["state"], "abc");
    let body = redeem(&back["code"], &verifier, REDIRECT, "organizations").await;
    let jwt = Jwt::parse(body["id_token"].as_str().unwrap()).unwrap();
    assert_eq!((jwt.claim("aud"), jwt.claim("nonce"), jwt.claim("tid")), (Some(CLIENT), Some("n1"), Some(CONTOSO)));
    assert_eq!(jwt.claim("iss"), Some(&*format!("https://login.microsoftonline.com/{CONTOSO}/v2.0")));
    assert_eq!(jwt.claims["wids"][0], crate::GLOBAL_ADMINISTRATOR);
    let codes = |body: serde_json::Value| body["error_codes"].clone();
    assert_eq!(codes(redeem(&back["code"], &verifier, REDIRECT, "organizations").await), json!([54_005]));
    assert_eq!(codes(redeem(&sign_in()["code"], &"w".repeat(43), REDIRECT, "organizations").await), json!([501_481]));
    assert_eq!(codes(redeem(&sign_in()["code"], &verifier, "https://x", "organizations").await), json!([500_112]));
    assert_eq!(codes(redeem(&sign_in()["code"], &verifier, REDIRECT, FABRIKAM).await), json!([700_005]));
    assert_eq!(
        rig.sim.granted(CONTOSO, CLIENT),
        Some(Vec::new()),
        "signing in makes a service principal without roles"
    );
}
