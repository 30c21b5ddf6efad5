//! Signing a person in at Microsoft: the authorization request, and the ID token that says who it was.
//!
//! Authorization code with PKCE and a nonce (OpenID Connect Core 1.0, RFC 7636). The ID token is validated in full, by the
//! rules that Microsoft gives for applications of many tenants: the key's own issuer template, the token's issuer and its
//! `tid` have to agree ("Access tokens in the Microsoft identity platform", section "Validate the issuer").

use std::fmt;

use aws_lc_rs::digest;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;
use url::Url;

use crate::{
    clock::Clock,
    error::{Call, Error, Result},
    http::{Deadline, HttpClient, send},
    microsoft::{Cloud, Endpoints, IncidentApi},
    tenant::{PERSONAL_ACCOUNTS, TenantId},
    text::Secret,
};

/// How far two clocks may be apart.
const SKEW: SignedDuration = SignedDuration::from_mins(5);

/// How old the directory's keys may become before they are read again.
const JWKS_MAX_AGE: SignedDuration = SignedDuration::from_hours(24);

/// How often a key that is not known may cause the keys to be read again.
const UNKNOWN_KEY_EVERY: SignedDuration = SignedDuration::from_mins(1);

/// Where the keys are when the discovery document does not say.
const KEYS_PATH: &str = "/common/discovery/v2.0/keys";

/// Template identifiers of the directory roles that may consent to application permissions of any API.
const MAY_CONSENT_TO_ALL: [&str; 2] = [
    // Global Administrator, Privileged Role Administrator.
    "62e90394-69f5-4237-9190-012177145e10",
    "e8611ab8-c189-46e8-94e1-60213ab1f814",
];

/// Those that may consent to application permissions of any API but Graph.
const MAY_CONSENT_BESIDE_GRAPH: [&str; 2] = [
    // Cloud Application Administrator, Application Administrator.
    "158c047a-c907-4556-b7ef-446551a6b5f7",
    "9b895d92-2cd3-44c7-9d02-a6ac2d5ea5c3",
];

/// Where a sign-in may take place when no tenant is expected: any organisation, but no personal account.
pub const ANY_ORGANISATION: &str = "organizations";

/// What an authorization request carries.
pub struct AuthorizationRequest<'a> {
    /// [`ANY_ORGANISATION`], or the expected tenant.
    pub authority: &'a str,
    /// Our application.
    pub client_id: &'a str,
    /// Where the browser comes back to.
    pub redirect_uri: &'a str,
    /// What ties the return to the browser.
    pub state: &'a str,
    /// What ties the ID token to this attempt.
    pub nonce: &'a str,
    /// What only we can answer (PKCE).
    pub code_verifier: &'a Secret,
}

/// Who signed in, by a validated ID token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedInUser {
    /// The directory that the person belongs to.
    pub tenant_id: TenantId,
    /// The person's object there.
    pub object_id: String,
    /// The name that the directory shows; not unique, and not for decisions.
    pub name: Option<String>,
    /// Template identifiers of the person's directory roles (`wids`), where the token has them.
    pub directory_roles: Vec<String>,
}

impl SignedInUser {
    /// Whether the person's directory roles allow consent to application permissions of `api`'s API. `false` may
    /// only mean that the token does not say.
    pub fn may_consent_to(&self, api: IncidentApi) -> bool {
        let beside_graph: &[&str] = match api {
            IncidentApi::Graph => &[],
            IncidentApi::Defender => &MAY_CONSENT_BESIDE_GRAPH,
        };
        let may = |role: &String| MAY_CONSENT_TO_ALL.iter().chain(beside_graph).any(|known| role == known);
        self.directory_roles.iter().any(may)
    }
}

