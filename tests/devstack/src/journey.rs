//! `cargo dev --once`: the whole job, unattended, each step checked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use devstack::{ApiReply, Browser, Console, Failed, Progress as _, Stack, instant};
use sim::Sim;

use crate::world::{self, CONTOSO, Customer, FABRIKAM, NORTHWIND};

/// Consent takes minutes to spread at Microsoft; in the simulator it does not.
const ACTIVE_LIMIT: Duration = Duration::from_mins(1);
const DELIVERY_LIMIT: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_secs(1);

fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(Failed(otherwise())) }
}

/// Invites a customer, lets its administrator click through the link, and chooses its API; the tenant is active
/// afterwards.
pub(crate) async fn onboard(stack: &Stack, customer: &Customer) -> Result<(), Failed> {
    let (name, tenant_id) = (customer.name, customer.tenant_id);
    // An administrator whose tenant had consented before is believed where the invitation names that tenant.
    let consent_url = invite(stack, name, Some(customer.domain)).await?;
    let page = Browser::new()?.consent(&consent_url, tenant_id, customer.administrator).await?;
    check(page.status == 200 && page.url.path() == "/consent/result", || {
        format!("{name}'s administrator ended at {} with status {}", page.url.path(), page.status)
    })?;
    let began = instant();
    loop {
        let tenant = expect(&stack.call("GET", &format!("/tenants/{tenant_id}"), None).await?, 200)?;
        if tenant["status"] == "active" {
            break;
        }
        check(began.elapsed() < ACTIVE_LIMIT, || {
            format!("{name} is {} ({}) and does not become active", tenant["status"], tenant["reason"])
        })?;
        tokio::time::sleep(PAUSE).await;
        stack.tick("poll").await?;
        stack.drain_queue().await?;
    }
    let change = json!({ "api": customer.api });
    let tenant = expect(&stack.call("PATCH", &format!("/tenants/{tenant_id}"), Some(change)).await?, 200)?;
    check(tenant["api"] == customer.api, || format!("{name} is read by {} instead of {}", tenant["api"], customer.api))
}

/// Makes an invitation as an operator does; answers its consent link.
pub(crate) async fn invite(stack: &Stack, customer: &str, expected_tenant: Option<&str>) -> Result<String, Failed> {
    let mut body = json!({ "customer": customer });
    if let Some(tenant) = expected_tenant {
        body["expected_tenant"] = tenant.into();
    }
    let invitation = expect(&stack.call("POST", "/invitations", Some(body)).await?, 201)?;
    let consent_url = invitation["consent_url"].as_str().map(str::to_owned);
    consent_url.ok_or_else(|| Failed("the invitation has no consent_url".to_owned()))
}

fn expect(reply: &ApiReply, status: u16) -> Result<Value, Failed> {
    check(reply.status == status, || format!("our API answered {} instead of {status}: {}", reply.status, reply.body))?;
    Ok(reply.json())
}

/// The whole job; answers when every check held.
pub(crate) async fn run(stack: &Stack, console: &mut Console) -> Result<(), Failed> {
    let began = instant();
    let sim = stack.sim().ok_or_else(|| Failed("the journey needs the simulator".to_owned()))?;
    let customers = [&CONTOSO, &FABRIKAM, &NORTHWIND];
    for customer in customers {
        customer.seed(sim);
    }

    console.step("onboarding three customers by their consent links");
    for customer in customers {
        onboard(stack, customer).await?;
        console.line(&format!("{:<10} is active, and read by {}", customer.name, customer.api));
    }

    console.step("bringing their incidents in");
    let created = |customer: &&Customer| ((customer.tenant_id, "created"), customer.incidents());
    let mut expected: BTreeMap<_, _> = customers.iter().map(created).collect();
    deliver(stack, &expected).await?;

    console.step("changing some, and bringing the changes in");
    change(sim, customers)?;
    for customer in customers {
        for (change, count) in [("updated", 1), ("merged", 1), ("closed", 1)] {
            expected.insert((customer.tenant_id, change), count);
        }
    }
    let lines = deliver(stack, &expected).await?;

    console.step("asking for a token and reading live");
    for customer in customers {
        token(stack, customer).await?;
        read(stack, customer).await?;
    }
    let all = expect(&stack.call("GET", "/incidents?limit=100", None).await?, 200)?;
    let count: usize = customers.iter().map(|customer| customer.incidents()).sum();
    check(all["incidents"].as_array().is_some_and(|incidents| incidents.len() == count), || {
        format!("reading all tenants gives not {count} incidents: {}", all["failures"])
    })?;
    announced(stack, &lines).await?;
    check(stack.dead_letters().await?.is_empty(), || "there are messages in the dead-letter queue".to_owned())?;
    if let Some(failure) = stack.take_failures().first() {
        return Err(Failed(failure.clone()));
    }

    console.line("");
    console.line(&format!("tenants            {}", customers.len()));
    console.line(&format!("incidents          {count}"));
    console.line(&format!("versions delivered {}, each once", lines.len()));
    console.line(&format!("calls to Microsoft {}", sim.calls().len()));
    console.line(&format!("seconds            {:.1}", began.elapsed().as_secs_f64()));
    Ok(())
}

