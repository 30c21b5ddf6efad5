//! Admin consent: where an administrator is sent to give it, what comes back, and which tenant a name stands for.
//!
//! Nothing that comes back is authenticated: it is text in a query string. It says what to look at next, never what is
//! true. Source: Microsoft identity platform, "Admin consent on the Microsoft identity platform".

use http::StatusCode;
use serde::Deserialize;
use url::{Host, Url};

use crate::{
    error::{Call, Result},
    http::{Deadline, HttpClient, send},
    microsoft::{Cloud, Endpoints, IncidentApi},
    tenant::TenantId,
};

/// Where an administrator of `tenant` is asked to consent to all that the app registration asks of `api`'s
/// resource. Application permissions can be asked for by `/.default` only.
pub fn admin_consent_url(
    endpoints: &Endpoints,
    cloud: Cloud,
    tenant: &TenantId,
    api: IncidentApi,
    (client_id, redirect_uri, state): (&str, &str, &str),
) -> Url {
    let mut url = endpoints.authority.join(&format!("/{tenant}/v2.0/adminconsent"));
    url.query_pairs_mut()
        .append_pair("client_id", client_id)
        .append_pair("scope", &format!("{}/.default", cloud.resource(api)))
        .append_pair("redirect_uri", redirect_uri)
        .append_pair("state", state);
    url
}

/// What came back from Microsoft in the query string, from sign-in or from admin consent. No text of it is kept but
/// what is needed to go on.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthorizationResponse {
    /// The state that the return belongs to.
    pub state: String,
    /// What it says.
    pub outcome: Outcome,
}

/// What a return says.
#[derive(Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A sign-in succeeded: the authorization code.
    Code(String),
    /// Consent was given, as the query string has it, in this tenant.
    Consented(TenantId),
    /// It did not come to that.
    Refused(AuthorizationError),
}

/// Why a sign-in or a consent came back without what it was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorizationError {
    /// The person declined, cancelled, or went away.
    Declined,
    /// The person may not consent, or asked an administrator to.
    NotPermitted,
    /// A policy of the customer forbids it, Conditional Access or the risk-based step-up for example.
    BlockedByPolicy,
    /// The tenant has no service principal of the resource: no licence for it.
    ResourceAbsent,
    /// The registration of our app does not fit: its operator must look.
    Misconfigured,
    /// Microsoft could not do it now.
    Unavailable,
    /// None of these.
    Other,
}

const PARAMETERS: [&str; 7] =
    ["state", "code", "admin_consent", "tenant", "error", "error_description", "error_subcode"];

/// Reads a return: an error before anything else, because errors come with `admin_consent=True`, too.
///
/// `None` when it has no state, a parameter twice, or neither an error nor what a success consists of.
pub fn parse_callback(query: &[(String, String)]) -> Option<AuthorizationResponse> {
    let mut values = PARAMETERS.map(|_| None::<&str>);
    for (name, value) in query {
        if let Some(at) = PARAMETERS.iter().position(|known| known == name)
            && values[at].replace(value).is_some()
        {
            return None;
        }
    }
    let [state, code, admin_consent, tenant, error, description, subcode] = values;
    let state = state.filter(|state| !state.is_empty())?.to_owned();
    let outcome = if let Some(error) = error {
        Outcome::Refused(AuthorizationError::read(error, description.unwrap_or_default(), subcode.unwrap_or_default()))
    } else if let Some(admin_consent) = admin_consent {
        if !admin_consent.eq_ignore_ascii_case("true") {
            return None;
        }
        Outcome::Consented(TenantId::from_guid(tenant?).ok()?)
    } else {
        Outcome::Code(code.filter(|code| !code.is_empty())?.to_owned())
    };
    Some(AuthorizationResponse { state, outcome })
}