/// Why nobody is signed in.
#[derive(Clone, Debug, PartialEq)]
pub enum SignInError {
    /// The ID token is not one that the directory issued to us for this attempt.
    NotValid,
    /// A personal account: it belongs to no organisation.
    PersonalAccount,
    /// The directory's keys could not be had.
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
            Self::PersonalAccount => f.write_str("a personal account"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

/// Sign-in at one cloud's login host.
pub struct SignIn {
    endpoints: Endpoints,
    cloud: Cloud,
    outbound: HttpClient,
    clock: Clock,
    keys: Mutex<Jwks>,
}

#[derive(Default)]
struct Jwks {
    known: Vec<Key>,
    read_at: Option<Timestamp>,
    sought_at: Option<Timestamp>,
}

#[derive(Clone, Deserialize)]
struct Key {
    kid: String,
    kty: String,
    #[serde(rename = "use")]
    purpose: Option<String>,
    n: String,
    e: String,
    issuer: Option<String>,
}

#[derive(Deserialize)]
struct Discovery {
    jwks_uri: Option<String>,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

/// The claims that matter; `aud` as a list is refused, because we are the only audience.
#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    azp: Option<String>,
    exp: i64,
    nbf: i64,
    iat: i64,
    nonce: String,
    tid: String,
    oid: String,
    preferred_username: Option<String>,
    name: Option<String>,
    #[serde(default)]
    wids: Vec<String>,
}

impl SignIn {
    /// Sign-in at the login host of `endpoints`; issuers are those of `cloud`.
    pub fn new(endpoints: Endpoints, cloud: Cloud, outbound: HttpClient, clock: Clock) -> Self {
        Self { endpoints, cloud, outbound, clock, keys: Mutex::default() }
    }

    /// Where the browser is sent to sign in.
    pub fn authorization_url(&self, request: &AuthorizationRequest<'_>) -> Url {
        let mut url = self.endpoints.authority.join(&format!("/{}/oauth2/v2.0/authorize", request.authority));
        url.query_pairs_mut()
            .append_pair("client_id", request.client_id)
            .append_pair("response_type", "code")
            .append_pair("redirect_uri", request.redirect_uri)
            .append_pair("response_mode", "query")
            .append_pair("scope", "openid profile")
            .append_pair("state", request.state)
            .append_pair("nonce", request.nonce)
            .append_pair("code_challenge", &code_challenge(request.code_verifier))
            .append_pair("code_challenge_method", "S256")
            .append_pair("prompt", "select_account");
        url
    }

    /// Who it was, if the ID token is valid, was issued to `client_id` and carries `nonce`.
    pub async fn validate_id_token(
        &self,
        id_token: &Secret,
        client_id: &str,
        nonce: &str,
        deadline: Deadline,
    ) -> std::result::Result<SignedInUser, SignInError> {
        let header = jsonwebtoken::decode_header(id_token.expose()).map_err(|_| SignInError::NotValid)?;
        let kid = header.kid.filter(|_| header.alg == Algorithm::RS256).ok_or(SignInError::NotValid)?;
        let key = self.key(&kid, deadline).await?.ok_or(SignInError::NotValid)?;
        validated(id_token.expose(), &key, self.cloud, client_id, nonce, self.clock.now())
    }

    /// The directory's key of this name. One reading at a time; whoever waited for it finds what it brought.
    async fn key(&self, kid: &str, deadline: Deadline) -> Result<Option<Key>> {
        let mut keys = self.keys.lock().await;
        let now = self.clock.now();
        let within = |at: Option<Timestamp>, span| at.is_some_and(|at| now.duration_since(at) < span);
        let find = |keys: &Jwks| keys.known.iter().find(|key| key.kid == kid).cloned();
        let found = find(&keys);
        if found.is_some() && within(keys.read_at, JWKS_MAX_AGE) {
            return Ok(found);
        }
        if keys.read_at.is_some() && within(keys.sought_at, UNKNOWN_KEY_EVERY) {
            return Ok(found);
        }
        keys.sought_at = Some(now);
        match self.read_keys(deadline).await {
            Ok(known) => {
                keys.known = known;
                keys.read_at = Some(now);
                Ok(find(&keys))
            }
            // Old keys are better than none: what they verify was signed by the directory.
            Err(error) => found.map(Some).ok_or(error),
        }
    }

    async fn read_keys(&self, deadline: Deadline) -> Result<Vec<Key>> {
        let authority = &self.endpoints.authority;
        let url = authority.join(&format!("/{ANY_ORGANISATION}/v2.0/.well-known/openid-configuration"));
        let answer = send(self.outbound.get(url), Call::ReadDiscovery, deadline).await?;
        if answer.status() != StatusCode::OK {
            return Err(answer.unexpected_status());
        }
        let jwks_uri = answer.json::<Discovery>().await?.jwks_uri.and_then(|uri| Url::parse(&uri).ok());
        // Only its path: the configured login host may be a relay, and keys come from nowhere else.
        let path = jwks_uri.as_ref().map_or(KEYS_PATH, Url::path);
        let answer = send(self.outbound.get(authority.join(path)), Call::ReadKeys, deadline).await?;
        if answer.status() != StatusCode::OK {
            return Err(answer.unexpected_status());
        }
        let set = answer.json::<KeySet>().await?;
        // A key of a kind that is not ours to use must not hide the others.
        let keys = set.keys.into_iter().filter_map(|key| serde_json::from_value::<Key>(key).ok());
        Ok(keys
            .filter(|key| key.kty == "RSA" && key.purpose.as_deref().is_none_or(|purpose| purpose == "sig"))
            .collect())
    }
}

/// The PKCE challenge of a verifier (S256).
fn code_challenge(verifier: &Secret) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, verifier.expose().as_bytes()))
}

