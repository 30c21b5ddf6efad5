//! The claims of an access token that Entra just issued to us.
//!
//! Microsoft calls access tokens opaque to the client, so nothing here verifies a signature. These are sanity checks of a
//! response that came over TLS. A token that cannot be decoded is accepted. Claims that are there must match the request:
//! a token of another tenant would carry one customer's data to another. Each claim is read on its own, so that an
//! unexpected JSON type of one skips the check of no other.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::MAX_CLOCK_SKEW;
use crate::{
    microsoft::{Cloud, IncidentApi},
    tenant::TenantId,
    text::from_json_object,
};

/// The claims of an access token, v1.0 or v2.0, without the ones that nothing here reads.
/// Null stands for an absent claim.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Claims {
    #[serde(default)]
    tid: Value,
    /// The application, in v1.0 tokens.
    #[serde(default)]
    appid: Value,
    /// The application, in v2.0 tokens.
    #[serde(default)]
    azp: Value,
    #[serde(default)]
    aud: Value,
    #[serde(default)]
    iss: Value,
    /// The app roles that the customer granted; `None` if they cannot be read.
    #[serde(default = "no_roles", deserialize_with = "roles")]
    pub(super) roles: Option<Vec<String>>,
    /// Delegated scopes. An app-only token has none.
    #[serde(default)]
    scp: Value,
    /// `app` in an app-only token. The claim is optional.
    #[serde(default)]
    idtyp: Value,
    /// Our service principal in the tenant.
    #[serde(default)]
    oid: Value,
    #[serde(default)]
    nbf: Value,
    #[serde(default)]
    exp: Value,
    /// Microsoft's own identifier of the token, which its logs have.
    #[serde(default)]
    uti: Value,
    #[serde(default)]
    jti: Value,
}

#[expect(clippy::unnecessary_wraps, reason = "the default of an optional member")]
fn no_roles() -> Option<Vec<String>> {
    Some(Vec::new())
}

/// Reads roles: a list, of which the texts count, or one text.
fn roles<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Null => no_roles(),
        Value::String(role) => Some(vec![role]),
        Value::Array(roles) => Some(roles.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    })
}

/// The request that an access token must match.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpectedAccessToken<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) client_id: &'a str,
    pub(super) cloud: Cloud,
    pub(super) api: IncidentApi,
}

/// The first claim that does not match the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClaimMismatch {
    Tenant,
    Application,
    Audience,
    /// The token acts for a user.
    NotAppOnly,
    /// The token has expired or is not valid yet, by more than [`MAX_CLOCK_SKEW`].
    Time,
}

