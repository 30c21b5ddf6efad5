//! The next step of a person, by the state of a tenant or the code of a problem.

use serde_json::Value;

use crate::problem::Problem;

/// The operator's next step for a tenant that is not read as it should be; `None` if nothing needs to be done.
/// `tenant` is a Tenant of the API.
pub fn for_tenant(tenant: &Value) -> Option<&'static str> {
    let reason = tenant["reason"].as_str();
    match tenant["status"].as_str().unwrap_or_default() {
        "pending" if reason == Some("operator") => Some(
            "It waits for you. Ask the customer whether this person acts for them, then `mandate resume`, or `mandate offboard`.",
        ),
        "pending" => Some(
            "Nothing yet: it is tried again by itself, for half an hour. If it then is paused, the reason says who acts.",
        ),
        "paused" => Some(for_reason(reason.unwrap_or_default())),
        "offboarded" => Some(
            "Ask the customer to remove the application, then `mandate offboard` again shows whether access has ended.",
        ),
        _ if tenant["last_sweep"]["missing"].as_u64().is_some_and(|missing| missing > 0) => {
            Some("The last sweep delivered what polling had missed. If that repeats, raise PollOverlapSeconds.")
        }
        _ if tenant["quarantined"].as_u64().is_some_and(|count| count > 0) => Some(
            "Some records cannot be read. Nothing is held up, and they are tried again; `quarantine/` in the bucket has the reasons.",
        ),
        _ => None,
    }
}

/// The operator's next step for a tenant that is paused for `reason`.
pub fn for_reason(reason: &str) -> &'static str {
    match reason {
        "operator" => "An operator paused it: `mandate resume`.",
        "consent_missing" => {
            "The customer withdrew the consent, or never gave it: `mandate invite` the same customer again."
        }
        "role_missing" => {
            "The consent lacks a permission: let `mandate register` request it, then invite the same customer again."
        }
        "disabled_by_customer" => {
            "The customer has disabled the application, and enables it under Enterprise applications."
        }
        "resource_absent" => {
            "The tenant has no Defender, or Defender forbids the call: licence, and a first sign-in to its portal."
        }
        "blocked_by_policy" => {
            "A policy of the customer (Conditional Access) blocks the application: they make an exception."
        }
        "tenant_not_found" => "The tenant is gone. Ask the customer, then `mandate offboard`.",
        "tenant_inactive" => "Entra has blocked the tenant because nobody used it. The customer reactivates it.",
        "wrong_cloud" => "The tenant is in another national cloud, and needs a stack with that MicrosoftCloud.",
        "credential_rejected" => {
            "Our own credential is refused, for every tenant. Do this first: runbook, “Our credential is rejected”."
        }
        "throttled" => {
            "Microsoft throttles the tenant. It goes on by itself; if it stays, ask who else uses the API there."
        }
        _ => "Microsoft does not respond as documented. It goes on by itself; if it stays, open a case with Microsoft.",
    }
}

/// The person's next step where the API cannot be reached because of `cause`.
pub(crate) fn for_connection(cause: &str, local: bool) -> &'static str {
    if local {
        "Is `cargo dev` running?"
    } else if cause.contains("certificate") {
        "Only public certificate authorities are trusted, and no proxy is used: what opens TLS on the way must let this host pass."
    } else {
        "Check the network and the address. No proxy is used."
    }
}

/// Adds what the person does next to a problem that the API reported.
pub(crate) fn on(problem: Problem) -> Problem {
    if problem.advice.is_some() {
        return problem;
    }
    let advice = match (problem.code.as_str(), problem.reason.as_deref()) {
        ("internal", Some("credential_rejected"))
        | ("tenant_not_active", Some(_))
        | ("conflict", Some("role_missing")) => for_reason(problem.reason.as_deref().unwrap_or_default()),
        (_, Some("query_invalid")) => {
            "Microsoft refuses the query: an error in it, or a table that the tenant does not have. The portal's Advanced hunting names the place."
        }
        (_, Some("result_too_large")) => {
            "Ask for fewer rows or columns: `| take 1000`, `| project …`, `| summarize …`."
        }
        (_, Some("query_timeout")) => {
            "Microsoft ends a query after three minutes: filter earlier, or give a shorter --timespan."
        }
        ("tenant_not_active", None) => "`mandate tenant ID` shows its state.",
        ("conflict", _) => "The present state forbids it. `mandate tenant ID` shows what is there now; then try again.",
        ("not_found", _) => "`mandate tenants`, `mandate incidents` and `mandate invitations` list what there is.",
        ("invalid_request" | "usage", _) => "The command's --help has an example.",
        ("throttled", _) => "Microsoft or the gateway asks for a wait. Try again after it.",
        ("upstream_error" | "upstream_unreachable" | "deadline_exceeded", _) => {
            "Microsoft responded with a failure, late, or not at all. Try again; if it stays, see `mandate tenant ID`."
        }
        ("gone", _) => "The list is an hour old. Start it again.",
        ("internal", _) => "The function's log has the cause, under this request id.",
        _ => return problem,
    };
    problem.advise(advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untrusted_certificate_has_advice_of_its_own() {
        let untrusted = for_connection(" The cause: invalid peer certificate: UnknownIssuer.", false);
        assert!(untrusted.contains("certificate authorities"), "{untrusted}");
        assert!(for_connection(" The cause: Connection refused (os error 111).", false).contains("the address"));
    }
}