/// One incident of each customer is resolved, and one is merged into another.
fn change(sim: &Sim, customers: [&Customer; 3]) -> Result<(), Failed> {
    for customer in customers {
        let closed = sim.update_incident(customer.tenant_id, "1", world::close);
        let merged = sim.merge_incident(customer.tenant_id, "3", "2");
        check(closed && merged, || format!("the simulator does not know the incidents of {}", customer.name))?;
    }
    Ok(())
}

type Expected<'a> = BTreeMap<(&'a str, &'a str), usize>;

/// Ticks and delivers until the bucket holds exactly what is expected; more, or a version twice, is an error.
async fn deliver(stack: &Stack, expected: &Expected<'_>) -> Result<Vec<Value>, Failed> {
    let began = instant();
    loop {
        stack.tick("poll").await?;
        stack.drain_queue().await?;
        let lines = stack.delivered().await?;
        let keys: BTreeSet<_> = lines.iter().map(|line| line["key"].as_str().unwrap_or_default()).collect();
        check(keys.len() == lines.len(), || "a version was delivered twice".to_owned())?;
        let mut found = Expected::new();
        for line in &lines {
            let tenant = line["tenant_id"].as_str().unwrap_or_default();
            *found.entry((tenant, line["change"].as_str().unwrap_or_default())).or_default() += 1;
        }
        if found == *expected {
            return Ok(lines);
        }
        let is_more = found.iter().any(|(what, count)| expected.get(what).is_none_or(|wanted| count > wanted));
        check(!is_more && began.elapsed() < DELIVERY_LIMIT, || format!("delivered {found:?} instead of {expected:?}"))?;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn token(stack: &Stack, customer: &Customer) -> Result<(), Failed> {
    let path = format!("/tenants/{}/token", customer.tenant_id);
    let token = expect(&stack.call("POST", &path, Some(json!({}))).await?, 200)?;
    let is_whole = token["token_type"] == "Bearer" && token["access_token"].is_string();
    check(is_whole && token["tenant_id"] == customer.tenant_id, || {
        format!("the token for {} is not one for it", customer.name)
    })
}

async fn read(stack: &Stack, customer: &Customer) -> Result<(), Failed> {
    let path = format!("/tenants/{}/incidents", customer.tenant_id);
    let page = expect(&stack.call("GET", &path, None).await?, 200)?;
    let found = page["incidents"].as_array().map_or(0, Vec::len);
    check(found == customer.incidents(), || {
        format!("{} has {} incidents, and {found} were read", customer.name, customer.incidents())
    })?;
    let one = expect(&stack.call("GET", &format!("{path}/1"), None).await?, 200)?;
    check(one["incident_id"] == "1", || format!("incident 1 of {} was not read", customer.name))
}

/// Every line lies in an object that an event names.
async fn announced(stack: &Stack, lines: &[Value]) -> Result<(), Failed> {
    let events = stack.events().await?;
    let named: BTreeSet<_> = events.iter().filter_map(|event| event["detail"]["object"].as_str()).collect();
    let silent = lines.iter().find(|line| !line["object"].as_str().is_some_and(|object| named.contains(object)));
    silent.map_or(Ok(()), |line| Err(Failed(format!("no event names the object of {}", line["key"]))))
}
