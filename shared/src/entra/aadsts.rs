//! What a refusal of the token endpoint means.
//!
//! Microsoft wants callers to react to the OAuth `error` and warns that AADSTS numbers may change; but one `error` covers
//! what the customer, the operator and nobody can cure. So known numbers decide, and everything else falls back on
//! `error` and the HTTP status. See "Microsoft identity platform and OAuth 2.0: error codes".

use jiff::SignedDuration;

use crate::error::Reason;

/// What is to be done about a refused token request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
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
pub fn judge(status: u16, error: &str, codes: &[u64]) -> Verdict {
    if matches!(status, 429 | 503) {
        return Verdict::Throttled(DEFAULT_REST);
    }
    codes.iter().find_map(|code| known(*code)).unwrap_or_else(|| by_error(status, error))
}

fn known(code: u64) -> Option<Verdict> {
    Some(match code {
        700_016 | 7_000_229 | 700_011 | 65_001 => Verdict::Refused(Reason::ConsentMissing),
        501_051 => Verdict::Refused(Reason::RoleMissing),
        7_000_112 | 70_001 => Verdict::Refused(Reason::DisabledByCustomer),
        500_011 | 650_052 => Verdict::Refused(Reason::ResourceAbsent),
        1_000_031 | 53_003 | 530_032 | 500_021 | 500_022 => Verdict::Refused(Reason::BlockedByPolicy),
        90_002 => Verdict::Refused(Reason::TenantNotFound),
        90_038 | 900_382 | 900_432 => Verdict::Refused(Reason::WrongCloud),
        7_000_215 | 7_000_222 | 70_002 | 50_012 | 700_027 | 700_030 | 70_021 | 700_211 | 700_212 | 700_213
        | 7_002_121 | 7_002_131 => Verdict::Credential,
        700_024 | 50_013 | 500_133 | 50_027 => Verdict::Assertion,
        50_196 => Verdict::Throttled(LOOP_REST),
        90_055 => Verdict::Throttled(DEFAULT_REST),
        90_033 | 90_006 | 90_012 | 90_024 | 50_033 | 90_090 | 90_091 | 50_000 | 51_005 => Verdict::Transient,
        50_001 | 70_011 | 28_002 | 700_022 | 900_144 | 90_014 | 9_002_313 | 901_002 | 650_057 | 7_000_218 | 700_222
        | 700_229 => Verdict::Fault,
        _ => return None,
    })
}

fn by_error(status: u16, error: &str) -> Verdict {
    match error {
        "temporarily_unavailable" | "server_error" => Verdict::Transient,
        _ if status >= 500 => Verdict::Transient,
        "invalid_client" => Verdict::Credential,
        "unauthorized_client" => Verdict::Refused(Reason::ConsentMissing),
        "invalid_resource" => Verdict::Refused(Reason::ResourceAbsent),
        "interaction_required" | "access_denied" => Verdict::Refused(Reason::BlockedByPolicy),
        "invalid_request" | "invalid_scope" | "unsupported_grant_type" => Verdict::Fault,
        _ => Verdict::Unknown,
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
        let table: [(&[u64], Verdict); 11] = [
            (&[700_016, 7_000_229, 700_011, 65_001], Verdict::Refused(ConsentMissing)),
            (&[7_000_112, 70_001], Verdict::Refused(DisabledByCustomer)),
            (&[501_051], Verdict::Refused(RoleMissing)),
            (&[500_011, 650_052], Verdict::Refused(ResourceAbsent)),
            (&[1_000_031, 53_003, 530_032, 500_021, 500_022], Verdict::Refused(BlockedByPolicy)),
            (&[90_002], Verdict::Refused(TenantNotFound)),
            (&[90_038, 900_382, 900_432], Verdict::Refused(WrongCloud)),
            (&[7_000_215, 7_000_222, 70_002, 50_012, 700_027, 70_021, 700_211, 700_213], Verdict::Credential),
            (&[700_024, 50_013, 500_133, 50_027], Verdict::Assertion),
            (&[90_033, 90_006, 90_012, 90_024, 50_033, 90_090, 90_091, 50_000], Verdict::Transient),
            (&[650_057, 50_001, 70_011, 7_000_218, 700_222, 700_229], Verdict::Fault),
        ];
        for (codes, verdict) in table {
            for code in codes {
                for (status, error) in [(400, "invalid_request"), (401, "invalid_client"), (400, ""), (500, "x")] {
                    assert_eq!(judge(status, error, &[*code]), verdict, "{code} {error}");
                }
            }
        }
        assert_eq!(judge(400, "invalid_grant", &[50_196]), Verdict::Throttled(SignedDuration::from_mins(5)));
        assert_eq!(judge(400, "invalid_client", &[1, 7_000_229]), Verdict::Refused(ConsentMissing));
    }

    #[test]
    fn what_is_not_known_falls_back_on_error_and_status() {
        let table = [
            (401, "invalid_client", Verdict::Credential),
            (400, "unauthorized_client", Verdict::Refused(Reason::ConsentMissing)),
            (400, "invalid_resource", Verdict::Refused(Reason::ResourceAbsent)),
            (400, "interaction_required", Verdict::Refused(Reason::BlockedByPolicy)),
            (400, "temporarily_unavailable", Verdict::Transient),
            (400, "invalid_scope", Verdict::Fault),
            (400, "invalid_grant", Verdict::Unknown),
            (404, "", Verdict::Unknown),
            (502, "", Verdict::Transient),
            (500, "invalid_client", Verdict::Transient),
            (429, "invalid_client", Verdict::Throttled(DEFAULT_REST)),
            (503, "", Verdict::Throttled(DEFAULT_REST)),
        ];
        for (status, error, verdict) in table {
            for codes in [&[][..], &[42]] {
                assert_eq!(judge(status, error, codes), verdict, "{status} {error}");
            }
        }
    }
}
