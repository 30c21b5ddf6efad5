//! What a refusal of the token endpoint means.
//!
//! Microsoft wants callers to react to the OAuth `error` and warns that AADSTS numbers may change; but one `error` covers
//! what the customer, the operator and nobody can cure. So known numbers decide, and everything else falls back on
//! `error` and the HTTP status. See "Microsoft identity platform and OAuth 2.0: error codes".

use jiff::SignedDuration;

use crate::tenant::Reason;

/// What is to be done about a refused token request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenErrorAction {
    /// The tenant refuses; only somebody at the customer can change it.
    Refused(Reason),
    /// Our own credential is refused, as it would be for every tenant.
    Credential,
    /// Our assertion came too late or was garbled on its way; a new one of the same credential may do.
    Assertion,
    /// Not before this time has gone by, or what `Retry-After` says.
    Throttled(SignedDuration),
    /// A failure of Microsoft's that a second try may get past.
    Transient,
    /// The request is wrong in itself: a fault of this program or of the app registration.
    Fault,
    /// Nothing is known about it.
    Unknown,
}

/// How long a throttled key rests when the answer names no time.
pub const DEFAULT_REST: SignedDuration = SignedDuration::from_secs(60);

/// How long one rests that ran into Entra's loop detection.
const LOOP_REST: SignedDuration = SignedDuration::from_mins(5);

/// Judges a refusal by its HTTP status, OAuth `error` and `error_codes`; the first known code counts.
pub fn classify(status: u16, error: &str, codes: &[u64]) -> TokenErrorAction {
    if matches!(status, 429 | 503) {
        return TokenErrorAction::Throttled(DEFAULT_REST);
    }
    codes.iter().find_map(|code| known(*code)).unwrap_or_else(|| by_error(status, error))
}

fn known(code: u64) -> Option<TokenErrorAction> {
    Some(match code {
        700_016 | 7_000_229 | 700_011 | 65_001 => TokenErrorAction::Refused(Reason::ConsentMissing),
        501_051 => TokenErrorAction::Refused(Reason::RoleMissing),
        7_000_112 | 70_001 => TokenErrorAction::Refused(Reason::DisabledByCustomer),
        500_011 | 650_052 => TokenErrorAction::Refused(Reason::ResourceAbsent),
        1_000_031 | 53_003 | 530_032 | 500_021 | 500_022 => TokenErrorAction::Refused(Reason::BlockedByPolicy),
        90_002 => TokenErrorAction::Refused(Reason::TenantNotFound),
        90_038 | 900_382 | 900_432 => TokenErrorAction::Refused(Reason::WrongCloud),
        7_000_215 | 7_000_222 | 70_002 | 50_012 | 700_027 | 700_030 | 70_021 | 700_211 | 700_212 | 700_213
        | 7_002_121 | 7_002_131 => TokenErrorAction::Credential,
        700_024 | 50_013 | 500_133 | 50_027 => TokenErrorAction::Assertion,
        50_196 => TokenErrorAction::Throttled(LOOP_REST),
        90_055 => TokenErrorAction::Throttled(DEFAULT_REST),
        90_033 | 90_006 | 90_012 | 90_024 | 50_033 | 90_090 | 90_091 | 50_000 | 51_005 => TokenErrorAction::Transient,
        50_001 | 70_011 | 28_002 | 700_022 | 900_144 | 90_014 | 9_002_313 | 901_002 | 650_057 | 7_000_218 | 700_222
        | 700_229 => TokenErrorAction::Fault,
        _ => return None,
    })
}

fn by_error(status: u16, error: &str) -> TokenErrorAction {
    match error {
        "temporarily_unavailable" | "server_error" => TokenErrorAction::Transient,
        _ if status >= 500 => TokenErrorAction::Transient,
        "invalid_client" => TokenErrorAction::Credential,
        "unauthorized_client" => TokenErrorAction::Refused(Reason::ConsentMissing),
        "invalid_resource" => TokenErrorAction::Refused(Reason::ResourceAbsent),
        "interaction_required" | "access_denied" => TokenErrorAction::Refused(Reason::BlockedByPolicy),
        "invalid_request" | "invalid_scope" | "unsupported_grant_type" => TokenErrorAction::Fault,
        _ => TokenErrorAction::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_codes_decide_whatever_the_error_says() {
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
            (&[7_000_215, 7_000_222, 70_002, 50_012, 700_027, 70_021, 700_211, 700_213], TokenErrorAction::Credential),
            (&[700_024, 50_013, 500_133, 50_027], TokenErrorAction::Assertion),
            (&[90_033, 90_006, 90_012, 90_024, 50_033, 90_090, 90_091, 50_000], TokenErrorAction::Transient),
            (&[650_057, 50_001, 70_011, 7_000_218, 700_222, 700_229], TokenErrorAction::Fault),
        ];
        for (codes, verdict) in table {
            for code in codes {
                for (status, error) in [(400, "invalid_request"), (401, "invalid_client"), (400, ""), (500, "x")] {
                    assert_eq!(classify(status, error, &[*code]), verdict, "{code} {error}");
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
    fn what_is_not_known_falls_back_on_error_and_status() {
        let table = [
            (401, "invalid_client", TokenErrorAction::Credential),
            (400, "unauthorized_client", TokenErrorAction::Refused(Reason::ConsentMissing)),
            (400, "invalid_resource", TokenErrorAction::Refused(Reason::ResourceAbsent)),
            (400, "interaction_required", TokenErrorAction::Refused(Reason::BlockedByPolicy)),
            (400, "temporarily_unavailable", TokenErrorAction::Transient),
            (400, "invalid_scope", TokenErrorAction::Fault),
            (400, "invalid_grant", TokenErrorAction::Unknown),
            (404, "", TokenErrorAction::Unknown),
            (502, "", TokenErrorAction::Transient),
            (500, "invalid_client", TokenErrorAction::Transient),
            (429, "invalid_client", TokenErrorAction::Throttled(DEFAULT_REST)),
            (503, "", TokenErrorAction::Throttled(DEFAULT_REST)),
        ];
        for (status, error, verdict) in table {
            for codes in [&[][..], &[42]] {
                assert_eq!(classify(status, error, codes), verdict, "{status} {error}");
            }
        }
    }
}
