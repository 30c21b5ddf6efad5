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
    /// The user declined or cancelled.
    Declined,
    /// The account that signed in does not belong to the tenant.
    WrongAccount,
    /// The user may not consent, or sent a request to an administrator.
    NotPermitted,
    /// A policy of the customer forbids it: Conditional Access, for example, or the risk-based step-up.
    BlockedByPolicy,
    /// The tenant has no licence for the API.
    ResourceAbsent,
    /// The API's service principal is disabled in the tenant.
    ResourceDisabled,
    /// Our own service principal is disabled in the tenant.
    AppDisabled,
    /// The app registration does not fit the request. Its operator must correct it.
    Misconfigured,
    /// Microsoft had a temporary failure.
    Unavailable,
    /// Microsoft gave an error that is not in the list.
    Other,
}

const PARAMETERS: [&str; 7] =
    ["state", "code", "admin_consent", "tenant", "error", "error_description", "error_subcode"];

/// Returns true if a callback's query string claims that an administrator consented, whatever else it holds.
pub fn claims_consent(query: &[(String, String)]) -> bool {
    let claimed = query.iter().any(|(name, value)| name == "admin_consent" && value.eq_ignore_ascii_case("true"));
    claimed && query.iter().all(|(name, _)| name != "error")
}

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
    /// Classifies by the first AADSTS number that is known, because it is more exact than OAuth's `error`. Nothing else is
    /// read from the description.
    fn classify(error: &str, description: &str, subcode: &str) -> Self {
        aadsts_numbers(description)
            .find_map(|number| Self::of_number(number, error))
            .unwrap_or_else(|| Self::of_error(error, subcode))
    }

    /// The numbers of "Microsoft Entra authentication and authorization error codes" that a sign-in or a consent meets.
    fn of_number(number: u32, error: &str) -> Option<Self> {
        Some(match number {
            65_004 => Self::Declined,
            65_001 | 90_093 | 90_094 | 90_095 | 90_099 => Self::NotPermitted,
            16_000 | 50_014 | 50_020 | 50_034 | 51_004 | 90_072 | 500_208 => Self::WrongAccount,
            50_002
            | 50_005
            | 50_105
            | 50_131
            | 53_000..=53_011
            | 500_021
            | 500_022
            | 500_212
            | 500_213
            | 530_003
            | 530_021
            | 530_032
            | 530_034
            | 530_084
            | 900_941
            | 1_000_031 => Self::BlockedByPolicy,
            // Microsoft lists 65005 as an error of the registration. With this word it means that the organization has not
            // subscribed to the API.
            65_005 if error == "access_denied" => Self::ResourceAbsent,
            50_001 | 500_011 | 650_052 => Self::ResourceAbsent,
            500_014 => Self::ResourceDisabled,
            70_001 | 7_000_112 => Self::AppDisabled,
            50_011 | 50_194 | 65_005 | 70_011 | 650_056 | 650_057 | 700_016 | 900_971 => Self::Misconfigured,
            50_000 | 50_033 | 50_196 | 90_006 | 90_012 | 90_024 | 90_033 | 90_055 | 90_090 | 90_091 => {
                Self::Unavailable
            }
            // A disabled account, an unknown tenant, and one that is blocked for inactivity. Nobody declined.
            50_057 | 90_002 | 5_000_225 => Self::Other,
            _ => return None,
        })
    }

    fn of_error(error: &str, subcode: &str) -> Self {
        match (error, subcode) {
            ("access_denied" | "permission_denied", _) | (_, "cancel") => Self::Declined,
            ("temporarily_unavailable" | "server_error", _) => Self::Unavailable,
            ("unauthorized_client" | "invalid_client" | "invalid_scope" | "invalid_resource", _) => Self::Misconfigured,
            _ => Self::Other,
        }
    }
}

fn aadsts_numbers(description: &str) -> impl Iterator<Item = u32> {
    description.split("AADSTS").skip(1).filter_map(|rest| {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        rest[..digits].parse().ok()
    })
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
            ("error=consent_required&error_description=AADSTS65004: x", AuthorizationError::Declined),
            ("error=access_denied&error_description=AADSTS7000999: x", AuthorizationError::Declined),
            ("error=consent_required", AuthorizationError::Other),
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
    fn known_number_takes_precedence_over_every_word() {
        use AuthorizationError::{
            AppDisabled, BlockedByPolicy, Declined, Misconfigured, NotPermitted, Other, ResourceAbsent,
            ResourceDisabled, Unavailable, WrongAccount,
        };
        for (numbers, expected) in [
            (&[65_004][..], Declined),
            (&[65_001, 90_094], NotPermitted),
            (&[50_020, 50_034, 51_004, 90_072, 16_000, 500_208], WrongAccount),
            (&[53_003, 53_011, 530_084], BlockedByPolicy),
            (&[500_011, 650_052], ResourceAbsent),
            (&[500_014], ResourceDisabled),
            (&[7_000_112, 70_001], AppDisabled),
            (&[50_011, 700_016], Misconfigured),
            (&[90_033], Unavailable),
            (&[5_000_225, 90_002], Other),
        ] {
            for number in numbers {
                for word in ["access_denied", "invalid_client", "server_error", "interaction_required", "", "x"] {
                    for description in [format!("AADSTS{number}: x"), format!("AADSTS7000999: AADSTS{number}.")] {
                        let query = format!("error={word}&error_description={description}&state=s");
                        assert_eq!(error(&query), expected, "{query}");
                    }
                }
            }
        }
        let with = |word: &str| error(&format!("error={word}&error_description=AADSTS65005: x&state=s"));
        assert_eq!([with("access_denied"), with("invalid_client")], [ResourceAbsent, Misconfigured]);
    }

    #[test]
    fn any_description_is_read_without_panic() {
        for description in
            ["AADSTS", "AADSTSx", "AADSTS99999999999999999999", "AADSTSAADSTS", "%C3%BC AADSTS65004%C3%BC"]
        {
            for word in ["access_denied", ""] {
                let _ = error(&format!("error={word}&error_description={description}&state=s"));
            }
        }
    }

    #[test]
    fn query_claims_consent_without_an_error_only() {
        let claims = |query: &str| {
            let query: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
            claims_consent(&query)
        };
        assert!(claims("admin_consent=True&tenant=x") && claims("admin_consent=true"));
        assert!(!claims("admin_consent=True&error=consent_required") && !claims("admin_consent=False") && !claims(""));
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
