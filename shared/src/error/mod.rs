//! One error type whose variants are decisions, and its two readings: the problem document and the response to SQS.

mod call;
mod query;
mod source;

use std::{error::Error as StdError, fmt};

use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use jiff::Timestamp;
use serde_json::{Value, json};

use self::source::Chain;
pub use self::{
    call::{Call, Cause},
    query::QueryFailure,
    source::{InternalError, Source},
};
use crate::tenant::{NotATenantId, Reason};

/// A result whose error is ours.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, named by what is to be done about it. No variant holds a secret, a token or text from outside.
#[derive(Clone, Debug, PartialEq)]
pub enum Error {
    /// The caller must change the request, as the text says.
    InvalidRequest(String),
    /// A JSON route was reached without an identity that the gateway has checked and that may use it, or a function was
    /// invoked past the gateway where that is switched off.
    UnauthorizedCaller,
    /// The requested thing is unknown, or its identifier is malformed.
    NotFound,
    /// The request is valid, but the state of the thing forbids it.
    Conflict {
        /// The obstacle, in words for the caller.
        detail: String,
        /// The interface's word for it, where there is one.
        reason: Option<Reason>,
    },
    /// The tenant is not active.
    TenantNotActive(Option<Reason>),
    /// The caller's `next` has expired.
    Gone,
    /// Microsoft, or our budget for Microsoft, allows no call to this tenant's API for now.
    Throttled {
        /// The time before which the call must not be repeated.
        until: Timestamp,
    },
    /// Microsoft refuses this tenant. Only somebody at the customer can change it.
    Refused(Reason),
    /// Microsoft refuses our credential. This affects every tenant, and only the operator can change it.
    CredentialRejected,
    /// The secret of our credential has no value, or one that cannot be used. Only the operator can change it.
    CredentialUnusable {
        /// The name or ARN of the secret.
        secret_id: String,
        /// The rest of the sentence about it, without anything of its value.
        problem: String,
    },
    /// Microsoft responded with a status that the call does not expect.
    Upstream {
        /// The HTTP status of Microsoft's response.
        status: u16,
        /// The call that failed.
        call: Call,
    },
    /// Microsoft refuses a hunting query itself.
    QueryFailed(QueryFailure),
    /// Microsoft responded with success, but the body is not what the call promises.
    Malformed {
        /// The call that failed.
        call: Call,
    },
    /// Microsoft responded with records that the call excludes, so that what it leaves out is unknown, too.
    FilterNotApplied {
        /// The call that failed.
        call: Call,
    },
    /// Microsoft responded with 206: a part of the content is missing.
    Partial {
        /// The call that failed.
        call: Call,
    },
    /// No complete response came from Microsoft.
    Unreachable {
        /// The call that failed.
        call: Call,
        /// The step at which it failed.
        cause: Cause,
        /// The error of the HTTP client, without the URL. A time-out of ours has none.
        source: Option<Source>,
    },
    /// The invocation's own time is nearly used up.
    DeadlineExceeded,
    /// A failure of ours or of AWS. The queue retries it, then a person looks at it.
    Internal(InternalError),
}

impl Error {
    /// An [`Error::Internal`] that keeps its cause. Neither `context` nor the texts of `source` may hold a secret.
    pub fn internal(context: impl Into<String>, source: impl StdError + Send + Sync + 'static) -> Self {
        Self::Internal(InternalError { context: context.into(), source: Some(Source::new(source)) })
    }

    /// An [`Error::Internal`] that names the failed AWS call (`dynamodb:GetItem`) and the service's error code, or why
    /// there is none. The service's message is left out, because it may quote the request.
    pub fn aws<E: ProvideErrorMetadata, R>(call: &str, error: &SdkError<E, R>) -> Self {
        let why = match error {
            SdkError::ServiceError(service) => service.err().code().unwrap_or("service error").to_owned(),
            SdkError::TimeoutError(_) => "timed out".to_owned(),
            SdkError::DispatchFailure(failure) => match failure.as_connector_error() {
                Some(error) => format!("could not be reached: {}", Chain(error)),
                None => "could not be reached".to_owned(),
            },
            SdkError::ConstructionFailure(_) => "request could not be built".to_owned(),
            _ => "response could not be read".to_owned(),
        };
        Self::Internal(format!("{call}: {why}").into())
    }

