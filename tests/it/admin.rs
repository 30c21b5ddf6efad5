//! `tenant-admin`, as callers of its routes see it.
//!
//! Long, because every route has its cases here, and they share one harness.

use std::collections::HashMap;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    config::JwtAudience,
    incident::{
        record::{Alerts, Record},
        version::DeliveredVersion,
    },
    microsoft::IncidentApi,
    registry::{
        Registry, Write,
        invitations::{InvitationStatus, InvitationToken},
        lease::Acquired,
        tenants::{Status, Tenant},
        versions::{NewVersion, VersionBlock},
    },
    tenant::{Reason, TenantId},
};
use sim::{Fault, FaultKind, RetryAfter};
use tenant_admin::{App, Config};

use crate::{
    backends::{Backends, CALLER, CLIENT_ID, invocation, lines_of, request, tenant_record},
    contract::assert_answer,
};

const TENANT: &str = "11111111-2222-4333-8444-abcdefabcdef";
const OTHER: &str = "22222222-2222-4333-8444-abcdefabcdef";
const UNKNOWN: &str = "99999999-2222-4333-8444-abcdefabcdef";
const GRAPH: IncidentApi = IncidentApi::Graph;
const GRAPH_ROLE: &str = "SecurityIncident.Read.All";
const DEFENDER_ROLE: &str = "Incident.Read.All";

/// The function and what it stands on.
pub(crate) struct AdminHarness {
    pub(crate) backends: Backends,
    app: App,
    pub(crate) registry: Registry,
    pub(crate) clock: Clock,
}

impl AdminHarness {
    pub(crate) async fn start() -> Self {
        Self::start_at(Clock::system()).await
    }

    pub(crate) async fn start_at(clock: Clock) -> Self {
        Self::start_with(clock, None).await
    }

    async fn start_with(clock: Clock, jwt_audience: Option<JwtAudience>) -> Self {
        let backends = Backends::start(&clock).await;
        let config = Config {
            microsoft: backends.microsoft(),
            table_name: backends.table.clone(),
            sync_queue_url: backends.queue_url.clone(),
            incident_bucket: backends.bucket.clone(),
            event_bus_name: Some(backends.bus.clone()),
            public_base_url: None,
            sweep: SignedDuration::from_hours(7 * 24),
            jwt_audience,
        };

        let app = App::new(config, &crate::backends::platform(&backends.aws, &clock));
        let registry = Registry::new(&backends.aws, backends.table.clone());
        Self { backends, app, registry, clock }
    }

    async fn send(&self, event: Value) -> (u64, Value) {
        let response = self.app.handle(event.clone(), invocation(&self.backends.request_id)).await.unwrap();
        assert_answer(&event, &response);
        let status = response["statusCode"].as_u64().unwrap();
        let text = response["body"].as_str().unwrap();
        let body = if text.is_empty() { Value::Null } else { serde_json::from_str(text).unwrap() };
        if status >= 400 {
            assert_eq!(response["headers"]["content-type"], "application/problem+json");
            assert_eq!((body["status"].as_u64(), &body["instance"]), (Some(status), &json!(self.backends.request_id)));
        }
        (status, body)
    }

    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u64, Value) {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        self.send(request(method, path, query, body.map(|body| body.to_string()).as_deref())).await
    }

    /// A call that is refused: its code and its detail.
    pub(crate) async fn refused(&self, method: &str, path: &str, body: Option<Value>) -> (String, String) {
        let (status, problem) = self.call(method, path, body).await;
        let code = problem["code"].as_str().unwrap_or_else(|| panic!("{method} {path} gave {status} {problem}"));
        (code.to_owned(), problem["detail"].as_str().unwrap().to_owned())
    }

    /// A tenant that stands like this, with a feed if it is active.
    pub(crate) async fn tenant(&self, id: &str, status: Status, reason: Option<Reason>) -> TenantId {
        let id: TenantId = id.parse().unwrap();
        let now = self.clock.now();
        let tenant = Tenant {
            roles: vec![GRAPH_ROLE.into()],
            consented_at: Some(now),
            consented_by: Some("Ada".into()),
            activated_at: (status != Status::Pending).then_some(now),
            offboarded_at: (status == Status::Offboarded).then_some(now),
            ..tenant_record(id, status, reason)
        };
        self.registry.create_tenant(&tenant).await.unwrap();
        if status == Status::Active {
            self.registry.open_feed(&id, now).await.unwrap();
        }
        id
    }

    async fn is_due(&self, tenant: &TenantId) -> bool {
        let feed = self.registry.feed(tenant).await.unwrap();
        feed.is_some_and(|feed| feed.due_at.is_some())
    }

    async fn invite(&self, body: Value) -> Value {
        let (status, made) = self.call("POST", "/invitations", Some(body)).await;
        assert_eq!(status, 201, "{made}");
        made
    }
}

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn invitation_link_is_shown_once() {
    let admin = AdminHarness::start().await;
    let made = admin.invite(json!({"customer": "Contoso", "expected_tenant": TENANT.to_uppercase()})).await;
    let names: Vec<&String> = made.as_object().unwrap().keys().collect();
    assert_eq!(names.len(), 5, "{names:?}");
    assert_eq!((made["customer"].as_str(), made["expected_tenant"].as_str()), (Some("Contoso"), Some(TENANT)));
    let left = time(&made["expires_at"]).duration_since(admin.clock.now());
    assert!((left.as_secs() - 168 * 3600).abs() < 60, "a week by default");

    let link = made["consent_url"].as_str().unwrap();
    let token: InvitationToken =
        link.strip_prefix("https://api.example.com/consent/").unwrap().parse().expect("a token of the right form");
    let id = made["invitation_id"].as_str().unwrap();
    let stored = admin.registry.invitation(id).await.unwrap().unwrap();
    assert!(token.matches(&stored));

    let (status, listed) = admin.call("GET", "/invitations", None).await;
    assert_eq!((status, &listed["next"]), (200, &Value::Null));
    let expected = json!([{"invitation_id": id, "customer": "Contoso", "expected_tenant": TENANT,
                           "expires_at": made["expires_at"], "status": "open"}]);
    assert_eq!(listed["invitations"], expected);
    assert!(!listed.to_string().contains(&token.expose()));
}

