//! Validation of the ID token: the user who signed in, and the user's tenant.
//!
//! The token is validated in full, by Microsoft's rules for multi-tenant applications: the issuer template of the signing
//! key, the token's issuer and its `tid` must agree ("Access tokens in the Microsoft identity platform", section
//! "Validate the issuer").

use std::fmt;

use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::Value;

use super::{MAX_CLOCK_SKEW, jwks::SigningKey};
use crate::{
    error::Error,
    microsoft::{Cloud, IncidentApi},
    tenant::{PERSONAL_ACCOUNTS, TenantId},
    text::if_readable,
};

/// Template identifiers of the directory roles that may consent to application permissions of any API.
const MAY_CONSENT_TO_ALL: [&str; 2] = [
    // Global Administrator, Privileged Role Administrator.
    "62e90394-69f5-4237-9190-012177145e10",
    "e8611ab8-c189-46e8-94e1-60213ab1f814",
];

/// Template identifiers of the directory roles that may consent to application permissions of any API except Graph.
const MAY_CONSENT_EXCEPT_GRAPH: [&str; 2] = [
    // Cloud Application Administrator, Application Administrator.
    "158c047a-c907-4556-b7ef-446551a6b5f7",
    "9b895d92-2cd3-44c7-9d02-a6ac2d5ea5c3",
];

/// The values that an ID token must carry.
#[derive(Clone, Copy)]
pub struct ExpectedIdToken<'a> {
    /// The client id of our application, the only audience.
    pub client_id: &'a str,
    /// The nonce of the authorization request.
    pub nonce: &'a str,
}

/// The user whom a valid ID token names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedInUser {
    /// The directory that the user belongs to.
    pub tenant_id: TenantId,
    /// The identifier of the user's object in that directory.
    pub object_id: String,
    /// The name that the directory shows. It is not unique and must not decide anything.
    pub name: Option<String>,
    /// Template identifiers of the user's directory roles (`wids`), in lower case. Empty if the token has none.
    pub directory_roles: Vec<String>,
}

impl SignedInUser {
    /// True if the user's directory roles allow consent to application permissions of `api`. `false` may only mean that
    /// the token has no `wids`.
    pub fn may_consent_to(&self, api: IncidentApi) -> bool {
        let except_graph: &[&str] = match api {
            IncidentApi::Graph => &[],
            IncidentApi::Defender => &MAY_CONSENT_EXCEPT_GRAPH,
        };
        let may = |role: &String| MAY_CONSENT_TO_ALL.iter().chain(except_graph).any(|known| role == known);
        self.directory_roles.iter().any(may)
    }
}

/// The reason why no user is signed in.
#[derive(Clone, Debug, PartialEq)]
pub enum SignInError {
    /// The directory did not issue this ID token to us for this consent attempt.
    NotValid,
    /// The account is a personal one and belongs to no organisation.
    PersonalAccount,
    /// A call to Microsoft failed.
    Failed(Error),
}

