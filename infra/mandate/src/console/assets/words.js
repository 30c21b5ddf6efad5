// The words for states, reasons and errors, and what to do about each. The runbook has them at length.

/** A lag above this is worth a look: a quiet tenant's cursor is written every five minutes. */
const LATE_SECONDS = 900;
/** A sweep older than this is late: one is made each day. */
const SWEEP_LATE_SECONDS = 36 * 3600;

/** Why a tenant is not usable: what it means, and what to do. */
const REASONS = {
  consent_missing: ["The consent is missing or was withdrawn", "Invite the customer again."],
  role_missing: ["The consent lacks the required role", "Check what the app registration requests, then invite the customer again."],
  disabled_by_customer: ["The customer has disabled the application", "Ask the customer to enable it under Enterprise applications."],
  resource_absent: ["Defender is not set up in this tenant", "Ask the customer for a licence, and for a first sign-in to the Defender portal."],
  blocked_by_policy: ["A policy of the customer blocks the application", "Ask the customer for an exception in conditional access."],
  tenant_not_found: ["The tenant does not exist any more", "Ask the customer, then offboard it."],
  tenant_inactive: ["Microsoft has blocked the tenant because nobody used it", "Ask the customer to reactivate it. Microsoft deletes it after some weeks."],
  wrong_cloud: ["The tenant is in another national cloud", "Onboard it with a stack for that cloud."],
  credential_rejected: ["Microsoft refuses our own credential", "Renew the app credential now: no tenant is read. The runbook has the steps."],
  throttled: ["Microsoft throttles this tenant", "Nothing to do. If it stays, find out who else uses the API in this tenant."],
  unavailable: ["Microsoft does not respond as documented", "Nothing to do. The tenant is tried every hour; if it stays, open a case with Microsoft."],
  operator: ["An operator has paused it", "Resume it, or send an invitation that is made now."],
};

/** What a pending tenant waits for, where it differs from a paused one. */
const PENDING = {
  consent_missing: ["The consent is still spreading at Microsoft, or was not given", "Wait some minutes. If it stays, invite the customer again."],
  unavailable: ["The first read has not succeeded yet", "Nothing to do. It is tried again by itself."],
  operator: ["It waits for your decision: the consent does not prove who gave it", "Ask the customer whether this person acts for them. Then resume or offboard the tenant."],
};

const UNKNOWN = ["", "See the runbook."];

/** Returns a word of the wire in plain words: `in_progress` and `inProgress` become `In progress`. */
export function words(text) {
  const spaced = String(text ?? "").replace(/([\p{Ll}\d])(\p{Lu})/gu, "$1 $2").replaceAll("_", " ").toLowerCase();
  return spaced.charAt(0).toUpperCase() + spaced.slice(1);
}

/** Returns `[meaning, what to do]` for a tenant's status and reason. */
export function explain(status, reason) {
  if (!reason) return null;
  return (status === "pending" && PENDING[reason]) || REASONS[reason] || [words(reason), UNKNOWN[1]];
}

const seconds = (text, now) => (now - Date.parse(text)) / 1000;

/** Returns how complete a tenant's deliveries are: `{tone, text, at}`. */
export function completeness({ status, last_sweep: sweep }, now = Date.now()) {
  if (!sweep) return { tone: "soft", text: status === "active" ? "No sweep yet" : "–", at: null };
  const at = sweep.at;
  if (sweep.missing > 0) return { tone: "wait", text: `${sweep.missing} of ${sweep.checked} were missing, now delivered`, at };
  if (status === "active" && seconds(at, now) > SWEEP_LATE_SECONDS) return { tone: "wait", text: `Complete, but the sweep is old`, at };
  return { tone: "good", text: `Complete, ${sweep.checked.toLocaleString("en-GB")} checked`, at };
}

/**
 * Returns the judgement of one tenant: `{rank, tone, label, meaning, action}`. The lowest rank needs help first. `action`
 * is null where nothing is to be done. `mandate tenants` has the same ranks (commands/tenants.rs).
 */
export function judge(tenant) {
  const { status, reason } = tenant;
  const [meaning, action] = explain(status, reason) ?? [null, null];
  const ours = reason === "credential_rejected";
  const waits = reason === "throttled" || reason === "unavailable";
  if (status === "paused") {
    const rank = ours ? 0 : waits ? 3 : reason === "operator" ? 6 : 1;
    return { rank, tone: reason === "operator" ? "off" : waits ? "wait" : "bad", label: "Paused", meaning, action };
  }
  if (status === "pending") {
    const decide = reason === "operator" || ours;
    return { rank: decide ? 2 : 5, tone: decide ? "bad" : "wait", label: "Pending", meaning, action };
  }
  if (status === "offboarded") return { rank: 9, tone: "off", label: "Offboarded", meaning: "Its data was removed", action: null };
  if (status !== "active") return { rank: 4, tone: "wait", label: words(status), meaning, action };
  return judgeActive(tenant);
}

