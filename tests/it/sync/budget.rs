//! The client of a tenant's incident API takes each of its calls out of the budget.

use serde_json::json;
use shared::registry::budget::BudgetOf;
use sim::{Fault, FaultKind, HuntingTable, RetryAfter};

use super::harness::{APIS, SyncHarness, TENANT};
use crate::backends::CLIENT_ID;

/// All that the function does with a tenant's incident API.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Use {
    Poll,
    List,
    Read,
    Change,
    Hunt,
}

const USES: [Use; 5] = [Use::Poll, Use::List, Use::Read, Use::Change, Use::Hunt];

async fn start(api: shared::microsoft::IncidentApi) -> (SyncHarness, String) {
    let sync = SyncHarness::start(api).await;
    sync.backends.sim.grant(TENANT, CLIENT_ID, &["ThreatHunting.Read.All", api.write_role()]);
    let columns = vec![sim::HuntingColumn { name: "DeviceName".into(), kind: "String".into() }];
    let table = HuntingTable { name: "DeviceInfo".into(), columns, rows: Vec::new() };
    sync.backends.sim.put_hunting_table(TENANT, table);
    let incident_id = sync.put(60);
    (sync, incident_id)
}

async fn perform(sync: &SyncHarness, incident_id: &str, one: Use) {
    let incidents = format!("/tenants/{TENANT}/incidents");
    let incident = format!("{incidents}/{incident_id}");
    match one {
        Use::Poll => sync.poll().await,
        Use::List => drop(sync.call("GET", &incidents, "", None).await),
        Use::Read => drop(sync.call("GET", &incident, "", None).await),
        Use::Change => {
            let body = json!({"status": "resolved", "comment": "done"}).to_string();
            sync.call("PATCH", &incident, "", Some(&body)).await;
        }
        Use::Hunt => {
            let body = json!({"query": "DeviceInfo", "tenants": [TENANT], "wait_seconds": 0}).to_string();
            assert_eq!(sync.call("POST", "/hunting", "", Some(&body)).await.0, 202);
            for (_, message) in sync.backends.messages() {
                sync.hand_over(&[message.to_string()]).await;
            }
        }
    }
}

/// The number of requests that arrived at Graph and at Defender.
fn requests(sync: &SyncHarness) -> [usize; 2] {
    [sim::Host::Graph, sim::Host::Defender].map(|api| sync.backends.sim.count(api, TENANT))
}

#[tokio::test]
async fn each_request_takes_one_call_out_of_the_budget() {
    for api in APIS {
        let (sync, incident_id) = start(api).await;
        for one in USES {
            let before = requests(&sync);
            perform(&sync, &incident_id, one).await;
            assert_ne!(requests(&sync), before, "{api}: {one:?} sends something");
            let stored = sync.feed().await;
            // The clock stands still, so that each call moves its budget by a whole interval.
            let budgets = [(BudgetOf::from(APIS[0]), 1_250), (APIS[1].into(), 2_700), (BudgetOf::Hunting, 3_000)];
            let [graph, defender, hunting] = budgets.map(|(of, interval)| {
                let paid_until = stored.budget(of).paid_until.unwrap_or(sync.clock.now());
                usize::try_from(paid_until.duration_since(sync.clock.now()).as_millis() / interval).unwrap()
            });
            // Hunting is Graph's, whatever the tenant's incidents are read with.
            assert_eq!([graph + hunting, defender], requests(&sync), "{api}: {one:?}");
            assert_eq!(hunting, usize::from(one == Use::Hunt), "{api}: {one:?}");
        }
    }
}

#[tokio::test]
async fn no_request_leaves_after_a_429_of_any_call() {
    for api in APIS {
        for first in USES {
            let (sync, incident_id) = start(api).await;
            let wait = RetryAfter::Seconds(600);
            for api in [sim::Host::Graph, sim::Host::Defender] {
                sync.backends.sim.fault(Fault::new(FaultKind::Throttle { retry_after: wait }).on(api));
            }
            perform(&sync, &incident_id, first).await;
            assert_eq!(requests(&sync).iter().sum::<usize>(), 1, "{api}: {first:?} stops at its first response");
            sync.advance(60);
            for one in USES.into_iter().filter(|one| (*one == Use::Hunt) == (first == Use::Hunt)) {
                perform(&sync, &incident_id, one).await;
                assert_eq!(requests(&sync).iter().sum::<usize>(), 1, "{api}: {one:?} after {first:?}");
            }
            // Microsoft counts hunting apart.
            sync.backends.sim.clear_faults();
            let other = if first == Use::Hunt { Use::Poll } else { Use::Hunt };
            perform(&sync, &incident_id, other).await;
            assert_ne!(requests(&sync).iter().sum::<usize>(), 1, "{api}: {other:?} after {first:?}");
        }
    }
}