impl AuthorizationError {
    /// The number of an AADSTS code is more exact than the word of OAuth; only the number is read from the text.
    fn read(error: &str, description: &str, subcode: &str) -> Self {
        match aadsts(description) {
            Some(65004) => return Self::Declined,
            Some(65001 | 90094 | 90095 | 90099) => return Self::NotPermitted,
            Some(53000..=53011 | 500_021 | 500_022 | 530_032 | 900_941 | 1_000_031 | 50105) => {
                return Self::BlockedByPolicy;
            }
            Some(500_011 | 650_052) => return Self::ResourceAbsent,
            Some(50011 | 50194 | 70011 | 650_056 | 650_057 | 700_016 | 900_971) => return Self::Misconfigured,
            Some(_) | None => {}
        }
        match (error, subcode) {
            ("access_denied" | "permission_denied" | "consent_required", _) | (_, "cancel") => Self::Declined,
            ("temporarily_unavailable" | "server_error", _) => Self::Unavailable,
            ("unauthorized_client" | "invalid_client" | "invalid_scope" | "invalid_resource", _) => Self::Misconfigured,
            _ => Self::Other,
        }
    }
}

fn aadsts(description: &str) -> Option<u32> {
    let (_, rest) = description.split_once("AADSTS")?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    rest[..digits].parse().ok()
}

#[derive(Deserialize)]
struct Discovery {
    issuer: Option<String>,
}

/// The tenant that a domain or a GUID stands for in this cloud, by the directory's own discovery document. `None` for
/// what is no name of a tenant here.
///
/// # Errors
/// [`Error::Unreachable`], [`Error::Upstream`] and [`Error::Malformed`] when Microsoft does not say.
pub async fn resolve_tenant(
    outbound: &HttpClient,
    endpoints: &Endpoints,
    cloud: Cloud,
    name: &str,
    deadline: Deadline,
) -> Result<Option<TenantId>> {
    let Some(name) = tenant_name(name) else { return Ok(None) };
    let url = endpoints.authority.join(&format!("/{name}/v2.0/.well-known/openid-configuration"));
    let answer = send(outbound.get(url), Call::ReadDiscovery, deadline).await?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => return Ok(None),
        _ => return Err(answer.unexpected_status()),
    }
    let malformed = answer.malformed();
    let issuer = answer.json::<Discovery>().await?.issuer.ok_or(malformed)?;
    // The issuer of a tenant of another cloud names that cloud's login host.
    let tenant = issuer.split('/').find_map(|segment| TenantId::from_guid(segment).ok());
    Ok(tenant.filter(|tenant| cloud.id_token_issuer(tenant) == issuer))
}