fn validated(
    id_token: &str,
    key: &Key,
    cloud: Cloud,
    client_id: &str,
    nonce: &str,
    now: Timestamp,
) -> std::result::Result<SignedInUser, SignInError> {
    let not_valid = |_| SignInError::NotValid;
    let decoding_key = DecodingKey::from_rsa_components(&key.n, &key.e).map_err(not_valid)?;
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud"]);
    validation.set_audience(&[client_id]);
    // The library reads the system's clock; the times are compared below, by ours.
    validation.validate_exp = false;
    let claims = jsonwebtoken::decode::<Claims>(id_token, &decoding_key, &validation).map_err(not_valid)?.claims;
    let tenant_id = TenantId::from_guid(&claims.tid).map_err(|_| SignInError::NotValid)?;
    let issuer = cloud.id_token_issuer(&tenant_id);
    let issued_by_key = key.issuer.as_ref().is_none_or(|template| of_tenant(template, &tenant_id) == issuer);
    let at = |seconds| Timestamp::from_second(seconds).map_err(|_| SignInError::NotValid);
    let (begins, made, ends) = (at(claims.nbf)?, at(claims.iat)?, at(claims.exp)?);
    let in_time =
        begins.duration_since(now) <= SKEW && made.duration_since(now) <= SKEW && now.duration_since(ends) < SKEW;
    let ours = claims.aud == client_id && claims.azp.is_none_or(|azp| azp == client_id);
    let valid = claims.iss == issuer && issued_by_key && in_time && ours && claims.nonce == nonce;
    if !valid || claims.oid.is_empty() {
        return Err(SignInError::NotValid);
    }
    if tenant_id == PERSONAL_ACCOUNTS {
        return Err(SignInError::PersonalAccount);
    }
    let named = |name: &String| !name.trim().is_empty();
    Ok(SignedInUser {
        tenant_id,
        object_id: claims.oid,
        name: claims.preferred_username.filter(named).or(claims.name.filter(named)),
        directory_roles: claims.wids.iter().map(|role| role.to_ascii_lowercase()).collect(),
    })
}

