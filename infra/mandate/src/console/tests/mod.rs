//! The console's rules, over loopback: a browser's requests by hand, and an API that records what reaches it.

mod gate;
mod page;
mod routes;

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use aws_lc_rs::rand::SystemRandom;
use axum::{
    Router,
    body::Bytes,
    http::{Method, StatusCode, Uri},
    response::IntoResponse,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{Console, Mode, listen, router};
use crate::api::{Api, Target};

const TENANT: &str = "c0c0a000-1111-4111-8111-c0c0a0000001";
const INVITATION: &str = "0b7c5a52-58b2-4d6c-9a44-8d6b0c6f0a11";

/// The requests that reached the API: method, path with query, body.
type Calls = Arc<Mutex<Vec<(String, String, String)>>>;

/// A console on a free port, in front of an API that records its calls.
struct Stage {
    port: u16,
    /// The name that is new with this start.
    name: String,
    token: String,
    /// The path of the page.
    page: String,
    calls: Calls,
}

/// One browser: what it sends with each request.
#[derive(Clone, Default)]
struct Browser {
    cookie: String,
    key: String,
}

struct Response {
    status: u16,
    head: String,
    body: String,
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn code(&self) -> String {
        self.json()["code"].as_str().unwrap().to_owned()
    }
}

/// The response of the API. It sends more than it should, as an API of another version might.
fn api_response(method: &Method, path: &str) -> axum::response::Response {
    let invitation = json!({"invitation_id": INVITATION, "customer": "Contoso", "status": "open", "consent_url": "https://p/consent/x"});
    let tenant = json!({"tenant_id": TENANT, "customer": "Contoso", "status": "active"});
    match (method.as_str(), path) {
        ("GET", "/tenants") => axum::Json(json!({"tenants": [tenant], "next": null})).into_response(),
        ("GET", "/invitations") => axum::Json(json!({"invitations": [invitation], "next": null})).into_response(),
        ("POST", "/invitations") => (StatusCode::CREATED, axum::Json(invitation)).into_response(),
        ("POST", "/hunting") => {
            (StatusCode::ACCEPTED, axum::Json(json!({"hunt_id": "hunt-1", "status": "running"}))).into_response()
        }
        ("GET", "/tenants/unknown") => {
            let body = json!({"code": "not_found", "title": "Not found", "detail": "There is no such tenant."});
            (StatusCode::NOT_FOUND, axum::Json(body)).into_response()
        }
        ("DELETE", path) if !path.starts_with("/tenants") => StatusCode::NO_CONTENT.into_response(),
        _ => axum::Json(tenant).into_response(),
    }
}

/// Starts an API that records its calls, and returns its port.
async fn start_api(calls: Calls) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let record = move |method: Method, uri: Uri, body: Bytes| async move {
        let body = String::from_utf8(body.to_vec()).unwrap();
        calls.lock().unwrap().push((method.to_string(), uri.to_string(), body));
        api_response(&method, uri.path())
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(record)).await });
    port
}

async fn start_before(api_port: u16, mode: Mode, calls: Calls) -> Stage {
    let target = Target { api: Some(format!("http://127.0.0.1:{api_port}")), ..Target::default() };
    let api = Api::connect(&target).await.unwrap();
    let (mut listeners, port) = listen(0).await.unwrap();
    let console = Console::new(api, mode, port, &SystemRandom::new()).unwrap();
    let (name, token, page) = (console.name.clone(), console.pass.token().to_owned(), console.page.clone());
    tokio::spawn(async move { axum::serve(listeners.remove(0), router(console)).await });
    Stage { port, name, token, page, calls }
}

async fn start(mode: Mode) -> Stage {
    let calls = Calls::default();
    start_before(start_api(Arc::clone(&calls)).await, mode, calls).await
}

impl Stage {
    /// The path of a file of the page.
    fn file(&self, name: &str) -> String {
        format!("{}{name}", self.page)
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Sends one request with exactly these headers.
    async fn raw(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Response {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.unwrap();
        let head: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let (head, length) = (head.concat(), body.len());
        let request =
            format!("{method} {target} HTTP/1.1\r\nconnection: close\r\ncontent-length: {length}\r\n{head}\r\n{body}");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        connection.read_to_end(&mut response).await.unwrap();
        let response = String::from_utf8(response).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        Response { status: head[9..12].parse().unwrap(), head: head.to_owned(), body: body.to_owned() }
    }

    /// Sends a request as the page's script does.
    async fn send(&self, browser: &Browser, method: &str, target: &str, body: Option<&Value>) -> Response {
        let (host, origin) = (self.host(), format!("http://{}", self.host()));
        let mut headers =
            vec![("host", host.as_str()), ("cookie", &browser.cookie), ("x-mandate-console", &browser.key)];
        headers.push(("sec-fetch-site", "same-origin"));
        let body = body.map(Value::to_string);
        if body.is_some() {
            headers.extend([("content-type", "application/json"), ("origin", origin.as_str())]);
        }
        self.raw(method, target, &headers, body.as_deref().unwrap_or_default()).await
    }

    /// Opens the printed address and gets the page's key.
    async fn enter(&self) -> Browser {
        let response = self.raw("GET", &format!("/?token={}", self.token), &[("host", &self.host())], "").await;
        assert_eq!(response.status, 303);
        let cookie = response.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        let browser = Browser { cookie, ..Browser::default() };
        let response = self.send(&browser, "POST", "/session/key", Some(&json!({}))).await;
        Browser { key: response.json()["key"].as_str().unwrap().to_owned(), ..browser }
    }

    fn calls(&self) -> Vec<(String, String, String)> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

/// Every change that the page can make, with a body that the server accepts.
fn changes() -> Vec<(&'static str, String, Value)> {
    let customer = json!({"customer": "Contoso"});
    let tenant = format!("/api/tenants/{TENANT}");
    vec![
        ("POST", format!("{tenant}/pause"), customer.clone()),
        ("POST", format!("{tenant}/resume"), customer.clone()),
        ("POST", format!("{tenant}/sync"), json!({"customer": "Contoso", "kind": "sweep"})),
        ("DELETE", format!("{tenant}/sync/job-1"), customer.clone()),
        ("DELETE", tenant, customer.clone()),
        ("POST", "/api/invitations".into(), customer.clone()),
        ("DELETE", format!("/api/invitations/{INVITATION}"), customer),
    ]
}
