//! A deployment with its customers, and what every journey asks of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use devstack::{ApiResponse, Browser, CLIENT_ID, Quiet, Stack, StackOptions};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sim::{GLOBAL_ADMINISTRATOR, IncidentSeed, Sim, TenantSeed, User};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{backends::routes, contract::assert_response};

/// Every binary that is deployed.
pub(crate) const BINARIES: [&str; 6] =
    ["consent-callback", "token-issuance", "incident-fetch", "incident-dispatch", "tenant-admin", "secret-rotation"];

/// A tenant that nobody knows.
pub(crate) const UNKNOWN: &str = "99999999-9999-4999-8999-999999999999";

/// The time for one step. Debug builds on a shared machine are slow.
pub(crate) const STEP_TIMEOUT: Duration = Duration::from_secs(90);

/// The poll interval of these deployments, and a little.
const INTERVAL: Duration = Duration::from_millis(1100);

/// A customer of the partner.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Customer {
    pub(crate) name: &'static str,
    pub(crate) tenant_id: &'static str,
    pub(crate) domain: &'static str,
    pub(crate) administrator: &'static str,
}

pub(crate) const CONTOSO: Customer = Customer {
    name: "Contoso",
    tenant_id: "c0c0a000-1111-4111-8111-c0c0a0000001",
    domain: "contoso.example",
    administrator: "adele@contoso.example",
};

pub(crate) const FABRIKAM: Customer = Customer {
    name: "Fabrikam",
    tenant_id: "fab00000-2222-4222-8222-fab000000002",
    domain: "fabrikam.example",
    administrator: "frank@fabrikam.example",
};

pub(crate) const NORTHWIND: Customer = Customer {
    name: "Northwind",
    tenant_id: "b0a7d000-3333-4333-8333-b0a7d0000003",
    domain: "northwind.example",
    administrator: "nora@northwind.example",
};

impl Customer {
    pub(crate) fn path(&self) -> String {
        format!("/tenants/{}", self.tenant_id)
    }
}

/// A deployment, and Microsoft.
pub(crate) struct StackHarness {
    pub(crate) stack: Stack,
    pub(crate) sim: Sim,
    _turn: SemaphorePermit<'static>,
}

impl StackHarness {
    /// Deploys with these variables for all functions.
    pub(crate) async fn start(name: &str, variables: &[(&str, &str)]) -> Self {
        Self::start_with(name, variables, StackOptions::default()).await
    }

    /// Deploys as `cargo dev --live` does, with the hosts of `sim` in the place of the real ones.
    pub(crate) async fn start_live(name: &str, sim: Sim, credential: Value) -> Self {
        let hosts = [
            ("ENTRA_AUTHORITY_HOST", sim.entra_url()),
            ("GRAPH_ENDPOINT", sim.graph_url()),
            ("DEFENDER_ENDPOINT", sim.defender_url()),
        ];
        let options = StackOptions { live: true, credential: Some(credential), ..StackOptions::default() };
        let (stack, turn) = Self::deploy(name, &hosts, options).await;
        Self { stack, sim, _turn: turn }
    }

    /// Deploys with further options.
    pub(crate) async fn start_with(name: &str, variables: &[(&str, &str)], options: StackOptions) -> Self {
        let (stack, turn) = Self::deploy(name, variables, options).await;
        let sim = stack.sim().unwrap().clone();
        Self { stack, sim, _turn: turn }
    }

