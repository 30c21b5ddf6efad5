//! The three listeners, and the way of a request through faults, host and record.

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{ConnectInfo, Request, State},
    http::{Response, StatusCode},
};
use jiff::SignedDuration;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    clock::http_date,
    control, defender, entra,
    faults::{FaultKind, RetryAfter, Surface},
    graph,
    http::{Connection, Delivery, Incoming, Length, Reply, Resettable, send},
    incidents::claimed_tenant,
    world::{Call, NextLinkTweak, Tweaks, World},
};

/// A body that is longer is refused; Microsoft's own limit is about this.
const LARGEST_BODY: usize = 4 * 1024 * 1024;

/// What the servers and all handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    world: Mutex<World>,
    pub(crate) verbose: AtomicBool,
}

impl Shared {
    pub(crate) fn new(world: World) -> Self {
        Self { world: Mutex::new(world), verbose: AtomicBool::new(false) }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a port on loopback.
pub(crate) async fn bind(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
}

#[derive(Clone)]
struct Front {
    surface: Surface,
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
}

/// Serves one host until told to stop.
pub(crate) fn serve(listener: TcpListener, surface: Surface, shared: Arc<Shared>, stop: watch::Receiver<bool>) {
    let mut stopped = stop.clone();
    let router = Router::new().fallback(handle).with_state(Front { surface, shared, stop });
    let service = router.into_make_service_with_connect_info::<Connection>();
    let until = async move {
        // An error means that the last handle is gone.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    tokio::spawn(async move { axum::serve(Resettable(listener), service).with_graceful_shutdown(until).await });
}

async fn handle(
    State(front): State<Front>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: Request,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, LARGEST_BODY).await else {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        return response;
    };
    let request = Incoming {
        surface: front.surface,
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body,
    };
    if front.surface == Surface::Entra && request.path.starts_with("/_sim") {
        return send(control::answer(&front.shared, &request), &Delivery::default());
    }
    let (reply, delivery) = answer(&mut front.shared.world(), &request);
    if front.shared.verbose.load(Ordering::Relaxed) {
        log(&request, &reply, &delivery);
    }
    if !delivery.delay.is_zero() {
        let mut stop = front.stop.clone();
        tokio::select! {
            () = tokio::time::sleep(delivery.delay) => {}
            _ = stop.wait_for(|stopped| *stopped) => connection.reset(),
        }
    }
    if delivery.reset {
        connection.reset();
    }
    send(reply, &delivery)
}

/// One line on standard error, without the query: it holds codes and states.
fn log(request: &Incoming, reply: &Reply, delivery: &Delivery) {
    let outcome = if delivery.reset { "reset".to_owned() } else { reply.status.to_string() };
    let _ = writeln!(std::io::stderr(), "{:?} {} {} {outcome}", request.surface, request.method, request.path);
}

/// Answers a request with everything that goes wrong on the way, and keeps a record of it.
pub(crate) fn answer(world: &mut World, request: &Incoming) -> (Reply, Delivery) {
    let tenant_id = match request.surface {
        Surface::Entra => entra::tenant_of(world, request),
        Surface::Graph | Surface::Defender => claimed_tenant(world, request),
    };
    let mut journey =
        Journey { tweaks: Tweaks::default(), delivery: Delivery::default(), after: Vec::new(), instead: None };
    for kind in world.faults.before(request, tenant_id.as_deref()) {
        journey.meet(world, request, kind);
    }
    let mut reply = if let Some(instead) = journey.instead.take() {
        instead
    } else {
        let reply = match request.surface {
            Surface::Entra => entra::answer(world, request, &journey.tweaks),
            Surface::Graph => graph::answer(world, request, &journey.tweaks),
            Surface::Defender => defender::answer(world, request, &journey.tweaks),
        };
        for kind in world.faults.after(request, tenant_id.as_deref(), &reply.incidents) {
            journey.meet(world, request, kind);
        }
        journey.instead.take().unwrap_or(reply)
    };
    let mut now = world.now();
    for change in journey.after {
        match change {
            After::Rewrite(status, headers) => {
                reply.status = status;
                for (name, value) in headers {
                    reply.set(&name, &value);
                }
            }
            After::Skew(by) => now = now.checked_add(by).unwrap_or(now),
        }
    }
    reply.set("date", &http_date(now));
    world.calls.push(Call {
        at: world.now(),
        surface: request.surface,
        tenant_id,
        method: request.method.clone(),
        path: request.path.clone(),
        query: request.query.clone(),
        status: if journey.delivery.reset { 0 } else { reply.status },
    });
    (reply, journey.delivery)
}

enum After {
    Rewrite(u16, Vec<(String, String)>),
    Skew(SignedDuration),
}

/// What a request has met so far.
struct Journey {
    tweaks: Tweaks,
    delivery: Delivery,
    after: Vec<After>,
    instead: Option<Reply>,
}

impl Journey {
    fn meet(&mut self, world: &World, request: &Incoming, kind: FaultKind) {
        match kind {
            FaultKind::Status { status, body, headers } => {
                let mut reply = match body {
                    Some(body) => Reply::new(status, guess(&body), body),
                    None => failure(world, request, status),
                };
                for (name, value) in headers {
                    reply.set(&name, &value);
                }
                self.instead = Some(reply);
            }
            FaultKind::Throttle { retry_after } => self.instead = Some(throttled(world, request, retry_after)),
            FaultKind::BadGateway => {
                let body =
                    "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>\r\n";
                self.instead = Some(Reply::new(502, "text/html", body));
            }
            FaultKind::Reset => {
                self.delivery.reset = true;
                self.instead = Some(Reply::empty(500));
            }
            FaultKind::ExpiredSkiptoken => {
                self.instead = Some(match request.surface {
                    Surface::Defender => defender::error(400, "ODataError", "The skip token has expired."),
                    _ => graph::bad(
                        world,
                        request,
                        "Skip token is expired. Please restart the request from the first page.",
                    ),
                });
            }
            FaultKind::Hang { millis } => self.delivery.delay += Duration::from_millis(millis),
            FaultKind::Latency { least_millis, most_millis } => {
                let spread = most_millis.saturating_sub(least_millis).saturating_add(1);
                let millis = least_millis.saturating_add(world.scattered() % spread);
                self.delivery.delay += Duration::from_millis(millis);
            }
            FaultKind::Truncate { at } => self.delivery.truncate = Some(at.map_or(Length::Half, Length::Bytes)),
            FaultKind::Cut => self.delivery.cut = true,
            FaultKind::SlowBody { chunk, millis } => self.delivery.slow = Some((chunk, Duration::from_millis(millis))),
            FaultKind::Rewrite { status, headers } => self.after.push(After::Rewrite(status, headers)),
            FaultKind::DateSkew { seconds } => self.after.push(After::Skew(SignedDuration::from_secs(seconds))),
            FaultKind::ForeignNextLink { url } => self.tweaks.next_link = Some(NextLinkTweak::Foreign(url)),
            FaultKind::LoopingNextLink => self.tweaks.next_link = Some(NextLinkTweak::Loop),
            FaultKind::SilentCap { rows } => self.tweaks.cap = Some(rows),
            FaultKind::Stale { versions } => self.tweaks.stale = versions,
            FaultKind::WrongTid { tid } => self.tweaks.tid = Some(tid),
            FaultKind::OpaqueToken => self.tweaks.opaque = true,
            FaultKind::ExpiresInString => self.tweaks.expires_in_string = true,
            FaultKind::ExpiresIn { seconds } => self.tweaks.expires_in = Some(seconds),
            FaultKind::MissingRoles => self.tweaks.missing_roles = true,
            FaultKind::Claims { claims } => self.tweaks.claims = claims,
            FaultKind::Aadsts { code } => self.tweaks.aadsts = Some(code),
        }
    }
}

fn guess(body: &str) -> &'static str {
    if body.starts_with('{') { "application/json; charset=utf-8" } else { "text/html; charset=utf-8" }
}

/// A status in the surface's own words.
fn failure(world: &World, request: &Incoming, status: u16) -> Reply {
    let (graph_code, defender_code) = match status {
        400 => ("BadRequest", "BadRequest"),
        401 => ("InvalidAuthenticationToken", "Unauthorized"),
        403 => ("Forbidden", "Forbidden"),
        404 => ("NotFound", "ResourceNotFound"),
        429 => ("TooManyRequests", "TooManyRequests"),
        503 => ("ServiceUnavailable", "ServiceUnavailable"),
        504 => ("GatewayTimeout", "GatewayTimeout"),
        _ => ("InternalServerError", "InternalServerError"),
    };
    let message = "The request could not be completed.";
    match request.surface {
        Surface::Entra => {
            let error = if status >= 500 { "temporarily_unavailable" } else { "invalid_request" };
            entra::Aadsts::new(status, error, 90_033, "A transient error has occurred. Please try again.")
                .reply(request, world.now())
        }
        Surface::Graph => graph::error(world, request, status, graph_code, message),
        Surface::Defender => defender::error(status, defender_code, message),
    }
}

fn throttled(world: &World, request: &Incoming, retry_after: RetryAfter) -> Reply {
    match request.surface {
        Surface::Entra => {
            let text = match retry_after {
                RetryAfter::Body(seconds) => {
                    format!("The request was throttled. Please retry after {seconds} seconds.")
                }
                _ => "The request was throttled.".to_owned(),
            };
            let mut reply =
                entra::Aadsts::new(429, "temporarily_unavailable", 90_055, text).reply(request, world.now());
            reply.headers.retain(|(name, _)| name != "retry-after");
            graph::retry_header(reply, world, retry_after)
        }
        Surface::Graph => graph::throttled(world, request, retry_after),
        Surface::Defender => defender::throttled(world, retry_after),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{
        Fault, FaultKind, Giant, IncidentSeed, RetryAfter, Surface,
        clock::real_time,
        testing::{CONTOSO, FABRIKAM, rig},
    };

    const LIST: &str = "/v1.0/security/incidents?$expand=alerts";

    #[tokio::test]
    async fn a_fault_meets_whom_it_is_for_and_no_more_often_than_it_should() {
        let rig = rig().await;
        rig.sim.fault(Fault::new(FaultKind::status(503)).on(Surface::Graph).tenant(FABRIKAM));
        rig.sim.fault(Fault::new(FaultKind::BadGateway).on(Surface::Graph).tenant(CONTOSO).after(1).times(1));
        let status = async || rig.get(LIST).await.status;
        assert_eq!((status().await, status().await, status().await), (200, 502, 200));
        rig.sim.fault(Fault::new(FaultKind::Throttle { retry_after: RetryAfter::Seconds(7) }).times(1));
        assert_eq!(rig.get(LIST).await.header("retry-after"), "7");
        assert_eq!(rig.sim.faults().len(), 1);
        assert_eq!(rig.sim.calls().iter().map(|call| call.status).collect::<Vec<_>>(), [200, 502, 200, 429]);
    }

    #[tokio::test]
    async fn a_poisoned_incident_spoils_every_answer_that_holds_it() {
        let rig = rig().await;
        rig.incidents(3);
        rig.sim.fault(Fault::poison(CONTOSO, "2").expand(true));
        assert_eq!(rig.get(LIST).await.status, 500);
        assert_eq!(rig.get("/v1.0/security/incidents").await.status, 200);
        assert_eq!(rig.get("/v1.0/security/incidents?$expand=alerts&$top=1").await.ids(), [3]);
        assert_eq!(rig.get("/v1.0/security/incidents/2?$expand=alerts").await.status, 500);
        assert_eq!(rig.get("/v1.0/security/incidents/2").await.status, 200);
    }

    #[tokio::test]
    async fn answers_break_off_in_the_ways_that_they_do() {
        let rig = rig().await;
        rig.incidents(3);
        rig.sim.fault(Fault::new(FaultKind::Truncate { at: None }).times(1));
        let truncated = rig.get(LIST).await;
        assert!(truncated.status == 200 && serde_json::from_str::<Value>(&truncated.text).is_err());
        let token = rig.sim.issue_token(CONTOSO, "x", &["SecurityIncident.Read.All"], crate::Resource::Graph);
        let request = || rig.http.get(format!("{}{LIST}", rig.sim.graph_url())).bearer_auth(&token);
        rig.sim.fault(Fault::new(FaultKind::Reset).times(1));
        let reset = request().send().await.unwrap_err();
        assert!(format!("{reset:?}").contains("ConnectionReset"), "{reset:?}");
        assert_eq!(rig.sim.calls().last().unwrap().status, 0);
        rig.sim.fault(Fault::new(FaultKind::Cut).times(1));
        assert!(request().send().await.unwrap().bytes().await.is_err());
        rig.sim.fault(Fault::new(FaultKind::SlowBody { chunk: 1024, millis: 1 }).times(1));
        assert_eq!(
            request().send().await.unwrap().json::<Value>().await.unwrap()["value"].as_array().unwrap().len(),
            3
        );
        rig.sim.fault(Fault::new(FaultKind::Hang { millis: 60_000 }).times(1));
        let late = tokio::time::timeout(std::time::Duration::from_millis(100), request().send()).await;
        assert!(late.is_err());
    }

    #[tokio::test]
    async fn answers_take_their_time() {
        let rig = rig().await;
        rig.sim.fault(Fault::new(FaultKind::Latency { least_millis: 20, most_millis: 60 }));
        rig.sim.fault(Fault::new(FaultKind::status(503)).times(1));
        let mut took = Vec::new();
        for status in [503, 200, 200, 200] {
            let began = real_time();
            assert_eq!(rig.get(LIST).await.status, status);
            took.push(real_time().duration_since(began));
        }
        assert!(took.iter().all(|took| took.as_millis() >= 20), "{took:?}");
    }

    #[tokio::test]
    async fn lists_can_lie() {
        let rig = rig().await;
        rig.incidents(3);
        rig.sim.fault(Fault::new(FaultKind::SilentCap { rows: 1 }).times(1));
        let capped = rig.get(LIST).await;
        assert_eq!((capped.ids(), capped.json().get("@odata.nextLink")), (vec![3], None));
        rig.sim.fault(Fault::new(FaultKind::ForeignNextLink { url: "https://evil.example/x".into() }).times(1));
        assert_eq!(rig.get(LIST).await.json()["@odata.nextLink"], "https://evil.example/x");
        rig.sim.fault(Fault::new(FaultKind::LoopingNextLink).times(1));
        let looping = rig.get(LIST).await.json()["@odata.nextLink"].as_str().unwrap().to_owned();
        assert!(looping.ends_with(LIST), "{looping}");
        rig.sim.update_incident(CONTOSO, "1", |incident| incident.status = "resolved".into());
        rig.sim.fault(Fault::new(FaultKind::Stale { versions: 1 }).times(1));
        let stale = rig.get(LIST).await;
        assert_eq!((stale.ids(), &stale.json()["value"][0]["status"]), (vec![1], &json!("active")));
        assert_eq!(rig.get(LIST).await.ids(), [1, 3, 2]);
    }

    #[tokio::test]
    async fn a_giant_is_made_while_it_is_sent() {
        let rig = rig().await;
        for alerts in [0, 2] {
            let giant = Some(Giant { alerts: 500, bytes_each: 2000 });
            rig.sim.put_incident(CONTOSO, IncidentSeed { alerts, giant, ..IncidentSeed::default() });
        }
        let body = rig.get(LIST).await.json();
        assert_eq!(body["value"][0]["alerts"].as_array().unwrap().len(), 502);
        assert_eq!(body["value"][1]["alerts"].as_array().unwrap().len(), 500);
        assert_eq!(rig.get("/api/incidents/1").await.json()["alerts"].as_array().unwrap().len(), 500);
    }

    #[tokio::test]
    async fn incidents_arrive_late_change_silently_and_merge() {
        let rig = rig().await;
        rig.incidents(3);
        let now = rig.sim.clock().now();
        rig.sim.clock().freeze(now);
        let later = now.checked_add(jiff::SignedDuration::from_mins(15)).unwrap();
        rig.sim.set_visible_from(CONTOSO, "1", later);
        rig.sim.change_incident_silently(CONTOSO, "2", |incident| {
            incident.add_alert(now);
        });
        assert_eq!(rig.get(LIST).await.ids(), [3, 2]);
        assert_eq!(rig.get(LIST).await.json()["value"][1]["alerts"].as_array().unwrap().len(), 2);
        rig.sim.clock().freeze(later);
        assert_eq!(rig.get(LIST).await.ids(), [3, 2, 1]);
        assert!(rig.sim.merge_incident(CONTOSO, "1", "2"));
        let merged = rig.get("/v1.0/security/incidents/1?$expand=alerts").await.json();
        assert_eq!((&merged["status"], &merged["redirectIncidentId"]), (&json!("redirected"), &json!("2")));
        assert_eq!(merged["alerts"], json!([]));
    }

    #[tokio::test]
    async fn the_control_api_does_what_the_handle_does() {
        let rig = rig().await;
        let control = format!("{}/_sim", rig.sim.entra_url());
        let post =
            async |path: &str, body: Value| rig.send(rig.http.post(format!("{control}{path}")).json(&body)).await;
        assert_eq!(post(&format!("/tenants/{CONTOSO}/incidents"), json!({"severity": "high"})).await.json()["id"], "1");
        let patch =
            rig.http.patch(format!("{control}/tenants/{CONTOSO}/incidents/1")).json(&json!({"status": "resolved"}));
        assert_eq!(rig.send(patch).await.status, 204);
        assert_eq!(rig.sim.incident(CONTOSO, "1").unwrap().status, "resolved");
        let fault =
            json!({"surface": "graph", "times": 1, "kind": {"kind": "throttle", "retry_after": {"seconds": 3}}});
        assert_eq!(post("/faults", fault).await.status, 204);
        assert_eq!(rig.get(LIST).await.header("retry-after"), "3");
        assert_eq!(post("/faults", json!({"nonsense": 1})).await.status, 400);
        let behaviour = rig.http.patch(format!("{control}/behaviour")).json(&json!({"graph": {"max_top": 10}}));
        assert_eq!(rig.send(behaviour).await.status, 204);
        assert_eq!(rig.get("/v1.0/security/incidents?$top=11").await.status, 400);
        let calls = rig.send(rig.http.get(format!("{control}/calls"))).await.json();
        assert_eq!(calls.as_array().unwrap().len(), 2);
        let clock = post("/clock", json!({"freeze": "2026-01-01T00:00:00Z", "advance_seconds": 5})).await.json();
        assert_eq!(clock["now"], "2026-01-01T00:00:05Z");
    }

    #[tokio::test]
    async fn dropping_the_last_handle_closes_the_ports() {
        let rig = rig().await;
        let address = rig.sim.graph_url().strip_prefix("http://").unwrap().to_owned();
        let other = rig.sim.clone();
        drop(rig);
        assert!(tokio::net::TcpStream::connect(&address).await.is_ok());
        drop(other);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert!(tokio::net::TcpStream::connect(&address).await.is_err());
    }
}
