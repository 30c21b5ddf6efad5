//! The listeners of the three hosts.

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{ConnectInfo, State},
    http::StatusCode,
};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    control,
    faults::Host,
    http::{Connection, Request, ResettableListener, Response, TransportFaults, send},
    respond::respond,
    world::World,
};

/// The largest accepted request body, in bytes. Microsoft's own limit is similar.
const LARGEST_BODY: usize = 4 * 1024 * 1024;

/// State that the servers and all handles of a simulator share.
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

/// Opens a port on 127.0.0.1; 0 is any free one.
pub(crate) async fn bind(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
}

#[derive(Clone)]
struct HostState {
    host: Host,
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
}

/// Serves one host until `stop` says so or its sender is gone.
pub(crate) fn serve(listener: TcpListener, host: Host, shared: Arc<Shared>, stop: watch::Receiver<bool>) {
    let mut stopped = stop.clone();
    let router = Router::new().fallback(handle).with_state(HostState { host, shared, stop });
    let service = router.into_make_service_with_connect_info::<Connection>();
    let until = async move {
        // An error means that the last handle was dropped.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    tokio::spawn(async move { axum::serve(ResettableListener(listener), service).with_graceful_shutdown(until).await });
}

async fn handle(
    State(state): State<HostState>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: axum::extract::Request,
) -> axum::response::Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, LARGEST_BODY).await else {
        let mut response = axum::response::Response::new(Body::empty());
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        return response;
    };
    let request = Request {
        host: state.host,
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body,
    };
    if state.host == Host::Entra && request.path.starts_with("/_sim") {
        return send(control::respond(&state.shared, &request), &TransportFaults::default());
    }
    let (response, transport) = respond(&mut state.shared.world(), &request);
    if state.shared.verbose.load(Ordering::Relaxed) {
        log(&request, &response, &transport);
    }
    if !transport.delay.is_zero() {
        let mut stop = state.stop.clone();
        tokio::select! {
            () = tokio::time::sleep(transport.delay) => {}
            _ = stop.wait_for(|stopped| *stopped) => connection.reset(),
        }
    }
    if transport.reset {
        connection.reset();
    }
    send(response, &transport)
}

/// Writes one line to standard error. It omits the query, which holds codes and states.
fn log(request: &Request, response: &Response, transport: &TransportFaults) {
    let outcome = if transport.reset { "reset".to_owned() } else { response.status.to_string() };
    let _ = writeln!(std::io::stderr(), "{:?} {} {} {outcome}", request.host, request.method, request.path);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::testing::{CONTOSO, rig};

    const LIST: &str = "/v1.0/security/incidents?$expand=alerts";

    #[tokio::test]
    async fn control_api_has_the_same_effects_as_the_handle() {
        let rig = rig().await;
        let control = format!("{}/_sim", rig.sim.entra_url());
        let post =
            async |path: &str, body: Value| rig.send(rig.http.post(format!("{control}{path}")).json(&body)).await;
        assert_eq!(post(&format!("/tenants/{CONTOSO}/incidents"), json!({"severity": "high"})).await.json()["id"], "1");
        let patch =
            rig.http.patch(format!("{control}/tenants/{CONTOSO}/incidents/1")).json(&json!({"status": "resolved"}));
        assert_eq!(rig.send(patch).await.status, 204);
        assert_eq!(rig.sim.incident(CONTOSO, "1").unwrap().status, "resolved");
        let fault = json!({"host": "graph", "times": 1, "kind": {"kind": "throttle", "retry_after": {"seconds": 3}}});
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