    /// The interface's code and HTTP status.
    pub fn code(&self) -> (&'static str, u16) {
        let Problem { code, status, .. } = self.kind();
        (code, status)
    }

    fn kind(&self) -> Problem {
        let of = |code, status, title| Problem { code, status, title };
        match self {
            Self::InvalidRequest(_) | Self::QueryFailed(_) => of("invalid_request", 400, "The request is not valid"),
            Self::UnauthorizedCaller => of("unauthorized_caller", 403, "The caller is not identified"),
            Self::NotFound => of("not_found", 404, "Not found"),
            Self::Conflict { .. } => of("conflict", 409, "The present state forbids it"),
            Self::TenantNotActive(_) | Self::Refused(_) => of("tenant_not_active", 409, "The tenant is not active"),
            Self::Gone => of("gone", 410, "No longer there"),
            Self::CredentialRejected | Self::CredentialUnusable { .. } | Self::Internal(_) => {
                of("internal", 500, "Internal error")
            }
            Self::Throttled { .. } => of("throttled", 503, "Too many calls"),
            Self::Upstream { .. } | Self::Malformed { .. } | Self::FilterNotApplied { .. } | Self::Partial { .. } => {
                of("upstream_error", 502, "Microsoft's response cannot be used")
            }
            Self::Unreachable { .. } => of("upstream_unreachable", 504, "Microsoft could not be reached"),
            Self::DeadlineExceeded => of("deadline_exceeded", 504, "Out of time"),
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
            | Self::QueryFailed(_)
            | Self::Malformed { .. }
            | Self::FilterNotApplied { .. }
            | Self::Partial { .. }
            | Self::Unreachable { .. }
            | Self::DeadlineExceeded
            | Self::CredentialUnusable { .. }
            | Self::Internal(_) => None,
        }
    }

    /// Returns true for a failure that the running release may have caused. The operator's secret is not its doing.
    pub fn is_internal_failure(&self) -> bool {
        self.code().1 == 500 && !matches!(self, Self::CredentialUnusable { .. })
    }

    /// The text for a caller: what happened and what to do next, without anything internal.
    pub fn detail(&self) -> String {
        match self {
            Self::InvalidRequest(what) => what.clone(),
            Self::UnauthorizedCaller => {
                "This route is for callers that API Gateway has identified: by IAM (sign the request with SigV4), or by a JWT \
                 with this route's scope where the deployment admits one."
                    .into()
            }
            Self::NotFound => "It is unknown here, or its identifier is malformed.".into(),
            Self::Conflict { detail, .. } => detail.clone(),
            Self::TenantNotActive(Some(reason)) | Self::Refused(reason) => {
                format!("The tenant is not active: {reason}. Its status says since when; GET /tenants/{{tenant_id}}.")
            }
            Self::TenantNotActive(None) => "The tenant is not active. GET /tenants/{tenant_id} says why.".into(),
            Self::Gone => "This `next` has expired. Start again without it.".into(),
            Self::Throttled { .. } => {
                "The limit of calls to Microsoft for this tenant is reached. Try again after the time in Retry-After."
                    .into()
            }
            Self::CredentialRejected => {
                "Microsoft refuses the app credential of this deployment. Its operator must renew it.".into()
            }
            Self::CredentialUnusable { .. } => {
                "The secret of the app credential has no usable value. The operator of this deployment must fill it; the log \
                 has the command."
                    .into()
            }
            Self::Upstream { status, call } => {
                format!("Microsoft responded to {call} with status {status}. Try again later.")
            }
            Self::QueryFailed(failure) => failure.detail().into(),
            Self::Malformed { call } => {
                format!("Microsoft's response to {call} is not as documented. Try again later.")
            }
            Self::FilterNotApplied { call } => {
                format!("Microsoft did not apply the filter of {call}. Report it to Microsoft if it lasts.")
            }
            Self::Partial { call } => {
                format!("Microsoft's response to {call} is incomplete (status 206). Try again later.")
            }
            Self::Unreachable { call, cause, .. } => match cause {
                Cause::Connect => format!("No connection could be opened for {call}. Try again later."),
                Cause::Tls => format!("The TLS handshake failed for {call}. Try again later."),
                Cause::Timeout => format!("The response to {call} did not come in time. Try again later."),
                Cause::Closed => format!("The connection closed before the response to {call}. Try again later."),
                Cause::Body => format!("The connection broke inside the response to {call}. Try again later."),
            },
            Self::DeadlineExceeded => {
                "The work did not fit into the time of one call. Ask for less, or try again.".into()
            }
            Self::Internal(_) => {
                "Something failed inside this deployment. The log has the cause under this instance.".into()
            }
        }
    }