    async fn deploy(
        name: &str,
        variables: &[(&str, &str)],
        options: StackOptions,
    ) -> (Stack, SemaphorePermit<'static>) {
        // Each brings a dozen processes; more at once would only wait for each other.
        static TURNS: Semaphore = Semaphore::const_new(2);
        let turn = TURNS.acquire().await.unwrap();
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let options = StackOptions {
            parameters: BTreeMap::from([("PollIntervalSeconds".to_owned(), "1".to_owned())]),
            environment: BTreeMap::from([("*".to_owned(), variables)]),
            logs: Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("journey").join(name)),
            fresh_logs: true,
            ..options
        };
        (Stack::start(options, &mut Quiet).await.unwrap(), turn)
    }

    pub(crate) async fn end(self) {
        self.stack.shutdown().await;
    }

    /// Puts a customer's directory into the simulator.
    pub(crate) fn seed(&self, customer: &Customer) {
        let administrator = User {
            name: customer.administrator.to_owned(),
            wids: vec![GLOBAL_ADMINISTRATOR.to_owned()],
            ..User::default()
        };
        self.sim.add_tenant(TenantSeed {
            tenant_id: customer.tenant_id.to_owned(),
            domain: customer.domain.to_owned(),
            display_name: customer.name.to_owned(),
            users: vec![administrator],
            ..TenantSeed::default()
        });
    }

    /// An incident that was made, and last changed, so many minutes ago; its number.
    pub(crate) fn incident(&self, customer: &Customer, title: &str, minutes_ago: i64) -> String {
        let created = self.sim.clock().now() - SignedDuration::from_mins(minutes_ago);
        self.sim.put_incident(
            customer.tenant_id,
            IncidentSeed {
                display_name: title.to_owned(),
                severity: "high".to_owned(),
                alerts: 2,
                created: Some(created),
                ..IncidentSeed::default()
            },
        )
    }

    /// Calls a route as an operator.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> ApiResponse {
        let response = self.stack.call(method, path, body).await.unwrap();
        assert_described(method, path, response)
    }

    /// Calls a route as an operator, with a body that may be anything.
    pub(crate) async fn call_with(&self, method: &str, path: &str, body: &str) -> ApiResponse {
        let signature = "AWS4-HMAC-SHA256 Credential=AKIDLOCAL/20260101/eu-central-1/execute-api/aws4_request, \
                         SignedHeaders=host, Signature=0";
        let headers = [("authorization", signature), ("content-type", "application/json")];
        let response = self.stack.public(method, path, &headers, body.as_bytes().to_vec()).await.unwrap();
        assert_described(method, path, response)
    }

    /// The JSON of a response with this status.
    pub(crate) async fn expect(&self, status: u16, method: &str, path: &str, body: Option<Value>) -> Value {
        let response = self.call(method, path, body).await;
        assert_eq!(response.status, status, "{method} {path}: {}", response.body);
        response.json()
    }

    /// Creates an invitation through the API.
    pub(crate) async fn invite(&self, customer: &Customer, expected_tenant: Option<&str>) -> Value {
        let mut body = json!({"customer": customer.name});
        if let Some(expected) = expected_tenant {
            body["expected_tenant"] = json!(expected);
        }
        self.expect(201, "POST", "/invitations", Some(body)).await
    }

    /// Invites a customer, lets its administrator through, and waits until the tenant is active.
    pub(crate) async fn onboard(&self, customer: &Customer, expected_tenant: Option<&str>) -> Value {
        let invitation = self.invite(customer, expected_tenant).await;
        let link = invitation["consent_url"].as_str().unwrap();
        let page = Browser::new().unwrap().consent(link, customer.tenant_id, customer.administrator).await.unwrap();
        assert_eq!((page.status, page.url.path()), (200, "/consent/result"), "{}", page.html);
        self.until(format!("{} is active", customer.name), async || {
            let tenant = self.expect(200, "GET", &customer.path(), None).await;
            let active = tenant["status"] == "active";
            if !active {
                self.poll().await;
            }
            active
        })
        .await;
        self.expect(200, "GET", &customer.path(), None).await
    }

    /// One tick, with everybody due, and the queue emptied.
    pub(crate) async fn poll(&self) -> Value {
        tokio::time::sleep(INTERVAL).await;
        let response = self.stack.tick("poll").await.unwrap();
        self.stack.drain_queue().await.unwrap();
        response
    }

    /// Waits for `work` and meanwhile gives the functions each message that comes to their queues.
    pub(crate) async fn while_messages_are_delivered<T>(&self, work: impl Future<Output = T>) -> T {
        let delivery = async {
            loop {
                self.stack.drain_queue().await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            done = work => done,
            () = delivery => unreachable!("a loop"),
        }
    }

    /// Polls until the bucket holds so many versions, and then once more: there must be no other.
    pub(crate) async fn delivered(&self, count: usize) -> Vec<Value> {
        self.until(format!("{count} versions are delivered"), async || {
            self.poll().await;
            self.stack.delivered().await.unwrap().len() >= count
        })
        .await;
        self.poll().await;
        let lines = self.stack.delivered().await.unwrap();
        let delivered: Vec<_> = lines.iter().map(|line| format!("{} {}", line["key"], line["change"])).collect();
        assert_eq!(lines.len(), count, "{delivered:#?}");
        lines
    }

    /// Asks until it is so.
    pub(crate) async fn until(&self, what: String, holds: impl AsyncFnMut() -> bool) {
        self.until_within(STEP_TIMEOUT, what, holds).await;
    }

    /// Asks until it is so, for work that takes longer than `STEP_TIMEOUT`.
    pub(crate) async fn until_within(&self, timeout: Duration, what: String, mut holds: impl AsyncFnMut() -> bool) {
        let asked = tokio::time::timeout(timeout, async { while !holds().await {} }).await;
        assert!(asked.is_ok(), "not in {} s: {what}", timeout.as_secs());
    }

    /// Everything that all functions printed, with the binary.
    pub(crate) async fn printed(&self) -> Vec<(&'static str, String)> {
        let mut all = Vec::new();
        for binary in BINARIES {
            all.extend(self.stack.logs(binary).await.into_iter().map(|line| (binary, line)));
        }
        all
    }

    /// Every line of every function is one of section 7 of the interface.
    pub(crate) async fn lines_are_whole(&self) {
        let printed = self.printed().await;
        assert!(!printed.is_empty());
        for (binary, text) in printed {
            let case = format!("{binary}: {text}");
            let line: Value = serde_json::from_str(&text).expect(&case);
            let line = line.as_object().expect(&case);
            assert!(!line.contains_key("stderr"), "{case}");
            let field = |name: &str| line.get(name).and_then(Value::as_str).unwrap_or_default();
            assert!(field("timestamp").parse::<Timestamp>().is_ok() && field("timestamp").ends_with('Z'), "{case}");
            let levels = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"];
            assert!(levels.contains(&field("level").to_uppercase().as_str()), "{case}");
            assert!(!field("message").is_empty(), "{case}");
            assert_eq!(field("request_id").len(), 36, "{case}");
            assert!(line.get("tenant_id").is_none() || is_tenant_id(field("tenant_id")), "{case}");
            assert!(line.get("audit").is_none_or(|audit| audit == true), "{case}");
            // A metric with several values is an array of numbers.
            let is_metric = |value: &Value| value.as_array().is_some_and(|values| values.iter().all(Value::is_number));
            let nested = line.iter().filter(|(_, value)| value.is_object() || value.is_array());
            let is_flat = nested.into_iter().all(|(name, value)| name == "_aws" || is_metric(value));
            assert!(is_flat, "not flat: {case}");
            if let Some(metrics) = line.get("_aws") {
                let directives = metrics["CloudWatchMetrics"].as_array().expect(&case);
                let sets = directives.iter().flat_map(|directive| directive["Dimensions"].as_array().unwrap());
                // CloudWatch drops a metric whose dimension has no value.
                for dimension in sets.flat_map(|set| set.as_array().unwrap()) {
                    assert!(dimension.as_str().is_some_and(|name| !field(name).is_empty()), "{case}");
                }
                // CloudFormation makes the name from the function's logical id, but for the rotation's.
                let name = field("FunctionName").to_lowercase().replace('-', "");
                assert!(name.contains(&binary.replace('-', "")), "{case}");
            }
        }
    }

    /// Nothing of the queue or the schedules failed.
    pub(crate) async fn nothing_failed(&self) {
        assert_eq!(self.stack.dead_letters().await.unwrap(), [""; 0]);
        assert_eq!(self.stack.take_failures(), [""; 0]);
    }
}

