//! The claims of an access token that Entra just issued to us.
//!
//! Microsoft calls access tokens opaque to the client, so nothing here verifies a signature. These are sanity checks of a
//! response that came over TLS. A token that cannot be decoded is accepted. Claims that are there must match the request:
//! a token of another tenant would carry one customer's data to another.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::Deserialize;

use super::MAX_CLOCK_SKEW;
use crate::{
    microsoft::{Cloud, IncidentApi},
    tenant::TenantId,
};

/// The claims of an access token, v1.0 or v2.0, without the ones that nothing here reads.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Claims {
    tid: Option<String>,
    /// The application, in v1.0 tokens.
    appid: Option<String>,
    /// The application, in v2.0 tokens.
    azp: Option<String>,
    aud: Option<String>,
    iss: Option<String>,
    /// The app roles that the customer granted.
    #[serde(default)]
    pub(super) roles: Vec<String>,
    /// Delegated scopes. An app-only token has none.
    scp: Option<String>,
    /// `app` in an app-only token. The claim is optional.
    idtyp: Option<String>,
    /// Our service principal in the tenant.
    pub(super) oid: Option<String>,
    nbf: Option<i64>,
    exp: Option<i64>,
    /// Microsoft's own identifier of the token, which its logs have.
    uti: Option<String>,
    jti: Option<String>,
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
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    }

    /// Compares the claims with the request. An absent claim is no mismatch.
    pub(super) fn check(&self, expected: &ExpectedAccessToken<'_>, now: Timestamp) -> Result<(), ClaimMismatch> {
        let same_tenant = |text: &str| TenantId::from_guid(text).as_ref() == Ok(expected.tenant);
        let issuing_tenant = self.iss.as_deref().and_then(tenant_in_issuer);
        if !self.tid.as_deref().is_none_or(same_tenant)
            || issuing_tenant.is_some_and(|tenant| tenant != *expected.tenant)
        {
            return Err(ClaimMismatch::Tenant);
        }
        let application = self.appid.as_deref().or(self.azp.as_deref());
        if !application.is_none_or(|id| id.eq_ignore_ascii_case(expected.client_id)) {
            return Err(ClaimMismatch::Application);
        }
        if !self.aud.as_deref().is_none_or(|audience| is_audience(audience, expected)) {
            return Err(ClaimMismatch::Audience);
        }
        if self.scp.is_some() || self.idtyp.as_deref().is_some_and(|kind| kind != "app") {
            return Err(ClaimMismatch::NotAppOnly);
        }
        let (now, skew) = (now.as_second(), MAX_CLOCK_SKEW.as_secs());
        if self.exp.is_some_and(|exp| exp.saturating_add(skew) < now)
            || self.nbf.is_some_and(|nbf| nbf.saturating_sub(skew) > now)
        {
            return Err(ClaimMismatch::Time);
        }
        Ok(())
    }

    /// The identifier of this one token: `uti`, or else `jti`.
    pub(super) fn token_id(&self) -> Option<&str> {
        self.uti.as_deref().or(self.jti.as_deref())
    }
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
    use crate::testing::damaged;

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
    fn undecodable_token_has_no_claims() {
        for token in ["opaque", "a.b", "a.b.c", "a.b.c.d.e", "", "e30.W10.c2ln"] {
            assert_eq!(Claims::decode_unverified(token), None, "{token}");
        }
    }

    proptest! {
        #[test]
        fn damaged_claims_never_match_another_tenant(
            claims in damaged(r#"{"tid":"11111111-2222-4333-8444-abcdefabcdef","aud":"https://graph.microsoft.com","roles":["SecurityIncident.Read.All"],"exp":1900000000,"oid":"o"}"#),
        ) {
            let token = format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(&claims));
            if let Some(claims) = Claims::decode_unverified(&token) {
                let tenant = OTHER.parse().unwrap();
                let expected =
                    ExpectedAccessToken { tenant: &tenant, client_id: CLIENT, cloud: Cloud::Commercial, api: IncidentApi::Graph };
                let matches = claims.check(&expected, "2026-11-22T10:00:00Z".parse().unwrap()).is_ok();
                prop_assert!(!matches || claims.tid.is_none_or(|tid| tid == OTHER));
            }
        }
    }
}
