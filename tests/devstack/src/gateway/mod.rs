//! API Gateway's HTTP API, as far as the template uses it: routes, IAM or public, Lambda proxy with payload format 2.0.
//!
//! An IAM route accepts every `Authorization: AWS4-HMAC-SHA256 Credential=…` and takes its access key as the caller. The
//! signature is not verified. Throttling is not emulated.

mod event;
mod response;
mod route;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::to_bytes,
    extract::{ConnectInfo, Request, State},
    http::StatusCode,
    response::Response,
};
use tokio::{net::TcpListener, task::AbortHandle};

use self::event::Caller;
use crate::pool::Pool;

pub use self::route::{Auth, Route, RouteMatch, Routes, raw_path};

/// The time after which an HTTP API stops waiting for a function.
const INTEGRATION_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest request body that an HTTP API accepts.
const MAX_BODY_BYTES: usize = 10 * 1024 * 1024;

/// The HTTP API's server. It stops when it is dropped.
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
    let Some(raw_path) = raw_path(parts.uri.path()) else {
        return response::from_gateway(StatusCode::BAD_REQUEST, "Bad Request");
    };
    let Some(matched) = api.routes.find(parts.method.as_str(), parts.uri.path()) else {
        return response::from_gateway(StatusCode::NOT_FOUND, "Not Found");
    };
    let caller = match matched.route.auth {
        Auth::None => None,
        Auth::AwsIam => match Caller::from_signature(&parts.headers) {
            Some(caller) => Some(caller),
            None => return response::from_gateway(StatusCode::FORBIDDEN, "Forbidden"),
        },
    };
    let Some(function) = api.functions.get(&matched.route.function) else {
        return response::from_gateway(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error");
    };
    let Ok(body) = to_bytes(body, MAX_BODY_BYTES).await else {
        return response::from_gateway(StatusCode::PAYLOAD_TOO_LARGE, "Request Entity Too Large");
    };
    let event = event::build(&parts, &body, &matched, &raw_path, caller.as_ref(), peer);
    match tokio::time::timeout(INTEGRATION_TIMEOUT, function.invoke(&event)).await {
        Ok(Ok(response)) => response::from_function(&response),
        Ok(Err(error)) if !error.is_timeout() => {
            response::from_gateway(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
        }
        Ok(Err(_)) | Err(_) => response::from_gateway(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable"),
    }
}
