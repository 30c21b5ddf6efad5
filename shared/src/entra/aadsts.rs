//! Errors of the token endpoint, and the action that each calls for.
//!
//! Microsoft wants callers to react to the OAuth `error` and warns that AADSTS numbers may change. But one `error` covers
//! failures that the customer, the operator or nobody can repair. So known numbers decide, and everything else falls back
//! on `error` and the HTTP status. See "Microsoft identity platform and OAuth 2.0: error codes".

use jiff::SignedDuration;

use crate::tenant::Reason;

/// The action that a refused token request calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenErrorAction {
    /// The tenant refuses. Only the customer can change it.
    Refused(Reason),
    /// Entra refuses our credential, and would for every tenant.
    CredentialRejected,
    /// The client assertion was too old or damaged. A new one with the same credential may be accepted.
    AssertionRejected,
    /// No request before `Retry-After`, or before this time has passed if the response names none.
    Throttled(SignedDuration),
    /// A failure at Microsoft. A second request may succeed.
    Transient,
    /// The request itself is wrong: an error of this program or of the app registration.
    BadRequest,
    /// Neither number nor `error` is known.
    Unknown,
}

/// The wait after throttling if the response names none.
const DEFAULT_RETRY_AFTER: SignedDuration = SignedDuration::from_secs(60);

/// The wait after Entra's loop detection (AADSTS50196).
const LOOP_DETECTED_RETRY_AFTER: SignedDuration = SignedDuration::from_mins(5);

/// Classifies an error by HTTP status, OAuth `error` and `error_codes`. The first known code decides.
pub(super) fn classify(status: u16, error: &str, codes: &[u64]) -> TokenErrorAction {
    if matches!(status, 429 | 503) {
        return TokenErrorAction::Throttled(DEFAULT_RETRY_AFTER);
    }
    codes.iter().find_map(|code| by_code(*code)).unwrap_or_else(|| by_error(status, error))
}

fn by_code(code: u64) -> Option<TokenErrorAction> {
    Some(match code {
        700_016 | 7_000_229 | 700_011 | 65_001 => TokenErrorAction::Refused(Reason::ConsentMissing),
        501_051 => TokenErrorAction::Refused(Reason::RoleMissing),
        7_000_112 | 70_001 => TokenErrorAction::Refused(Reason::DisabledByCustomer),
        500_011 | 650_052 => TokenErrorAction::Refused(Reason::ResourceAbsent),
        1_000_031 | 53_003 | 530_032 | 500_021 | 500_022 => TokenErrorAction::Refused(Reason::BlockedByPolicy),
        90_002 => TokenErrorAction::Refused(Reason::TenantNotFound),
        90_038 | 900_382 | 900_432 => TokenErrorAction::Refused(Reason::WrongCloud),
        7_000_215 | 7_000_222 | 70_002 | 50_012 | 700_027 | 700_030 | 70_021 | 700_211 | 700_212 | 700_213
        | 7_002_121 | 7_002_131 => TokenErrorAction::CredentialRejected,
        700_024 | 50_013 | 500_133 | 50_027 => TokenErrorAction::AssertionRejected,
        50_196 => TokenErrorAction::Throttled(LOOP_DETECTED_RETRY_AFTER),
        90_055 => TokenErrorAction::Throttled(DEFAULT_RETRY_AFTER),
        90_033 | 90_006 | 90_012 | 90_024 | 50_033 | 90_090 | 90_091 | 50_000 | 51_005 => TokenErrorAction::Transient,
        50_001 | 70_011 | 28_002 | 700_022 | 900_144 | 90_014 | 9_002_313 | 901_002 | 650_057 | 7_000_218 | 700_222
        | 700_229 => TokenErrorAction::BadRequest,
        _ => return None,
    })
}

