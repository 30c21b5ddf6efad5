use std::collections::BTreeMap;

use super::*;

fn unusable() -> Error {
    Error::CredentialUnusable { secret_id: "a/hidden".into(), problem: "has no value yet".into() }
}

#[test]
fn unusable_credential_is_named_with_the_command_in_the_log() {
    let line = unusable().to_string();
    assert!(line.starts_with("the secret a/hidden has no value yet; "), "{line}");
    let command = "aws secretsmanager put-secret-value --secret-id a/hidden --secret-string file://credential.json";
    assert!(line.contains(command), "{line}");
    assert!(!unusable().fails_message() && !unusable().is_internal_failure());
    assert!(Error::CredentialRejected.is_internal_failure() && !Error::Gone.is_internal_failure());
}

fn unreachable(cause: Cause) -> Error {
    let source = Some(Source::new(std::io::Error::other("a hidden host")));
    Error::Unreachable { call: Call::RequestToken, cause, source }
}

#[test]
fn variants_have_code_status_and_reason_of_the_interface() {
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
        (Error::Upstream { status: 500, call: Call::Hunt }, "upstream_error", 502, None),
        (Error::Malformed { call: Call::GetIncident }, "upstream_error", 502, None),
        (Error::Partial { call: Call::ListIncidents }, "upstream_error", 502, None),
        (Error::FilterNotApplied { call: Call::ListIncidents }, "upstream_error", 502, None),
        (unreachable(Cause::Tls), "upstream_unreachable", 504, None),
        (Error::DeadlineExceeded, "deadline_exceeded", 504, None),
        (Error::CredentialRejected, "internal", 500, Some("credential_rejected")),
        (Error::Internal("a hidden table".into()), "internal", 500, None),
        (unusable(), "internal", 500, None),
    ];
    let mut titles = BTreeMap::new();
    for (error, code, status, reason) in table {
        let problem = error.problem("id-1");
        assert_eq!(problem["code"], code);
        assert_eq!(problem["status"], status);
        assert_eq!(problem["instance"], "id-1");
        assert_eq!(problem["reason"].as_str(), reason);
        assert!(!problem["detail"].as_str().unwrap().contains("hidden"));
        // The title is that of the type (RFC 9457, section 3.1.3), so it has to be true for all errors of one code.
        let title = titles.entry(code).or_insert_with(|| problem["title"].clone());
        assert_eq!(*title, problem["title"], "{code}");
    }
    assert_eq!(titles["upstream_error"], "Microsoft's response cannot be used");
}

#[test]
fn retry_after_is_rounded_up_and_never_zero() {
    let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
    let at = |text: &str| Error::Throttled { until: text.parse().unwrap() }.retry_after(now);
    assert_eq!(at("2026-11-22T10:00:00.2Z"), Some(1));
    assert_eq!(at("2026-11-22T10:01:00Z"), Some(60));
    assert_eq!(at("2026-11-22T09:00:00Z"), Some(1));
}

#[test]
fn causes_are_in_the_log_and_not_in_the_detail() {
    let source = std::io::Error::other(fmt::Error);
    let error = Error::internal("an item could not be read", source);
    assert_eq!(error.to_string(), "an item could not be read (cause: an error occurred when formatting an argument)");
    assert!(error.source().is_some());
    assert_eq!(error, error.clone());
    assert_ne!(error, Error::Internal("an item could not be read".into()));

    let error = unreachable(Cause::Tls);
    assert_eq!(error.detail(), "The TLS handshake failed for the token request. Try again later.");
    assert!(error.to_string().ends_with("Try again later. (cause: a hidden host)"), "{error}");
}

#[test]
fn aws_errors_name_the_call_and_the_code() {
    use aws_sdk_dynamodb::operation::get_item::GetItemError;
    use aws_smithy_runtime_api::client::result::ConnectorError;
    use aws_smithy_types::error::ErrorMetadata;

    let metadata = ErrorMetadata::builder().code("ThrottlingException").message("quotes the request").build();
    let table = [
        (SdkError::service_error(GetItemError::generic(metadata), ()), "ThrottlingException"),
        (SdkError::timeout_error("x"), "timed out"),
        (SdkError::dispatch_failure(ConnectorError::io("refused".into())), "could not be reached: io error: refused"),
    ];
    for (error, why) in table {
        assert_eq!(Error::aws("dynamodb:GetItem", &error).to_string(), format!("dynamodb:GetItem: {why}"));
    }
}