impl From<Error> for SignInError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl fmt::Display for SignInError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotValid => f.write_str("the ID token is not valid"),
            Self::PersonalAccount => f.write_str("the account is a personal one"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

/// The claims that are used. A list as `aud` is refused, because we are the only audience. The names of the user prove
/// nothing, so that one that is odd in form counts as absent. So does a directory role.
#[derive(Deserialize)]
struct IdTokenClaims {
    iss: String,
    aud: String,
    azp: Option<String>,
    exp: i64,
    nbf: i64,
    iat: i64,
    nonce: String,
    tid: String,
    oid: String,
    #[serde(default, deserialize_with = "if_readable")]
    preferred_username: Option<String>,
    #[serde(default, deserialize_with = "if_readable")]
    name: Option<String>,
    #[serde(default, deserialize_with = "if_readable")]
    wids: Option<Vec<Value>>,
}

/// Validates signature, issuer, audience, times and nonce of an ID token.
pub(super) fn validate(
    id_token: &str,
    key: &SigningKey,
    cloud: Cloud,
    expected: &ExpectedIdToken<'_>,
    now: Timestamp,
) -> Result<SignedInUser, SignInError> {
    let claims = verify_signature(id_token, key, expected.client_id)?;
    let tenant_id = TenantId::from_guid(&claims.tid).map_err(|_| SignInError::NotValid)?;
    let issuer = cloud.id_token_issuer(&tenant_id);
    let issued_by_key = key.issuer.as_ref().is_none_or(|template| fill_tenant_template(template, &tenant_id) == issuer);
    let for_us = claims.aud == expected.client_id && claims.azp.as_ref().is_none_or(|azp| azp == expected.client_id);
    let valid = claims.iss == issuer
        && issued_by_key
        && is_in_time(&claims, now)
        && for_us
        && claims.nonce == expected.nonce
        && !claims.oid.is_empty();
    if !valid {
        return Err(SignInError::NotValid);
    }
    if tenant_id == PERSONAL_ACCOUNTS {
        return Err(SignInError::PersonalAccount);
    }
    let not_blank = |name: &String| !name.trim().is_empty();
    Ok(SignedInUser {
        tenant_id,
        object_id: claims.oid,
        name: claims.preferred_username.filter(not_blank).or(claims.name.filter(not_blank)),
        directory_roles: claims.wids.iter().flatten().filter_map(Value::as_str).map(str::to_ascii_lowercase).collect(),
    })
}

fn verify_signature(id_token: &str, key: &SigningKey, client_id: &str) -> Result<IdTokenClaims, SignInError> {
    let not_valid = |_| SignInError::NotValid;
    let decoding_key = DecodingKey::from_rsa_components(&key.n, &key.e).map_err(not_valid)?;
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud"]);
    validation.set_audience(&[client_id]);
    // The library reads the system's clock. `is_in_time` compares the times with ours.
    validation.validate_exp = false;
    Ok(jsonwebtoken::decode::<IdTokenClaims>(id_token, &decoding_key, &validation).map_err(not_valid)?.claims)
}

fn is_in_time(claims: &IdTokenClaims, now: Timestamp) -> bool {
    let at = |seconds| Timestamp::from_second(seconds).ok();
    let (Some(not_before), Some(issued), Some(expires)) = (at(claims.nbf), at(claims.iat), at(claims.exp)) else {
        return false;
    };
    not_before.duration_since(now) <= MAX_CLOCK_SKEW
        && issued.duration_since(now) <= MAX_CLOCK_SKEW
        && now.duration_since(expires) < MAX_CLOCK_SKEW
}

/// An issuer template with its `{tenantid}` replaced. The placeholder may be written in any letter case.
fn fill_tenant_template(template: &str, tenant: &TenantId) -> String {
    const PLACEHOLDER: &str = "{tenantid}";
    match template.to_ascii_lowercase().find(PLACEHOLDER) {
        Some(at) => format!("{}{tenant}{}", &template[..at], &template[at + PLACEHOLDER.len()..]),
        None => template.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use aws_lc_rs::{
        rand::SystemRandom,
        rsa::{KeyPair, KeySize},
        signature::{KeyPair as _, RSA_PKCS1_SHA256},
    };
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    use serde_json::json;

    use super::*;

    const TENANT: &str = "11111111-2222-4333-8444-abcdefabcdef";
    const CLIENT: &str = "99999999-2222-4333-8444-abcdefabcdef";
    const NOW: i64 = 1_795_000_000;
    const EXPECTED: ExpectedIdToken<'_> = ExpectedIdToken { client_id: CLIENT, nonce: "n" };

    static OURS: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate(KeySize::Rsa2048).unwrap());
    static OTHER: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate(KeySize::Rsa2048).unwrap());

    fn key(issuer: Option<&str>) -> SigningKey {
        let public = OURS.public_key();
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        SigningKey {
            kid: "k".into(),
            kty: "RSA".into(),
            purpose: None,
            n: encode(public.modulus().big_endian_without_leading_zero()),
            e: encode(public.exponent().big_endian_without_leading_zero()),
            issuer: issuer.map(str::to_owned),
        }
    }

    fn claims() -> Value {
        json!({"iss": format!("https://login.microsoftonline.com/{TENANT}/v2.0"), "aud": CLIENT, "exp": NOW + 3600,
               "nbf": NOW, "iat": NOW, "nonce": "n", "tid": TENANT, "oid": "person", "preferred_username": "a@b.example",
               "wids": ["62E90394-69f5-4237-9190-012177145e10"], "ver": "2.0"})
    }

    fn signed(header: &Value, claims: &Value, signer: &KeyPair) -> String {
        let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encode(header), encode(claims));
        let mut signature = vec![0; signer.public_modulus_len()];
        signer.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature).unwrap();
        format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }

    fn check(claims: &Value, issuer: Option<&str>) -> Result<SignedInUser, SignInError> {
        let token = signed(&json!({"alg": "RS256", "typ": "JWT", "kid": "k"}), claims, &OURS);
        let now = Timestamp::from_second(NOW).unwrap();
        validate(&token, &key(issuer), Cloud::Commercial, &EXPECTED, now)
    }

    fn changed(name: &str, value: Value) -> Value {
        let mut claims = claims();
        claims[name] = value;
        claims
    }

    #[test]
    fn valid_token_names_the_user() {
        let user = check(&claims(), Some("https://login.microsoftonline.com/{TenantId}/v2.0")).unwrap();
        assert_eq!(user.tenant_id.to_string(), TENANT);
        assert_eq!((user.object_id.as_str(), user.name.as_deref()), ("person", Some("a@b.example")));
        assert!(user.may_consent_to(IncidentApi::Graph));
    }

    #[test]
    fn each_wrong_claim_is_refused() {
        for (name, value) in [
            ("iss", json!("https://login.microsoftonline.com/22222222-2222-4333-8444-abcdefabcdef/v2.0")),
            ("iss", json!(format!("https://login.microsoftonline.us/{TENANT}/v2.0"))),
            ("iss", json!(format!("https://sts.windows.net/{TENANT}/"))),
            ("aud", json!("another")),
            ("aud", json!([CLIENT, "another"])),
            ("azp", json!("another")),
            ("exp", json!(NOW - 300)),
            ("exp", json!(i64::MAX)),
            ("nbf", json!(NOW + 301)),
            ("iat", json!(NOW + 301)),
            ("nonce", json!("m")),
            ("nonce", Value::Null),
            ("tid", json!("22222222-2222-4333-8444-abcdefabcdef")),
            ("tid", json!("contoso.example")),
            ("tid", Value::Null),
            ("oid", json!("")),
            ("oid", Value::Null),
        ] {
            let claims = changed(name, value);
            assert_eq!(check(&claims, None), Err(SignInError::NotValid), "{claims}");
        }
        for within_bounds in
            [changed("exp", json!(NOW - 299)), changed("nbf", json!(NOW + 300)), changed("azp", json!(CLIENT))]
        {
            assert!(check(&within_bounds, None).is_ok(), "{within_bounds}");
        }
    }

    #[test]
    fn odd_name_or_role_costs_only_itself() {
        let role = "62e90394-69f5-4237-9190-012177145e10";
        for (name, value, shown, may_consent) in [
            ("preferred_username", json!(7), None, true),
            ("name", json!(["x"]), Some("a@b.example"), true),
            ("wids", json!([7, null, role, {}]), Some("a@b.example"), true),
            ("wids", json!(role), Some("a@b.example"), false),
            ("wids", Value::Null, Some("a@b.example"), false),
        ] {
            let user = check(&changed(name, value.clone()), None).unwrap();
            assert_eq!(
                (user.name.as_deref(), user.may_consent_to(IncidentApi::Graph)),
                (shown, may_consent),
                "{name}: {value}"
            );
        }
    }

    #[test]
    fn key_signs_only_for_its_own_issuer() {
        let own = format!("https://login.microsoftonline.com/{TENANT}/v2.0");
        assert!(check(&claims(), Some(&own)).is_ok());
        for other in ["https://login.microsoftonline.com/22222222-2222-4333-8444-abcdefabcdef/v2.0", "{tenantid}", ""] {
            assert_eq!(check(&claims(), Some(other)), Err(SignInError::NotValid), "{other}");
        }
    }

    #[test]
    fn personal_account_has_its_own_error() {
        let mut claims = changed("tid", json!(PERSONAL_ACCOUNTS));
        claims["iss"] = json!(format!("https://login.microsoftonline.com/{PERSONAL_ACCOUNTS}/v2.0"));
        assert_eq!(check(&claims, None), Err(SignInError::PersonalAccount));
    }

    #[test]
    fn only_the_signature_of_the_directory_is_accepted() {
        let now = Timestamp::from_second(NOW).unwrap();
        let header = json!({"alg": "RS256", "kid": "k"});
        let whole = signed(&header, &claims(), &OURS);
        let (message, signature) = whole.rsplit_once('.').unwrap();
        let body = message.split_once('.').unwrap().1;
        let none = BASE64_URL_SAFE_NO_PAD.encode(json!({"alg": "none"}).to_string());
        for token in [
            signed(&header, &claims(), &OTHER),
            signed(&json!({"alg": "HS256", "kid": "k"}), &claims(), &OURS),
            signed(&json!({"alg": "PS256", "kid": "k"}), &claims(), &OURS),
            format!("{none}.{body}."),
            format!("{message}."),
            format!("{message}.{}", signature.to_lowercase()),
            message.to_owned(),
            String::new(),
        ] {
            let outcome = validate(&token, &key(None), Cloud::Commercial, &EXPECTED, now);
            assert_eq!(outcome, Err(SignInError::NotValid), "{token}");
        }
    }

    #[test]
    fn roles_that_may_consent_differ_by_incident_api() {
        let with = |roles: &[&str]| SignedInUser {
            tenant_id: TENANT.parse().unwrap(),
            object_id: "o".into(),
            name: None,
            directory_roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        };
        let application_administrator = with(&[MAY_CONSENT_EXCEPT_GRAPH[1]]);
        assert!(application_administrator.may_consent_to(IncidentApi::Defender));
        assert!(!application_administrator.may_consent_to(IncidentApi::Graph));
        assert!(with(&["x", MAY_CONSENT_TO_ALL[1]]).may_consent_to(IncidentApi::Graph));
        assert!(!with(&["b79fbf4d-3ef9-4689-8143-76b194e85509"]).may_consent_to(IncidentApi::Defender));
    }
}
