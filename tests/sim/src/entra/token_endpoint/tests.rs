use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::{
    App, FederatedCredential, Propagation,
    entra::{
        client_authentication::JWT_BEARER,
        keys::{Jwt, Keys, Thumbprints},
    },
    testing::{CLIENT, CONTOSO, FABRIKAM, HOME, REDIRECT, Rig, SECRET, rig},
};

const SCOPE: &str = "https://graph.microsoft.com/.default";

fn form<'a>() -> Vec<(&'a str, &'a str)> {
    vec![("grant_type", "client_credentials"), ("client_id", CLIENT), ("client_secret", SECRET), ("scope", SCOPE)]
}

fn with<'a>(name: &str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    form().into_iter().map(|(known, old)| (known, if known == name { value } else { old })).collect()
}

fn without<'a>(name: &str) -> Vec<(&'a str, &'a str)> {
    form().into_iter().filter(|(known, _)| *known != name).collect()
}

async fn refused(rig: &Rig, authority: &str, form: &[(&str, &str)], status: u16, error: &str, code: u32) {
    let response = rig.token(authority, form).await;
    let body = response.json();
    assert_eq!((response.status, &body["error"], &body["error_codes"]), (status, &json!(error), &json!([code])));
    let description = body["error_description"].as_str().unwrap();
    assert!(description.starts_with(&format!("AADSTS{code}: ")), "{description}");
    assert!(description.contains("\r\nTrace ID: ") && description.contains("\r\nTimestamp: "), "{description}");
}

#[tokio::test]
async fn token_contains_only_the_roles_of_its_resource() {
    let rig = rig().await;
    rig.sim.grant(CONTOSO, CLIENT, &["SecurityIncident.Read.All", "Incident.Read.All"]);
    let response = rig.token(CONTOSO, &form()).await;
    assert_eq!(response.header("cache-control"), "no-store, no-cache");
    let body = response.json();
    let lifetime = body["expires_in"].as_i64().unwrap();
    assert!((3599..5400).contains(&lifetime));
    let jwt = Jwt::parse(body["access_token"].as_str().unwrap()).unwrap();
    assert_eq!(jwt.claims["roles"], json!(["SecurityIncident.Read.All"]));
    assert_eq!(jwt.claim("aud"), Some("https://graph.microsoft.com"));
    assert_eq!(jwt.claim("iss"), Some(&*format!("https://sts.windows.net/{CONTOSO}/")));
    assert_eq!((jwt.claim("tid"), jwt.claim("appid"), jwt.claim("ver")), (Some(CONTOSO), Some(CLIENT), Some("1.0")));
    let by_domain = rig.token("contoso.example", &form()).await;
    assert_eq!(by_domain.status, 200);
}

