//! What the tenants of a hunt gave so far.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use shared::{
    error::Error,
    registry::hunts::{Column, Hunt, HuntFailure, HuntedRows, HuntedTenant},
    tenant::TenantId,
};

/// The state of a hunt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum HuntStatus {
    /// There are tenants to hear from.
    Running,
    /// Each tenant gave rows or failed.
    Done,
    /// A caller cancelled it. Tenants that were started may still end.
    Cancelled,
}

/// A hunt with the tenants that workers have started.
#[derive(Debug)]
pub(super) struct HuntProgress {
    pub(super) hunt: Hunt,
    started: BTreeMap<TenantId, HuntedTenant>,
}

/// The failure that an error of a tenant's hunt is reported as.
pub(super) fn failure_of(error: &Error) -> HuntFailure {
    let reason = match error {
        Error::QueryFailed(failure) => Some(failure.as_str()),
        other => other.reason().map(shared::tenant::Reason::as_str),
    };
    HuntFailure { code: error.code().0.to_owned(), reason: reason.map(str::to_owned) }
}

fn listed(tenant: &str, failure: &HuntFailure) -> Value {
    json!({"tenant_id": tenant, "code": failure.code, "reason": failure.reason})
}

impl HuntProgress {
    pub(super) fn new(hunt: Hunt, started: Vec<HuntedTenant>) -> Self {
        Self { hunt, started: started.into_iter().map(|tenant| (tenant.tenant_id, tenant)).collect() }
    }

    pub(super) fn status(&self, now: Timestamp) -> HuntStatus {
        if self.hunt.cancelled_at.is_some() {
            return HuntStatus::Cancelled;
        }
        if self.open().next().is_none() || self.is_at_its_end(now) { HuntStatus::Done } else { HuntStatus::Running }
    }

    /// Returns true if no further tenant is started, and no worker is in one. Whatever happened to a message or its
    /// worker, a hunt has an end.
    fn is_at_its_end(&self, now: Timestamp) -> bool {
        let is_claimed = |tenant: &TenantId| {
            self.started.get(tenant).is_some_and(|started| started.claimed_until.is_some_and(|until| until >= now))
        };
        now >= self.hunt.ends_at && !self.open().any(is_claimed)
    }

    /// The tenants that neither gave rows nor failed yet.
    fn open(&self) -> impl Iterator<Item = &TenantId> {
        let is_finished =
            |tenant: &&TenantId| self.started.get(tenant).is_some_and(|started| started.finished_at.is_some());
        self.hunt.tenants.iter().filter(move |tenant| !is_finished(tenant))
    }

    pub(super) fn tenants_total(&self) -> usize {
        self.hunt.tenants.len() + self.hunt.malformed.len()
    }

    pub(super) fn tenants_done(&self, now: Timestamp) -> usize {
        if self.status(now) == HuntStatus::Done {
            self.tenants_total()
        } else {
            self.tenants_total() - self.open().count()
        }
    }

    /// The results of the tenants that gave rows, in the order of the tenants.
    fn results(&self) -> impl Iterator<Item = &HuntedRows> {
        let finished = self.started.values().filter(|tenant| tenant.finished_at.is_some() && tenant.failure.is_none());
        finished.filter_map(|tenant| tenant.result.as_ref())
    }

    pub(super) fn rows(&self) -> u64 {
        self.results().map(|result| result.rows).sum()
    }

    /// The size of the table in a response.
    pub(super) fn bytes(&self) -> u64 {
        self.results().map(|result| result.bytes).sum()
    }

    pub(super) fn is_cut(&self) -> bool {
        self.results().any(|result| result.is_cut)
    }

    pub(super) fn objects(&self) -> Vec<String> {
        self.results().filter_map(|result| result.object.clone()).collect()
    }

    /// The union of all columns. Of two types of one name, the first tenant's counts. `tenant_id` is ours.
    pub(super) fn schema(&self) -> Vec<Column> {
        let mut names = BTreeSet::new();
        let columns = self.results().flat_map(|result| &result.schema);
        columns.filter(|column| names.insert(&column.name)).cloned().collect()
    }

