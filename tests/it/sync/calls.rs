//! The number of calls that it takes to read a stretch of time, counted at Microsoft's side.

use jiff::{SignedDuration, Timestamp};
use shared::microsoft::IncidentApi;
use sim::{IncidentSeed, Order};

use super::harness::{APIS, SyncHarness};
use crate::cases::Cases;

/// The most calls for so many rows: interface, section 5, "Calls".
fn most_calls(rows: usize, page: usize) -> usize {
    rows.div_ceil(page) * 14 / 10 + 4
}

/// The seconds before now at which incidents were last updated, and the shape's name.
fn shapes() -> Vec<(&'static str, Vec<i64>)> {
    let mut state = 7_u64;
    let mut random = move |below: i64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        i64::try_from(state >> 33).unwrap() % below
    };
    let dense = (0..600).map(|row| 60 + row * 9).collect();
    let uneven = (0..600).map(|_| 60 + random(10_000)).collect();
    let recent = (0..120).map(|row| 60 + row * 3).collect();
    let thin = (0..300).map(|row| 60 + row * 280).collect();
    let tied = vec![600; 240];
    let crowded = vec![600; 1_100];
    let bursts = (0..400).map(|row| 600 + row / 80 * 7_200 + random(20)).collect();
    vec![
        ("dense", dense),
        ("uneven", uneven),
        ("recent", recent),
        ("thin", thin),
        ("tied", tied),
        ("crowded", crowded),
        ("bursts", bursts),
    ]
}

/// A row's age at its last update, and before that since its creation.
type Row = (SignedDuration, SignedDuration);

/// Rows that were created a second after one another, by the seconds before now at which they were last updated.
fn rows_at(seconds: &[i64]) -> Vec<Row> {
    let created = |number: usize| SignedDuration::from_secs(i64::try_from(number % 7_919).unwrap());
    seconds.iter().enumerate().map(|(number, ago)| (SignedDuration::from_secs(*ago), created(number))).collect()
}

async fn calls(api: IncidentApi, order: Order, page: usize, rows: &[Row]) -> usize {
    let sync = SyncHarness::start(api).await;
    sync.backends.sim.configure(|behaviour| {
        for list in [&mut behaviour.graph, &mut behaviour.defender] {
            list.order = order;
            list.page_size = (page < list.max_top).then_some(page);
            if page < list.max_top {
                list.next_link = sim::NextLink::Skip;
            }
        }
    });
    let now: Timestamp = sync.clock.now();
    for (ago, created) in rows {
        let last_update = now - *ago;
        sync.put_seed(IncidentSeed {
            last_update: Some(last_update),
            created: Some(last_update - *created),
            alerts: 0,
            ..IncidentSeed::default()
        });
    }
    // Each poll takes what the budget has. The stretch is read when the first one is done.
    for _ in 0..20 {
        sync.poll().await;
        if sync.feed().await.last_success_at.is_some() {
            sync.assert_complete();
            return sync.calls();
        }
        sync.advance(60);
    }
    panic!("not read in 20 polls: {:?}", sync.feed().await);
}

#[tokio::test]
async fn stretch_is_read_in_few_calls_whatever_its_shape() {
    let mut cases = Cases::default();
    for api in APIS {
        let largest = usize::try_from(api.largest_page()).unwrap();
        for order in [Order::UpdatedDescending, Order::UpdatedAscending, Order::CreatedDescending, Order::Shuffled] {
            for page in [7, largest] {
                for (shape, seconds) in shapes() {
                    // Seven rows a page make long tests. Two shapes show what is different about them.
                    if page == 7 && !matches!(shape, "recent" | "uneven") {
                        continue;
                    }
                    cases.add(format!("{api}, {order:?}, {page} a page, {shape}"), async move {
                        let most = most_calls(seconds.len(), page);
                        let calls = calls(api, order, page, &rows_at(&seconds)).await;
                        assert!(calls <= most, "{calls} calls, and at most {most} are right");
                    });
                }
            }
        }
    }
    cases.run().await;
}

#[tokio::test]
async fn crowded_second_is_read_in_few_calls_where_creation_is_no_order() {
    // Rows of one second, the latest update first or in no order: neither is the order of creation.
    let rows = |count: i64| -> Vec<Row> {
        let row = |number| (SignedDuration::from_millis(600_000 + number % 900), number * 7_919 % 86_400);
        (0..count).map(row).map(|(ago, created)| (ago, SignedDuration::from_secs(created))).collect()
    };
    let mut cases = Cases::default();
    for api in APIS {
        let largest = usize::try_from(api.largest_page()).unwrap();
        for (count, page) in
            [(480, largest), (530, largest), (600, largest), (900, largest), (1_500, largest), (600, 7)]
        {
            for order in [Order::UpdatedDescending, Order::Shuffled] {
                cases.add(format!("{api}, {order:?}, {page} a page, {count}"), async move {
                    let rows = rows(count);
                    let most = most_calls(rows.len(), page);
                    let calls = calls(api, order, page, &rows).await;
                    assert!(calls <= most, "{calls} calls, and at most {most} are right");
                });
            }
        }
    }
    cases.run().await;
}
