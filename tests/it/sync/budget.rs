//! The client of a tenant's incident API takes each of its calls out of the budget.

use serde_json::json;
use sim::{Fault, FaultKind, HuntingTable, RetryAfter};

use super::feed::{Feed, SURFACES, TENANT};
use crate::local::CLIENT_ID;

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

async fn start(surface: shared::microsoft::IncidentApi) -> (Feed, String) {
    let feed = Feed::start(surface).await;
    feed.local.sim.grant(TENANT, CLIENT_ID, &["ThreatHunting.Read.All", surface.write_role()]);
    let columns = vec![sim::HuntingColumn { name: "DeviceName".into(), kind: "String".into() }];
    let table = HuntingTable { name: "DeviceInfo".into(), columns, rows: Vec::new() };
    feed.local.sim.put_hunting_table(TENANT, table);
    let incident_id = feed.put(60);
    (feed, incident_id)
}

async fn perform(feed: &Feed, incident_id: &str, one: Use) {
    let incidents = format!("/tenants/{TENANT}/incidents");
    let incident = format!("{incidents}/{incident_id}");
    match one {
        Use::Poll => feed.poll().await,
        Use::List => drop(feed.call("GET", &incidents, "", None).await),
        Use::Read => drop(feed.call("GET", &incident, "", None).await),
        Use::Change => {
            let body = json!({"status": "resolved", "comment": "done"}).to_string();
            feed.call("PATCH", &incident, "", Some(&body)).await;
        }
        Use::Hunt => {
            let body = json!({"query": "DeviceInfo", "tenants": [TENANT]}).to_string();
            feed.call("POST", "/hunting", "", Some(&body)).await;
        }
    }
}

/// The number of requests that arrived at Graph and at Defender.
fn requests(feed: &Feed) -> [usize; 2] {
    [sim::Host::Graph, sim::Host::Defender].map(|surface| feed.local.sim.count(surface, TENANT))
}

#[tokio::test]
async fn each_request_takes_one_call_out_of_the_budget() {
    for surface in SURFACES {
        let (feed, incident_id) = start(surface).await;
        for one in USES {
            let before = requests(&feed);
            perform(&feed, &incident_id, one).await;
            assert_ne!(requests(&feed), before, "{surface}: {one:?} sends something");
            let stored = feed.feed().await;
            // The clock stands still, so that each call moves the budget by its whole interval of 2.5 seconds.
            let paid = SURFACES.map(|api| {
                let paid_until = stored.budget(api).paid_until.unwrap_or(feed.clock.now());
                usize::try_from(paid_until.duration_since(feed.clock.now()).as_millis() / 2_500).unwrap()
            });
            assert_eq!(paid, requests(&feed), "{surface}: {one:?}");
        }
    }
}

#[tokio::test]
async fn no_request_leaves_after_a_429_of_any_call() {
    for surface in SURFACES {
        for first in USES {
            let (feed, incident_id) = start(surface).await;
            let wait = RetryAfter::Seconds(600);
            for api in [sim::Host::Graph, sim::Host::Defender] {
                feed.local.sim.fault(Fault::new(FaultKind::Throttle { retry_after: wait }).on(api));
            }
            perform(&feed, &incident_id, first).await;
            assert_eq!(requests(&feed).iter().sum::<usize>(), 1, "{surface}: {first:?} stops at its first response");
            // Hunting is Graph's, whatever the tenant's incidents are read with.
            let throttled = |one: Use| (one == Use::Hunt) == (first == Use::Hunt) || surface == SURFACES[0];
            feed.advance(60);
            for one in USES.into_iter().filter(|one| throttled(*one)) {
                perform(&feed, &incident_id, one).await;
                assert_eq!(requests(&feed).iter().sum::<usize>(), 1, "{surface}: {one:?} after {first:?}");
            }
        }
    }
}
