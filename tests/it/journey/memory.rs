//! Memory is bounded by one incident, not by a page and not by what is made of the incident.

use std::{fs, process, time::Duration};

use sim::{Giant, IncidentSeed};

use super::harness::{CONTOSO, STEP_TIMEOUT, StackHarness};

/// The most memory that a process of this name among our children has held, in KiB.
fn most_held(binary: &str) -> u64 {
    let ours = process::id().to_string();
    let held = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let status = fs::read_to_string(path.join("status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let is_ours = field("PPid:") == Some(&ours) && field("Name:") == Some(binary);
        let held = field("VmHWM:")?.split(' ').next()?.parse::<u64>().ok()?;
        is_ours.then_some(held)
    });
    held.max().unwrap_or(0)
}

/// The most that `incident-fetch` held while it brought in `count` such incidents, in KiB.
async fn held_for(count: u64, giant: Giant, format: &str) -> u64 {
    let harness = StackHarness::start(&format!("memory-{count}-{format}"), &[("DELIVERY_FORMAT", format)]).await;
    harness.seed(&CONTOSO);
    harness.onboard(&CONTOSO, None).await;
    for _ in 0..count {
        let seed = IncidentSeed { alerts: 0, giant: Some(giant), ..IncidentSeed::default() };
        harness.sim.put_incident(CONTOSO.tenant_id, seed);
    }
    // All of them lie in one window, which is recorded when it is whole: 50 take some two minutes in a debug build.
    let timeout = STEP_TIMEOUT * u32::try_from(count.div_ceil(12)).unwrap();
    let all_are_delivered = harness.until_within(timeout, format!("{count} are delivered"), async || {
        harness.poll().await;
        let tenant = harness.expect(200, "GET", &CONTOSO.path(), None).await;
        tenant["incidents_total"] == count
    });
    // A process that exceeds its time is replaced, and what it held is gone with it.
    let mut held = 0;
    let watch = async {
        loop {
            held = held.max(most_held("incident-fetch"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! { () = all_are_delivered => {}, () = watch => {} }
    let delivered = harness.stack.delivered().await.unwrap();
    let alerts: Vec<_> = delivered.iter().map(|line| line["incident"]["alerts"].as_array().map(Vec::len)).collect();
    harness.end().await;
    assert_eq!(alerts, vec![Some(giant.alerts); delivered.len()], "each is delivered whole");
    assert!(held > 0, "no process was found");
    held
}

/// Two megabytes an incident.
const OF_400_ALERTS: Giant = Giant { alerts: 400, bytes_each: 5 << 10 };

#[tokio::test]
async fn incidents_of_400_alerts_need_at_most_64_mib() {
    let held = held_for(12, OF_400_ALERTS, "envelope").await;
    assert!(held <= 64 << 10, "{held} KiB");
}

/// It has 33 of the 33.5 MB that are accepted, and evidence in each alert. As a tree of values it would take 400 MB.
#[tokio::test]
async fn largest_incident_needs_at_most_128_mib_in_both_formats() {
    let held = held_for(1, Giant { alerts: 11_000, bytes_each: 0 }, "both").await;
    assert!(held <= 128 << 10, "{held} KiB");
}

#[tokio::test]
#[ignore = "long: a hundred megabytes through debug builds"]
async fn fifty_incidents_of_400_alerts_need_at_most_64_mib() {
    let held = held_for(50, OF_400_ALERTS, "envelope").await;
    assert!(held <= 64 << 10, "{held} KiB");
}
