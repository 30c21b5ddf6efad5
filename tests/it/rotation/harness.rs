//! The function with its neighbours, and relays between them that count each call.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_double::{Aws, secret_arn};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, Uri},
    response::{IntoResponse, Response},
};
use secret_rotation::{App, Config};
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    http::{Deadline, HttpClient, send},
    lambda::event::Invocation,
    microsoft::{Cloud, Endpoints, Microsoft},
};
use sim::{App as Registration, Sim, SimOptions, TenantSeed};
use tokio::sync::Notify;

pub(super) const HOME: &str = "99999999-2222-4333-8444-abcdefabcdef";
pub(super) const CLIENT: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const ROTATOR: &str = "bbbbbbbb-0000-4000-8000-000000000001";

/// Relays between the function and its neighbours, which count each call.
pub(super) struct CallRelay {
    pub(super) sim: Sim,
    outbound: HttpClient,
    calls: Mutex<usize>,
    /// The call that takes effect but never gets a response.
    pub(super) last_call: Mutex<Option<usize>>,
    pub(super) reached: Notify,
    pub(super) aws: Aws,
}

pub(super) struct RotationHarness {
    pub(super) relay: Arc<CallRelay>,
    app: App,
}

impl RotationHarness {
    pub(super) async fn start(last_call: Option<usize>, rotates: bool) -> Self {
        let sim = Sim::start(SimOptions::default()).await.unwrap();
        sim.add_tenant(TenantSeed { tenant_id: HOME.into(), ..TenantSeed::default() });
        for (client_id, secret, owners) in [(CLIENT, "first", vec![ROTATOR.to_owned()]), (ROTATOR, "rotator", vec![])] {
            sim.register_app(Registration {
                client_id: client_id.into(),
                home_tenant_id: HOME.into(),
                client_secrets: vec![secret.into()],
                owners,
                ..Registration::default()
            });
        }
        sim.grant(HOME, CLIENT, &["SecurityIncident.Read.All"]);
        sim.grant(HOME, ROTATOR, &["Application.ReadWrite.OwnedBy"]);
        let aws = Aws::start(|| Clock::system().now()).await.unwrap();
        {
            let mut account = aws.account();
            account.set_secret("app", &json!({"client_id": CLIENT, "client_secret": "first", "note": "kept"}));
            account.set_rotation("app", rotates);
            account.set_secret("rotator", &json!({"client_id": ROTATOR, "client_secret": "rotator"}));
        }
        let config = aws.config().await;
        let relay = Arc::new(CallRelay {
            sim,
            outbound: HttpClient::default(),
            calls: Mutex::new(0),
            last_call: Mutex::new(last_call),
            reached: Notify::new(),
            aws,
        });
        let authority = listen(Router::new().fallback(to_entra).with_state(relay.clone())).await;
        let graph = listen(Router::new().fallback(to_graph).with_state(relay.clone())).await;
        let aws = listen(Router::new().fallback(to_aws).with_state(relay.clone())).await;
        let aws = config.to_builder().endpoint_url(aws).build();
        let config = Config {
            microsoft: Microsoft {
                app_credential_secret_id: "app".into(),
                cloud: Cloud::Commercial,
                endpoints: Endpoints {
                    authority: authority.parse().unwrap(),
                    graph: graph.parse().unwrap(),
                    ..Cloud::Commercial.endpoints()
                },
                home_tenant: Some(HOME.parse().unwrap()),
                function_name: None,
            },
            rotation_credential_secret_id: "rotator".into(),
            home_tenant: HOME.parse().unwrap(),
        };
        let app = App::new(config, &crate::backends::platform(&aws, &Clock::system()));
        Self { relay, app }
    }

    pub(super) async fn step(&self, step: &str, token: &str) -> Result<Value, String> {
        self.send(
            json!({"Step": step, "SecretId": secret_arn("app"), "ClientRequestToken": token, "RotationToken": "x"}),
        )
        .await
    }

    pub(super) async fn send(&self, event: Value) -> Result<Value, String> {
        let deadline = Deadline::within(Duration::from_secs(20), &shared::clock::Clock::system());
        let invocation = Invocation { request_id: "r".into(), deadline };
        self.app.handle(event, invocation).await.map_err(|failure| failure.code.to_owned())
    }

    /// Rotates as Secrets Manager does: a pending version, then the four steps.
    pub(super) async fn rotate(&self, token: &str) -> Result<(), String> {
        {
            let mut account = self.relay.aws.account();
            let is_finished = account.secret("app", "AWSCURRENT").is_some_and(|(version, _)| version == token);
            if !is_finished {
                account.stage_secret("app", "AWSPENDING", token);
            }
        }
        for step in ["createSecret", "setSecret", "testSecret", "finishSecret"] {
            self.step(step, token).await?;
        }
        Ok(())
    }

    pub(super) fn value(&self, stage: &str) -> Value {
        let (_, version) = self.relay.aws.account().secret("app", stage).unwrap();
        serde_json::from_str(&version.value.unwrap()).unwrap()
    }

    pub(super) fn current_secret(&self) -> String {
        self.value("AWSCURRENT")["client_secret"].as_str().unwrap().to_owned()
    }

    /// Gives the app credential another value, as an operator does by hand.
    pub(super) fn put_by_hand(&self, value: &Value) {
        self.relay.aws.account().set_secret("app", value);
    }

    pub(super) fn stage_pending(&self, token: &str) {
        self.relay.aws.account().stage_secret("app", "AWSPENDING", token);
    }

    pub(super) fn registered(&self) -> Vec<String> {
        self.relay.sim.client_secrets(CLIENT)
    }
}

async fn listen(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

impl CallRelay {
    /// Passes a response on, or leaves the caller of the last call waiting for ever.
    async fn pass_on(&self, response: Response) -> Response {
        let number = {
            let mut calls = self.calls.lock().unwrap();
            *calls += 1;
            *calls
        };
        let is_last = *self.last_call.lock().unwrap() == Some(number);
        if is_last {
            self.reached.notify_one();
            std::future::pending::<()>().await;
        }
        response
    }
}

async fn to_entra(
    State(relay): State<Arc<CallRelay>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let response = forward(&relay, relay.sim.entra_url(), &method, &uri, &headers, body).await;
    relay.pass_on(response).await
}

async fn to_graph(
    State(relay): State<Arc<CallRelay>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let response = forward(&relay, relay.sim.graph_url(), &method, &uri, &headers, body).await;
    relay.pass_on(response).await
}

async fn to_aws(
    State(relay): State<Arc<CallRelay>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let response = forward(&relay, relay.aws.endpoint(), &method, &uri, &headers, body).await;
    relay.pass_on(response).await
}

async fn forward(
    relay: &CallRelay,
    origin: &str,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: Bytes,
) -> Response {
    let url = format!("{origin}{uri}").parse().unwrap();
    let mut request = if method == Method::GET { relay.outbound.get(url) } else { relay.outbound.post(url).body(body) };
    for name in ["authorization", "content-type", "x-amz-target"] {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value);
        }
    }
    let response = send(
        request,
        shared::error::Call::GetApplication,
        Deadline::within(Duration::from_secs(10), &shared::clock::Clock::system()),
    )
    .await
    .unwrap();
    (response.status(), [("content-type", "application/json")], response.bytes().await.unwrap()).into_response()
}
