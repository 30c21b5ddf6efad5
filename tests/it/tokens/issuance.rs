//! `token-issuance` as a whole handler.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use shared::{
    lambda::event::Invocation,
    microsoft::IncidentApiSetting,
    registry::tenants::{Status, Tenant},
    telemetry::JsonLines,
    tenant::Reason,
    text::hex,
};
use sim::{FaultKind, RetryAfter};
use token_issuance::{App, Config, DirectInvocation};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;

use super::harness::{A, B, TokenHarness, claims, refusal, tenant};
use crate::{
    backends::{CALLER, CLIENT_SECRET, lines_of, public_request, request, tenant_record, unique_request_id},
    contract::assert_answer,
};

struct IssuanceHarness {
    harness: TokenHarness,
    app: App,
    request_id: String,
}

async fn deployment() -> IssuanceHarness {
    deployment_with(|_| {}).await
}

async fn deployment_with(change: impl FnOnce(&mut Config)) -> IssuanceHarness {
    let harness = TokenHarness::start().await;
    let backends = &harness.backends;
    let mut config = Config {
        microsoft: backends.microsoft(),
        table_name: backends.table.clone(),
        incident_api: IncidentApiSetting::Auto,
        jwt_audience: None,
        direct_invocation: DirectInvocation::Enabled,
    };
    change(&mut config);
    let app = App::new(config, &crate::backends::platform(&backends.aws, &harness.clock));
    for (id, status, reason) in
        [(A, Status::Active, None), (B, Status::Paused, Some(Reason::Operator)), (GONE, Status::Offboarded, None)]
    {
        let tenant = tenant_record(tenant(id), status, reason);
        harness.registry().create_tenant(&tenant).await.unwrap();
    }
    let request_id = unique_request_id();
    IssuanceHarness { harness, app, request_id }
}

const GONE: &str = "33333333-2222-4333-8444-abcdefabcdef";

impl IssuanceHarness {
    fn invocation(&self) -> Invocation {
        let in_20_s = self.harness.clock.now().as_millisecond() + 20_000;
        Invocation::new(self.request_id.clone(), u64::try_from(in_20_s).unwrap(), &self.harness.clock)
    }

    async fn post(&self, path: &str, body: &str) -> (u16, Value, Value) {
        self.http(request("POST", path, "", Some(body))).await
    }

    async fn http(&self, event: Value) -> (u16, Value, Value) {
        let response = self.app.handle(event.clone(), self.invocation()).await.unwrap();
        assert_answer(&event, &response);
        let body = serde_json::from_str(response["body"].as_str().unwrap()).unwrap();
        (response["statusCode"].as_u64().unwrap().try_into().unwrap(), body, response["headers"].clone())
    }

    async fn direct(&self, call: Value) -> Result<Value, &'static str> {
        self.app.handle(call, self.invocation()).await.map_err(|failure| failure.code)
    }
}

/// The SHA-256 of the token's `uti` in hexadecimal.
fn token_id_hash(token: &str) -> String {
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    hex(digest(&SHA256, claims["uti"].as_str().unwrap().as_bytes()).as_ref())
}

#[tokio::test]
async fn http_and_direct_calls_return_the_same_token_and_are_audited() {
    let deployment = deployment().await;
    lines_of("");
    let (status, body, headers) = deployment.post(&format!("/tenants/{A}/token"), "").await;
    assert_eq!(status, 200);
    assert_eq!(
        (headers["cache-control"].as_str(), headers["content-type"].as_str()),
        (Some("no-store"), Some("application/json"))
    );
    let token = body["access_token"].as_str().unwrap();
    assert_eq!(
        body,
        json!({"token_type": "Bearer", "access_token": token, "expires_in": 3599, "expires_at": "2026-11-22T10:59:59Z",
               "tenant_id": A, "resource": "graph", "roles": ["SecurityIncident.Read.All"]})
    );
    assert_eq!(deployment.direct(json!({"tenant_id": A})).await.unwrap(), body);
    let defender = deployment.direct(json!({"tenant_id": A, "resource": "defender"})).await.unwrap();
    assert_eq!(defender["resource"], "defender");
    let lines = lines_of(&deployment.request_id);
    let audit: Vec<Value> = lines.iter().filter(|line| line["audit"] == true).cloned().collect();
    assert_eq!(audit.len(), 3);
    assert_eq!(
        audit[0],
        json!({"timestamp": audit[0]["timestamp"], "level": "INFO", "message": "access token issued", "audit": true,
               "request_id": deployment.request_id, "caller": CALLER, "tenant_id": A, "resource": "graph",
               "roles": "SecurityIncident.Read.All", "expires_at": "2026-11-22T10:59:59Z",
               "token_id_sha256": token_id_hash(token)})
    );
    assert_eq!(audit[1]["caller"], "direct");
    assert_eq!(audit[2]["resource"], "defender");
    for hidden in [token, defender["access_token"].as_str().unwrap(), CLIENT_SECRET] {
        assert!(lines.iter().all(|line| !line.to_string().contains(hidden)));
    }
}

