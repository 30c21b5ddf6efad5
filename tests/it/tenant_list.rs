//! Lists of tenants: their order, their pages while lags move, and what they cost.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    registry::{
        Write,
        lease::Acquired,
        tenants::{Status, Tenant},
    },
    tenant::TenantId,
};

use crate::{admin::AdminHarness, backends::tenant_record};

fn id(number: u32) -> TenantId {
    format!("{number:08x}-2222-4333-8444-abcdefabcdef").parse().unwrap()
}

impl AdminHarness {
    async fn customer(&self, number: u32, customer: &str, status: Status) {
        let tenant = Tenant { customer: customer.into(), ..tenant_record(id(number), status, None) };
        self.registry.create_tenant(&tenant).await.unwrap();
    }

    /// Puts a tenant's cursor so many seconds behind the present.
    async fn lag(&self, number: u32, seconds: i64) {
        let now = self.clock.now();
        self.registry.open_feed(&id(number), now).await.unwrap();
        let until = now + SignedDuration::from_secs(60);
        let Acquired::Lease(mut lease) = self.registry.acquire_lease(&id(number), now, until).await.unwrap() else {
            panic!("the lease is free")
        };
        lease.feed.covered_until = Some(now - SignedDuration::from_secs(seconds));
        assert_eq!(self.registry.release_lease(&mut lease, None, now).await.unwrap(), Write::Done);
    }

    async fn page(&self, query: &str) -> (Vec<Value>, Option<String>) {
        let (status, page) = self.call("GET", &format!("/tenants?{query}"), None).await;
        assert_eq!(status, 200, "{page}");
        (page["tenants"].as_array().unwrap().clone(), page["next"].as_str().map(str::to_owned))
    }
}

