//! Errors of the token endpoint, and the action that each calls for.
//!
//! Microsoft wants callers to react to the OAuth `error` and warns that AADSTS numbers may change. But one `error` covers
//! failures that the customer, the operator or nobody can repair. So known numbers decide, and everything else falls back
//! on `error` and the HTTP status. A refusal that neither explains is that tenant's own.
//!
//! Sources: "Microsoft Entra authentication and authorization error codes"
//! (<https://learn.microsoft.com/entra/identity-platform/reference-error-codes>), named "reference" below, and public
//! reports where the reference lacks a number.

use jiff::SignedDuration;
use serde_json::Value;
use uuid::Uuid;

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
    /// Entra refuses the client by a number that is not known. It may refuse our credential, or only this tenant.
    ClientRefused,
    /// A refusal that nothing here explains.
    Unexplained,
}

/// The wait after throttling if the response names none.
const DEFAULT_RETRY_AFTER: SignedDuration = SignedDuration::from_secs(60);

/// The wait after Entra's loop detection (AADSTS50196).
const LOOP_DETECTED_RETRY_AFTER: SignedDuration = SignedDuration::from_mins(5);

/// The OAuth `error` of a grant that Entra refuses (RFC 6749, section 5.2). It never speaks of the client's credential.
const INVALID_GRANT: &str = "invalid_grant";

/// An error response. Each member is read on its own: an unexpected JSON type of one hides no other.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ErrorBody {
    /// The OAuth `error`; empty if there is none.
    pub(super) error: String,
    /// The AADSTS numbers, from `error_codes` or else from `error_description`.
    pub(super) codes: Vec<u64>,
    pub(super) trace_id: Option<Uuid>,
    pub(super) correlation_id: Option<Uuid>,
}

impl ErrorBody {
    /// Reads what can be read of a response's body.
    pub(super) fn read(body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |name: &str| body.get(name).and_then(Value::as_str);
        let id = |name: &str| text(name)?.parse().ok();
        let codes = match body.get("error_codes") {
            Some(Value::Array(codes)) => codes.iter().filter_map(number).collect(),
            Some(code) => number(code).into_iter().collect(),
            None => Vec::new(),
        };
        let described = || text("error_description").and_then(number_in_description).into_iter().collect();
        Self {
            error: text("error").unwrap_or_default().to_owned(),
            codes: if codes.is_empty() { described() } else { codes },
            trace_id: id("trace_id"),
            correlation_id: id("correlation_id"),
        }
    }
}

/// An AADSTS number, as a number or as a text with or without `AADSTS` before it.
fn number(code: &Value) -> Option<u64> {
    code.as_u64().or_else(|| code.as_str()?.trim().trim_start_matches("AADSTS").parse().ok())
}