#[tokio::test]
async fn warm_request_calls_neither_aws_nor_microsoft() {
    let deployment = deployment().await;
    let calls_to_aws = || deployment.harness.backends.double.account().calls_by_operation().clone();
    let calls = || (calls_to_aws(), deployment.harness.asked());
    let path = format!("/tenants/{A}/token");
    assert_eq!(deployment.post(&path, "").await.0, 200);
    let after_the_first = calls();
    assert!(!after_the_first.0.is_empty() && after_the_first.1 == 1);
    for _ in 0..2 {
        deployment.harness.pass(14);
        assert_eq!(deployment.post(&path, "").await.0, 200);
        deployment.direct(json!({"tenant_id": A})).await.unwrap();
    }
    assert_eq!(calls(), after_the_first);
    let audit = lines_of(&deployment.request_id).into_iter().filter(|line| line["audit"] == true);
    assert_eq!(audit.count(), 5);
    // Another tenant is read, although this one is warm.
    assert_eq!(deployment.direct(json!({"tenant_id": B})).await, Err("tenant_not_active"));
}

#[tokio::test]
async fn pause_and_offboarding_stop_warm_tokens_within_30_seconds() {
    for status in [Status::Paused, Status::Offboarded] {
        let deployment = deployment().await;
        let change = async |to: Status| {
            let (registry, id) = (deployment.harness.registry(), tenant(A));
            let change = |tenant: &mut Tenant| {
                tenant.status = to;
                Ok(())
            };
            registry.change_tenant(&id, deployment.harness.clock.now(), change).await.unwrap();
        };
        let issue = || deployment.direct(json!({"tenant_id": A}));
        issue().await.unwrap();
        change(status).await;
        deployment.harness.pass(29);
        let _ = issue().await;
        deployment.harness.pass(1);
        assert_eq!(issue().await, Err("tenant_not_active"), "{status:?}");
        change(Status::Active).await;
        issue().await.unwrap();
    }
}

#[tokio::test]
async fn no_token_is_returned_if_the_audit_line_is_lost() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let deployment = deployment().await;
    lines_of("");
    let full = JsonLines::new(LevelFilter::INFO, deployment.harness.clock.clone(), Arc::new(Mutex::new(Full)));
    let logging = tracing::subscriber::set_default(tracing_subscriber::registry().with(full));
    let (status, problem, _) = deployment.post(&format!("/tenants/{A}/token"), "").await;
    assert_eq!((status, problem["code"].as_str()), (500, Some("internal")));
    assert!(!problem.to_string().contains("access_token"));
    assert_eq!(deployment.direct(json!({"tenant_id": A})).await, Err("internal"));
    drop(logging);
    assert_eq!(deployment.post(&format!("/tenants/{A}/token"), "").await.0, 200);
}