impl Claims {
    /// The claims of a signed JWT, without verifying the signature. `None` if the token is encrypted or not a JWT.
    pub(super) fn decode_unverified(token: &str) -> Option<Self> {
        let mut parts = token.split('.');
        let (_, payload, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else { return None };
        let payload = BASE64_URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
        // Through a value: of a claim that is there twice, the last one counts.
        from_json_object(serde_json::from_slice(&payload).ok()?)
    }

    /// Compares the claims with the request. An absent claim is not a mismatch.
    pub(super) fn check(&self, expected: &ExpectedAccessToken<'_>, now: Timestamp) -> Result<(), ClaimMismatch> {
        let same_tenant = |text: &str| TenantId::from_guid(text).as_ref() == Ok(expected.tenant);
        let issuing_tenant = self.iss.as_str().and_then(tenant_in_issuer);
        if !is_absent_or(&self.tid, same_tenant) || issuing_tenant.is_some_and(|tenant| tenant != *expected.tenant) {
            return Err(ClaimMismatch::Tenant);
        }
        let is_ours = |id: &str| id.eq_ignore_ascii_case(expected.client_id);
        if !is_absent_or(&self.appid, is_ours) || !is_absent_or(&self.azp, is_ours) {
            return Err(ClaimMismatch::Application);
        }
        let is_audience = |audience: &str| is_audience(audience, expected);
        // A JWT may have several audiences (RFC 7519, section 4.1.3).
        let one_of_them = |list: &Vec<Value>| list.iter().filter_map(Value::as_str).any(is_audience);
        if !self.aud.as_array().map_or_else(|| is_absent_or(&self.aud, is_audience), one_of_them) {
            return Err(ClaimMismatch::Audience);
        }
        if !self.scp.is_null() || !is_absent_or(&self.idtyp, |kind| kind == "app") {
            return Err(ClaimMismatch::NotAppOnly);
        }
        let (now, skew) = (now.as_second(), MAX_CLOCK_SKEW.as_secs());
        if seconds(&self.exp).is_some_and(|exp| exp.saturating_add(skew) < now)
            || seconds(&self.nbf).is_some_and(|nbf| nbf.saturating_sub(skew) > now)
        {
            return Err(ClaimMismatch::Time);
        }
        Ok(())
    }

    /// The identifier of this one token: `uti`, or else `jti`.
    pub(super) fn token_id(&self) -> Option<&str> {
        self.uti.as_str().or(self.jti.as_str())
    }

    /// True if the token names our service principal in the tenant.
    pub(super) fn has_object_id(&self) -> bool {
        !self.oid.is_null()
    }
}

/// True for an absent claim, and for a text that `accept` accepts. A claim of another type is never accepted.
fn is_absent_or(claim: &Value, accept: impl Fn(&str) -> bool) -> bool {
    claim.is_null() || claim.as_str().is_some_and(accept)
}

/// A time in seconds, as a number or as its text.
fn seconds(claim: &Value) -> Option<i64> {
    claim.as_i64().or_else(|| claim.as_str()?.parse().ok())
}

/// The first path segment of an issuer if it is a tenant: `https://sts.windows.net/{tid}/`,
/// `https://{login host}/{tid}/v2.0`.
fn tenant_in_issuer(issuer: &str) -> Option<TenantId> {
    TenantId::from_guid(issuer.split('/').nth(3)?).ok()
}

/// True for the resource of the request. A v1.0 token names it by the requested URI or by its application id.
fn is_audience(audience: &str, expected: &ExpectedAccessToken<'_>) -> bool {
    let by_uri = audience.strip_suffix('/').unwrap_or(audience) == expected.cloud.resource(expected.api);
    by_uri || audience.eq_ignore_ascii_case(expected.cloud.resource_application_id(expected.api))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{damaged, with_odd_members};

    const TENANT: &str = "11111111-2222-4333-8444-abcdefabcdef";
    const OTHER: &str = "99999999-2222-4333-8444-abcdefabcdef";
    const CLIENT: &str = "aaaaaaaa-0000-4000-8000-000000000001";

    fn token(claims: &Value) -> String {
        format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    fn check(api: IncidentApi, claims: &Value) -> Result<(), ClaimMismatch> {
        let tenant = TENANT.parse().unwrap();
        let expected = ExpectedAccessToken { tenant: &tenant, client_id: CLIENT, cloud: Cloud::Commercial, api };
        Claims::decode_unverified(&token(claims)).unwrap().check(&expected, "2026-11-22T10:00:00Z".parse().unwrap())
    }

    #[test]
    fn tokens_of_entra_match_the_request() {
        let now = "2026-11-22T10:00:00Z".parse::<Timestamp>().unwrap().as_second();
        let v1 = json!({"tid": TENANT, "appid": CLIENT, "aud": "https://graph.microsoft.com/", "roles": ["SecurityIncident.Read.All"],
                        "iss": format!("https://sts.windows.net/{TENANT}/"), "oid": "x", "idtyp": "app", "nbf": now, "exp": now + 4500});
        assert_eq!(check(IncidentApi::Graph, &v1), Ok(()));
        let v2 = json!({"tid": TENANT.to_uppercase(), "azp": CLIENT, "aud": "8ee8fdad-f234-4243-8f3b-15c294843740",
                        "iss": format!("https://login.microsoftonline.com/{TENANT}/v2.0")});
        assert_eq!(check(IncidentApi::Defender, &v2), Ok(()));
        assert_eq!(check(IncidentApi::Defender, &json!({})), Ok(()));
    }

    #[test]
    fn each_mismatch_is_named() {
        let now = "2026-11-22T10:00:00Z".parse::<Timestamp>().unwrap().as_second();
        let table = [
            (json!({"tid": OTHER}), ClaimMismatch::Tenant),
            (json!({"tid": "contoso.example"}), ClaimMismatch::Tenant),
            (json!({"tid": TENANT, "iss": format!("https://sts.windows.net/{OTHER}/")}), ClaimMismatch::Tenant),
            (json!({"tid": TENANT, "appid": OTHER}), ClaimMismatch::Application),
            (json!({"azp": OTHER}), ClaimMismatch::Application),
            (json!({"aud": "https://api.securitycenter.microsoft.com"}), ClaimMismatch::Audience),
            (json!({"aud": "https://api.security.microsoft.com"}), ClaimMismatch::Audience),
            (json!({"idtyp": "user"}), ClaimMismatch::NotAppOnly),
            (json!({"scp": "User.Read"}), ClaimMismatch::NotAppOnly),
            (json!({"exp": now - 301}), ClaimMismatch::Time),
            (json!({"nbf": now + 301}), ClaimMismatch::Time),
        ];
        for (claims, mismatch) in table {
            assert_eq!(check(IncidentApi::Graph, &claims), Err(mismatch), "{claims}");
        }
        assert_eq!(check(IncidentApi::Graph, &json!({"exp": now - 299, "nbf": now + 299})), Ok(()));
    }

    #[test]
    fn odd_type_of_one_claim_skips_no_other_check() {
        let odd = [
            ("exp as text", json!({"exp": "1900000000"})),
            ("exp as object", json!({"exp": {}})),
            ("roles as text", json!({"roles": "SecurityIncident.Read.All"})),
            ("roles null", json!({"roles": null})),
            ("roles as object", json!({"roles": {"a": 1}})),
            ("aud as list", json!({"aud": ["https://graph.microsoft.com"]})),
            ("oid as number", json!({"oid": 7})),
            ("iss as list", json!({"iss": ["x"]})),
            ("uti null", json!({"uti": null, "jti": 7})),
        ];
        for (name, mut claims) in odd {
            assert_eq!(check(IncidentApi::Graph, &claims), Ok(()), "{name}");
            claims["tid"] = json!(OTHER);
            assert_eq!(check(IncidentApi::Graph, &claims), Err(ClaimMismatch::Tenant), "{name}");
            claims["tid"] = json!(TENANT);
            claims["appid"] = json!(OTHER);
            assert_eq!(check(IncidentApi::Graph, &claims), Err(ClaimMismatch::Application), "{name}");
        }
    }

    #[test]
    fn foreign_value_is_refused_in_any_json_type() {
        let types = |foreign: &str| [json!([foreign]), json!({"tid": foreign}), json!(7), json!(true), json!("")];
        let table = [
            ("tid", ClaimMismatch::Tenant),
            ("appid", ClaimMismatch::Application),
            ("azp", ClaimMismatch::Application),
            ("aud", ClaimMismatch::Audience),
            ("idtyp", ClaimMismatch::NotAppOnly),
            ("scp", ClaimMismatch::NotAppOnly),
        ];
        for (name, mismatch) in table {
            for value in types(OTHER) {
                assert_eq!(check(IncidentApi::Graph, &json!({name: value})), Err(mismatch), "{name}: {value}");
            }
            assert_eq!(check(IncidentApi::Graph, &json!({name: null})), Ok(()), "{name}");
        }
        // Of two, the last one counts, as for every reader of JSON that keeps one.
        let twice = format!(r#"{{"tid":"{TENANT}","tid":"{OTHER}"}}"#);
        let claims = Claims::decode_unverified(&format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(twice)));
        assert_eq!(claims.unwrap().tid, json!(OTHER));
    }

    #[test]
    fn roles_are_read_or_said_to_be_unreadable() {
        let table = [
            (json!({}), Some(vec![])),
            (json!({"roles": null}), Some(vec![])),
            (json!({"roles": "a"}), Some(vec!["a"])),
            (json!({"roles": ["a", 7, null, "b"]}), Some(vec!["a", "b"])),
            (json!({"roles": {"a": "b"}}), None),
            (json!({"roles": 7}), None),
        ];
        for (claims, roles) in table {
            let found = Claims::decode_unverified(&token(&claims)).unwrap().roles;
            assert_eq!(found.as_ref().map(|roles| roles.iter().map(String::as_str).collect()), roles, "{claims}");
        }
    }

    #[test]
    fn undecodable_token_has_no_claims() {
        for token in ["opaque", "a.b", "a.b.c", "a.b.c.d.e", "", "e30.W10.c2ln"] {
            assert_eq!(Claims::decode_unverified(token), None, "{token}");
        }
    }

    const WHOLE: &str = r#"{"tid":"11111111-2222-4333-8444-abcdefabcdef","aud":"https://graph.microsoft.com","roles":["SecurityIncident.Read.All"],"exp":1900000000,"oid":"o"}"#;

    proptest! {
        #[test]
        fn damaged_claims_never_match_another_tenant(
            claims in prop_oneof![
                damaged(WHOLE),
                with_odd_members(
                    WHOLE,
                    &["tid", "iss", "aud", "roles", "exp", "nbf", "oid", "appid", "azp"],
                    &[("tid", r#""99999999-2222-4333-8444-abcdefabcdef""#), ("TID", "7"), ("appid", r#""x""#)],
                    &[r#""roles":["#],
                ).prop_map(String::into_bytes),
            ],
        ) {
            let token = format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(&claims));
            if let Some(claims) = Claims::decode_unverified(&token) {
                let tenant = OTHER.parse().unwrap();
                let expected =
                    ExpectedAccessToken { tenant: &tenant, client_id: CLIENT, cloud: Cloud::Commercial, api: IncidentApi::Graph };
                let matches = claims.check(&expected, "2026-11-22T10:00:00Z".parse().unwrap()).is_ok();
                prop_assert!(!matches || is_absent_or(&claims.tid, |tid| tid == OTHER));
            }
        }
    }
}
