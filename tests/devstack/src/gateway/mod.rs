//! API Gateway's HTTP API, as far as the template uses it: routes, IAM or public, Lambda proxy with payload format 2.0.
//!
//! An IAM route asks for a signature's form, not for its truth: any `Authorization: AWS4-HMAC-SHA256 Credential=…` is
//! let through and its access key becomes the caller. Throttling is not emulated.

mod event;
mod reply;
mod route;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{ConnectInfo, Request, State},
    http::StatusCode,
    response::Response,
};
use tokio::{net::TcpListener, task::AbortHandle};

use self::{event::Caller, route::Routes};
use crate::pool::Pool;

pub(crate) use self::route::{Auth, Route};

/// The longest that an HTTP API waits for a function.
const INTEGRATION_LIMIT: Duration = Duration::from_secs(30);
/// The largest body that an HTTP API takes.
const BODY_LIMIT: usize = 10 * 1024 * 1024;

/// The API. It stops when it is dropped.
#[derive(Debug)]
pub(crate) struct Gateway {
    server: AbortHandle,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[derive(Debug)]
struct Api {
    routes: Routes,
    functions: BTreeMap<String, Arc<Pool>>,
}

impl Gateway {
    /// Serves the routes; `functions` is keyed by the function's name.
    pub(crate) fn serve(listener: TcpListener, routes: Vec<Route>, functions: BTreeMap<String, Arc<Pool>>) -> Self {
        let api = Arc::new(Api { routes: Routes::new(routes), functions });
        let service =
            Router::new().fallback(handle).with_state(api).into_make_service_with_connect_info::<SocketAddr>();
        let server = tokio::spawn(async move {
            // Serving on loopback ends only with the task.
            let _ = axum::serve(listener, service).await;
        })
        .abort_handle();
        Self { server }
    }
}

async fn handle(State(api): State<Arc<Api>>, ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Some(matched) = api.routes.find(parts.method.as_str(), parts.uri.path()) else {
        return reply::own(StatusCode::NOT_FOUND, "Not Found");
    };
    let caller = match matched.route.auth {
        Auth::None => None,
        Auth::AwsIam => match Caller::of(&parts.headers) {
            Some(caller) => Some(caller),
            None => return reply::own(StatusCode::FORBIDDEN, "Forbidden"),
        },
    };
    let Some(function) = api.functions.get(&matched.route.function) else {
        return reply::own(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error");
    };
    let Ok(body) = read(body).await else {
        return reply::own(StatusCode::PAYLOAD_TOO_LARGE, "Request Entity Too Large");
    };
    let event = event::event(&parts, &body, &matched, caller.as_ref(), peer);
    match tokio::time::timeout(INTEGRATION_LIMIT, function.invoke(&event)).await {
        Ok(Ok(answer)) => reply::from_function(&answer),
        Ok(Err(error)) if !error.is_timeout() => reply::own(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error"),
        Ok(Err(_)) | Err(_) => reply::own(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable"),
    }
}

async fn read(body: Body) -> Result<axum::body::Bytes, axum::Error> {
    to_bytes(body, BODY_LIMIT).await
}
