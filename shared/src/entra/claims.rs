//! What can be read in an access token that was just issued to us.
//!
//! Microsoft calls these tokens opaque to their bearer, so nothing here validates one: these are sanity checks of an
//! answer that came over TLS, and a token that cannot be read is accepted with what the reply says. What can be read must
//! fit, though: a token of another tenant would carry one customer's data to another.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use crate::{
    microsoft::{Cloud, IncidentApi},
    tenant::TenantId,
};

/// How far Entra's clock and ours may be apart.
const SKEW: SignedDuration = SignedDuration::from_mins(5);

/// The claims that are looked at.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Claims {
    /// The tenant that the token is good for.
    pub tid: Option<String>,
    /// The application (v1.0 tokens).
    pub appid: Option<String>,
    /// The application (v2.0 tokens).
    pub azp: Option<String>,
    /// The resource that it is meant for.
    pub aud: Option<String>,
    /// Who issued it.
    pub iss: Option<String>,
    /// App roles that the customer granted.
    #[serde(default)]
    pub roles: Vec<String>,
    /// Delegated scopes: none in an app-only token.
    pub scp: Option<String>,
    /// `app` in an app-only token, where the claim is there at all.
    pub idtyp: Option<String>,
    /// Our service principal in the tenant.
    pub oid: Option<String>,
    /// Not good before, in seconds since 1970.
    pub nbf: Option<i64>,
    /// Not good after, in seconds since 1970.
    pub exp: Option<i64>,
    /// Identifies the token in Microsoft's own logs.
    pub uti: Option<String>,
    /// Identifies the token, where there is no `uti`.
    pub jti: Option<String>,
}

/// What a token was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The customer's tenant.
    pub tenant: &'a TenantId,
    /// The application that asked.
    pub client_id: &'a str,
    /// The cloud that was asked.
    pub cloud: Cloud,
    /// The surface that it is for.
    pub api: IncidentApi,
}

/// In what a token differs from what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimMismatch {
    /// It is another tenant's.
    Tenant,
    /// It is another application's.
    Application,
    /// It is for another resource.
    Audience,
    /// It acts for a person.
    NotAppOnly,
    /// It is over, or not good yet, by more than five minutes.
    Time,
}

impl Claims {
    /// The claims of a signed token; `None` for one that is not meant to be read.
    pub fn decode_unverified(token: &str) -> Option<Self> {
        let mut parts = token.split('.');
        let (_, payload, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else { return None };
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    }

    /// Compares what is there with what was asked for; a claim that is absent is not held against the token.
    pub fn check(&self, expected: &Expected<'_>, now: Timestamp) -> Result<(), ClaimMismatch> {
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
        let (now, skew) = (now.as_second(), SKEW.as_secs());
        if self.exp.is_some_and(|exp| exp.saturating_add(skew) < now)
            || self.nbf.is_some_and(|nbf| nbf.saturating_sub(skew) > now)
        {
            return Err(ClaimMismatch::Time);
        }
        Ok(())
    }

    /// What names this one token.
    pub fn token_id(&self) -> Option<&str> {
        self.uti.as_deref().or(self.jti.as_deref())
    }
}

/// The first path segment of an issuer, where it is a tenant: `https://sts.windows.net/{tid}/`,
/// `https://{login host}/{tid}/v2.0`.
fn tenant_in_issuer(issuer: &str) -> Option<TenantId> {
    TenantId::from_guid(issuer.split('/').nth(3)?).ok()
}

/// A v1.0 token names the resource by the URI that was asked for or by its application id.
fn is_audience(audience: &str, expected: &Expected<'_>) -> bool {
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
        let expected = Expected { tenant: &tenant, client_id: CLIENT, cloud: Cloud::Commercial, api };
        Claims::decode_unverified(&token(claims)).unwrap().check(&expected, "2026-11-22T10:00:00Z".parse().unwrap())
    }

    #[test]
    fn a_token_as_entra_issues_it_is_accepted() {
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
    fn what_does_not_fit_is_named() {
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
    fn a_token_that_cannot_be_read_has_no_claims() {
        for token in ["opaque", "a.b", "a.b.c", "a.b.c.d.e", "", "e30.W10.c2ln"] {
            assert_eq!(Claims::decode_unverified(token), None, "{token}");
        }
    }

    proptest! {
        #[test]
        fn damaged_claims_never_pass_for_another_tenant_s(
            claims in damaged(r#"{"tid":"11111111-2222-4333-8444-abcdefabcdef","aud":"https://graph.microsoft.com","roles":["SecurityIncident.Read.All"],"exp":1900000000,"oid":"o"}"#),
        ) {
            let token = format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(&claims));
            if let Some(read) = Claims::decode_unverified(&token) {
                let tenant = OTHER.parse().unwrap();
                let expected =
                    Expected { tenant: &tenant, client_id: CLIENT, cloud: Cloud::Commercial, api: IncidentApi::Graph };
                let passes = read.check(&expected, "2026-11-22T10:00:00Z".parse().unwrap()).is_ok();
                prop_assert!(!passes || read.tid.is_none_or(|tid| tid == OTHER));
            }
        }
    }
}
