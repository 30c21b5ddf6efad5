//! `cargo dev --once`: the whole job unattended, with a check after each step.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use devstack::{ApiResponse, Browser, Console, Failed, Progress as _, Stack};
use serde_json::{Value, json};
use sim::Sim;

use crate::customers::{self, CONTOSO, Customer, FABRIKAM, NORTHWIND};

/// The time in which a tenant must become active. At Microsoft a consent needs minutes to take effect, in the simulator
/// it does not.
const ACTIVATION_TIMEOUT: Duration = Duration::from_mins(1);
const DELIVERY_TIMEOUT: Duration = Duration::from_mins(1);
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Returns the message as an error unless `holds`.
pub(crate) fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(Failed(otherwise())) }
}

/// Invites a customer, accepts as its administrator, waits until the tenant is active, and selects its API.
pub(crate) async fn onboard(stack: &Stack, customer: &Customer) -> Result<(), Failed> {
    let (name, tenant_id) = (customer.name, customer.tenant_id);
    // The invitation names the tenant, so that an administrator of a tenant with an earlier consent may still bind it.
    let consent_url = invite(stack, name, Some(customer.domain)).await?;
    let page = Browser::new()?.consent(&consent_url, tenant_id, customer.administrator).await?;
    check(page.status == 200 && page.url.path() == "/consent/result", || {
        format!("{name}'s administrator ended at {} with status {}", page.url.path(), page.status)
    })?;
    let started = devstack::instant();
    loop {
        let tenant = expect(&stack.call("GET", &format!("/tenants/{tenant_id}"), None).await?, 200)?;
        if tenant["status"] == "active" {
            break;
        }
        check(started.elapsed() < ACTIVATION_TIMEOUT, || {
            format!("{name} is {} ({}) and does not become active", tenant["status"], tenant["reason"])
        })?;
        tokio::time::sleep(CHECK_INTERVAL).await;
        stack.tick("poll").await?;
        stack.drain_queue().await?;
    }
    let change = json!({ "api": customer.api });
    let tenant = expect(&stack.call("PATCH", &format!("/tenants/{tenant_id}"), Some(change)).await?, 200)?;
    check(tenant["api"] == customer.api, || format!("{name} is read by {} instead of {}", tenant["api"], customer.api))
}

/// Onboards the customers, one after the other.
pub(crate) async fn onboard_all(stack: &Stack, customers: [&Customer; 3], console: &mut Console) -> Result<(), Failed> {
    console.step("onboarding three customers by their consent links");
    for customer in customers {
        onboard(stack, customer).await?;
        console.line(&format!("{:<10} is active, and read by {}", customer.name, customer.api));
    }
    Ok(())
}

/// Creates an invitation as an operator does and returns its consent link.
pub(crate) async fn invite(stack: &Stack, customer: &str, expected_tenant: Option<&str>) -> Result<String, Failed> {
    let mut body = json!({ "customer": customer });
    if let Some(tenant) = expected_tenant {
        body["expected_tenant"] = tenant.into();
    }
    let invitation = expect(&stack.call("POST", "/invitations", Some(body)).await?, 201)?;
    let consent_url = invitation["consent_url"].as_str().map(str::to_owned);
    consent_url.ok_or_else(|| Failed("the invitation has no consent_url".to_owned()))
}

/// Returns the response's body as JSON if the response has this status.
pub(crate) fn expect(response: &ApiResponse, status: u16) -> Result<Value, Failed> {
    check(response.status == status, || {
        format!("our API returned {} instead of {status}: {}", response.status, response.body)
    })?;
    Ok(response.json())
}

/// Runs the whole job. Returns the first check that fails.
pub(crate) async fn run(stack: &Stack, console: &mut Console) -> Result<(), Failed> {
    let started = devstack::instant();
    let sim = stack.sim().ok_or_else(|| Failed("the journey needs the simulator".to_owned()))?;
    let customers = [&CONTOSO, &FABRIKAM, &NORTHWIND];
    for customer in customers {
        customer.seed(sim);
    }

    onboard_all(stack, customers, console).await?;

    console.step("delivering their incidents");
    let created = |customer: &&Customer| (TenantChange::new(customer.tenant_id, "created"), customer.incident_count());
    let mut expected: BTreeMap<_, _> = customers.iter().map(created).collect();
    deliver(stack, &expected).await?;

    console.step("changing some incidents and delivering the changes");
    change_incidents(sim, customers)?;
    for customer in customers {
        for (change, count) in [("updated", 1), ("merged", 1), ("closed", 1)] {
            expected.insert(TenantChange::new(customer.tenant_id, change), count);
        }
    }
    let lines = deliver(stack, &expected).await?;

    console.step("requesting tokens and reading incidents live");
    for customer in customers {
        check_token(stack, customer).await?;
        check_live_read(stack, customer).await?;
    }
    let all = expect(&stack.call("GET", "/incidents?limit=100", None).await?, 200)?;
    let count: usize = customers.iter().map(|customer| customer.incident_count()).sum();
    check(all["incidents"].as_array().is_some_and(|incidents| incidents.len() == count), || {
        format!("reading all tenants did not return {count} incidents: {}", all["failures"])
    })?;
    check_events(stack, &lines).await?;
    check(stack.dead_letters().await?.is_empty(), || "there are messages in the dead-letter queue".to_owned())?;
    if let Some(failure) = stack.take_failures().first() {
        return Err(Failed(failure.clone()));
    }

    console.line("");
    console.line(&format!("tenants            {}", customers.len()));
    console.line(&format!("incidents          {count}"));
    console.line(&format!("versions delivered {}, each once", lines.len()));
    console.line(&format!("calls to Microsoft {}", sim.calls().len()));
    console.line(&format!("seconds            {:.1}", started.elapsed().as_secs_f64()));
    Ok(())
}

