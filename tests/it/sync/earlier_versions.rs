//! Records older than the delivered version: stale reads, and times that Microsoft has put right.

use jiff::SignedDuration;
use shared::registry::versions::VersionBlock;
use sim::{Fault, FaultKind, Incident};

use super::harness::{APIS, SyncHarness, TENANT, host, tenant};

impl SyncHarness {
    /// Changes an incident and moves its time of last update to `seconds` from now.
    fn shift(&self, id: &str, seconds: i64, change: impl FnOnce(&mut Incident)) {
        let last_update = self.clock.now() + SignedDuration::from_secs(seconds);
        assert!(self.backends.sim.update_incident(TENANT, id, |incident| {
            incident.last_update = last_update;
            change(incident);
        }));
    }

    async fn poll_after(&self, seconds: i64) {
        self.advance(seconds);
        self.poll().await;
    }

    fn changes(&self) -> Vec<String> {
        let mut lines = self.delivered();
        lines.sort_by_key(|line| line.json["fetched_at"].to_string());
        lines.iter().map(|line| line.id_and_change().1).collect()
    }
}

const YEAR_SECONDS: i64 = 365 * 24 * 3600;

#[tokio::test]
async fn time_in_the_future_does_not_silence_an_incident() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let id = sync.put(60);
        sync.poll().await;
        sync.shift(&id, YEAR_SECONDS, |_| {});
        sync.poll_after(60).await;
        sync.shift(&id, -10, |incident| incident.status = "resolved".into());
        sync.poll_after(60).await;
        sync.update(&id, |incident| incident.status = "active".into());
        for _ in 0..3 {
            sync.poll_after(60).await;
        }
        assert_eq!(sync.changes(), ["created", "updated", "closed", "reopened"], "{api}");
        sync.assert_complete();
        assert!(sync.keys().keys().all(|key| !key.contains('~')), "no time had two versions: {:?}", sync.keys());
    }
}

#[tokio::test]
async fn time_that_goes_back_to_a_delivered_one_has_another_key() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let id = sync.put(0);
        let first = sync.clock.now();
        sync.poll_after(10).await;
        sync.shift(&id, YEAR_SECONDS, |_| {});
        sync.poll_after(60).await;
        sync.backends.sim.update_incident(TENANT, &id, |incident| incident.last_update = first);
        sync.poll_after(60).await;
        sync.poll_after(60).await;
        let keys: Vec<String> = sync.keys().into_keys().collect();
        assert_eq!(keys.len(), 3, "{api}: {keys:?}");
        assert_eq!(keys.iter().filter(|key| key.ends_with("~2")).count(), 1, "{keys:?}");
    }
}

#[tokio::test]
async fn older_record_is_a_version_once_it_is_shown_for_an_hour() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let id = sync.put(600);
        sync.poll().await;
        sync.update(&id, |incident| incident.status = "resolved".into());
        sync.poll_after(60).await;
        sync.shift(&id, -300, |incident| incident.status = "active".into());
        for _ in 0..11 {
            sync.poll_after(300).await;
        }
        assert_eq!(sync.changes(), ["created", "closed"], "{api}: it may be a stale read");
        for _ in 0..3 {
            sync.poll_after(300).await;
        }
        assert_eq!(sync.changes(), ["created", "closed", "reopened"], "{api}");
        assert!(sync.keys().keys().any(|key| key.ends_with("~2")), "{:?}", sync.keys());
    }
}

#[tokio::test]
async fn stale_reads_between_present_versions_deliver_nothing() {
    for api in APIS {
        let sync = SyncHarness::start_with(api, &[("POLL_OVERLAP_SECONDS", "14400")]).await;
        let id = sync.put(60);
        sync.poll().await;
        sync.update(&id, |incident| incident.status = "resolved".into());
        sync.poll_after(60).await;
        for _ in 0..3 {
            sync.backends.sim.fault(Fault::new(FaultKind::Stale { versions: 1 }).tenant(TENANT));
            for _ in 0..10 {
                sync.poll_after(300).await;
            }
            sync.backends.sim.clear_faults();
            sync.poll_after(300).await;
        }
        assert_eq!(sync.changes(), ["created", "closed"], "{api}");
    }
}

#[tokio::test]
async fn older_record_on_the_next_page_is_noted_with_the_version_of_the_page_before() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let rows = i64::from(api.largest_page()) + 10;
        let ids: Vec<String> = (0..rows).map(|number| sync.put(900 + 2 * number)).collect();
        for id in &ids {
            assert!(sync.backends.sim.update_incident(TENANT, id, |incident| {
                incident.last_update += SignedDuration::from_secs(300);
            }));
        }
        // The second page begins with the last row of the first one.
        let mut stale = Fault::new(FaultKind::Stale { versions: 1 }).on(host(api)).tenant(TENANT);
        stale.after = 1;
        sync.backends.sim.fault(stale);
        sync.poll().await;
        let mut noted = 0;
        for id in &ids {
            let versions = sync.registry.delivered_versions(&tenant(), VersionBlock::of(id)).await.unwrap();
            noted += usize::from(versions.get(id).is_some_and(|version| version.older_since.is_some()));
        }
        assert!(noted > 0, "{api}");
    }
}
