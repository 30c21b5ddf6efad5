//! Large hunts: many rows of one tenant, and many tenants.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use sim::{Fault, FaultKind};
use tokio::{sync::Semaphore, task::JoinSet};

use super::{HUNTING, HuntHarness, QUERY_PATH, TENANT, other, row};
use crate::{backends::CLIENT_ID, sync::harness::hand_over};

/// The number of workers that a deployment has at the same time.
const WORKERS: usize = 10;

/// Text that no compressor shortens by much.
fn noise(bytes: usize, seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = String::with_capacity(bytes);
    while text.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push(char::from(b'0' + u8::try_from(state % 64).unwrap()));
    }
    text.replace('\\', "/")
}

#[tokio::test]
async fn large_result_goes_to_the_bucket_part_by_part() {
    let hunts = HuntHarness::start().await;
    hunts.put_table(TENANT, &[("DeviceName", "String")], (0..16).map(|seed| row(&noise(1 << 20, seed))).collect());
    let hunt = hunts.begin(json!({"query": "DeviceInfo"})).await;
    hunts.deliver().await;
    let progress = hunts.read(&hunt).await;
    assert_eq!(
        (&progress["status"], &progress["rows"], &progress["truncated"]),
        (&json!("done"), &json!(16), &json!(true))
    );
    let object = progress["objects"][0].as_str().unwrap();
    let rows = hunts.rows_of(object);
    assert_eq!(rows[7], json!({"tenant_id": TENANT, "DeviceName": noise(1 << 20, 7)}));
    // 16 MB of text are 12 MB compressed: two parts of 5 MiB and a rest. So no more than a part was in memory.
    let size = hunts.sync.backends.object(object).len();
    assert!(size > 11 << 20, "{size}");
    let account = hunts.sync.backends.double.account();
    assert_eq!((account.calls("UploadPart"), account.calls("PutObject"), account.open_uploads()), (3, 0, 0));
}

#[tokio::test]
async fn large_result_that_breaks_off_leaves_nothing() {
    let hunts = HuntHarness::start().await;
    hunts.put_table(TENANT, &[("DeviceName", "String")], (0..16).map(|seed| row(&noise(1 << 20, seed))).collect());
    let cut = Fault::new(FaultKind::Truncate { at: Some(12 << 20) }).path(QUERY_PATH);
    hunts.sync.backends.sim.fault(Fault { times: Some(1), ..cut });
    let hunt = hunts.begin(json!({"query": "DeviceInfo"})).await;
    hunts.deliver().await;
    assert_eq!(hunts.sync.backends.objects("hunts/"), [""; 0]);
    {
        let account = hunts.sync.backends.double.account();
        assert_eq!((account.calls("UploadPart"), account.open_uploads()), (1, 0));
    }
    hunts.sync.advance(16);
    hunts.deliver().await;
    assert_eq!(hunts.read(&hunt).await["rows"], 16, "a repeat cures it");
}

/// 300 tenants: 2 to 11 are slow, 12 to 16 refuse, 17 has 60 MB, 18 another schema.
async fn fleet(hunts: &HuntHarness) -> BTreeMap<String, &'static str> {
    let mut failing = BTreeMap::new();
    for number in 2..=300 {
        let tenant = other(number);
        hunts.add_tenant(&tenant, &format!("device-{number}")).await;
        let fault = |kind| hunts.sync.backends.sim.fault(Fault::new(kind).tenant(&tenant).path(QUERY_PATH));
        match number {
            2..=11 => fault(FaultKind::Hang { millis: 1_500 }),
            12..=13 => {
                hunts.sync.backends.sim.revoke(&tenant, CLIENT_ID);
                failing.insert(tenant, "tenant_not_active consent_missing");
            }
            14..=15 => {
                hunts.sync.backends.sim.revoke_roles(&tenant, CLIENT_ID, &[HUNTING]);
                failing.insert(tenant, "conflict role_missing");
            }
            16 => {
                fault(FaultKind::status(403));
                failing.insert(tenant, "tenant_not_active resource_absent");
            }
            17 => {
                hunts.put_table(&tenant, &[("DeviceName", "String")], vec![row(&"x".repeat(1_000_000)); 60]);
                failing.insert(tenant, "invalid_request result_too_large");
            }
            18 => hunts.put_table(&tenant, &[("Events", "Int64")], vec![json!({"Events": 7})]),
            _ => {}
        }
    }
    failing
}

/// In one process, over the AWS double. What the number of tenants can break is all here: the handlers, the item of the hunt,
/// the messages in their batches, the claims of workers at the same time, the objects, and HTTP to the simulator. The queue's
/// event source, the functions' rights and the start of the binaries treat each message alike. The journey
/// `onboards_three_tenants_and_offboards_one` runs a hunt through them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hunt_over_300_tenants_ends_with_every_failure_listed() {
    let hunts = HuntHarness::start().await;
    let failing = fleet(&hunts).await;
    let hunt = hunts.begin(json!({"query": "DeviceInfo"})).await;
    let messages: Vec<String> = hunts.sync.backends.messages().into_iter().map(|(_, body)| body.to_string()).collect();
    assert_eq!(messages.len(), 300, "a message for each tenant");
    let (mut workers, turns) = (JoinSet::new(), Arc::new(Semaphore::new(WORKERS)));
    for batch in messages.chunks(10) {
        let (app, batch, turns) = (hunts.sync.app.clone(), batch.to_vec(), turns.clone());
        workers.spawn(async move {
            let _turn = turns.acquire_owned().await;
            hand_over(&app, &batch, Duration::from_secs(200)).await
        });
    }
    for response in workers.join_all().await {
        assert_eq!(response, json!({"batchItemFailures": []}));
    }

    let progress = hunts.read(&hunt).await;
    assert_eq!(
        (&progress["status"], &progress["tenants_total"], &progress["tenants_done"]),
        (&json!("done"), &json!(300), &json!(300))
    );
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let failures: BTreeMap<String, String> = progress["failures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (text(&one["tenant_id"]), format!("{} {}", text(&one["code"]), text(&one["reason"]))))
        .collect();
    assert_eq!(failures, failing.into_iter().map(|(tenant, reason)| (tenant, reason.to_owned())).collect());
    // Two rows of the first tenant, and one of each other that did not fail.
    assert_eq!((&progress["rows"], progress["results"].as_array().unwrap().len()), (&json!(295), 295));
    assert_eq!(progress["objects"].as_array().unwrap().len(), 294);
    let names: Vec<String> =
        progress["schema"].as_array().unwrap().iter().map(|column| text(&column["name"])).collect();
    assert_eq!(names, ["DeviceName", "Events"]);
    for number in 2..=300 {
        assert!(hunts.queries(&other(number)) <= 2, "a query is sent once, and again with a fresh token after a 403");
    }
}