#[tokio::test]
async fn invitations_are_listed_newest_first_page_by_page() {
    let clock = Clock::by_hand("2026-11-22T10:00:00Z".parse().unwrap());
    let admin = AdminHarness::start_at(clock.clone()).await;
    let mut made = Vec::new();
    for number in 0..5 {
        let customer = format!("Customer {number}");
        made.push(admin.invite(json!({"customer": customer, "expires_in_hours": 1})).await["invitation_id"].clone());
        clock.advance(SignedDuration::from_millis(500));
    }
    made.reverse();
    let (mut seen, mut path) = (Vec::new(), "/invitations?limit=2".to_owned());
    let mut pages = 0;
    loop {
        let (status, page) = admin.call("GET", &path, None).await;
        assert_eq!(status, 200);
        seen.extend(page["invitations"].as_array().unwrap().iter().map(|listed| listed["invitation_id"].clone()));
        pages += 1;
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/invitations?limit=2&next={next}");
    }
    assert_eq!((seen, pages), (made, 3));
    // A position in one list is none in another, nor is text of somebody's own.
    let next = path.split_once("next=").unwrap().1;
    let position = json!({"pk": "x".repeat(3_000), "sk": "x", "listing": "invitations", "listed_at": "x"}).to_string();
    let overlong = format!("/invitations?next={}", BASE64_URL_SAFE_NO_PAD.encode(position));
    for path in
        [format!("/tenants?next={next}"), "/invitations?next=e30".into(), "/invitations?next=%C3%BC".into(), overlong]
    {
        assert_eq!(admin.refused("GET", &path, None).await.0, "invalid_request", "{path}");
    }
}

#[tokio::test]
async fn invitations_are_listed_with_their_status() {
    let clock = Clock::by_hand("2026-11-22T10:00:00Z".parse().unwrap());
    let admin = AdminHarness::start_at(clock.clone()).await;
    let id = async |hours| {
        let made = admin.invite(json!({"customer": "Contoso", "expires_in_hours": hours})).await;
        clock.advance(SignedDuration::from_secs(1));
        made["invitation_id"].as_str().unwrap().to_owned()
    };
    let (_open, expired, revoked, used) = (id(720).await, id(1).await, id(720).await, id(720).await);
    let use_up = |invitation: &mut shared::registry::invitations::Invitation| {
        invitation.used_at = Some(clock.now());
        Ok(())
    };
    admin.registry.change_invitation(&used, use_up).await.unwrap();
    // Once more, and one that can be used by nobody any more: afterwards it is as it should be.
    for id in [&revoked, &revoked, &used] {
        assert_eq!(admin.call("DELETE", &format!("/invitations/{id}"), None).await, (204, Value::Null));
    }
    clock.advance(SignedDuration::from_hours(2));
    let (_, listed) = admin.call("GET", "/invitations", None).await;
    let statuses: Vec<_> = listed["invitations"].as_array().unwrap().iter().map(|one| one["status"].clone()).collect();
    assert_eq!(statuses, ["used", "revoked", "expired", "open"]);
    assert_eq!(admin.call("DELETE", &format!("/invitations/{expired}"), None).await.0, 204);
    for unknown in [UNKNOWN, "x", "", &revoked.to_uppercase(), "%20"] {
        assert_eq!(
            admin.refused("DELETE", &format!("/invitations/{unknown}"), None).await.0,
            "not_found",
            "{unknown:?}"
        );
    }
}

