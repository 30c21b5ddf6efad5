//! Errors with an AADSTS number.

use jiff::Timestamp;
use serde_json::json;

use super::no_store;
use crate::{
    clock::guid,
    http::{Request, Response},
};

/// An error with an AADSTS number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Aadsts {
    pub(crate) status: u16,
    pub(crate) error: &'static str,
    pub(crate) code: u32,
    pub(crate) message: String,
}

impl Aadsts {
    pub(crate) fn new(status: u16, error: &'static str, code: u32, message: impl Into<String>) -> Self {
        Self { status, error, code, message: message.into() }
    }

    /// An error by its number alone, as a fault names it.
    /// <https://learn.microsoft.com/entra/identity-platform/reference-error-codes>
    pub(crate) fn of_code(code: u32) -> Self {
        let (status, error, message) = match code {
            700_016 | 700_011 => (400, "unauthorized_client", "Application was not found in the directory."),
            7_000_229 => (
                401,
                "invalid_client",
                "The client application is missing service principal in the tenant. See instructions here: https://go.microsoft.com/fwlink/?linkid=2225119",
            ),
            65_001 => (400, "invalid_grant", "The user or administrator has not consented to use the application."),
            65_004 => (400, "consent_required", "The resource owner or authorization server denied the request."),
            7_000_112 | 70_001 => (400, "unauthorized_client", "Application is disabled."),
            1_000_031 => {
                (400, "unauthorized_client", "Application can't be accessed at this time. Contact your administrator.")
            }
            501_051 => (400, "invalid_grant", "Application is not assigned to a role for the application."),
            500_011 => (
                400,
                "invalid_resource",
                "The resource principal was not found in the tenant. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant.",
            ),
            650_052 => (
                400,
                "invalid_client",
                "The app is trying to access a service that your organization lacks a service principal for. Contact your IT Admin to review the configuration of your service subscriptions or consent to the application in order to create the required service principal.",
            ),
            650_051 => (400, "invalid_client", "The application requires a permission that is no longer available."),
            650_057 => (
                400,
                "invalid_resource",
                "Invalid resource. The client has requested access to a resource which is not listed in the requested permissions in the client's application registration.",
            ),
            90_002 => (
                400,
                "invalid_request",
                "Tenant not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud.",
            ),
            90_038 | 900_382 | 900_432 => {
                (400, "invalid_request", "Confidential Client is not supported in Cross Cloud request.")
            }
            90_055 => (
                429,
                "temporarily_unavailable",
                "The server is temporarily too busy to handle the request: the tenant is throttled.",
            ),
            90_033 | 90_006 | 90_012 | 90_024 | 50_033 | 90_090 | 90_091 | 50_000 => {
                (503, "temporarily_unavailable", "A transient error has occurred. Please try again.")
            }
            90_036 | 90_092 => (
                500,
                "server_error",
                "An unexpected, non-retryable error stemming from the directory service has occurred.",
            ),
            90_094 => (
                400,
                "access_denied",
                "An administrator of the tenant has set a policy that prevents you from granting the application the permissions it is requesting.",
            ),
            90_095 => (400, "access_denied", "Admin consent is required; a request has been started."),
            900_941 => (400, "access_denied", "Admin consent is required. App is considered risky."),
            7_000_215 => (
                401,
                "invalid_client",
                "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID.",
            ),
            7_000_222 => (401, "invalid_client", "The provided client secret keys are expired."),
            700_027 => (
                401,
                "invalid_client",
                "The certificate with identifier used to sign the client assertion is not registered on application.",
            ),
            700_024 => (401, "invalid_client", "Client assertion is not within its valid time range."),
            70_021 => (401, "invalid_client", "No matching federated identity record found for presented assertion."),
            53_003 | 530_032 => (
                400,
                "invalid_grant",
                "Access has been blocked by Conditional Access policies. The access policy does not allow token issuance.",
            ),
            500_021 | 500_022 => (400, "access_denied", "Access to the tenant is denied."),
            50_196 => (
                400,
                "invalid_grant",
                "The server terminated an operation because it encountered a client request loop. Please contact your app vendor.",
            ),
            50_194 => (
                400,
                "invalid_request",
                "Application is not configured as a multi-tenant application. Usage of the /common endpoint is not supported for such apps created after '10/15/2018'.",
            ),
            _ => (400, "invalid_request", "The request failed."),
        };
        Self::new(status, error, code, message)
    }

    /// `error_description`, with its lines.
    pub(super) fn description(&self, trace: &str, correlation: &str, now: Timestamp) -> String {
        format!(
            "AADSTS{}: {}\r\nTrace ID: {trace}\r\nCorrelation ID: {correlation}\r\nTimestamp: {}",
            self.code,
            self.message,
            stamp(now)
        )
    }

    /// The token endpoint's response for this error.
    pub(crate) fn response(&self, request: &Request, now: Timestamp) -> Response {
        let trace = guid();
        let correlation = request.header("client-request-id").map_or_else(guid, str::to_owned);
        let description = self.description(&trace, &correlation, now);
        let mut body = json!({
            "error": self.error,
            "error_description": description,
            "error_codes": [self.code],
            "timestamp": stamp(now),
            "trace_id": trace,
            "correlation_id": correlation,
            "error_uri": format!("https://login.microsoftonline.com/error?code={}", self.code),
        });
        if matches!(self.code, 53_003 | 530_032) {
            body["suberror"] = json!("message_only");
            body["claims"] = json!(
                r#"{"access_token":{"capolids":{"essential":true,"values":["00000000-0000-0000-0000-000000000001"]}}}"#
            );
        }
        let mut response = no_store(Response::json(self.status, &body)).with("x-ms-request-id", &trace);
        if self.status == 429 {
            response.set("retry-after", "60");
        }
        response
    }
}

pub(super) fn stamp(now: Timestamp) -> String {
    now.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

pub(super) fn missing(parameter: &str) -> Aadsts {
    Aadsts::new(
        400,
        "invalid_request",
        900_144,
        format!("The request body must contain the following parameter: '{parameter}'."),
    )
}

pub(super) fn unknown_app(client_id: &str, directory: &str) -> Aadsts {
    Aadsts::new(
        400,
        "unauthorized_client",
        700_016,
        format!(
            "Application with identifier '{client_id}' was not found in the directory '{directory}'. This can happen if \
             the application has not been installed by the administrator of the tenant or consented to by any user in \
             the tenant. You may have sent your authentication request to the wrong tenant."
        ),
    )
}