/// Resolves one incident of each customer, and merges another one.
fn change_incidents(sim: &Sim, customers: [&Customer; 3]) -> Result<(), Failed> {
    for customer in customers {
        let closed = sim.update_incident(customer.tenant_id, "1", customers::close);
        let merged = sim.merge_incident(customer.tenant_id, "3", "2");
        check(closed && merged, || format!("the simulator does not know the incidents of {}", customer.name))?;
    }
    Ok(())
}

/// A kind of change (`created`, `updated`, `merged`, `closed`) at one tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct TenantChange<'a> {
    tenant_id: &'a str,
    change: &'a str,
}

impl<'a> TenantChange<'a> {
    fn new(tenant_id: &'a str, change: &'a str) -> Self {
        Self { tenant_id, change }
    }
}

/// Numbers of delivered versions.
type Deliveries<'a> = BTreeMap<TenantChange<'a>, usize>;

/// Polls and delivers until the bucket holds exactly the expected versions. More of them, or a repeated one, is an error.
async fn deliver(stack: &Stack, expected: &Deliveries<'_>) -> Result<Vec<Value>, Failed> {
    let started = devstack::instant();
    loop {
        stack.tick("poll").await?;
        stack.drain_queue().await?;
        let lines = stack.delivered().await?;
        let keys: BTreeSet<_> = lines.iter().map(|line| line["key"].as_str().unwrap_or_default()).collect();
        check(keys.len() == lines.len(), || "a version was delivered twice".to_owned())?;
        let mut found = Deliveries::new();
        for line in &lines {
            let tenant = line["tenant_id"].as_str().unwrap_or_default();
            let change = line["change"].as_str().unwrap_or_default();
            *found.entry(TenantChange::new(tenant, change)).or_default() += 1;
        }
        if found == *expected {
            return Ok(lines);
        }
        let has_more = found.iter().any(|(change, count)| expected.get(change).is_none_or(|wanted| count > wanted));
        check(!has_more && started.elapsed() < DELIVERY_TIMEOUT, || {
            format!("delivered {found:?} instead of {expected:?}")
        })?;
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

async fn check_token(stack: &Stack, customer: &Customer) -> Result<(), Failed> {
    let path = format!("/tenants/{}/token", customer.tenant_id);
    let token = expect(&stack.call("POST", &path, Some(json!({}))).await?, 200)?;
    let is_complete = token["token_type"] == "Bearer" && token["access_token"].is_string();
    check(is_complete && token["tenant_id"] == customer.tenant_id, || {
        format!("the response to the token request for {} is not a token of that tenant", customer.name)
    })
}

async fn check_live_read(stack: &Stack, customer: &Customer) -> Result<(), Failed> {
    let path = format!("/tenants/{}/incidents", customer.tenant_id);
    let page = expect(&stack.call("GET", &path, None).await?, 200)?;
    let found = page["incidents"].as_array().map_or(0, Vec::len);
    check(found == customer.incident_count(), || {
        format!("{} has {} incidents, but {found} were read", customer.name, customer.incident_count())
    })?;
    let one = expect(&stack.call("GET", &format!("{path}/1"), None).await?, 200)?;
    check(one["incident_id"] == "1", || format!("incident 1 of {} was not read", customer.name))
}

/// Checks that an event names the object of every line.
async fn check_events(stack: &Stack, lines: &[Value]) -> Result<(), Failed> {
    let events = stack.events().await?;
    let named: BTreeSet<_> = events.iter().filter_map(|event| event["detail"]["object"].as_str()).collect();
    let unannounced = lines.iter().find(|line| !line["object"].as_str().is_some_and(|object| named.contains(object)));
    unannounced.map_or(Ok(()), |line| Err(Failed(format!("no event names the object of {}", line["key"]))))
}