/// A GUID, or a domain in the form that goes into a path; no alias such as `common`, which would stand for nobody.
fn tenant_name(name: &str) -> Option<String> {
    let name = name.trim();
    if let Ok(tenant) = TenantId::from_guid(name) {
        return Some(tenant.to_string());
    }
    let Ok(Host::Domain(domain)) = Host::parse(name) else { return None };
    let plain = domain.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.');
    let dotted = domain.split('.').count() > 1 && domain.split('.').all(|label| !label.is_empty());
    (plain && dotted && domain.len() <= 253).then_some(domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: &str = "11111111-2222-4333-8444-abcdefabcdef";

    fn read(query: &str) -> Option<Outcome> {
        let query: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let read = parse_callback(&query)?;
        assert_eq!(read.state, "s");
        Some(read.outcome)
    }

    fn refused(query: &str) -> AuthorizationError {
        match read(query) {
            Some(Outcome::Refused(refusal)) => refusal,
            _ => panic!("not a refusal: {query}"),
        }
    }

    #[test]
    fn a_success_is_read_whatever_the_letter_case() {
        let tenant = TENANT.parse().unwrap();
        for query in [
            format!("admin_consent=True&tenant={TENANT}&state=s&scope=a+b"),
            format!("state=s&tenant={}&admin_consent=true", TENANT.to_uppercase()),
        ] {
            assert!(read(&query) == Some(Outcome::Consented(tenant)), "{query}");
        }
        assert!(read("code=c&state=s&session_state=x") == Some(Outcome::Code("c".into())));
    }

    #[test]
    fn an_error_goes_before_everything_that_comes_with_it() {
        let forged = format!(
            "admin_consent=True&tenant={TENANT}&code=c&state=s&error=consent_required&error_description=AADSTS65004%3a+x"
        );
        assert_eq!(refused(&forged), AuthorizationError::Declined);
    }

    #[test]
    fn every_documented_shape_of_a_refusal_has_its_reason() {
        for (query, refusal) in [
            ("error=permission_denied&error_description=The+admin+canceled+the+request", AuthorizationError::Declined),
            ("error=access_denied&error_subcode=cancel", AuthorizationError::Declined),
            ("error=whatever&error_subcode=cancel", AuthorizationError::Declined),
            ("error=access_denied&error_description=AADSTS90094%3A+x", AuthorizationError::NotPermitted),
            ("error=access_denied&error_description=AADSTS90095", AuthorizationError::NotPermitted),
            ("error=access_denied&error_description=AADSTS900941", AuthorizationError::BlockedByPolicy),
            ("error=access_denied&error_description=AADSTS53003: x", AuthorizationError::BlockedByPolicy),
            ("error=invalid_client&error_description=AADSTS650052: x", AuthorizationError::ResourceAbsent),
            ("error=invalid_request&error_description=AADSTS50011: x", AuthorizationError::Misconfigured),
            ("error=unauthorized_client", AuthorizationError::Misconfigured),
            ("error=temporarily_unavailable", AuthorizationError::Unavailable),
            ("error=<script>&error_description=AADSTS99999999999999999", AuthorizationError::Other),
            ("error=", AuthorizationError::Other),
        ] {
            assert_eq!(refused(&format!("{query}&state=s")), refusal, "{query}");
        }
    }

    #[test]
    fn what_is_neither_success_nor_error_is_nothing() {
        for query in [
            String::new(),
            "state=s".into(),
            "state=&code=c".into(),
            "code=c".into(),
            "code=&state=s".into(),
            format!("admin_consent=True&tenant={TENANT}"),
            format!("admin_consent=False&tenant={TENANT}&state=s"),
            "admin_consent=True&state=s".into(),
            "admin_consent=True&tenant=contoso.example&state=s".into(),
            "admin_consent=True&tenant=common&state=s".into(),
            format!("admin_consent=True&tenant={TENANT}&tenant={TENANT}&state=s"),
            format!("admin_consent=True&tenant={TENANT}&state=s&state=s"),
            "code=a&code=a&state=s".into(),
        ] {
            assert!(read(&query).is_none(), "{query}");
        }
    }

    #[test]
    fn consent_is_asked_of_one_tenant_for_one_resource() {
        let cloud = Cloud::Commercial;
        let tenant = TENANT.parse().unwrap();
        let redirect = "https://partner.example.com/consent/callback";
        let url = admin_consent_url(&cloud.endpoints(), cloud, &tenant, IncidentApi::Graph, ("app", redirect, "s"));
        assert_eq!(
            url.as_str(),
            format!(
                "https://login.microsoftonline.com/{TENANT}/v2.0/adminconsent?client_id=app&scope=https%3A%2F%2Fgraph.microsoft.com\
                 %2F.default&redirect_uri=https%3A%2F%2Fpartner.example.com%2Fconsent%2Fcallback&state=s"
            )
        );
    }

    #[test]
    fn only_guids_and_domains_name_a_tenant() {
        for (name, kept) in [
            (TENANT.to_uppercase().as_str(), Some(TENANT)),
            (" Contoso.Example ", Some("contoso.example")),
            ("münchen.example", Some("xn--mnchen-3ya.example")),
            ("common", None),
            ("organizations", None),
            ("contoso.example/../x", None),
            ("contoso.example?x", None),
            ("a..b", None),
            ("127.0.0.1", None),
            ("", None),
        ] {
            assert_eq!(tenant_name(name).as_deref(), kept, "{name}");
        }
    }
}
