//! Hunts as jobs: one query over many tenants, a message for each.

mod fleet;
mod requests;
mod workers;

use std::{io::Read, time::Duration};

use flate2::read::GzDecoder;
use serde_json::{Value, json};
use shared::{microsoft::IncidentApi, registry::tenants::Tenant};
use sim::{HuntingColumn, HuntingTable};

use super::harness::{APIS, SyncHarness, TENANT, active, invocation};
use crate::backends::{CLIENT_ID, request};

const HUNTING: &str = "ThreatHunting.Read.All";
const GRAPH: IncidentApi = APIS[0];

/// The path of Microsoft's call.
const QUERY_PATH: &str = "/v1.0/security/runHuntingQuery";

/// A deployment whose tenants may be hunted in.
struct HuntHarness {
    sync: SyncHarness,
}

fn other(number: u32) -> String {
    format!("{number:08}-2222-4333-8444-0000000000ff")
}

fn row(device: &str) -> Value {
    json!({"DeviceName": device})
}

impl HuntHarness {
    /// One tenant with one table of two devices.
    async fn start() -> Self {
        let sync = SyncHarness::start(GRAPH).await;
        sync.backends.sim.grant(TENANT, CLIENT_ID, &[HUNTING, GRAPH.write_role()]);
        let hunts = Self { sync };
        hunts.put_table(TENANT, &[("DeviceName", "String")], vec![row("a"), row("b")]);
        hunts
    }

    /// A further active tenant that consented to hunting, with one device.
    async fn add_tenant(&self, tenant: &str, device: &str) {
        self.sync.backends.customer(tenant, &format!("{tenant}.example"), &[HUNTING, GRAPH.write_role()]);
        let record: Tenant = active(tenant.parse().unwrap(), GRAPH);
        self.sync.registry.create_tenant(&record).await.unwrap();
        self.put_table(tenant, &[("DeviceName", "String")], vec![row(device)]);
    }

    fn put_table(&self, tenant: &str, columns: &[(&str, &str)], rows: Vec<Value>) {
        let column = |(name, kind): &(&str, &str)| HuntingColumn { name: (*name).into(), kind: (*kind).into() };
        let rows = rows.into_iter().map(|row| row.as_object().unwrap().clone()).collect();
        let columns = columns.iter().map(column).collect();
        self.sync.backends.sim.put_hunting_table(tenant, HuntingTable { name: "DeviceInfo".into(), columns, rows });
    }

    /// Starts a hunt without a wait, and returns its path.
    async fn begin(&self, mut body: Value) -> String {
        body["wait_seconds"] = json!(0);
        let (status, begun) = self.sync.call("POST", "/hunting", "", Some(&body.to_string())).await;
        assert_eq!((status, begun["status"].as_str()), (202, Some("running")), "{begun}");
        assert_eq!(begun.as_object().unwrap().len(), 2, "{begun}");
        format!("/hunting/{}", begun["hunt_id"].as_str().unwrap())
    }

    async fn read(&self, hunt: &str) -> Value {
        let (status, progress) = self.sync.call("GET", hunt, "", None).await;
        assert_eq!(status, 200, "{progress}");
        progress
    }

    async fn cancel(&self, hunt: &str) -> u64 {
        let event = request("DELETE", hunt, "", None);
        let response = self.sync.app.handle(event, invocation(Duration::from_secs(29))).await.unwrap();
        response["statusCode"].as_u64().unwrap()
    }

    /// Delivers the visible messages once.
    async fn deliver(&self) {
        let messages = self.sync.backends.messages();
        let bodies: Vec<String> = messages.into_iter().map(|(_, body)| body.to_string()).collect();
        for batch in bodies.chunks(10) {
            assert_eq!(self.sync.hand_over(batch).await, json!({"batchItemFailures": []}));
        }
    }

    /// Calls a route while messages are delivered, as in a deployment.
    async fn hunt(&self, body: &Value) -> (u16, Value) {
        let delivery = async {
            loop {
                self.deliver().await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let body = body.to_string();
        tokio::select! {
            response = self.sync.call("POST", "/hunting", "", Some(&body)) => response,
            () = delivery => unreachable!("a loop"),
        }
    }

    /// The number of queries that Microsoft saw of a tenant.
    fn queries(&self, tenant: &str) -> usize {
        let calls = self.sync.backends.sim.calls();
        calls.iter().filter(|call| call.path == QUERY_PATH && call.tenant_id.as_deref() == Some(tenant)).count()
    }

    /// The rows of an object.
    fn rows_of(&self, object: &str) -> Vec<Value> {
        let bytes = self.sync.backends.object(object);
        let mut text = String::new();
        GzDecoder::new(bytes.as_slice()).read_to_string(&mut text).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}