#[tokio::test]
async fn domain_is_resolved_to_its_tenant_id() {
    let admin = AdminHarness::start().await;
    admin.backends.customer(TENANT, "contoso.example", &[]);
    let made = admin.invite(json!({"customer": "Contoso", "expected_tenant": "Contoso.Example"})).await;
    assert_eq!(made["expected_tenant"], TENANT);
    for unknown in
        ["fabrikam.example", "common", "organizations", "https://contoso.example", "a b", "", "..", "127.0.0.1"]
    {
        let body = json!({"customer": "Contoso", "expected_tenant": unknown});
        let (code, detail) = admin.refused("POST", "/invitations", Some(body)).await;
        assert_eq!(code, "invalid_request", "{unknown}");
        assert!(detail.contains("expected_tenant") && !detail.contains("fabrikam"), "{detail}");
    }
    let personal = json!({"customer": "Contoso", "expected_tenant": "9188040d-6c67-4c5b-b112-36a304b66dad"});
    assert_eq!(admin.refused("POST", "/invitations", Some(personal)).await.0, "invalid_request");
    let (_, listed) = admin.call("GET", "/invitations", None).await;
    assert_eq!(listed["invitations"].as_array().unwrap().len(), 1, "what is refused leaves nothing");
}

#[tokio::test]
async fn caller_is_checked_first_then_route_then_body() {
    let admin = AdminHarness::start().await;
    admin.tenant(TENANT, Status::Active, None).await;
    let tenant = format!("/tenants/{TENANT}");
    for (method, path) in
        [("GET", "/tenants"), ("DELETE", tenant.as_str()), ("GET", "/nowhere"), ("POST", "/invitations")]
    {
        let mut event = request(method, path, "", Some("not json"));
        event["requestContext"].as_object_mut().unwrap().remove("authorizer");
        let (status, problem) = admin.send(event).await;
        assert_eq!((status, problem["code"].as_str()), (403, Some("unauthorized_caller")), "{method} {path}");
    }
    for (method, path) in [
        ("GET", "/".to_owned()),
        ("GET", "/nowhere".into()),
        ("PUT", tenant.clone()),
        ("PATCH", "/invitations".into()),
        ("GET", format!("{tenant}/")),
        ("GET", format!("{tenant}/sync")),
        ("GET", "/tenants/".into()),
        ("GET", format!("/tenants/{UNKNOWN}")),
        ("GET", format!("/tenants/{}", TENANT.to_uppercase())),
        ("PATCH", format!("/tenants/{UNKNOWN}")),
        ("PATCH", "/tenants/contoso.example".into()),
        ("DELETE", format!("/tenants/{UNKNOWN}")),
        ("POST", format!("/tenants/{UNKNOWN}/pause")),
        ("POST", format!("/tenants/{UNKNOWN}/resume")),
        ("POST", format!("/tenants/{UNKNOWN}/sync")),
        ("GET", format!("/tenants/{UNKNOWN}/sync/{UNKNOWN}")),
        ("GET", format!("{tenant}/sync/{UNKNOWN}")),
        ("DELETE", format!("{tenant}/sync/x")),
    ] {
        assert_eq!(admin.refused(method, &path, Some(json!(["wrong"]))).await.0, "not_found", "{method} {path}");
    }
    for (method, path, body) in [
        ("POST", "/invitations".to_owned(), json!({})),
        ("POST", "/invitations".into(), json!({"customer": "x", "expires_in_hours": 0})),
        ("POST", "/invitations?x=1".into(), json!({"customer": "x"})),
        ("PATCH", tenant.clone(), json!({"status": "active"})),
        ("PATCH", tenant.clone(), json!({"customer": null})),
        ("PATCH", tenant.clone(), json!({"api": "auto"})),
        ("POST", format!("{tenant}/sync"), json!({"kind": "poll"})),
        ("POST", format!("{tenant}/pause"), json!({"why": "x"})),
        ("POST", format!("{tenant}/resume"), json!([])),
        ("DELETE", format!("{tenant}?dry_run=true"), json!({})),
        ("GET", "/tenants?status=gone".into(), json!({})),
        ("GET", "/tenants?limit=0".into(), json!({})),
        ("GET", "/invitations?limit=101".into(), json!({})),
        ("GET", "/invitations?limit=1&limit=2".into(), json!({})),
        ("GET", "/invitations?status=open".into(), json!({})),
    ] {
        assert_eq!(admin.refused(method, &path, Some(body)).await.0, "invalid_request", "{method} {path}");
    }
    assert_eq!(admin.backends.sim.calls().len(), 0, "none of this concerns Microsoft");
    for event in [json!({"tenant_id": TENANT}), json!({"Records": []}), json!("x")] {
        assert_eq!(
            admin.app.handle(event, invocation(&admin.backends.request_id)).await.unwrap_err().code,
            "invalid_request"
        );
    }
}