    /// Seconds until a throttled caller may call again: at least 1.
    pub fn retry_after(&self, now: Timestamp) -> Option<u64> {
        let Self::Throttled { until } = self else { return None };
        let wait = until.duration_since(now);
        let whole = wait.as_secs() + i64::from(wait.subsec_nanos() > 0);
        Some(u64::try_from(whole).unwrap_or(0).max(1))
    }

    /// The RFC 9457 problem document. `instance` is the request's id.
    pub fn problem(&self, instance: &str) -> Value {
        let Problem { code, status, title } = self.kind();
        let mut problem = json!({
            "type": format!("urn:mandate:problem:{code}"),
            "title": title,
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

    /// Returns whether the message is reported as failed, so that SQS redelivers it and finally moves it to the
    /// dead-letter queue. Our own failures are, and messages that ask for something impossible, for a person to look at. Failures of
    /// a tenant, of Microsoft and of our credential are not, because the next poll covers them.
    pub fn fails_message(&self) -> bool {
        match self {
            Self::Internal(_) | Self::InvalidRequest(_) | Self::UnauthorizedCaller | Self::Gone => true,
            Self::NotFound
            | Self::Conflict { .. }
            | Self::TenantNotActive(_)
            | Self::Throttled { .. }
            | Self::Refused(_)
            | Self::CredentialRejected
            | Self::CredentialUnusable { .. }
            | Self::Upstream { .. }
            | Self::QueryFailed(_)
            | Self::Malformed { .. }
            | Self::FilterNotApplied { .. }
            | Self::Partial { .. }
            | Self::Unreachable { .. }
            | Self::DeadlineExceeded => false,
        }
    }
}

/// The interface's constants for a kind of error.
struct Problem {
    code: &'static str,
    status: u16,
    title: &'static str,
}

impl From<NotATenantId> for Error {
    /// A malformed tenant id is reported as `not_found`, exactly like an unknown one.
    fn from(_: NotATenantId) -> Self {
        Self::NotFound
    }
}

/// The line for the log: with all causes, unlike [`Error::detail`].
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internal(error) => f.write_str(&error.context)?,
            Self::Throttled { until } => write!(f, "throttled until {until}")?,
            Self::CredentialUnusable { secret_id, problem } => write!(
                f,
                "the secret {secret_id} {problem}; fill it as infra/README.md says: aws secretsmanager put-secret-value \
                 --secret-id {secret_id} --secret-string file://credential.json"
            )?,
            other => f.write_str(&other.detail())?,
        }
        self.source().map_or(Ok(()), |source| write!(f, " (cause: {})", Chain(source)))
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let (Self::Internal(InternalError { source, .. }) | Self::Unreachable { source, .. }) = self else {
            return None;
        };
        source.as_ref().map(Source::as_error)
    }
}

#[cfg(test)]
mod tests;
