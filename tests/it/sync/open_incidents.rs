//! The numbers of open incidents: exact at any time, whoever writes and whatever fails.

use std::collections::HashMap;

use aws_double::{AwsFault, FaultPosition};
use jiff::SignedDuration;
use serde_json::json;
use shared::{
    incident::{
        record::{Alerts, Record, Severity},
        version::DeliveredVersion,
    },
    registry::{Write, open_incidents::OpenIncidents, versions::NewVersion},
};
use sim::IncidentSeed;

use super::harness::{APIS, SyncHarness, TENANT, tenant};

impl SyncHarness {
    async fn open_incidents(&self) -> OpenIncidents {
        let counts = self.registry.open_incidents(&[tenant()]).await.unwrap();
        counts.get(&tenant()).copied().unwrap_or_default()
    }

    fn put_of(&self, severity: &str, status: &str, seconds_ago: i64) -> String {
        let last_update = Some(self.clock.now() - SignedDuration::from_secs(seconds_ago));
        let (severity, status) = (severity.to_owned(), status.to_owned());
        self.put_seed(IncidentSeed { severity, status, last_update, created: last_update, ..IncidentSeed::default() })
    }

    async fn update_and_poll(&self, id: &str, change: impl FnOnce(&mut sim::Incident)) {
        self.advance(60);
        self.update(id, change);
        self.poll().await;
    }
}

#[tokio::test]
async fn open_incidents_follow_each_delivered_version() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let high = sync.put_of("high", "active", 60);
        let low = sync.put_of("low", "inProgress", 61);
        for (severity, status) in [
            ("medium", "awaitingAction"),
            ("informational", "active"),
            ("high", "resolved"),
            ("unknown", "active"),
            ("critical", "active"),
        ] {
            sync.put_of(severity, status, 62);
        }
        sync.poll().await;
        let all = OpenIncidents { informational: 1, low: 1, medium: 1, high: 1 };
        assert_eq!(sync.open_incidents().await, all, "{api}");
        sync.update_and_poll(&low, |incident| incident.severity = "high".into()).await;
        assert_eq!(sync.open_incidents().await, OpenIncidents { low: 0, high: 2, ..all });
        sync.update_and_poll(&high, |incident| incident.status = "resolved".into()).await;
        assert_eq!(sync.open_incidents().await, OpenIncidents { low: 0, high: 1, ..all });
        sync.update_and_poll(&high, |incident| incident.status = "active".into()).await;
        assert_eq!(sync.open_incidents().await, OpenIncidents { low: 0, high: 2, ..all });
        sync.advance(60);
        assert!(sync.backends.sim.merge_incident(TENANT, &low, &high));
        sync.poll().await;
        assert_eq!(sync.open_incidents().await, OpenIncidents { low: 0, ..all }, "a redirected one is not open");
        sync.message(json!({"tenant_id": TENANT, "kind": "sweep"})).await;
        assert_eq!(sync.open_incidents().await, OpenIncidents { low: 0, ..all }, "a sweep counts nothing twice");
    }
}

#[tokio::test]
async fn open_incidents_are_exact_wherever_a_worker_dies() {
    for fault in [AwsFault::KilledBefore, AwsFault::KilledAfter, AwsFault::LostAfter] {
        for request in 0..8 {
            let sync = SyncHarness::start(APIS[0]).await;
            let id = sync.put_of("high", "active", 60);
            sync.put_of("low", "active", 60);
            sync.poll().await;
            sync.advance(60);
            sync.update(&id, |incident| incident.status = "resolved".into());
            sync.put_of("medium", "active", 1);
            let poll = json!({"tenant_id": TENANT, "kind": "poll"}).to_string();
            let config = sync.backends.double.config_of(&aws_double::base_config().await, "mortal", 2);
            let mortal = super::harness::fetch_as(&sync.backends, &config, &sync.clock, &[]);
            sync.backends.double.account().plan("mortal", vec![(FaultPosition::Delivery(request), fault)]);
            super::harness::hand_over(&mortal, &[poll], std::time::Duration::from_secs(20)).await;
            // The lease of the dead worker ends.
            sync.advance(120);
            sync.poll().await;
            let expected = OpenIncidents { low: 1, medium: 1, ..OpenIncidents::default() };
            assert_eq!(sync.open_incidents().await, expected, "{fault:?} {request}");
        }
    }
}

#[tokio::test]
async fn worker_with_an_old_reading_changes_no_count() {
    let sync = SyncHarness::start(APIS[0]).await;
    let version = |time: &str, status: &str, severity: &str| {
        let record = json!({"id": "7", "lastUpdateDateTime": time, "status": status, "severity": severity});
        let record = Record::parse(record.to_string().as_bytes(), &tenant(), APIS[0], Alerts::Included).unwrap();
        DeliveredVersion::of(&record, 1, APIS[0])
    };
    let record = async |version: &DeliveredVersion, open_before: Option<Severity>| {
        let new = NewVersion { version: version.clone(), open_before };
        sync.registry.record_versions(&tenant(), &HashMap::from([("7".to_owned(), new)])).await.unwrap()
    };
    let open = version("2027-01-16T09:00:00Z", "active", "high");
    let resolved = version("2027-01-16T09:30:00Z", "resolved", "high");
    assert_eq!(record(&open, None).await, Write::Done);
    assert_eq!(record(&resolved, Some(Severity::High)).await, Write::Done);
    let transactions = sync.backends.double.account().calls("TransactWriteItems");
    // A worker that read before the first one wrote, and one that read between the two.
    for (old, before) in [(&open, None), (&version("2027-01-16T09:10:00Z", "active", "low"), Some(Severity::High))] {
        let expected = if before.is_none() { Write::Done } else { Write::Conflict };
        assert_eq!(record(old, before).await, expected);
        let blocks =
            sync.registry.delivered_versions(&tenant(), shared::registry::versions::VersionBlock::of("7")).await;
        let marked = u64::from(blocks.unwrap()["7"].open == Some(Severity::High));
        assert_eq!(sync.open_incidents().await, OpenIncidents { high: marked, ..OpenIncidents::default() });
        let _ = record(&resolved, (marked == 1).then_some(Severity::High)).await;
    }
    assert!(sync.backends.double.account().calls("TransactWriteItems") > transactions);
    assert_eq!(sync.open_incidents().await, OpenIncidents::default());
}

#[tokio::test]
async fn version_without_a_changed_count_is_one_plain_write() {
    let sync = SyncHarness::start(APIS[0]).await;
    let id = sync.put_of("high", "active", 60);
    sync.poll().await;
    let calls = || sync.backends.double.account().calls("TransactWriteItems");
    let before = calls();
    assert_eq!(before, 1, "the block and the counts in one transaction");
    sync.update_and_poll(&id, |incident| incident.assigned_to = Some("ada@contoso.example".into())).await;
    assert_eq!((calls(), sync.keys().len()), (before, 2));
}