/// An issuer template with its `{tenantid}` filled in, in whatever letter case it is written.
fn of_tenant(template: &str, tenant: &TenantId) -> String {
    const PLACE: &str = "{tenantid}";
    match template.to_ascii_lowercase().find(PLACE) {
        Some(at) => format!("{}{tenant}{}", &template[..at], &template[at + PLACE.len()..]),
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
    use serde_json::json;

    use super::*;

    const TENANT: &str = "11111111-2222-4333-8444-abcdefabcdef";
    const CLIENT: &str = "99999999-2222-4333-8444-abcdefabcdef";
    const NOW: i64 = 1_795_000_000;

    static OURS: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate(KeySize::Rsa2048).unwrap());
    static STRANGERS: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate(KeySize::Rsa2048).unwrap());

    fn key(issuer: Option<&str>) -> Key {
        let public = OURS.public_key();
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        Key {
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

    fn check(claims: &Value, issuer: Option<&str>) -> std::result::Result<SignedInUser, SignInError> {
        let token = signed(&json!({"alg": "RS256", "typ": "JWT", "kid": "k"}), claims, &OURS);
        let now = Timestamp::from_second(NOW).unwrap();
        validated(&token, &key(issuer), Cloud::Commercial, CLIENT, "n", now)
    }

    fn changed(name: &str, value: Value) -> Value {
        let mut claims = claims();
        claims[name] = value;
        claims
    }

    #[test]
    fn a_valid_token_says_who_it_was() {
        let validate_id_token = check(&claims(), Some("https://login.microsoftonline.com/{TenantId}/v2.0")).unwrap();
        assert_eq!(validate_id_token.tenant_id.to_string(), TENANT);
        assert_eq!(
            (validate_id_token.object_id.as_str(), validate_id_token.name.as_deref()),
            ("person", Some("a@b.example"))
        );
        assert!(validate_id_token.may_consent_to(IncidentApi::Graph));
    }

    #[test]
    fn every_claim_that_does_not_fit_is_refused() {
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
        for within in
            [changed("exp", json!(NOW - 299)), changed("nbf", json!(NOW + 300)), changed("azp", json!(CLIENT))]
        {
            assert!(check(&within, None).is_ok(), "{within}");
        }
    }

    #[test]
    fn a_key_serves_the_issuer_that_it_names_and_no_other() {
        let own = format!("https://login.microsoftonline.com/{TENANT}/v2.0");
        assert!(check(&claims(), Some(&own)).is_ok());
        for other in ["https://login.microsoftonline.com/22222222-2222-4333-8444-abcdefabcdef/v2.0", "{tenantid}", ""] {
            assert_eq!(check(&claims(), Some(other)), Err(SignInError::NotValid), "{other}");
        }
    }

    #[test]
    fn a_personal_account_is_told_apart() {
        let mut claims = changed("tid", json!(PERSONAL_ACCOUNTS));
        claims["iss"] = json!(format!("https://login.microsoftonline.com/{PERSONAL_ACCOUNTS}/v2.0"));
        assert_eq!(check(&claims, None), Err(SignInError::PersonalAccount));
    }

    #[test]
    fn only_the_directory_s_signature_counts() {
        let now = Timestamp::from_second(NOW).unwrap();
        let header = json!({"alg": "RS256", "kid": "k"});
        let whole = signed(&header, &claims(), &OURS);
        let (message, signature) = whole.rsplit_once('.').unwrap();
        let body = message.split_once('.').unwrap().1;
        let none = BASE64_URL_SAFE_NO_PAD.encode(json!({"alg": "none"}).to_string());
        for token in [
            signed(&header, &claims(), &STRANGERS),
            signed(&json!({"alg": "HS256", "kid": "k"}), &claims(), &OURS),
            signed(&json!({"alg": "PS256", "kid": "k"}), &claims(), &OURS),
            format!("{none}.{body}."),
            format!("{message}."),
            format!("{message}.{}", signature.to_lowercase()),
            message.to_owned(),
            String::new(),
        ] {
            let outcome = validated(&token, &key(None), Cloud::Commercial, CLIENT, "n", now);
            assert_eq!(outcome, Err(SignInError::NotValid), "{token}");
        }
    }

    #[test]
    fn who_may_consent_depends_on_the_surface() {
        let with = |roles: &[&str]| SignedInUser {
            tenant_id: TENANT.parse().unwrap(),
            object_id: "o".into(),
            name: None,
            directory_roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        };
        let application_administrator = with(&[MAY_CONSENT_BESIDE_GRAPH[1]]);
        assert!(application_administrator.may_consent_to(IncidentApi::Defender));
        assert!(!application_administrator.may_consent_to(IncidentApi::Graph));
        assert!(with(&["x", MAY_CONSENT_TO_ALL[1]]).may_consent_to(IncidentApi::Graph));
        assert!(!with(&["b79fbf4d-3ef9-4689-8143-76b194e85509"]).may_consent_to(IncidentApi::Defender));
    }

    #[test]
    fn the_authorization_request_has_all_that_the_chain_needs() {
        let cloud = Cloud::Commercial;
        let sign_in = SignIn::new(cloud.endpoints(), cloud, HttpClient::new().unwrap(), Clock::system());
        // The example of RFC 7636, appendix B.
        let verifier = Secret::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".into());
        let url = sign_in.authorization_url(&AuthorizationRequest {
            authority: ANY_ORGANISATION,
            client_id: "app",
            redirect_uri: "https://h.example/consent/callback",
            state: "s",
            nonce: "n",
            code_verifier: &verifier,
        });
        assert_eq!(
            url.as_str(),
            "https://login.microsoftonline.com/organizations/oauth2/v2.0/authorize?client_id=app&response_type=code\
             &redirect_uri=https%3A%2F%2Fh.example%2Fconsent%2Fcallback&response_mode=query&scope=openid+profile&state=s&nonce=n\
             &code_challenge=E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM&code_challenge_method=S256&prompt=select_account"
        );
    }
}
