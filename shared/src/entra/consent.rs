//! Admin consent: the request for it, and the callback's query string, for sign-in too.
//!
//! The query string is not authenticated. It decides which step comes next, never what is true. Source: "Admin consent on
//! the Microsoft identity platform".

use url::Url;

use crate::{
    microsoft::{Cloud, Endpoints, IncidentApi},
    tenant::TenantId,
};

/// The parameters of an admin consent request.
pub struct AdminConsentRequest<'a> {
    /// The tenant whose administrator is asked.
    pub tenant: &'a TenantId,
    /// The API whose application permissions are requested.
    pub api: IncidentApi,
    /// The client id of our application.
    pub client_id: &'a str,
    /// Our callback, to which Microsoft redirects the browser.
    pub redirect_uri: &'a str,
    /// The value that binds the callback to the browser.
    pub state: &'a str,
}

/// The URL at which an administrator consents to all permissions of one API that the app registration lists. Microsoft
/// accepts only `/.default` for application permissions.
pub fn admin_consent_url(endpoints: &Endpoints, cloud: Cloud, request: &AdminConsentRequest<'_>) -> Url {
    let mut url = endpoints.authority.join(&format!("/{}/v2.0/adminconsent", request.tenant));
    url.query_pairs_mut()
        .append_pair("client_id", request.client_id)
        .append_pair("scope", &format!("{}/.default", cloud.resource(request.api)))
        .append_pair("redirect_uri", request.redirect_uri)
        .append_pair("state", request.state);
    url
}

/// The callback's query string, from sign-in or from admin consent. Of its text, only what the next step needs is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthorizationResponse {
    /// The state that our request carried.
    pub state: String,
    /// The result that the query string claims.
    pub outcome: AuthorizationOutcome,
}

/// The result that a callback claims.
#[derive(Clone, PartialEq, Eq)]
pub enum AuthorizationOutcome {
    /// A sign-in succeeded, with this authorization code.
    Code(String),
    /// An administrator consented in this tenant.
    Consented(TenantId),
    /// Sign-in or consent failed.
    Refused(AuthorizationError),
}

/// The reason why a sign-in or a consent failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorizationError {
    /// The user declined, cancelled or left.
    Declined,
    /// The user may not consent, or sent a request to an administrator.
    NotPermitted,
    /// A policy of the customer forbids it: Conditional Access, for example, or the risk-based step-up.
    BlockedByPolicy,
    /// The tenant has no service principal of the API, which means no licence for it.
    ResourceAbsent,
    /// The app registration does not fit the request. Its operator must correct it.
    Misconfigured,
    /// Microsoft had a temporary failure.
    Unavailable,
    /// Microsoft gave an error that is not in the list.
    Other,
}

const PARAMETERS: [&str; 7] =
    ["state", "code", "admin_consent", "tenant", "error", "error_description", "error_subcode"];

/// Parses the callback's query string. An error takes precedence, because errors come with `admin_consent=True`, too.
///
/// `None` if the state is missing, a parameter occurs twice, or the query string is neither an error nor a success.
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
        AuthorizationOutcome::Refused(AuthorizationError::classify(
            error,
            description.unwrap_or_default(),
            subcode.unwrap_or_default(),
        ))
    } else if let Some(admin_consent) = admin_consent {
        if !admin_consent.eq_ignore_ascii_case("true") {
            return None;
        }
        AuthorizationOutcome::Consented(TenantId::from_guid(tenant?).ok()?)
    } else {
        AuthorizationOutcome::Code(code.filter(|code| !code.is_empty())?.to_owned())
    };
    Some(AuthorizationResponse { state, outcome })
}

impl AuthorizationError {
    /// Classifies by the AADSTS number first, because it is more exact than OAuth's `error`. Nothing else is read from the
    /// description.
    fn classify(error: &str, description: &str, subcode: &str) -> Self {
        match aadsts_number(description) {
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

fn aadsts_number(description: &str) -> Option<u32> {
    let (_, rest) = description.split_once("AADSTS")?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    rest[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: &str = "11111111-2222-4333-8444-abcdefabcdef";

    fn outcome(query: &str) -> Option<AuthorizationOutcome> {
        let query: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let response = parse_callback(&query)?;
        assert_eq!(response.state, "s");
        Some(response.outcome)
    }

    fn error(query: &str) -> AuthorizationError {
        match outcome(query) {
            Some(AuthorizationOutcome::Refused(error)) => error,
            _ => panic!("not an error: {query}"),
        }
    }

    #[test]
    fn success_is_parsed_in_any_letter_case() {
        let tenant = TENANT.parse().unwrap();
        for query in [
            format!("admin_consent=True&tenant={TENANT}&state=s&scope=a+b"),
            format!("state=s&tenant={}&admin_consent=true", TENANT.to_uppercase()),
        ] {
            assert!(outcome(&query) == Some(AuthorizationOutcome::Consented(tenant)), "{query}");
        }
        assert!(outcome("code=c&state=s&session_state=x") == Some(AuthorizationOutcome::Code("c".into())));
    }

    #[test]
    fn error_takes_precedence_over_a_success() {
        let forged = format!(
            "admin_consent=True&tenant={TENANT}&code=c&state=s&error=consent_required&error_description=AADSTS65004%3a+x"
        );
        assert_eq!(error(&forged), AuthorizationError::Declined);
    }

    #[test]
    fn documented_errors_are_classified() {
        for (query, expected) in [
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
            assert_eq!(error(&format!("{query}&state=s")), expected, "{query}");
        }
    }

    #[test]
    fn neither_success_nor_error_is_refused() {
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
            assert!(outcome(&query).is_none(), "{query}");
        }
    }

    #[test]
    fn admin_consent_request_names_tenant_and_resource() {
        let cloud = Cloud::Commercial;
        let tenant = TENANT.parse().unwrap();
        let redirect_uri = "https://partner.example.com/consent/callback";
        let request = AdminConsentRequest {
            tenant: &tenant,
            api: IncidentApi::Graph,
            client_id: "app",
            redirect_uri,
            state: "s",
        };
        let url = admin_consent_url(&cloud.endpoints(), cloud, &request);
        assert_eq!(
            url.as_str(),
            format!(
                "https://login.microsoftonline.com/{TENANT}/v2.0/adminconsent?client_id=app&scope=https%3A%2F%2Fgraph.microsoft.com\
                 %2F.default&redirect_uri=https%3A%2F%2Fpartner.example.com%2Fconsent%2Fcallback&state=s"
            )
        );
    }
}