#[tokio::test]
async fn each_invalid_token_request_has_its_aadsts_number() {
    let rig = rig().await;
    rig.sim.grant(CONTOSO, CLIENT, &["SecurityIncident.Read.All"]);
    let mut resource = form();
    resource.push(("resource", "https://graph.microsoft.com"));
    let mut unknown = form();
    unknown.push(("colour", "blue"));
    let mut twice = form();
    twice.push(("scope", SCOPE));
    let both = format!("{SCOPE} https://api.security.microsoft.com/.default");
    refused(&rig, CONTOSO, &resource, 400, "invalid_request", 901_002).await;
    refused(&rig, CONTOSO, &unknown, 400, "invalid_request", 9_002_313).await;
    refused(&rig, CONTOSO, &twice, 400, "invalid_request", 9_000_411).await;
    refused(&rig, CONTOSO, &without("grant_type"), 400, "invalid_request", 900_144).await;
    refused(&rig, CONTOSO, &without("scope"), 400, "invalid_request", 900_144).await;
    refused(&rig, CONTOSO, &without("client_secret"), 401, "invalid_client", 7_000_218).await;
    refused(&rig, CONTOSO, &with("client_secret", "s3cr~t "), 401, "invalid_client", 7_000_215).await;
    refused(&rig, CONTOSO, &with("grant_type", "password"), 400, "unsupported_grant_type", 70_003).await;
    refused(&rig, CONTOSO, &with("client_id", FABRIKAM), 400, "unauthorized_client", 700_016).await;
    refused(&rig, CONTOSO, &with("scope", "https://graph.microsoft.com"), 400, "invalid_scope", 1_002_012).await;
    refused(&rig, CONTOSO, &with("scope", &both), 400, "invalid_request", 700_022).await;
    refused(&rig, CONTOSO, &with("scope", "https://other.example/.default"), 400, "invalid_resource", 500_011).await;
    refused(&rig, FABRIKAM, &form(), 401, "invalid_client", 7_000_229).await;
    refused(&rig, "common", &form(), 400, "invalid_request", 50_059).await;
    refused(&rig, "organizations", &form(), 400, "invalid_request", 50_059).await;
    refused(&rig, CLIENT, &form(), 400, "invalid_request", 90_002).await;
    refused(&rig, "nonsense", &form(), 400, "invalid_request", 900_023).await;
    rig.sim.disable_service_principal(CONTOSO, CLIENT);
    refused(&rig, CONTOSO, &form(), 400, "unauthorized_client", 7_000_112).await;
    rig.sim.expire_client_secret(CLIENT, SECRET);
    refused(&rig, CONTOSO, &form(), 401, "invalid_client", 7_000_222).await;
    let url = format!("{}/{CONTOSO}/oauth2/v2.0/token", rig.sim.entra_url());
    let json = rig.send(rig.http.post(url).json(&json!({"grant_type": "client_credentials"}))).await;
    assert_eq!(json.json()["error_codes"], json!([900_144]));
}

#[tokio::test]
async fn basic_credentials_have_to_be_form_encoded() {
    let rig = rig().await;
    rig.sim.grant(CONTOSO, CLIENT, &["SecurityIncident.Read.All"]);
    let url = format!("{}/{CONTOSO}/oauth2/v2.0/token", rig.sim.entra_url());
    let form = [("grant_type", "client_credentials"), ("scope", SCOPE)];
    let encoded = crate::http::encode(SECRET);
    let right = rig.send(rig.http.post(&url).basic_auth(CLIENT, Some(encoded)).form(&form)).await;
    assert_eq!(right.status, 200, "{}", right.text);
    let raw = rig.send(rig.http.post(&url).basic_auth(CLIENT, Some(SECRET)).form(&form)).await;
    assert_ne!(raw.status, 200);
}

#[tokio::test]
async fn consent_propagates_as_the_tenant_is_set() {
    let rig = rig().await;
    rig.sim.update_tenant(CONTOSO, |tenant| {
        tenant.propagation = Propagation { refused: 1, code: 700_016, roleless: 1 };
    });
    let url = format!(
        "{}/{CONTOSO}/v2.0/adminconsent?client_id={CLIENT}&redirect_uri={REDIRECT}&scope={SCOPE}&state=x",
        rig.sim.entra_url()
    );
    rig.sim.consent(&url, CONTOSO, "admin@contoso.example", crate::Decision::Accept).unwrap();
    refused(&rig, CONTOSO, &form(), 400, "unauthorized_client", 700_016).await;
    let roles = |response: crate::testing::Response| {
        Jwt::parse(response.json()["access_token"].as_str().unwrap()).unwrap().claims.get("roles").cloned()
    };
    assert_eq!(roles(rig.token(CONTOSO, &form()).await), None);
    assert_eq!(roles(rig.token(CONTOSO, &form()).await), Some(json!(["SecurityIncident.Read.All"])));
}

fn assertion(keys: &Keys, header: &Value, claims: &Value) -> String {
    keys.current().sign(header, claims.as_object().unwrap())
}

