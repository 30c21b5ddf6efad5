//! Tenants: how each stands, and pausing, resuming and offboarding one.

use std::cmp::Reverse;

use serde_json::Value;

use super::{Session, all_pages, text};
use crate::{
    advice,
    api::Api,
    args::{One, TenantStatus},
    output::{Field, Mood, Rows},
    problem::Problem,
    text::{safe_json, shown},
    time::{local, seconds},
};

/// The lag from which an active tenant is late.
const LATE_SECONDS: i64 = 900;

/// Reads all tenants and puts the worst first: paused by a reason, waiting for the operator, late, then the rest by lag.
pub async fn worst_first(api: &Api, status: Option<&str>) -> Result<Vec<Value>, Problem> {
    let query: Vec<_> = status.map(|status| ("status", status)).into_iter().collect();
    let mut tenants = all_pages(api, &["tenants"], &query, "tenants").await?;
    tenants.sort_by_cached_key(|tenant| {
        (rank(tenant), Reverse(tenant["lag_seconds"].as_i64()), text(tenant, "customer").to_lowercase())
    });
    Ok(tenants)
}

/// The place of a tenant in a list with the worst first; equal places are ordered by lag.
pub fn rank(tenant: &Value) -> u8 {
    let reason = tenant["reason"].as_str();
    let late = tenant["lag_seconds"].as_i64().is_some_and(|lag| lag > LATE_SECONDS);
    match tenant["status"].as_str().unwrap_or_default() {
        "paused" if reason != Some("operator") => 0,
        "pending" if reason == Some("operator") => 1,
        "active" if late => 2,
        "pending" => 3,
        "active" if advice::for_tenant(tenant).is_some() => 4,
        "active" => 5,
        "paused" => 6,
        _ => 7,
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
        let tenant = self.api.get(&["tenants", &one.tenant_id.to_string()], &[]).await?;
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
            let told = if proven { "may consent, says their token" } else { "not proven by their token" };
            pairs.push(("Role", Field::new(told, if proven { Mood::Good } else { Mood::Doubtful })));
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
        self.out.pairs(pairs)
    }

    pub(crate) async fn pause(&self, one: &One) -> Result<(), Problem> {
        let tenant = self.api.post(&["tenants", &one.tenant_id.to_string(), "pause"], None).await?;
        self.said(&tenant, "is not read until `mandate resume`.")
    }

    pub(crate) async fn resume(&self, one: &One) -> Result<(), Problem> {
        let tenant = self.api.post(&["tenants", &one.tenant_id.to_string(), "resume"], None).await?;
        let told = match tenant["status"].as_str().unwrap_or_default() {
            "active" => "is read again, from where it stopped.",
            "pending" => "is being checked, and becomes active when a token and one read have succeeded.",
            _ => "is still not read.",
        };
        self.said(&tenant, told)?;
        if !self.out.is_json() && text(&tenant, "status") == "paused" {
            self.out.say(advice::for_tenant(&tenant).unwrap_or_default())?;
        }
        Ok(())
    }

    fn said(&self, tenant: &Value, told: &str) -> Result<(), Problem> {
        if self.out.is_json() {
            return self.out.object(tenant);
        }
        let state = self.out.styled(&state(tenant));
        self.out.say(format_args!("{} ({state}) {told}", shown(text(tenant, "customer"))))
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
        self.out.say(format_args!("{tenant_id} is offboarded. Deleted: {}.", purged.join(", ")))?;
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
        0 => Mood::Bad,
        1..=4 => Mood::Doubtful,
        5 => Mood::Good,
        _ => Mood::Quiet,
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
    use serde_json::json;

    use super::*;

    #[test]
    fn worst_tenants_come_first() {
        let tenant = |status: &str, reason: Option<&str>, lag: Option<i64>| json!({"status": status, "reason": reason, "lag_seconds": lag, "quarantined": 0, "last_sweep": null});
        let ranked = [
            tenant("paused", Some("role_missing"), Some(9000)),
            tenant("pending", Some("operator"), None),
            tenant("active", None, Some(901)),
            tenant("pending", Some("consent_missing"), None),
            json!({"status": "active", "reason": null, "lag_seconds": 10, "quarantined": 1}),
            tenant("active", None, Some(10)),
            tenant("paused", Some("operator"), Some(90_000)),
            tenant("offboarded", None, None),
        ];
        assert_eq!(ranked.iter().map(rank).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
        assert_eq!(summary(&ranked), "8 tenants: 3 active, 2 pending, 2 paused, 1 offboarded");
    }
}