fn by_error(status: u16, error: &str) -> TokenErrorAction {
    match error {
        "temporarily_unavailable" | "server_error" => TokenErrorAction::Transient,
        _ if status >= 500 => TokenErrorAction::Transient,
        "invalid_client" => TokenErrorAction::CredentialRejected,
        "unauthorized_client" => TokenErrorAction::Refused(Reason::ConsentMissing),
        "invalid_resource" => TokenErrorAction::Refused(Reason::ResourceAbsent),
        "interaction_required" | "access_denied" => TokenErrorAction::Refused(Reason::BlockedByPolicy),
        "invalid_request" | "invalid_scope" | "unsupported_grant_type" => TokenErrorAction::BadRequest,
        _ => TokenErrorAction::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_codes_take_precedence_over_the_error() {
        use Reason::{
            BlockedByPolicy, ConsentMissing, DisabledByCustomer, ResourceAbsent, RoleMissing, TenantNotFound,
            WrongCloud,
        };
        let table: [(&[u64], TokenErrorAction); 11] = [
            (&[700_016, 7_000_229, 700_011, 65_001], TokenErrorAction::Refused(ConsentMissing)),
            (&[7_000_112, 70_001], TokenErrorAction::Refused(DisabledByCustomer)),
            (&[501_051], TokenErrorAction::Refused(RoleMissing)),
            (&[500_011, 650_052], TokenErrorAction::Refused(ResourceAbsent)),
            (&[1_000_031, 53_003, 530_032, 500_021, 500_022], TokenErrorAction::Refused(BlockedByPolicy)),
            (&[90_002], TokenErrorAction::Refused(TenantNotFound)),
            (&[90_038, 900_382, 900_432], TokenErrorAction::Refused(WrongCloud)),
            (
                &[7_000_215, 7_000_222, 70_002, 50_012, 700_027, 70_021, 700_211, 700_213],
                TokenErrorAction::CredentialRejected,
            ),
            (&[700_024, 50_013, 500_133, 50_027], TokenErrorAction::AssertionRejected),
            (&[90_033, 90_006, 90_012, 90_024, 50_033, 90_090, 90_091, 50_000], TokenErrorAction::Transient),
            (&[650_057, 50_001, 70_011, 7_000_218, 700_222, 700_229], TokenErrorAction::BadRequest),
        ];
        for (codes, action) in table {
            for code in codes {
                for (status, error) in [(400, "invalid_request"), (401, "invalid_client"), (400, ""), (500, "x")] {
                    assert_eq!(classify(status, error, &[*code]), action, "{code} {error}");
                }
            }
        }
        assert_eq!(
            classify(400, "invalid_grant", &[50_196]),
            TokenErrorAction::Throttled(SignedDuration::from_mins(5))
        );
        assert_eq!(classify(400, "invalid_client", &[1, 7_000_229]), TokenErrorAction::Refused(ConsentMissing));
    }

    #[test]
    fn unknown_codes_fall_back_on_error_and_status() {
        let table = [
            (401, "invalid_client", TokenErrorAction::CredentialRejected),
            (400, "unauthorized_client", TokenErrorAction::Refused(Reason::ConsentMissing)),
            (400, "invalid_resource", TokenErrorAction::Refused(Reason::ResourceAbsent)),
            (400, "interaction_required", TokenErrorAction::Refused(Reason::BlockedByPolicy)),
            (400, "temporarily_unavailable", TokenErrorAction::Transient),
            (400, "invalid_scope", TokenErrorAction::BadRequest),
            (400, "invalid_grant", TokenErrorAction::Unknown),
            (404, "", TokenErrorAction::Unknown),
            (502, "", TokenErrorAction::Transient),
            (500, "invalid_client", TokenErrorAction::Transient),
            (429, "invalid_client", TokenErrorAction::Throttled(DEFAULT_RETRY_AFTER)),
            (503, "", TokenErrorAction::Throttled(DEFAULT_RETRY_AFTER)),
        ];
        for (status, error, action) in table {
            for codes in [&[][..], &[42]] {
                assert_eq!(classify(status, error, codes), action, "{status} {error}");
            }
        }
    }
}