    /// The failures, as callers read them.
    pub(super) fn failures(&self, now: Timestamp) -> Vec<Value> {
        let malformed = self.hunt.malformed.iter().map(|name| listed(name, &failure_of(&Error::NotFound)));
        let failed = self.started.values().filter(|tenant| tenant.finished_at.is_some());
        let failed = failed.filter_map(|tenant| Some(listed(&tenant.tenant_id.to_string(), tenant.failure.as_ref()?)));
        let mut failures: Vec<Value> = malformed.chain(failed).collect();
        if self.status(now) == HuntStatus::Done {
            failures.extend(self.open().map(|tenant| {
                let last = self.started.get(tenant).and_then(|started| started.failure.clone());
                listed(&tenant.to_string(), &last.unwrap_or_else(|| failure_of(&Error::DeadlineExceeded)))
            }));
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn tenant(number: u32) -> TenantId {
        format!("{number:08}-2222-4333-8444-abcdefabcdef").parse().unwrap()
    }

    fn started(number: u32) -> HuntedTenant {
        HuntedTenant {
            tenant_id: tenant(number),
            fence: 1,
            claimed_until: None,
            failures: 0,
            failure: None,
            result: None,
            finished_at: None,
        }
    }

    fn done(number: u32, columns: &[(&str, &str)]) -> HuntedTenant {
        let column = |(name, kind): &(&str, &str)| Column { name: (*name).into(), kind: Some((*kind).into()) };
        let schema = columns.iter().map(column).collect();
        let rows = HuntedRows { rows: 2, bytes: 10, schema, object: Some(number.to_string()), is_cut: false };
        HuntedTenant { result: Some(rows), finished_at: Some(at(1)), ..started(number) }
    }

    fn progress(tenants: u32, started: Vec<HuntedTenant>) -> HuntProgress {
        let hunt = Hunt {
            hunt_id: "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap(),
            query: "T".into(),
            timespan: None,
            caller: "arn".into(),
            tenants: (1..=tenants).map(tenant).collect(),
            malformed: Vec::new(),
            created_at: at(0),
            ends_at: at(100),
            cancelled_at: None,
        };
        HuntProgress::new(hunt, started)
    }

    #[test]
    fn different_schemas_become_their_union() {
        let two = [("B", "Int64"), ("C", "String")];
        let progress = progress(2, vec![done(2, &two), done(1, &[("A", "String"), ("B", "String")])]);
        let named: Vec<(String, String)> =
            progress.schema().into_iter().map(|column| (column.name, column.kind.unwrap())).collect();
        let expected = [("A", "String"), ("B", "String"), ("C", "String")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(named, expected);
        assert_eq!((progress.rows(), progress.bytes(), progress.objects()), (4, 20, vec!["1".into(), "2".into()]));
        assert_eq!(progress.status(at(2)), HuntStatus::Done);
    }

    #[test]
    fn hunt_ends_whatever_became_of_its_messages() {
        let throttled = HuntFailure { code: "throttled".into(), reason: None };
        let waiting = HuntedTenant { failure: Some(throttled), ..started(2) };
        let progress = progress(3, vec![done(1, &[]), waiting]);
        assert_eq!((progress.status(at(99)), progress.tenants_done(at(99))), (HuntStatus::Running, 1));
        assert_eq!(progress.failures(at(99)), [json!(null); 0]);
        assert_eq!((progress.status(at(100)), progress.tenants_done(at(100))), (HuntStatus::Done, 3));
        let failure = |number, code: &str| json!({"tenant_id": tenant(number), "code": code, "reason": null});
        assert_eq!(progress.failures(at(100)), [failure(2, "throttled"), failure(3, "deadline_exceeded")]);
    }

    #[test]
    fn worker_in_a_tenant_keeps_the_hunt_running() {
        let claimed = HuntedTenant { claimed_until: Some(at(100) + SignedDuration::from_secs(60)), ..started(1) };
        let progress = progress(1, vec![claimed]);
        assert_eq!(progress.status(at(160)), HuntStatus::Running);
        assert_eq!(progress.status(at(161)), HuntStatus::Done);
    }
}
