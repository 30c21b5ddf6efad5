//! Defects of known connectors, acted out between the product and the simulator: what the product asks for is answered
//! as if it had asked as they do.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use shared::http::{Deadline, HttpClient, send};

/// The defect of a connector's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectorDefect {
    /// For what was updated after the last time, not at it.
    StrictlyAfter,
    /// Page by page with `$skip`, while rows move.
    BySkip,
    /// A page without rows is the last one.
    EmptyPageEnds,
    /// A page with fewer rows than asked for is the last one.
    ShortPageEnds,
}

/// Rows of a page that is skipped.
const PAGE: usize = 5;

#[derive(Clone)]
struct Relay {
    outbound: HttpClient,
    target: String,
    defect: ConnectorDefect,
    /// Called between the first page and the second.
    moves: Arc<dyn Fn(&Value) + Send + Sync>,
}

/// Starts a relay to `target` and returns its URL.
pub(super) async fn start(target: String, defect: ConnectorDefect, moves: Arc<dyn Fn(&Value) + Send + Sync>) -> String {
    let relay = Relay { outbound: HttpClient::default(), target, defect, moves };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| stream.set_nodelay(true).unwrap());
    let router = Router::new().fallback(serve).with_state(relay);
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

impl Relay {
    async fn get(&self, path: &str, headers: &HeaderMap) -> (StatusCode, Option<String>, Vec<u8>) {
        let request = self.outbound.get(format!("{}{path}", self.target).parse().unwrap());
        let request = request.header("authorization", &headers["authorization"]);
        let answer = send(
            request,
            shared::error::Call::ListIncidents,
            Deadline::within(Duration::from_secs(20), &shared::clock::Clock::system()),
        )
        .await
        .unwrap();
        let date = answer.header(http::header::DATE).map(str::to_owned);
        let (status, mut answer, mut bytes) = (answer.status(), answer, Vec::new());
        while let Some(chunk) = answer.chunk().await.unwrap() {
            bytes.extend_from_slice(&chunk);
        }
        (status, date, bytes)
    }
}

async fn serve(State(relay): State<Relay>, uri: Uri, headers: HeaderMap) -> Response {
    let asked = uri.path_and_query().unwrap().as_str();
    let is_list = uri.path().ends_with("/incidents");
    let top = asked.split_once("$top=").and_then(|(_, rest)| rest.split('&').next()?.parse::<usize>().ok());
    let (status, date, body) = match (relay.defect, top) {
        (ConnectorDefect::BySkip, Some(top)) if is_list && top > PAGE && !asked.contains("$skip=") => {
            let mut rows: Vec<Value> = Vec::new();
            loop {
                let page = asked.replace(&format!("$top={top}"), &format!("$top={PAGE}&$skip={}", rows.len()));
                let (status, date, body) = relay.get(&page, &headers).await;
                let Some(mut page) = serde_json::from_slice::<Value>(&body).ok().filter(|_| status.is_success()) else {
                    break (status, date, body);
                };
                let more = page["value"].as_array_mut().map(std::mem::take).unwrap_or_default();
                let full = more.len() == PAGE;
                if rows.is_empty() && full {
                    (relay.moves)(&more[0]);
                }
                rows.extend(more);
                if !full || rows.len() >= top {
                    let collection = serde_json::json!({"value": rows}).to_string();
                    break (status, date, collection.into_bytes());
                }
            }
        }
        (ConnectorDefect::StrictlyAfter, _) if is_list => {
            relay.get(&asked.replace("%20ge%20", "%20gt%20"), &headers).await
        }
        (ConnectorDefect::EmptyPageEnds | ConnectorDefect::ShortPageEnds, Some(top)) if is_list => {
            let (status, date, body) = relay.get(asked, &headers).await;
            (status, date, ended_early(relay.defect, top, asked.contains("$skip="), &body).unwrap_or(body))
        }
        _ => relay.get(asked, &headers).await,
    };
    let mut answer = (status, [("content-type", "application/json")], body).into_response();
    if let Some(date) = date {
        answer.headers_mut().insert("date", date.parse().unwrap());
    }
    answer
}

/// A page as it looks to a connector that takes it for the last one.
fn ended_early(defect: ConnectorDefect, top: usize, is_later_page: bool, body: &[u8]) -> Option<Vec<u8>> {
    let mut page: Value = serde_json::from_slice(body).ok()?;
    let rows = page["value"].as_array_mut()?;
    let ends = match defect {
        ConnectorDefect::EmptyPageEnds => rows.is_empty(),
        ConnectorDefect::ShortPageEnds => {
            if is_later_page {
                // This connector would not have asked.
                rows.truncate(1);
            }
            rows.len() < top
        }
        ConnectorDefect::StrictlyAfter | ConnectorDefect::BySkip => false,
    };
    if ends {
        page.as_object_mut()?.remove("@odata.nextLink");
    }
    Some(page.to_string().into_bytes())
}