#[tokio::test]
async fn invalid_token_requests_cost_no_call_to_entra() {
    let deployment = deployment().await;
    let path = |segment: &str| format!("/tenants/{segment}/token");
    let upper = A.to_uppercase();
    let unknown = "44444444-2222-4333-8444-abcdefabcdef";
    let encoded = A.replace('-', "%252d");
    let table = [
        ("unknown", unknown),
        ("upper case", &upper),
        ("percent-encoded", &encoded),
        ("alias for all accounts", "common"),
        ("alias for all organizations", "organizations"),
        ("domain", "contoso.example"),
        ("empty", ""),
        ("parent", ".."),
        ("template", "{x}"),
    ];
    for (name, segment) in table {
        let (status, body, _) = deployment.post(&path(segment), "").await;
        assert_eq!((status, body["code"].as_str()), (404, Some("not_found")), "{name}");
    }
    let table = [
        ("unknown resource", path(A), r#"{"resource": "mail"}"#, 400, "invalid_request"),
        ("resource in upper case", path(A), r#"{"resource": "Graph"}"#, 400, "invalid_request"),
        ("unknown member", path(A), r#"{"scope": "x"}"#, 400, "invalid_request"),
        ("broken JSON", path(A), "[", 400, "invalid_request"),
        ("list", path(A), r#"["graph"]"#, 400, "invalid_request"),
        ("unknown tenant before its resource", path(unknown), r#"{"resource": "mail"}"#, 404, "not_found"),
        ("alias before its body", path("common"), "[", 404, "not_found"),
        ("paused tenant before its body", path(B), "[", 409, "tenant_not_active"),
        ("paused tenant", path(B), "", 409, "tenant_not_active"),
        ("offboarded tenant", path(GONE), "", 409, "tenant_not_active"),
        ("tenant without a token", format!("/tenants/{A}"), "", 404, "not_found"),
        ("slash at the end", format!("/tenants/{A}/token/"), "", 404, "not_found"),
    ];
    for (name, path, body, status, code) in table {
        let (found, problem, headers) = deployment.post(&path, body).await;
        assert_eq!((found, problem["code"].as_str()), (status, Some(code)), "{name}");
        assert_eq!(headers["content-type"], "application/problem+json");
    }
    let (_, problem, _) = deployment.post(&path(B), "").await;
    assert_eq!(problem["reason"], "operator");
    let (status, problem, _) = deployment.http(public_request("POST", &path(A), "")).await;
    assert_eq!((status, problem["code"].as_str()), (403, Some("unauthorized_caller")));
    let table = [
        ("unknown tenant", json!({"tenant_id": unknown}), "not_found"),
        ("upper case", json!({"tenant_id": upper}), "not_found"),
        ("paused tenant", json!({"tenant_id": B}), "tenant_not_active"),
        ("unknown tenant before its resource", json!({"tenant_id": unknown, "resource": "x"}), "not_found"),
        ("list", json!([A]), "invalid_request"),
        ("list of two", json!([A, "graph"]), "invalid_request"),
        ("unknown resource", json!({"tenant_id": A, "resource": "x"}), "invalid_request"),
        ("unknown member", json!({"tenant_id": A, "scope": "x"}), "invalid_request"),
        ("number", json!({"tenant_id": 7}), "invalid_request"),
        ("empty object", json!({}), "invalid_request"),
        ("text", json!("x"), "invalid_request"),
        ("queue's event", json!({"Records": []}), "invalid_request"),
    ];
    for (name, call, code) in table {
        assert_eq!(deployment.direct(call).await, Err(code), "{name}");
    }
    let refused = lines_of(&deployment.request_id).into_iter().filter(|line| line["message"] == "call refused");
    assert!(refused.into_iter().any(|line| line["tenant_id"] == B), "a direct call's lines name the tenant");
    assert_eq!(deployment.harness.asked(), 0);
}

#[tokio::test]
async fn token_errors_are_the_documented_problems() {
    let snapshot = |name: &str, problem: &Value| {
        crate::snapshots::assert_json(&format!("problem-{name}"), problem, &["/instance"]);
    };
    let deployment = deployment().await;
    lines_of("");
    let harness = &deployment.harness;
    let path = format!("/tenants/{A}/token");
    harness.script(A, refusal(7_000_112));
    let (status, problem, _) = deployment.post(&path, "").await;
    assert_eq!(status, 409);
    snapshot("disabled-by-customer", &problem);
    harness.script(A, FaultKind::Throttle { retry_after: RetryAfter::Seconds(7) });
    let (status, problem, headers) = deployment.post(&path, "").await;
    assert_eq!((status, headers["retry-after"].as_str()), (503, Some("7")));
    snapshot("throttled", &problem);
    assert_eq!(deployment.direct(json!({"tenant_id": A})).await, Err("throttled"));
    let stored = harness.backends.double.account().item_mut(&format!("THROTTLING#{A}"), "TOKENS#graph").is_some();
    assert!(stored, "in a partition that it may write");
    harness.pass(8);
    harness.script(A, claims(json!({"roles": []})));
    let (status, problem, _) = deployment.post(&path, r#"{"resource": "defender"}"#).await;
    assert_eq!(status, 409);
    snapshot("role-missing", &problem);
    harness.forget_secret(CLIENT_SECRET);
    let (status, problem, _) = deployment.post(&path, "").await;
    assert_eq!(status, 500);
    snapshot("credential-rejected", &problem);
    let asked = harness.asked();
    assert_eq!(deployment.direct(json!({"tenant_id": A})).await, Err("internal"));
    assert_eq!(harness.asked(), asked);
    let lines = lines_of(&deployment.request_id);
    let failures = lines.iter().filter(|line| line["InternalFailure"] == 1.0).count();
    assert_eq!(failures, 2, "what Microsoft or the caller causes is not a failure of ours");
}

/// A request as API Gateway passes it on for a caller that its JWT authoriser admitted.
fn jwt_request(path: &str, roles: &str) -> Value {
    let mut event = public_request("POST", path, "");
    let claims = json!({"iss": "https://login.example/v2.0", "aud": "api://mandate", "oid": "ada", "azp": "console",
                        "roles": roles});
    event["requestContext"]["authorizer"] = json!({"jwt": {"claims": claims, "scopes": null}});
    event
}

#[tokio::test]
async fn jwt_caller_needs_the_audience_and_the_scope_for_tokens() {
    lines_of("");
    let with_audience = |audience: &str| {
        let audience = audience.parse().unwrap();
        deployment_with(|config| config.jwt_audience = Some(audience))
    };
    let path = format!("/tenants/{A}/token");
    let admitted = with_audience("api://mandate").await;
    let (status, body, _) = admitted.http(jwt_request(&path, "[mandate.read mandate.token]")).await;
    assert_eq!((status, &body["token_type"]), (200, &json!("Bearer")));
    let lines = lines_of(&admitted.request_id);
    let audit = lines.iter().find(|line| line["audit"] == true).unwrap();
    assert_eq!(audit["caller"], "https://login.example/v2.0 oid=ada azp=console");
    for (deployment, roles) in [
        (&admitted, "[mandate.read mandate.operate]"),
        (&admitted, ""),
        (&with_audience("api://other").await, "[mandate.token]"),
        (&deployment().await, "[mandate.token]"),
    ] {
        let (status, problem, _) = deployment.http(jwt_request(&path, roles)).await;
        assert_eq!((status, &problem["code"]), (403, &json!("unauthorized_caller")), "{roles}");
    }
    // An IAM identity decides alone, and a caller without either is nobody.
    let mut both = jwt_request(&path, "[mandate.token]");
    both["requestContext"]["authorizer"]["iam"] = json!({"userArn": ""});
    assert_eq!(admitted.http(both).await.0, 403);
    assert_eq!(admitted.post(&path, "").await.0, 200);
}

#[tokio::test]
async fn direct_invocation_may_be_switched_off() {
    let deployment = deployment_with(|config| config.direct_invocation = DirectInvocation::Disabled).await;
    assert_eq!(deployment.direct(json!({"tenant_id": A})).await, Err("unauthorized_caller"));
    assert_eq!(deployment.harness.asked(), 0);
    assert_eq!(deployment.post(&format!("/tenants/{A}/token"), "").await.0, 200);
}

#[tokio::test]
async fn tokens_from_the_cache_and_from_entra_are_counted() {
    lines_of("");
    let deployment = deployment().await;
    let path = format!("/tenants/{A}/token");
    for _ in 0..3 {
        assert_eq!(deployment.post(&path, "").await.0, 200);
    }
    deployment.harness.script(A, refusal(7_000_112));
    assert_eq!(deployment.post(&path, r#"{"resource": "defender"}"#).await.0, 409);
    let lines = lines_of(&deployment.request_id);
    let of_metrics = lines.iter().filter(|line| line.get("_aws").is_some());
    let sum = |name: &str| of_metrics.clone().filter_map(|line| line[name].as_f64()).sum::<f64>().to_string();
    let counted = ["TokensIssued", "TokenCacheHits", "TokenRequests", "TokenFailures"].map(sum);
    assert_eq!(counted, ["3", "2", "2", "1"]);
    assert_eq!(of_metrics.count(), 4, "one line an invocation");
}
