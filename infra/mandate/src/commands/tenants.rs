//! Tenants: how each stands, and pausing, resuming, changing and offboarding one.

use std::cmp::Reverse;

use serde_json::{Map, Value, json};

use super::{Session, all_pages, text};
use crate::{
    advice,
    api::Api,
    args::{Change, IncidentApi, One, TenantStatus},
    output::{Field, Mood, Rows},
    problem::Problem,
    text::{safe_json, shown},
    time::{local, seconds},
};

/// The lag from which an active tenant is late.
const LATE_SECONDS: i64 = 900;

/// Reads all tenants and puts the worst first, in the order of the console's page (`judge` and `worstFirst` in words.js):
/// by [`rank`], then by the lag of those that are late, by open incidents, by lag and by name.
pub async fn worst_first(api: &Api, status: Option<&str>) -> Result<Vec<Value>, Problem> {
    let query: Vec<_> = status.map(|status| ("status", status)).into_iter().collect();
    let mut tenants = all_pages(api, &["tenants"], &query, "tenants").await?;
    tenants.sort_by_cached_key(place);
    Ok(tenants)
}

/// The place of a tenant in a list with the worst first.
fn place(tenant: &Value) -> impl Ord + use<> {
    let lag = tenant["lag_seconds"].as_i64().unwrap_or_default();
    let late = if lag > LATE_SECONDS { lag } else { 0 };
    let open = |severity: &str| tenant["open_incidents"][severity].as_u64().unwrap_or_default();
    let open = (open("high"), open("medium"), open("low"));
    (rank(tenant), Reverse(late), Reverse(open), Reverse(lag), text(tenant, "customer").to_lowercase())
}

/// The need of a tenant for help: the lowest number needs it first. First come our own credential, then the tenants for
/// which somebody must act, then those that go on by themselves.
pub fn rank(tenant: &Value) -> u8 {
    let reason = tenant["reason"].as_str();
    let late = tenant["lag_seconds"].as_i64().is_some_and(|lag| lag > LATE_SECONDS);
    match (tenant["status"].as_str().unwrap_or_default(), reason) {
        ("paused", Some("credential_rejected")) => 0,
        ("paused", Some("throttled" | "unavailable")) => 3,
        ("paused", Some("operator")) => 6,
        ("paused", _) => 1,
        ("pending", Some("operator" | "credential_rejected")) => 2,
        ("pending", _) => 5,
        ("offboarded", _) => 9,
        ("active", None) if !late && advice::for_tenant(tenant).is_some() => 7,
        ("active", None) if !late => 8,
        // Late, or with a reason, or with a status of a newer release.
        _ => 4,
    }
}

impl Session {
    pub(crate) async fn tenants(&self, status: Option<TenantStatus>) -> Result<(), Problem> {
        let tenants = worst_first(&self.api, status.map(TenantStatus::word)).await?;
        if self.out.is_json() {
            return tenants.iter().try_for_each(|tenant| self.out.object(tenant));
        }
        if tenants.is_empty() {
            return match status {
                Some(status) => self.out.say(format_args!("No tenant is {}.", status.word())),
                None => self.out.say("No customer has come yet. `mandate invite CUSTOMER` makes a link."),
            };
        }
        let mut rows = Rows::new(["CUSTOMER", "STATUS", "LAG", "OPEN", "SWEEP", "TENANT"]).unbroken(5);
        for tenant in &tenants {
            rows.push(vec![
                text(tenant, "customer").into(),
                state(tenant),
                lag(tenant),
                open_incidents(tenant),
                self.sweep(tenant),
                text(tenant, "tenant_id").into(),
            ]);
        }
        self.out.table(rows)?;
        self.out.say("")?;
        self.out.say(summary(&tenants))
    }