/// The number at the beginning of a description (`AADSTS7000215: Invalid client secret provided. …`).
fn number_in_description(description: &str) -> Option<u64> {
    let rest = description.strip_prefix("AADSTS")?;
    rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// Classifies an error by HTTP status, OAuth `error` and AADSTS numbers. The first known number decides.
pub(super) fn classify(status: u16, error: &str, codes: &[u64]) -> TokenErrorAction {
    if matches!(status, 429 | 503) {
        return TokenErrorAction::Throttled(DEFAULT_RETRY_AFTER);
    }
    let of_app = |code: u64| if error == INVALID_GRANT { None } else { of_app(code) };
    let known = codes.iter().find_map(|code| of_tenant_or_microsoft(*code).or_else(|| of_app(*code)));
    known.unwrap_or_else(|| by_error(status, error))
}

/// The numbers that speak of the app: of its credential, or of its registration. Every tenant would be refused.
fn of_app(code: u64) -> Option<TokenErrorAction> {
    Some(match code {
        // Reference: the client secret is wrong (7000215) or has expired (7000222); the client's credentials are wrong
        // (70002); authentication of the client failed (50012).
        7_000_215 | 7_000_222 | 70_002 | 50_012
        // Reference: the certificate or its signature is not that of the registration (700027), or not valid (700030).
        | 700_027 | 700_030
        // "Workload identity federation: error codes": no federated credential has the assertion's issuer (700211),
        // audience (700212), subject (700213), or any of them (70021); its claims differ (7002121, 7002131).
        | 70_021 | 700_211 | 700_212 | 700_213 | 7_002_121 | 7_002_131
        // Public reports: the registration is a public client, which may have no credential.
        | 700_025 => TokenErrorAction::CredentialRejected,
        // Reference: the client assertion is outside its valid time (700024, 500133), was replayed or is malformed
        // (50013, 50027).
        700_024 | 50_013 | 500_133 | 50_027 => TokenErrorAction::AssertionRejected,
        _ => return None,
    })
}

/// The numbers that speak of one tenant, or of Microsoft's own state.
fn of_tenant_or_microsoft(code: u64) -> Option<TokenErrorAction> {
    Some(match code {
        700_016 | 7_000_229 | 700_011 | 65_001 => TokenErrorAction::Refused(Reason::ConsentMissing),
        501_051 => TokenErrorAction::Refused(Reason::RoleMissing),
        7_000_112 | 70_001 => TokenErrorAction::Refused(Reason::DisabledByCustomer),
        // Reference: the resource is not in the tenant (500011, 650052), is disabled there (500014), or is disabled or
        // does not exist (50001). Public reports: the organization has not subscribed to it (65005).
        500_011 | 650_052 | 500_014 | 50_001 | 65_005 => TokenErrorAction::Refused(Reason::ResourceAbsent),
        // Reference: Conditional Access (53003, 530032, 53011 for risk), tenant restrictions (500021, 500022). Public
        // reports: 530084, token protection. 50020: the account is not one of the tenant, which only a sign-in meets.
        1_000_031 | 53_003 | 53_011 | 530_032 | 530_084 | 500_021 | 500_022 | 50_020 => {
            TokenErrorAction::Refused(Reason::BlockedByPolicy)
        }
        90_002 => TokenErrorAction::Refused(Reason::TenantNotFound),
        // Public reports of 2026: Entra has blocked the tenant for inactivity.
        5_000_225 => TokenErrorAction::Refused(Reason::TenantInactive),
        90_038 | 900_382 | 900_432 => TokenErrorAction::Refused(Reason::WrongCloud),
        50_196 => TokenErrorAction::Throttled(LOOP_DETECTED_RETRY_AFTER),
        90_055 => TokenErrorAction::Throttled(DEFAULT_RETRY_AFTER),
        90_033 | 90_006 | 90_012 | 90_024 | 50_033 | 90_090 | 90_091 | 50_000 | 51_005 => TokenErrorAction::Transient,
        _ => return None,
    })
}

fn by_error(status: u16, error: &str) -> TokenErrorAction {
    match error {
        "temporarily_unavailable" | "server_error" => TokenErrorAction::Transient,
        _ if status >= 500 => TokenErrorAction::Transient,
        "invalid_client" => TokenErrorAction::ClientRefused,
        "unauthorized_client" => TokenErrorAction::Refused(Reason::ConsentMissing),
        "invalid_resource" => TokenErrorAction::Refused(Reason::ResourceAbsent),
        "interaction_required" | "access_denied" => TokenErrorAction::Refused(Reason::BlockedByPolicy),
        _ => TokenErrorAction::Unexplained,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn known_codes_take_precedence_over_the_error() {
        use Reason::{
            BlockedByPolicy, ConsentMissing, DisabledByCustomer, ResourceAbsent, RoleMissing, TenantInactive,
            TenantNotFound, WrongCloud,
        };
        let table: [(&[u64], TokenErrorAction); 11] = [
            (&[700_016, 7_000_229, 700_011, 65_001], TokenErrorAction::Refused(ConsentMissing)),
            (&[7_000_112, 70_001], TokenErrorAction::Refused(DisabledByCustomer)),
            (&[501_051], TokenErrorAction::Refused(RoleMissing)),
            (&[500_011, 650_052, 500_014, 50_001, 65_005], TokenErrorAction::Refused(ResourceAbsent)),
            (
                &[1_000_031, 53_003, 530_032, 530_084, 53_011, 500_021, 500_022, 50_020],
                TokenErrorAction::Refused(BlockedByPolicy),
            ),
            (&[90_002], TokenErrorAction::Refused(TenantNotFound)),
            (&[5_000_225], TokenErrorAction::Refused(TenantInactive)),
            (&[90_038, 900_382, 900_432], TokenErrorAction::Refused(WrongCloud)),
            (
                &[7_000_215, 7_000_222, 70_002, 50_012, 700_027, 70_021, 700_211, 700_213, 700_025],
                TokenErrorAction::CredentialRejected,
            ),
            (&[700_024, 50_013, 500_133, 50_027], TokenErrorAction::AssertionRejected),
            (&[90_033, 90_006, 90_012, 90_024, 50_033, 90_090, 90_091, 50_000], TokenErrorAction::Transient),
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
        assert_eq!(classify(400, "access_denied", &[65_005]), TokenErrorAction::Refused(ResourceAbsent));
    }

    #[test]
    fn unknown_codes_fall_back_on_error_and_status() {
        let table = [
            (401, "invalid_client", TokenErrorAction::ClientRefused),
            (400, "unauthorized_client", TokenErrorAction::Refused(Reason::ConsentMissing)),
            (400, "invalid_resource", TokenErrorAction::Refused(Reason::ResourceAbsent)),
            (400, "interaction_required", TokenErrorAction::Refused(Reason::BlockedByPolicy)),
            (400, "temporarily_unavailable", TokenErrorAction::Transient),
            (400, "invalid_scope", TokenErrorAction::Unexplained),
            (400, "invalid_grant", TokenErrorAction::Unexplained),
            (404, "", TokenErrorAction::Unexplained),
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

    #[test]
    fn refused_grant_never_speaks_of_the_credential() {
        for codes in [&[7_000_215][..], &[70_002, 54_005], &[700_024], &[50_012], &[]] {
            assert_eq!(classify(400, INVALID_GRANT, codes), TokenErrorAction::Unexplained, "{codes:?}");
        }
        let refused = TokenErrorAction::Refused(Reason::TenantInactive);
        assert_eq!(classify(400, INVALID_GRANT, &[70_002, 5_000_225]), refused);
    }

    #[test]
    fn odd_member_of_an_error_body_hides_no_other() {
        let table = [
            ("numbers", json!({"error": "e", "error_codes": [1, 2]}), "e", vec![1, 2]),
            ("texts", json!({"error": "e", "error_codes": ["1", " AADSTS2"]}), "e", vec![1, 2]),
            ("odd elements", json!({"error": "e", "error_codes": [null, {}, "x", [3], -1, 4]}), "e", vec![4]),
            ("one number", json!({"error": "e", "error_codes": 7}), "e", vec![7]),
            ("one text", json!({"error": "e", "error_codes": "7"}), "e", vec![7]),
            ("null", json!({"error": "e", "error_codes": null}), "e", vec![]),
            ("object", json!({"error": "e", "error_codes": {"0": 7}}), "e", vec![]),
            ("error as object", json!({"error": {"code": "x"}, "error_codes": [7]}), "", vec![7]),
            ("error as number", json!({"error": 400, "error_codes": [7], "trace_id": {}}), "", vec![7]),
            ("described", json!({"error": "e", "error_description": "AADSTS7000229: x"}), "e", vec![7_000_229]),
            ("described late", json!({"error": "e", "error_description": "x AADSTS7"}), "e", vec![]),
            ("list", json!(["error"]), "", vec![]),
            ("text", json!("error"), "", vec![]),
        ];
        for (name, body, error, codes) in table {
            let found = ErrorBody::read(body.to_string().as_bytes());
            assert_eq!((found.error.as_str(), found.codes), (error, codes), "{name}");
        }
        assert_eq!(ErrorBody::read(b"<html>"), ErrorBody::default());
    }

    /// The numbers that speak of the app, written down once more.
    const OF_APP: [u64; 17] = [
        50_012, 50_013, 50_027, 70_002, 70_021, 500_133, 700_024, 700_025, 700_027, 700_030, 700_211, 700_212, 700_213,
        7_000_215, 7_000_222, 7_002_121, 7_002_131,
    ];

    /// Numbers that speak of a tenant or of Microsoft.
    const OF_OTHERS: [u64; 12] =
        [700_016, 7_000_229, 501_051, 7_000_112, 500_011, 53_003, 90_002, 5_000_225, 90_038, 50_196, 90_055, 90_033];

    /// A number that a table has, one beside it, or any.
    fn a_number() -> impl Strategy<Value = u64> {
        let known = || prop::sample::select([&OF_APP[..], &OF_OTHERS[..]].concat());
        prop_oneof![known(), (known(), 0..=2_u64).prop_map(|(number, step)| number + step - 1), any::<u64>()]
    }

    /// Numbers in any JSON type that may stand in a place of an error body.
    fn json_of(numbers: &[u64]) -> impl Strategy<Value = Value> + use<> {
        let texts: Vec<String> = numbers.iter().map(|number| format!("AADSTS{number}")).collect();
        let first = numbers[0];
        prop::sample::select(vec![
            json!(numbers),
            json!(texts),
            json!(first),
            json!(first.to_string()),
            json!([null, {}, first]),
            json!({"0": first}),
            json!([numbers]),
            Value::Null,
            json!(true),
            json!([]),
        ])
    }

    /// An `error` word that Entra uses, any other, or another JSON type.
    fn a_word() -> impl Strategy<Value = Value> {
        let words = [
            "invalid_client",
            "invalid_grant",
            "invalid_request",
            "invalid_scope",
            "unauthorized_client",
            "invalid_resource",
            "interaction_required",
            "access_denied",
            "temporarily_unavailable",
        ];
        prop_oneof![
            4 => prop::sample::select(words.to_vec()).prop_map(Value::from),
            1 => "[a-z_]{0,12}".prop_map(Value::from),
            1 => prop::sample::select(vec![json!(7), json!({"code": "invalid_client"}), json!(["x"]), Value::Null]),
        ]
    }

    /// Every number that stands somewhere in `value`, read without the code under test.
    fn numbers_in(value: &Value) -> Vec<u64> {
        let text = value.to_string();
        text.split(|letter: char| !letter.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Any number with any word, in any JSON type: the credential is refused only by a number that speaks of the app,
        /// and only such a number that stands alone always is. A client that is refused by any other is to be compared
        /// with another tenant's.
        #[test]
        fn only_a_number_of_the_app_speaks_of_the_app(
            status in prop::sample::select(vec![400_u16, 401, 403]),
            error in a_word(),
            (numbers, codes) in prop::collection::vec(a_number(), 1..3)
                .prop_flat_map(|numbers| (Just(numbers.clone()), json_of(&numbers))),
        ) {
            let body = json!({"error": error, "error_codes": codes});
            let read = ErrorBody::read(body.to_string().as_bytes());
            let action = classify(status, &read.error, &read.codes);
            let of_app =
                matches!(action, TokenErrorAction::CredentialRejected | TokenErrorAction::AssertionRejected);
            let has_one = numbers_in(&codes).iter().any(|number| OF_APP.contains(number));
            prop_assert!(!of_app || has_one && error != INVALID_GRANT, "{body}: {action:?}");
            let [number] = numbers[..] else { return Ok(()) };
            if codes == json!([number]) && error != INVALID_GRANT {
                prop_assert_eq!(of_app, OF_APP.contains(&number), "{}", body);
            }
            // Only the word for a refused client, without a known number, asks for a comparison with other tenants.
            if action == TokenErrorAction::ClientRefused {
                prop_assert_eq!(error, json!("invalid_client"));
                prop_assert!(read.codes.iter().all(|number| !OF_OTHERS.contains(number)));
            }
        }
    }
}
