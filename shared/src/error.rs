//! One error whose variants are decisions, and its two readings: the problem document and the queue's answer.

use std::fmt;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::tenant::{NotATenantId, Reason};

/// The result of what this crate does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, told as what is to be done about it. No variant holds a secret, a token or text from outside.
#[derive(Clone, Debug, PartialEq)]
pub enum Error {
    /// The caller must change the request; the text says what.
    InvalidRequest(String),
    /// A JSON route was reached without the gateway's IAM identity.
    UnauthorizedCaller,
    /// There is no such thing, or its identifier is malformed.
    NotFound,
    /// The request is right, but the state of the thing forbids it.
    Conflict {
        /// What stands in the way.
        detail: String,
        /// The interface's word for it, where there is one.
        reason: Option<Reason>,
    },
    /// The tenant is not active.
    TenantNotActive(Option<Reason>),
    /// A `next` that has expired.
    Gone,
    /// Microsoft, or our budget for Microsoft, asks for a pause of this tenant's surface.
    Throttled {
        /// Before this time the same question must not be asked again.
        until: Timestamp,
    },
    /// The tenant's own refusal: only somebody at the customer can change it.
    Refused(Reason),
    /// Our own credential is refused: every tenant is affected, and only the operator can change it.
    CredentialRejected,
    /// Microsoft answered, but not as documented, or with a failure of its own.
    Upstream {
        /// HTTP status of the answer.
        status: u16,
        /// Which call it was.
        call: &'static str,
    },
    /// Microsoft did not answer in time, or the connection failed.
    Unreachable {
        /// Which call it was.
        call: &'static str,
    },
    /// The invocation's own time is nearly used up.
    DeadlineExceeded,
    /// Something of ours or of AWS failed: worth a retry by the queue, and then a look by a person.
    Internal(String),
}

impl Error {
    /// An [`Error::Internal`] from whatever failed in an AWS call. The SDK's error chain names codes, not contents.
    pub fn aws<E, R>(call: &str, error: &aws_sdk_dynamodb::error::SdkError<E, R>) -> Self
    where
        E: aws_sdk_dynamodb::error::ProvideErrorMetadata,
    {
        use aws_sdk_dynamodb::error::SdkError;
        let what = match error {
            SdkError::ServiceError(service) => service.err().code().unwrap_or("service error").to_owned(),
            SdkError::TimeoutError(_) => "timed out".to_owned(),
            SdkError::DispatchFailure(_) => "could not be reached".to_owned(),
            SdkError::ConstructionFailure(_) => "request could not be built".to_owned(),
            _ => "answer could not be read".to_owned(),
        };
        Self::Internal(format!("{call}: {what}"))
    }

    /// The interface's code and HTTP status.
    pub fn code(&self) -> (&'static str, u16) {
        match self {
            Self::InvalidRequest(_) => ("invalid_request", 400),
            Self::UnauthorizedCaller => ("unauthorized_caller", 403),
            Self::NotFound => ("not_found", 404),
            Self::Conflict { .. } => ("conflict", 409),
            Self::TenantNotActive(_) | Self::Refused(_) => ("tenant_not_active", 409),
            Self::Gone => ("gone", 410),
            Self::CredentialRejected | Self::Internal(_) => ("internal", 500),
            Self::Throttled { .. } => ("throttled", 503),
            Self::Upstream { .. } => ("upstream_error", 502),
            Self::Unreachable { .. } => ("upstream_unreachable", 504),
            Self::DeadlineExceeded => ("deadline_exceeded", 504),
        }
    }