#[tokio::test]
async fn every_part_of_a_client_assertion_is_checked() {
    let rig = rig().await;
    let keys = Keys::new().unwrap();
    let Thumbprints { sha1: x5t, sha256: x5t_s256 } = Thumbprints::of(keys.current().certificate());
    rig.sim.register_app(App {
        client_id: CLIENT.into(),
        home_tenant_id: HOME.into(),
        certificates: vec![keys.current().certificate().to_vec()],
        ..App::default()
    });
    rig.sim.grant(CONTOSO, CLIENT, &["SecurityIncident.Read.All"]);
    let now = rig.sim.clock().now().as_second();
    let audience = format!("https://login.microsoftonline.com/{CONTOSO}/oauth2/v2.0/token");
    let header = json!({"alg": "RS256", "typ": "JWT", "x5t#S256": x5t_s256});
    let claims = json!({"aud": audience, "iss": CLIENT, "sub": CLIENT, "jti": "1", "nbf": now, "exp": now + 300});
    let changed = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        assertion(&keys, &header, &claims)
    };
    let form = |assertion: String| {
        let mut form = without("client_secret");
        form.push(("client_assertion_type", JWT_BEARER));
        form.push(("client_assertion", assertion.leak()));
        form
    };
    let good = form(assertion(&keys, &header, &claims));
    let response = rig.token(CONTOSO, &good).await;
    assert_eq!(response.status, 200, "{}", response.text);
    assert_eq!(Jwt::parse(response.json()["access_token"].as_str().unwrap()).unwrap().claim("appidacr"), Some("2"));
    refused(&rig, CONTOSO, &good, 401, "invalid_client", 50_013).await;
    let legacy = json!({"alg": "RS256", "typ": "JWT", "x5t": x5t});
    let mut fresh = claims.clone();
    fresh["jti"] = json!("2");
    assert_eq!(rig.token(CONTOSO, &form(assertion(&keys, &legacy, &fresh))).await.status, 200);
    for (bad, code) in [
        (changed("aud", json!("https://login.microsoftonline.com/common/oauth2/v2.0/token")), 700_023),
        (changed("sub", json!("x")), 700_021),
        (changed("exp", json!(now - 301)), 700_024),
        (changed("nbf", json!(now + 301)), 700_024),
        (assertion(&keys, &json!({"alg": "RS256", "x5t#S256": "x"}), &claims), 700_027),
        (assertion(&keys, &json!({"alg": "PS256", "x5t#S256": x5t_s256}), &claims), 700_027),
        (assertion(&keys, &json!({"alg": "none", "x5t#S256": x5t_s256}), &claims), 5_002_723),
        ("nonsense".to_owned(), 50_027),
    ] {
        refused(&rig, CONTOSO, &form(bad), 401, "invalid_client", code).await;
    }
}

#[tokio::test]
async fn federated_token_authenticates_the_app() {
    let rig = rig().await;
    let keys = Keys::new().unwrap();
    rig.sim.register_app(App {
        client_id: CLIENT.into(),
        home_tenant_id: HOME.into(),
        federated_credentials: vec![FederatedCredential {
            issuer: "https://x.tokens.sts.global.api.aws".into(),
            subject: "arn:aws:iam::123456789012:role/Mandate".into(),
            audience: "api://AzureADTokenExchange".into(),
            jwks: keys.jwks(""),
        }],
        ..App::default()
    });
    rig.sim.grant(CONTOSO, CLIENT, &["SecurityIncident.Read.All"]);
    let exp = rig.sim.clock().now().checked_add(SignedDuration::from_mins(5)).unwrap().as_second();
    let token = |issuer: &str, subject: &str, audience: &str| {
        let header = json!({"alg": "RS256", "kid": keys.current().kid});
        let token = assertion(&keys, &header, &json!({"iss": issuer, "sub": subject, "aud": audience, "exp": exp}));
        let mut form = without("client_secret");
        form.push(("client_assertion_type", JWT_BEARER));
        form.push(("client_assertion", token.leak()));
        form
    };
    let (issuer, subject) = ("https://x.tokens.sts.global.api.aws", "arn:aws:iam::123456789012:role/Mandate");
    let audience = "api://AzureADTokenExchange";
    assert_eq!(rig.token(CONTOSO, &token(issuer, subject, audience)).await.status, 200);
    refused(&rig, CONTOSO, &token("https://y", subject, audience), 401, "invalid_client", 700_211).await;
    refused(&rig, CONTOSO, &token(issuer, subject, "x"), 401, "invalid_client", 700_212).await;
    refused(&rig, CONTOSO, &token(issuer, &subject.to_lowercase(), audience), 401, "invalid_client", 700_213).await;
}