    pub(crate) async fn tenant(&self, one: &One) -> Result<(), Problem> {
        let tenant = self.api.get(&["tenants", &one.tenant_id.to_string()], &[("history", "true")]).await?;
        if self.out.is_json() {
            return self.out.object(&tenant);
        }
        let zone = &self.out.zone;
        let time = |name: &str| Field::from(local(text(&tenant, name), zone));
        let roles: Vec<_> = tenant["roles"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let number = |name: &str| tenant[name].as_u64().unwrap_or_default().to_string();
        let mut pairs = vec![
            ("Customer", text(&tenant, "customer").into()),
            ("Tenant", text(&tenant, "tenant_id").into()),
            ("Status", state(&tenant)),
        ];
        pairs.extend(advice::for_tenant(&tenant).map(|advice| ("Next", Field::from(advice))));
        pairs.extend([
            ("API", text(&tenant, "api").into()),
            ("Roles", if roles.is_empty() { "–".into() } else { Field::from(roles.join(", ")) }),
            (
                "Consent",
                Field::from(format!(
                    "{} by {}",
                    local(text(&tenant, "consented_at"), zone),
                    text(&tenant, "consented_by")
                )),
            ),
        ]);
        if let Some(proven) = tenant["role_proven"].as_bool() {
            let role = if proven { "may consent, says their token" } else { "not proven by their token" };
            pairs.push(("Role", Field::new(role, if proven { Mood::Good } else { Mood::Doubtful })));
        }
        pairs.extend([
            ("Last success", time("last_success_at")),
            ("Read up to", time("covered_until")),
            ("Lag", lag(&tenant)),
            ("Delivered", number("incidents_total").into()),
            ("Open", open_incidents(&tenant)),
            (
                "Quarantined",
                Field::new(
                    &number("quarantined"),
                    if number("quarantined") == "0" { Mood::Plain } else { Mood::Doubtful },
                ),
            ),
            ("Last sweep", self.sweep(&tenant)),
        ]);
        let history = tenant["history"].as_array().map(Vec::as_slice).unwrap_or_default();
        for (number, past) in history.iter().enumerate() {
            let name = if number == 0 { "History" } else { "" };
            pairs.push((name, state(past).after(&local(text(past, "at"), zone))));
        }
        self.out.pairs(pairs)
    }

    pub(crate) async fn pause(&self, one: &One) -> Result<(), Problem> {
        let tenant = self.api.post(&["tenants", &one.tenant_id.to_string(), "pause"], None).await?;
        self.said(&tenant, "is not read until `mandate resume`.")
    }

    pub(crate) async fn resume(&self, one: &One) -> Result<(), Problem> {
        let tenant = self.api.post(&["tenants", &one.tenant_id.to_string(), "resume"], None).await?;
        let effect = match tenant["status"].as_str().unwrap_or_default() {
            "active" => "is read again, from where it stopped.",
            "pending" => "is being checked, and becomes active when a token and one read have succeeded.",
            _ => "is still not read.",
        };
        self.said(&tenant, effect)?;
        if !self.out.is_json() && text(&tenant, "status") == "paused" {
            self.out.say(advice::for_tenant(&tenant).unwrap_or_default())?;
        }
        Ok(())
    }

    /// Prints the tenant, or on a terminal one sentence about it.
    fn said(&self, tenant: &Value, effect: &str) -> Result<(), Problem> {
        if self.out.is_json() {
            return self.out.object(tenant);
        }
        let state = self.out.styled(&state(tenant));
        self.out.say(format_args!("{} ({state}) {effect}", shown(text(tenant, "customer"))))
    }

    pub(crate) async fn change(&self, args: &Change) -> Result<(), Problem> {
        let mut body = Map::new();
        let api = args.new.incident_api.map(IncidentApi::word);
        for (name, value) in [("customer", args.new.customer.as_deref()), ("api", api)] {
            body.extend(value.map(|value| (name.to_owned(), json!(value))));
        }
        let tenant = self.api.patch(&["tenants", &args.one.tenant_id.to_string()], &Value::Object(body)).await?;
        self.said(&tenant, &format!("is read through {}.", shown(text(&tenant, "api"))))
    }

    pub(crate) async fn offboard(&self, one: &One, confirmed: bool) -> Result<(), Problem> {
        let tenant_id = one.tenant_id.to_string();
        if !confirmed {
            return Err(Problem::new(
                "usage",
                format!("offboard deletes what is stored about {tenant_id}, and only a new invitation brings it back."),
            )
            .advise("Add --yes to confirm it."));
        }
        let receipt = self.api.delete(&["tenants", &tenant_id]).await?;
        if self.out.is_json() {
            return self.out.object(&receipt);
        }
        let purged: Vec<_> = receipt["purged"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, count)| format!("{} {}", safe_json(count), shown(name)))
            .collect();
        let deleted = if purged.is_empty() { "nothing, as before".to_owned() } else { purged.join(", ") };
        self.out.say(format_args!("{tenant_id} is offboarded. Deleted: {deleted}."))?;
        if receipt["access_ended"] == true {
            return self.out.say("Access to the tenant has ended.");
        }
        self.out.say("Access has not ended yet. Ask the customer to remove the application here:\n")?;
        self.out.say(format_args!("  {}\n", shown(text(&receipt, "removal_url"))))?;
        self.out.say("Run the command again to see whether access has ended.")
    }