function judgeActive({ lag_seconds: lag, quarantined, last_sweep: sweep, reason, status }) {
  if (reason) {
    const [meaning, action] = explain(status, reason);
    return { rank: 4, tone: "wait", label: "Active", meaning, action };
  }
  if (lag > LATE_SECONDS) {
    return { rank: 4, tone: "wait", label: "Active", meaning: "Its feed is late", action: "Look at its warnings in the log of incident-fetch." };
  }
  if (quarantined > 0) {
    return { rank: 7, tone: "wait", label: "Active", meaning: "Some records cannot be read", action: "Nothing is held up. They are tried again by themselves." };
  }
  if (sweep?.missing > 0) {
    return { rank: 7, tone: "wait", label: "Active", meaning: "The last sweep found missing versions", action: "They are delivered. If it repeats, raise PollOverlapSeconds." };
  }
  return { rank: 8, tone: "good", label: "Active", meaning: null, action: null };
}

/**
 * Orders tenants with the worst first: by judgement, then the lag of those that are late, then open incidents, then lag,
 * then name. `mandate tenants` has the same order (commands/tenants.rs).
 */
export function worstFirst(one, other) {
  const late = ({ lag_seconds: lag }) => (lag > LATE_SECONDS ? lag : 0);
  const more = (severity) => (other.open_incidents?.[severity] ?? 0) - (one.open_incidents?.[severity] ?? 0);
  return judge(one).rank - judge(other).rank
    || late(other) - late(one)
    || more("high") || more("medium") || more("low")
    || (other.lag_seconds ?? 0) - (one.lag_seconds ?? 0)
    || one.customer.localeCompare(other.customer);
}

/** What an error means for the reader: `[title, what to do]`. */
const PROBLEMS = {
  console_ended: ["The console does not respond", "Start `mandate console` again and open the address that it prints."],
  no_session: ["This browser has no session", "Start `mandate console` again and open the address that it prints."],
  key_given: ["The console is open elsewhere", "It lets in one browser only. Start `mandate console` again and open the address that it prints."],
  read_only: ["This console is read only", "Start it with `mandate console --write` to change something."],
  customer_changed: ["Nothing was changed", "The customer's name is another one now. Load the page again and look first."],
  invalid_request: ["The request was refused", "Change it and try again."],
  unauthorized_caller: ["You may not do this", "Your AWS identity lacks the right to this route. Ask who administers the stack."],
  not_found: ["Not found", "It may have been removed, or the address is wrong."],
  conflict: ["This does not fit the present state", "Load the page again and look what changed."],
  tenant_not_active: ["The tenant is not active", "Open the tenant to see why and what to do."],
  gone: ["The list has expired", "Load it again."],
  throttled: ["Microsoft is throttling", "Wait a minute, then try again."],
  upstream_error: ["Microsoft reported a failure", "Try again. If it stays, look at the log of the function."],
  upstream_unreachable: ["Microsoft did not respond in time", "Try again."],
  deadline_exceeded: ["It took too long for one request", "Ask for less: fewer tenants or a shorter time."],
  unreachable: ["The HTTP API does not respond", "Is the address right, and is the stack up?"],
  no_credentials: ["No usable AWS credentials", "Sign in again (for example `aws sso login`), then try again."],
  forbidden: ["You may not do this", "Your AWS identity lacks the right to this route. Ask who administers the stack."],
  no_such_route: ["The API has no such route", "Is it the API of Mandate, and of this version?"],
  unexpected_response: ["The API responded with something else", "Is it the API of Mandate?"],
  internal: ["The function failed", "The log of the function has the cause under the request's id."],
};

/** Returns `[title, what to do]` for a problem's code. */
export function explainProblem(code) {
  return PROBLEMS[code] ?? ["It did not work", "Try again. If it stays, look at the log of the function."];
}

/** Returns what a failure inside a result means, for its `code` and `reason`. */
export function explainFailure({ code, reason }) {
  const HUNTS = {
    query_invalid: "Microsoft does not accept the query",
    result_too_large: "The result is too large: ask for fewer rows",
    query_timeout: "The query took longer than Microsoft allows",
  };
  if (reason && HUNTS[reason]) return HUNTS[reason];
  if (reason && REASONS[reason]) return REASONS[reason][0];
  return explainProblem(code)[0];
}

export const SEVERITIES = ["high", "medium", "low", "informational"];
export const INCIDENT_STATUSES = ["active", "in_progress", "awaiting_action", "resolved", "redirected"];
export const TENANT_STATUSES = ["active", "pending", "paused", "offboarded"];