    /// The `reason` that goes with the code, where there is one.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Conflict { reason, .. } | Self::TenantNotActive(reason) => *reason,
            Self::Refused(reason) => Some(*reason),
            Self::CredentialRejected => Some(Reason::CredentialRejected),
            Self::InvalidRequest(_)
            | Self::UnauthorizedCaller
            | Self::NotFound
            | Self::Gone
            | Self::Throttled { .. }
            | Self::Upstream { .. }
            | Self::Unreachable { .. }
            | Self::DeadlineExceeded
            | Self::Internal(_) => None,
        }
    }

    /// What a caller may read: what happened and what to do next, without anything internal.
    pub fn detail(&self) -> String {
        match self {
            Self::InvalidRequest(what) => what.clone(),
            Self::UnauthorizedCaller => {
                "This route is for callers that API Gateway has identified by IAM. Sign the request with SigV4.".into()
            }
            Self::NotFound => "There is no such thing here, or its identifier is malformed.".into(),
            Self::Conflict { detail, .. } => detail.clone(),
            Self::TenantNotActive(Some(reason)) | Self::Refused(reason) => {
                format!("The tenant is not active: {reason}. Its status says since when; GET /tenants/{{tenant_id}}.")
            }
            Self::TenantNotActive(None) => "The tenant is not active. GET /tenants/{tenant_id} says why.".into(),
            Self::Gone => "This `next` has expired. Begin again without it.".into(),
            Self::Throttled { .. } => {
                "Microsoft limits how often this tenant may be asked. Come back after the time in Retry-After.".into()
            }
            Self::CredentialRejected => {
                "Microsoft refuses the app credential of this deployment. Its operator must renew it.".into()
            }
            Self::Upstream { status, call } => {
                format!("Microsoft answered {call} with status {status}. Try again later.")
            }
            Self::Unreachable { call } => format!("Microsoft did not answer {call} in time. Try again later."),
            Self::DeadlineExceeded => {
                "The work did not fit into the time of one call. Ask for less, or try again.".into()
            }
            Self::Internal(_) => {
                "Something failed inside this deployment. The log has the cause under this instance.".into()
            }
        }
    }

    /// Seconds until a throttled caller may come back: at least 1.
    pub fn retry_after(&self, now: Timestamp) -> Option<u64> {
        match self {
            Self::Throttled { until } => {
                let wait = until.duration_since(now);
                let whole = wait.as_secs() + i64::from(wait.subsec_nanos() > 0);
                Some(u64::try_from(whole).unwrap_or(0).max(1))
            }
            _ => None,
        }
    }

    /// The RFC 9457 problem document; `instance` is the request's id.
    pub fn problem(&self, instance: &str) -> Value {
        let (code, status) = self.code();
        let mut problem = json!({
            "type": format!("urn:mandate:problem:{code}"),
            "title": title(code),
            "status": status,
            "detail": self.detail(),
            "instance": instance,
            "code": code,
        });
        if let (Some(reason), Some(fields)) = (self.reason(), problem.as_object_mut()) {
            fields.insert("reason".into(), json!(reason));
        }
        problem
    }

    /// Whether the queue should hand the message over again: only for what a later attempt of the same message cures.
    pub fn fails_message(&self) -> bool {
        match self {
            Self::Internal(_) | Self::InvalidRequest(_) | Self::UnauthorizedCaller | Self::Gone => true,
            Self::NotFound
            | Self::Conflict { .. }
            | Self::TenantNotActive(_)
            | Self::Throttled { .. }
            | Self::Refused(_)
            | Self::CredentialRejected
            | Self::Upstream { .. }
            | Self::Unreachable { .. }
            | Self::DeadlineExceeded => false,
        }
    }
}

fn title(code: &str) -> &'static str {
    match code {
        "invalid_request" => "The request is not valid",
        "unauthorized_caller" => "The caller is not identified",
        "not_found" => "Not found",
        "conflict" => "The present state forbids it",
        "tenant_not_active" => "The tenant is not active",
        "gone" => "No longer there",
        "throttled" => "Asked too often",
        "upstream_error" => "Microsoft answered with an error",
        "upstream_unreachable" => "Microsoft did not answer",
        "deadline_exceeded" => "Out of time",
        _ => "Internal error",
    }
}

impl From<NotATenantId> for Error {
    /// What is no identifier is told like one that nobody knows.
    fn from(_: NotATenantId) -> Self {
        Self::NotFound
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internal(what) => f.write_str(what),
            Self::Throttled { until } => write!(f, "throttled until {until}"),
            other => f.write_str(&other.detail()),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_has_the_code_status_and_reason_of_the_interface() {
        let until = Timestamp::UNIX_EPOCH;
        let table = [
            (Error::InvalidRequest("x".into()), "invalid_request", 400, None),
            (Error::UnauthorizedCaller, "unauthorized_caller", 403, None),
            (Error::NotFound, "not_found", 404, None),
            (
                Error::Conflict { detail: "x".into(), reason: Some(Reason::RoleMissing) },
                "conflict",
                409,
                Some("role_missing"),
            ),
            (Error::TenantNotActive(Some(Reason::Operator)), "tenant_not_active", 409, Some("operator")),
            (Error::Refused(Reason::ConsentMissing), "tenant_not_active", 409, Some("consent_missing")),
            (Error::Gone, "gone", 410, None),
            (Error::Throttled { until }, "throttled", 503, None),
            (Error::Upstream { status: 500, call: "x" }, "upstream_error", 502, None),
            (Error::Unreachable { call: "x" }, "upstream_unreachable", 504, None),
            (Error::DeadlineExceeded, "deadline_exceeded", 504, None),
            (Error::CredentialRejected, "internal", 500, Some("credential_rejected")),
            (Error::Internal("a hidden table".into()), "internal", 500, None),
        ];
        for (error, code, status, reason) in table {
            let problem = error.problem("id-1");
            assert_eq!(problem["code"], code);
            assert_eq!(problem["status"], status);
            assert_eq!(problem["instance"], "id-1");
            assert_eq!(problem["reason"].as_str(), reason);
            assert!(!problem["detail"].as_str().unwrap().contains("a hidden table"));
        }
    }

    #[test]
    fn retry_after_is_rounded_up_and_never_zero() {
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        let at = |text: &str| Error::Throttled { until: text.parse().unwrap() }.retry_after(now);
        assert_eq!(at("2026-11-22T10:00:00.2Z"), Some(1));
        assert_eq!(at("2026-11-22T10:01:00Z"), Some(60));
        assert_eq!(at("2026-11-22T09:00:00Z"), Some(1));
    }
}