/// The partner's own tenant.
pub(crate) const HOME: &str = "11733a9e-0000-4000-8000-000000000000";

/// Asserts that `infra/openapi.json` has this response for the route, and returns it.
fn assert_described(method: &str, path: &str, response: ApiResponse) -> ApiResponse {
    let path = path.split('?').next().unwrap_or_default();
    let route = routes().find(method, path).map_or_else(|| format!("{method} {path}"), |found| found.route.key());
    let content_type = response.headers.get("content-type").and_then(|value| value.to_str().ok());
    assert_response(&route, response.status, content_type, &response.body);
    response
}

pub(crate) fn is_tenant_id(text: &str) -> bool {
    let parts: Vec<_> = text.split('-').map(str::len).collect();
    parts == [8, 4, 4, 4, 12] && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'))
}

/// RFC 3339 in UTC, with `Z`.
pub(crate) fn is_time(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.ends_with('Z') && text.parse::<Timestamp>().is_ok())
}

/// An object has exactly these members.
pub(crate) fn has_members(value: &Value, names: &[&str]) {
    let members: BTreeSet<_> =
        value.as_object().into_iter().flat_map(|members| members.keys().map(String::as_str)).collect();
    assert_eq!(members, names.iter().copied().collect(), "{value}");
}

/// Asserts that `body` is a problem document of the interface with this code, and returns its `instance`.
pub(crate) fn is_problem(case: &str, status: u64, content_type: &str, body: &str, code: &str) -> String {
    let problem: Value = serde_json::from_str(body).expect(case);
    assert_eq!((problem["code"].as_str(), &problem["status"]), (Some(code), &json!(status)), "{case}: {body}");
    assert_eq!(status, status_of(code), "{case}: {body}");
    assert_eq!(content_type, "application/problem+json", "{case}");
    let mut names = vec!["type", "title", "status", "detail", "instance", "code"];
    if problem.get("reason").is_some() {
        names.push("reason");
    }
    has_members(&problem, &names);
    for name in ["type", "title", "detail", "instance"] {
        assert!(problem[name].as_str().is_some_and(|text| !text.is_empty()), "{case}: {name} of {body}");
    }
    problem["instance"].as_str().unwrap().to_owned()
}

/// The interface's table of codes and statuses.
pub(crate) fn status_of(code: &str) -> u64 {
    match code {
        "invalid_request" => 400,
        "unauthorized_caller" => 403,
        "not_found" => 404,
        "conflict" | "tenant_not_active" => 409,
        "gone" => 410,
        "internal" => 500,
        "upstream_error" => 502,
        "throttled" => 503,
        "upstream_unreachable" | "deadline_exceeded" => 504,
        _ => panic!("{code} is not a code of the interface"),
    }
}

/// Asserts that a JSON route responded with a problem document of this code, and returns the document.
pub(crate) fn refused(case: &str, response: &ApiResponse, code: &str) -> Value {
    is_problem(case, response.status.into(), response.header("content-type"), &response.body, code);
    response.json()
}

/// Our app in the simulator.
pub(crate) const APP: &str = CLIENT_ID;