#[tokio::test]
async fn tenants_are_shown_and_listed_by_status() {
    let admin = AdminHarness::start().await;
    let active = admin.tenant(TENANT, Status::Active, None).await;
    admin.tenant(OTHER, Status::Paused, Some(Reason::ConsentMissing)).await;
    let now = admin.clock.now();
    let until = now + SignedDuration::from_secs(60);
    let Acquired::Lease(mut lease) = admin.registry.acquire_lease(&active, now, until).await.unwrap() else {
        panic!("the lease is free")
    };
    lease.feed.covered_until = Some(now - SignedDuration::from_secs(90));
    lease.feed.incidents_total = 7;
    assert_eq!(admin.registry.release_lease(&mut lease, None, now).await.unwrap(), Write::Done);

    let (status, shown) = admin.call("GET", &format!("/tenants/{TENANT}"), None).await;
    assert_eq!((status, shown["status"].as_str(), shown["incidents_total"].as_u64()), (200, Some("active"), Some(7)));
    assert!((90..95).contains(&shown["lag_seconds"].as_i64().unwrap()));
    let (_, all) = admin.call("GET", "/tenants", None).await;
    assert_eq!((all["tenants"].as_array().unwrap().len(), &all["next"]), (2, &Value::Null));
    assert_eq!(all["tenants"][0]["incidents_total"], 7);
    assert_eq!(all["tenants"][1]["lag_seconds"], Value::Null);
    let (_, paused) = admin.call("GET", "/tenants?status=paused", None).await;
    assert_eq!(paused["tenants"][0]["tenant_id"], OTHER);
    assert_eq!(paused["tenants"][0]["reason"], "consent_missing");
    let (_, first) = admin.call("GET", "/tenants?limit=1", None).await;
    let next = first["next"].as_str().unwrap();
    let (_, second) = admin.call("GET", &format!("/tenants?limit=1&next={next}"), None).await;
    assert_eq!((second["tenants"][0]["tenant_id"].as_str(), &second["next"]), (Some(OTHER), &Value::Null));
}

#[tokio::test]
async fn incident_api_changes_only_to_one_with_consent() {
    let admin = AdminHarness::start().await;
    let path = format!("/tenants/{TENANT}");
    admin.tenant(TENANT, Status::Active, None).await;
    admin.backends.customer(TENANT, "contoso.example", &[GRAPH_ROLE]);
    let (status, renamed) = admin.call("PATCH", &path, Some(json!({"customer": "Contoso Ltd", "api": "graph"}))).await;
    assert_eq!((status, renamed["customer"].as_str()), (200, Some("Contoso Ltd")));
    assert_eq!(admin.backends.sim.calls().len(), 0, "its own API needs no proof");

    let (status, problem) = admin.call("PATCH", &path, Some(json!({"api": "defender", "customer": "x"}))).await;
    assert_eq!(
        (status, problem["code"].as_str(), problem["reason"].as_str()),
        (409, Some("conflict"), Some("role_missing"))
    );
    let (_, unchanged) = admin.call("GET", &path, None).await;
    assert_eq!((unchanged["customer"].as_str(), unchanged["api"].as_str()), (Some("Contoso Ltd"), Some("graph")));

    admin.backends.sim.grant(TENANT, CLIENT_ID, &[DEFENDER_ROLE]);
    let (status, moved) = admin.call("PATCH", &path, Some(json!({"api": "defender"}))).await;
    assert_eq!((status, moved["api"].as_str()), (200, Some("defender")), "{moved}");
    assert_eq!(moved["roles"], json!([GRAPH_ROLE, DEFENDER_ROLE]));
    assert_eq!(admin.backends.events(), [], "its status is what it was");
}