    fn sweep(&self, tenant: &Value) -> Field {
        let sweep = &tenant["last_sweep"];
        let Some(at) = sweep["at"].as_str() else { return Field::new("–", Mood::Quiet) };
        let missing = sweep["missing"].as_u64().unwrap_or_default();
        let checked = sweep["checked"].as_u64().unwrap_or_default();
        let day = local(at, &self.out.zone);
        let day = day.get(..16).unwrap_or(&day);
        match missing {
            0 => Field::new(&format!("{day}, complete ({checked})"), Mood::Plain),
            missing => Field::new(&format!("{day}, {missing} of {checked} were missing"), Mood::Doubtful),
        }
    }
}

/// The status of a tenant with its reason, in its colour.
pub(crate) fn state(tenant: &Value) -> Field {
    let status = text(tenant, "status");
    let mood = match rank(tenant) {
        0 | 1 => Mood::Bad,
        6 | 9 => Mood::Quiet,
        8 => Mood::Good,
        _ => Mood::Doubtful,
    };
    match tenant["reason"].as_str() {
        Some(reason) => Field::new(&format!("{status}: {reason}"), mood),
        None => Field::new(status, mood),
    }
}

fn lag(tenant: &Value) -> Field {
    match tenant["lag_seconds"].as_i64() {
        None => Field::new("–", Mood::Quiet),
        Some(lag) if lag > LATE_SECONDS => Field::new(&seconds(lag), Mood::Bad),
        Some(lag) => Field::from(seconds(lag)),
    }
}

/// The open incidents by severity, as `2 high, 1 low`. Servers before `open_incidents` say nothing about it.
fn open_incidents(tenant: &Value) -> Field {
    let Some(open) = tenant["open_incidents"].as_object() else { return Field::new("–", Mood::Quiet) };
    let counts: Vec<_> = ["high", "medium", "low", "informational"]
        .into_iter()
        .filter_map(|severity| Some((severity, open.get(severity)?.as_u64().filter(|count| *count > 0)?)))
        .map(|(severity, count)| format!("{count} {}", if severity == "informational" { "info" } else { severity }))
        .collect();
    let mood = if open.get("high").and_then(Value::as_u64).unwrap_or_default() > 0 { Mood::Bad } else { Mood::Plain };
    if counts.is_empty() { Field::new("none", Mood::Quiet) } else { Field::new(&counts.join(", "), mood) }
}

fn summary(tenants: &[Value]) -> String {
    let counts: Vec<_> = ["active", "pending", "paused", "offboarded"]
        .into_iter()
        .map(|status| (tenants.iter().filter(|tenant| tenant["status"] == status).count(), status))
        .filter(|(count, _)| *count > 0)
        .map(|(count, status)| format!("{count} {status}"))
        .collect();
    let noun = if tenants.len() == 1 { "tenant" } else { "tenants" };
    format!("{} {noun}: {}", tenants.len(), counts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worst_tenants_come_first() {
        let tenant = |status: &str, reason: Option<&str>, lag: Option<i64>| json!({"status": status, "reason": reason, "lag_seconds": lag, "quarantined": 0, "last_sweep": null});
        let ranked = [
            tenant("paused", Some("credential_rejected"), Some(9000)),
            tenant("paused", Some("role_missing"), Some(9000)),
            tenant("pending", Some("operator"), None),
            tenant("paused", Some("throttled"), Some(9000)),
            tenant("active", None, Some(901)),
            tenant("pending", Some("consent_missing"), None),
            tenant("paused", Some("operator"), Some(90_000)),
            json!({"status": "active", "reason": null, "lag_seconds": 10, "quarantined": 1}),
            tenant("active", None, Some(10)),
            tenant("offboarded", None, None),
        ];
        assert_eq!(ranked.iter().map(rank).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        assert_eq!(summary(&ranked), "10 tenants: 3 active, 2 pending, 4 paused, 1 offboarded");
    }

    #[test]
    fn equal_tenants_are_ordered_by_lateness_incidents_and_lag() {
        let tenant = |customer: &str, lag: i64, high: u64, low: u64| {
            let open = json!({"high": high, "medium": 0, "low": low, "informational": 5});
            json!({"customer": customer, "status": "active", "reason": null, "lag_seconds": lag, "open_incidents": open})
        };
        let ordered = [
            tenant("very late", 9000, 0, 0),
            tenant("late", 1000, 9, 9),
            tenant("high", 10, 1, 0),
            tenant("low", 20, 0, 9),
            tenant("older", 60, 0, 0),
            tenant("A", 5, 0, 0),
            tenant("b", 5, 0, 0),
        ];
        let mut sorted = ordered.clone();
        sorted.reverse();
        sorted.sort_by_cached_key(place);
        assert_eq!(sorted, ordered);
    }
}