fn names(tenants: &[Value]) -> Vec<&str> {
    tenants.iter().map(|tenant| tenant["customer"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn default_order_is_that_of_customers() {
    let admin = AdminHarness::start().await;
    for (number, customer) in [(1, "northwind"), (2, "Contoso"), (3, "Adatum"), (4, "contoso"), (5, "Contoso West")] {
        admin.customer(number, customer, Status::Active).await;
    }
    let expected = ["Adatum", "Contoso", "contoso", "Contoso West", "northwind"];
    for query in ["", "sort=customer"] {
        assert_eq!(names(&admin.page(query).await.0), expected, "{query}");
    }
    let (mut seen, mut query) = (Vec::new(), "limit=2".to_owned());
    loop {
        let (tenants, next) = admin.page(&query).await;
        seen.extend(names(&tenants).into_iter().map(str::to_owned));
        let Some(next) = next else { break };
        query = format!("limit=2&sort=customer&next={next}");
    }
    assert_eq!(seen, expected);
    let (_, renamed) =
        admin.call("PATCH", &format!("/tenants/{}", id(1)), Some(json!({"customer": "\u{fc}".repeat(120)}))).await;
    assert_eq!(renamed["open_incidents"], json!({"informational": 0, "low": 0, "medium": 0, "high": 0}));
    let (tenants, next) = admin.page("limit=4").await;
    assert_eq!(names(&tenants)[3], "Contoso West");
    let (last, next) = admin.page(&format!("next={}", next.unwrap())).await;
    assert_eq!((last[0]["tenant_id"].clone(), next), (json!(id(1)), None), "the longest name fits into a `next`");
}

#[tokio::test]
async fn pages_by_lag_neither_skip_nor_repeat_while_lags_move() {
    let admin = AdminHarness::start_at(Clock::by_hand("2027-01-16T10:00:00Z".parse().unwrap())).await;
    for number in 0..25 {
        let status = if number % 5 == 4 { Status::Paused } else { Status::Active };
        admin.customer(number, &format!("customer {number:02}"), status).await;
        if number < 20 {
            admin.lag(number, i64::from(number) * 100).await;
        }
    }
    let expected: Vec<String> = (0..20).rev().chain(20..25).map(|number| format!("customer {number:02}")).collect();
    let (mut seen, mut query) = (Vec::new(), "sort=lag&limit=4".to_owned());
    loop {
        let (tenants, next) = admin.page(&query).await;
        // What was shown catches up, and what was not shown falls behind or catches up.
        for tenant in &tenants {
            let number = tenant["customer"].as_str().unwrap()[9..].parse::<u32>().unwrap();
            if number < 20 {
                admin.lag(number, 0).await;
            }
        }
        admin.lag(u32::try_from(seen.len() % 20).unwrap(), 1).await;
        seen.extend(names(&tenants).into_iter().map(str::to_owned));
        let Some(next) = next else { break };
        query = format!("limit=4&next={next}");
    }
    assert_eq!(seen, expected);
    let (tenants, next) = admin.page("sort=lag&status=paused").await;
    assert_eq!((tenants.len(), next), (5, None));
    assert!(tenants.iter().all(|tenant| tenant["status"] == "paused"));
    assert!(tenants[4]["lag_seconds"].is_null(), "without a lag last");
}

#[tokio::test]
async fn next_of_a_list_by_lag_expires_and_fits_only_that_list() {
    let admin = AdminHarness::start_at(Clock::by_hand("2027-01-16T10:00:00Z".parse().unwrap())).await;
    for number in 0..3 {
        admin.customer(number, "Contoso", Status::Active).await;
    }
    let by_lag = admin.page("sort=lag&limit=1").await.1.unwrap();
    let by_customer = admin.page("limit=1").await.1.unwrap();
    for (query, code) in [
        (format!("sort=customer&next={by_lag}"), "invalid_request"),
        (format!("sort=lag&next={by_customer}"), "invalid_request"),
        ("sort=severity".into(), "invalid_request"),
        ("next=lag.x.1".into(), "invalid_request"),
        ("next=lag.11111111-2222-4333-8444-abcdefabcdef.1".into(), "gone"),
        (format!("next={}.9999999", by_lag.rsplit_once('.').unwrap().0), "gone"),
    ] {
        assert_eq!(admin.refused("GET", &format!("/tenants?{query}"), None).await.0, code, "{query}");
    }
    assert_eq!(admin.page(&format!("next={by_lag}")).await.0.len(), 2);
    admin.clock.advance(SignedDuration::from_secs(3_601));
    assert_eq!(admin.refused("GET", &format!("/tenants?next={by_lag}"), None).await.0, "gone");
}

#[tokio::test]
async fn page_over_a_thousand_tenants_takes_few_reads() {
    let admin = AdminHarness::start().await;
    for number in 0..1_000 {
        admin.customer(number, &format!("customer {number}"), Status::Active).await;
    }
    for number in [3, 500, 999] {
        admin.lag(number, i64::from(number)).await;
    }
    let calls = |operation: &str| admin.backends.double.account().calls(operation);
    let all = || ["GetItem", "Query", "BatchGetItem", "PutItem"].map(calls);
    let before = all();
    let (first, next) = admin.page("sort=lag&limit=100").await;
    let after = all();
    // A page of the double has 100 items, one of DynamoDB about a thousand tenants.
    let [gets, queries, batches, puts] = std::array::from_fn(|index| after[index] - before[index]);
    assert!(queries <= 11, "{queries}");
    assert_eq!((gets, batches, puts), (0, 10 + 2, 1), "cursors of all, feeds and counts of the page, the order");
    assert_eq!(names(&first)[..3], ["customer 999", "customer 500", "customer 3"]);
    let (second, next) = admin.page(&format!("limit=100&next={}", next.unwrap())).await;
    let later = all();
    let [gets, queries, batches, puts] = std::array::from_fn(|index| later[index] - after[index]);
    assert_eq!((gets, queries, batches, puts), (1, 0, 3, 0), "a later page reads only its own tenants");
    assert_eq!((second.len(), next.is_some()), (100, true));
    let shown: BTreeSet<String> = first.iter().chain(&second).map(|tenant| tenant["tenant_id"].to_string()).collect();
    assert_eq!(shown.len(), 200);
    let before = all();
    admin.page("limit=100").await;
    let [gets, queries, batches, puts] = std::array::from_fn(|index| all()[index] - before[index]);
    assert!(queries <= 2, "{queries}");
    assert_eq!((gets, batches, puts), (0, 2, 0), "a page by customer reads only its own tenants");
    assert_eq!(admin.backends.sim.calls().len(), 0, "none of this concerns Microsoft");
}