#[tokio::test]
async fn a_paused_tenant_is_not_due_until_it_is_resumed() {
    let admin = AdminHarness::start().await;
    let tenant = admin.tenant(TENANT, Status::Active, None).await;
    for _ in 0..2 {
        let (status, paused) = admin.call("POST", &format!("/tenants/{TENANT}/pause"), None).await;
        assert_eq!(
            (status, paused["status"].as_str(), paused["reason"].as_str()),
            (200, Some("paused"), Some("operator"))
        );
        assert!(!admin.is_due(&tenant).await);
    }
    let started = admin.refused("POST", &format!("/tenants/{TENANT}/sync"), Some(json!({"kind": "sweep"}))).await;
    assert_eq!(started.0, "tenant_not_active");
    for _ in 0..2 {
        let (status, resumed) = admin.call("POST", &format!("/tenants/{TENANT}/resume"), Some(json!({}))).await;
        assert_eq!((status, resumed["status"].as_str(), &resumed["reason"]), (200, Some("active"), &Value::Null));
        assert!(admin.is_due(&tenant).await);
    }
    let events = admin.backends.events();
    let expected = |from: &str, to: &str, reason: Value| {
        let detail = json!({"tenant_id": TENANT, "customer": "Contoso", "from": from, "to": to, "reason": reason});
        ("Tenant Status Changed".to_owned(), detail)
    };
    assert_eq!(events, [expected("active", "paused", json!("operator")), expected("paused", "active", Value::Null)]);
}

#[tokio::test]
async fn history_has_the_last_20_states_with_the_present_one_first() {
    let clock = Clock::by_hand("2026-11-22T10:00:00Z".parse().unwrap());
    let admin = AdminHarness::start_at(clock.clone()).await;
    admin.tenant(TENANT, Status::Active, None).await;
    let path = format!("/tenants/{TENANT}");
    for _ in 0..11 {
        for action in ["pause", "resume"] {
            clock.advance(SignedDuration::from_secs(60));
            admin.call("POST", &format!("{path}/{action}"), None).await;
        }
    }
    let (_, tenant) = admin.call("GET", &format!("{path}?history=true"), None).await;
    let history = tenant["history"].as_array().unwrap();
    assert_eq!(history.len(), 20);
    assert_eq!(history[0], json!({"at": "2026-11-22T10:22:00Z", "status": "active", "reason": null}));
    assert_eq!(history[19], json!({"at": "2026-11-22T10:03:00Z", "status": "paused", "reason": "operator"}));
    for other in ["", "?history=false"] {
        let (_, tenant) = admin.call("GET", &format!("{path}{other}"), None).await;
        assert!(tenant.get("history").is_none(), "{tenant}");
    }
    assert_eq!(admin.refused("GET", &format!("{path}?history=yes"), None).await.0, "invalid_request");
}

#[tokio::test]
async fn resume_keeps_a_tenant_paused_while_entra_refuses_it() {
    let admin = AdminHarness::start().await;
    let tenant = admin.tenant(TENANT, Status::Paused, Some(Reason::ConsentMissing)).await;
    let path = format!("/tenants/{TENANT}/resume");
    admin.backends.customer(TENANT, "contoso.example", &[]);
    let (status, still) = admin.call("POST", &path, None).await;
    assert_eq!((status, still["status"].as_str()), (200, Some("paused")), "{still}");
    assert_eq!(still["reason"], "consent_missing");
    admin.backends.sim.grant(TENANT, CLIENT_ID, &[GRAPH_ROLE]);
    let (status, resumed) = admin.call("POST", &path, None).await;
    assert_eq!(
        (status, resumed["status"].as_str(), &resumed["reason"]),
        (200, Some("active"), &Value::Null),
        "{resumed}"
    );
    assert!(admin.is_due(&tenant).await);
}

#[tokio::test]
async fn resume_activates_a_tenant_that_waits_for_the_operator() {
    let admin = AdminHarness::start().await;
    let tenant = admin.tenant(TENANT, Status::Pending, Some(Reason::Operator)).await;
    admin.backends.customer(TENANT, "contoso.example", &[GRAPH_ROLE]);
    let (status, resumed) = admin.call("POST", &format!("/tenants/{TENANT}/resume"), None).await;
    assert_eq!(
        (status, resumed["status"].as_str(), &resumed["reason"]),
        (200, Some("active"), &Value::Null),
        "{resumed}"
    );
    assert!(admin.is_due(&tenant).await);
    assert!(admin.registry.tenant(&tenant).await.unwrap().unwrap().activated_at.is_some());
}

#[tokio::test]
async fn a_job_is_queued_shown_and_cancelled() {
    let admin = AdminHarness::start().await;
    admin.tenant(TENANT, Status::Active, None).await;
    let jobs = format!("/tenants/{TENANT}/sync");
    let now = admin.clock.now();
    let body = json!({"kind": "backfill", "from": (now - SignedDuration::from_hours(48)).to_string()});
    let (status, started) = admin.call("POST", &jobs, Some(body.clone())).await;
    assert_eq!(status, 202);
    let id = started["job_id"].as_str().unwrap();
    assert_eq!(started, json!({"job_id": id}));

    let (_, progress) = admin.call("GET", &format!("{jobs}/{id}"), None).await;
    assert_eq!(progress["from"], body["from"]);
    let queued = json!({"job_id": id, "kind": "backfill", "status": "queued", "from": body["from"], "to": progress["to"],
                        "covered_until": body["from"], "delivered": 0, "fraction": 0.0});
    assert_eq!(progress, queued);
    let message =
        json!({"tenant_id": TENANT, "kind": "backfill", "from": body["from"], "to": progress["to"], "job_id": id});
    assert_eq!(admin.backends.messages(), [(TENANT.to_owned(), message)]);

    for _ in 0..2 {
        let (status, cancelled) = admin.call("DELETE", &format!("{jobs}/{id}"), None).await;
        assert_eq!((status, cancelled["status"].as_str()), (200, Some("cancelled")));
    }
    assert_eq!(
        admin.refused("POST", &jobs, Some(json!({"kind": "backfill", "to": "2999-01-01T00:00:00Z"}))).await.0,
        "invalid_request"
    );
    assert_eq!(admin.backends.messages(), []);

    let (_, started) = admin.call("POST", &jobs, Some(json!({"kind": "sweep"}))).await;
    let (_, sweep) = admin.call("GET", &format!("{jobs}/{}", started["job_id"].as_str().unwrap()), None).await;
    let time = |name: &str| sweep[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert_eq!(time("to").duration_since(time("from")), SignedDuration::from_hours(7 * 24));
}

#[tokio::test]
async fn offboarding_ends_everything_and_says_so() {
    let admin = AdminHarness::start().await;
    let tenant = admin.tenant(TENANT, Status::Active, None).await;
    admin.backends.customer(TENANT, "contoso.example", &[GRAPH_ROLE]);
    let bound = admin.invite(json!({"customer": "Contoso", "expected_tenant": TENANT})).await;
    let free = admin.invite(json!({"customer": "Contoso"})).await;
    let jobs = format!("/tenants/{TENANT}/sync");
    let (_, job) = admin.call("POST", &jobs, Some(json!({"kind": "sweep"}))).await;

    let path = format!("/tenants/{TENANT}");
    let (status, receipt) = admin.call("DELETE", &path, None).await;
    assert_eq!(status, 200, "{receipt}");
    crate::snapshots::assert_json("offboarding-receipt", &receipt, &["/checked_at"]);
    assert!(admin.clock.now().duration_since(time(&receipt["checked_at"])) < SignedDuration::from_secs(10));
    assert_eq!(admin.backends.objects(&format!("receipts/tenant_id={TENANT}/")).len(), 1);

    let stands = async |made: &Value| {
        let id = made["invitation_id"].as_str().unwrap();
        admin.registry.invitation(id).await.unwrap().unwrap().status(admin.clock.now())
    };
    assert_eq!(stands(&bound).await, InvitationStatus::Revoked);
    assert_eq!(stands(&free).await, InvitationStatus::Open);
    assert_eq!(admin.registry.feed(&tenant).await.unwrap(), None);

    let (status, shown) = admin.call("GET", &path, None).await;
    assert_eq!((status, shown["status"].as_str(), &shown["covered_until"]), (200, Some("offboarded"), &Value::Null));
    let job = job["job_id"].as_str().unwrap();
    for (method, path, body) in [
        ("PATCH", path.clone(), json!({"customer": "x"})),
        ("POST", format!("{path}/pause"), json!({})),
        ("POST", format!("{path}/resume"), json!({})),
        ("POST", jobs.clone(), json!({"kind": "sweep"})),
        ("GET", format!("{jobs}/{job}"), json!({})),
        ("DELETE", format!("{jobs}/{job}"), json!({})),
    ] {
        assert_eq!(admin.refused(method, &path, Some(body)).await.0, "tenant_not_active", "{method} {path}");
    }

    // While Microsoft does not respond, the end of the consent is unknown.
    admin.backends.sim.fault(Fault::new(FaultKind::Reset).tenant(TENANT));
    assert_eq!(admin.refused("DELETE", &path, None).await.0, "upstream_unreachable");
    admin.backends.sim.clear_faults();
    admin.backends.sim.revoke(TENANT, CLIENT_ID);
    let (status, receipt) = admin.call("DELETE", &path, None).await;
    assert_eq!((status, &receipt["access_ended"], &receipt["purged"]), (200, &json!(true), &json!({})), "{receipt}");

    let events = admin.backends.events();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!((events[0].1["from"].as_str(), events[0].1["to"].as_str()), (Some("active"), Some("offboarded")));
}

#[tokio::test]
async fn what_a_worker_writes_during_the_offboarding_is_purged_too() {
    let admin = AdminHarness::start().await;
    let tenant = admin.tenant(TENANT, Status::Active, None).await;
    admin.backends.customer(TENANT, "contoso.example", &[GRAPH_ROLE]);
    let hang = FaultKind::Hang { millis: 1_500 };
    admin.backends.sim.fault(Fault::new(hang).on(sim::Host::Entra).tenant(TENANT).times(1));
    let worker = async {
        while admin.registry.feed(&tenant).await.unwrap().is_some() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let record =
            json!({"id": "7", "lastUpdateDateTime": "2026-11-22T10:00:00Z", "status": "active", "severity": "low"});
        let record = Record::parse(record.to_string().as_bytes(), &tenant, GRAPH, Alerts::Included).unwrap();
        let new = NewVersion { version: DeliveredVersion::of(&record, 1, GRAPH), open_before: None };
        admin.registry.record_versions(&tenant, &HashMap::from([("7".to_owned(), new)])).await.unwrap()
    };
    let path = format!("/tenants/{TENANT}");
    let ((status, receipt), _) = tokio::join!(admin.call("DELETE", &path, None), worker);
    assert_eq!((status, &receipt["purged"]["versions"]), (200, &json!(1)), "{receipt}");
    let left = admin.registry.delivered_versions(&tenant, VersionBlock::of("7")).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn path_that_is_not_the_authorised_route_is_not_found() {
    let admin = AdminHarness::start().await;
    let tenant = admin.tenant(TENANT, Status::Active, None).await;
    let job = format!("/tenants/{TENANT}/sync/job");
    let event = |sent: &str, change: &[(&str, Value)]| {
        let mut event = request("DELETE", sent, "", None);
        for (member, value) in change {
            event[*member] = value.clone();
        }
        event
    };
    let raw_path = |path: String| ("rawPath", json!(path));
    for (what, event) in [
        ("cut at an encoded question mark", event(&format!("/tenants/{TENANT}%3F/sync/job"), &[])),
        ("decoded twice", event(&format!("/tenants/{TENANT}/sync/..%252F..%252F{TENANT}"), &[])),
        ("the path of another route", event(&job, &[raw_path(format!("/tenants/{TENANT}"))])),
        ("another letter case", event(&job, &[raw_path(job.to_uppercase())])),
        ("a stage that is not this one", event(&job, &[raw_path(format!("/prod{job}"))])),
        ("no route", event(&format!("/tenants/{TENANT}"), &[("routeKey", Value::Null)])),
        ("no parameters", event(&format!("/tenants/{TENANT}"), &[("pathParameters", Value::Null)])),
    ] {
        let (status, problem) = admin.send(event).await;
        assert_eq!((status, problem["code"].as_str()), (404, Some("not_found")), "{what}");
    }
    assert_eq!(admin.registry.known_tenant(&tenant).await.unwrap().status, Status::Active);
    let mut staged = request("GET", &format!("/tenants/{TENANT}"), "", None);
    staged["rawPath"] = json!(format!("/prod/tenants/{TENANT}"));
    staged["requestContext"]["stage"] = json!("prod");
    assert_eq!(admin.send(staged).await.0, 200);
}

#[tokio::test]
async fn tenant_is_offboarded_while_microsoft_is_unavailable() {
    let admin = AdminHarness::start().await;
    let tenant = admin.tenant(TENANT, Status::Active, None).await;
    admin.backends.customer(TENANT, "contoso.example", &[GRAPH_ROLE]);
    let pause = FaultKind::Throttle { retry_after: RetryAfter::Seconds(120) };
    admin.backends.sim.fault(Fault::new(pause).tenant(TENANT));
    let path = format!("/tenants/{TENANT}");
    let (status, receipt) = admin.call("DELETE", &path, None).await;
    assert_eq!((status, &receipt["access_ended"]), (200, &json!(false)), "{receipt}");
    assert_eq!(admin.registry.tenant(&tenant).await.unwrap().unwrap().status, Status::Offboarded);

    // What Microsoft asked for outlives the purge.
    let asked = admin.backends.sim.calls().len();
    assert_eq!(admin.refused("DELETE", &path, None).await.0, "throttled");
    assert_eq!(admin.backends.sim.calls().len(), asked);
}

#[tokio::test]
async fn audit_names_actor_and_change_without_secrets() {
    let admin = AdminHarness::start().await;
    admin.tenant(TENANT, Status::Active, None).await;
    admin.backends.customer(TENANT, "contoso.example", &[GRAPH_ROLE]);
    let made = admin.invite(json!({"customer": "Contoso"})).await;
    let id = made["invitation_id"].as_str().unwrap();
    let tenant = format!("/tenants/{TENANT}");
    admin.call("DELETE", &format!("/invitations/{id}"), None).await;
    admin.call("GET", &tenant, None).await;
    admin.call("PATCH", &tenant, Some(json!({"customer": "Contoso Ltd"}))).await;
    admin.call("POST", &format!("{tenant}/pause"), None).await;
    admin.call("POST", &format!("{tenant}/pause"), None).await;
    admin.call("POST", &format!("{tenant}/resume"), None).await;
    admin.call("POST", &format!("{tenant}/sync"), Some(json!({"kind": "sweep"}))).await;
    admin.call("DELETE", &tenant, None).await;
    let lines = lines_of(&admin.backends.request_id);
    let audit: Vec<&Value> = lines.iter().filter(|line| line["audit"] == true).collect();
    let said: Vec<&str> = audit.iter().map(|line| line["message"].as_str().unwrap()).collect();
    let expected = [
        "invitation made",
        "invitation revoked",
        "tenant changed",
        "tenant paused",
        "tenant resumed",
        "job started",
        "tenant offboarded",
        "tenant's state purged",
    ];
    assert_eq!(said, expected);
    for line in &audit {
        assert_eq!(
            (line["actor"].as_str(), line["request_id"].as_str()),
            (Some(CALLER), Some(admin.backends.request_id.as_str())),
            "{line}"
        );
    }
    for line in &audit[2..] {
        assert_eq!(line["tenant_id"], TENANT, "{line}");
    }
    let all = serde_json::to_string(&lines).unwrap();
    let token = made["consent_url"].as_str().unwrap().rsplit('/').next().unwrap();
    assert!(!all.contains(token) && !all.contains("canary-client-secret") && !all.contains("eyJ"), "{all}");
}

#[tokio::test]
async fn jwt_caller_is_the_actor_of_the_audit() {
    lines_of("");
    let admin = AdminHarness::start_with(Clock::system(), Some("api://mandate".parse().unwrap())).await;
    let by_jwt = |method: &str, path: &str, roles: &str| {
        let mut event = request(method, path, "", Some(r#"{"customer": "Contoso"}"#));
        let claims = json!({"iss": "https://login.example", "aud": "api://mandate", "azp": "console", "roles": roles});
        event["requestContext"]["authorizer"] = json!({"jwt": {"claims": claims}});
        event
    };
    assert_eq!(admin.send(by_jwt("POST", "/invitations", "[mandate.read]")).await.0, 403);
    assert_eq!(admin.send(by_jwt("POST", "/invitations", "[mandate.read mandate.operate]")).await.0, 201);
    let mut list = by_jwt("GET", "/invitations", "[mandate.read]");
    list["body"] = Value::Null;
    assert_eq!(admin.send(list).await.0, 200);
    let lines = lines_of(&admin.backends.request_id);
    let audit: Vec<_> = lines.iter().filter(|line| line["audit"] == true).map(|line| line["actor"].clone()).collect();
    assert_eq!(audit, ["https://login.example azp=console"]);
}
