//! `secret-rotation` against Microsoft and a Secrets Manager that is strict about versions and stages, killed after each
//! of its calls.

use std::{
    collections::BTreeSet,
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
    error::Call,
    http::{Deadline, HttpClient, send},
    lambda::event::Invocation,
    microsoft::{Cloud, Endpoints, Microsoft},
};
use sim::{App as Registration, Sim, SimOptions, TenantSeed};
use tokio::sync::Notify;

const HOME: &str = "99999999-2222-4333-8444-abcdefabcdef";
const CLIENT: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const ROTATOR: &str = "bbbbbbbb-0000-4000-8000-000000000001";

/// What the function speaks to, each call counted.
struct Road {
    sim: Sim,
    outbound: HttpClient,
    calls: Mutex<usize>,
    /// The call that takes effect but is never answered.
    last_call: Mutex<Option<usize>>,
    reached: Notify,
    aws: Aws,
}

struct World {
    road: Arc<Road>,
    app: App,
}

impl World {
    async fn start(last_call: Option<usize>, rotates: bool) -> Self {
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
        let road = Arc::new(Road {
            sim,
            outbound: HttpClient::new().unwrap(),
            calls: Mutex::new(0),
            last_call: Mutex::new(last_call),
            reached: Notify::new(),
            aws,
        });
        let authority = listen(Router::new().fallback(to_entra).with_state(road.clone())).await;
        let graph = listen(Router::new().fallback(to_graph).with_state(road.clone())).await;
        let aws = listen(Router::new().fallback(to_aws).with_state(road.clone())).await;
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
            },
            rotation_credential_secret_id: "rotator".into(),
            home_tenant: HOME.parse().unwrap(),
        };
        let app = App::new(config, &crate::local::platform(&aws, &Clock::system()));
        Self { road, app }
    }

    async fn step(&self, step: &str, token: &str) -> Result<Value, String> {
        self.send(
            json!({"Step": step, "SecretId": secret_arn("app"), "ClientRequestToken": token, "RotationToken": "x"}),
        )
        .await
    }

    async fn send(&self, event: Value) -> Result<Value, String> {
        let deadline = Deadline::within(Duration::from_secs(20), &Clock::system());
        let invocation = Invocation { request_id: "r".into(), deadline };
        self.app.handle(event, invocation).await.map_err(|failure| failure.code.to_owned())
    }

    /// What Secrets Manager does: a pending version, then the four steps.
    async fn rotate(&self, token: &str) -> Result<(), String> {
        {
            let mut account = self.road.aws.account();
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

    fn value(&self, stage: &str) -> Value {
        let (_, version) = self.road.aws.account().secret("app", stage).unwrap();
        serde_json::from_str(&version.value.unwrap()).unwrap()
    }

    fn current_secret(&self) -> String {
        self.value("AWSCURRENT")["client_secret"].as_str().unwrap().to_owned()
    }

    fn registered(&self) -> Vec<String> {
        self.road.sim.client_secrets(CLIENT)
    }
}

async fn listen(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

impl Road {
    /// Answers, or leaves the caller of the last call waiting for ever.
    async fn answer(&self, response: Response) -> Response {
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
    State(road): State<Arc<Road>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let response = forward(&road, road.sim.entra_url(), &method, &uri, &headers, body).await;
    road.answer(response).await
}

async fn to_graph(
    State(road): State<Arc<Road>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let response = forward(&road, road.sim.graph_url(), &method, &uri, &headers, body).await;
    road.answer(response).await
}

async fn to_aws(State(road): State<Arc<Road>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let response = forward(&road, road.aws.endpoint(), &method, &uri, &headers, body).await;
    road.answer(response).await
}

async fn forward(road: &Road, origin: &str, method: &Method, uri: &Uri, headers: &HeaderMap, body: Bytes) -> Response {
    let url = format!("{origin}{uri}").parse().unwrap();
    let mut request = if method == Method::GET { road.outbound.get(url) } else { road.outbound.post(url).body(body) };
    for name in ["authorization", "content-type", "x-amz-target"] {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value);
        }
    }
    let answer =
        send(request, Call::GetApplication, Deadline::within(Duration::from_secs(10), &Clock::system())).await.unwrap();
    (answer.status(), [("content-type", "application/json")], answer.bytes().await.unwrap()).into_response()
}

#[tokio::test]
async fn each_round_brings_a_new_secret_and_removes_the_one_before_the_last() {
    let world = World::start(None, true).await;
    world.rotate("token-1").await.unwrap();
    let one = world.current_secret();
    assert_eq!(world.registered(), ["first", &one]);
    let value = world.value("AWSCURRENT");
    assert_eq!((value["client_id"].as_str(), value["note"].as_str()), (Some(CLIENT), Some("kept")));
    assert!(value["key_id"].is_string() && value["expires_at"].is_string());
    world.rotate("token-2").await.unwrap();
    let two = world.current_secret();
    world.rotate("token-3").await.unwrap();
    let three = world.current_secret();
    // What was made by hand has no key id in Secrets Manager, and stays for its maker to remove.
    assert_eq!(world.registered(), ["first", &two, &three]);
    assert_eq!(BTreeSet::from([one, two, three]).len(), 3);
}

#[tokio::test]
async fn killed_after_any_call_a_rotation_is_finished_by_the_next_run() {
    for last_call in 1.. {
        let world = World::start(Some(last_call), true).await;
        let finished = tokio::select! {
            outcome = world.rotate("token-1") => { outcome.unwrap(); true }
            () = world.road.reached.notified() => false,
        };
        *world.road.last_call.lock().unwrap() = None;
        assert!(world.registered().contains(&world.current_secret()), "what is current works at any moment");
        world.rotate("token-1").await.unwrap();
        let one = world.current_secret();
        assert_ne!(one, "first");
        assert_eq!(world.registered(), ["first", &one], "nothing is left behind, killed after call {last_call}");
        world.rotate("token-2").await.unwrap();
        assert_eq!(world.registered(), ["first", &one, &world.current_secret()]);
        if finished {
            assert!(last_call > 10, "a rotation has more calls than that");
            break;
        }
    }
}

#[tokio::test]
async fn a_new_secret_is_waited_for_until_entra_knows_it() {
    let world = World::start(None, true).await;
    world.road.sim.configure(|behaviour| behaviour.secret_propagation_seconds = 2);
    world.rotate("token-1").await.unwrap();
    assert_ne!(world.current_secret(), "first");
}

#[tokio::test]
async fn a_secret_that_gets_no_token_never_becomes_current() {
    let world = World::start(None, true).await;
    world.road.sim.revoke(HOME, CLIENT);
    assert_eq!(world.rotate("token-1").await.unwrap_err(), "tenant_not_active");
    assert_eq!(world.current_secret(), "first");
    // The next round takes away what this one left.
    world.road.sim.grant(HOME, CLIENT, &["SecurityIncident.Read.All"]);
    world.rotate("token-2").await.unwrap();
    assert_eq!(world.registered(), ["first", &world.current_secret()]);
}

#[tokio::test]
async fn a_schedule_is_set_up_with_a_test_before_there_is_anything_new() {
    let world = World::start(None, true).await;
    world.road.aws.account().stage_secret("app", "AWSPENDING", "trial");
    assert_eq!(world.step("testSecret", "trial").await, Ok(json!({})));
    assert_eq!(world.step("finishSecret", "trial").await.unwrap_err(), "internal");
    assert_eq!(world.current_secret(), "first");
}

#[tokio::test]
async fn events_that_secrets_manager_would_not_send_are_refused_without_a_change() {
    let world = World::start(None, true).await;
    let (current, _) = world.road.aws.account().secret("app", "AWSCURRENT").unwrap();
    assert_eq!(world.step("createSecret", "stranger").await.unwrap_err(), "invalid_request");
    assert_eq!(world.step("dropSecret", "token-1").await.unwrap_err(), "invalid_request");
    assert_eq!(world.step("createSecret", &current).await, Ok(json!({})), "what is current needs no step");
    let list = json!(["createSecret", secret_arn("app"), current]);
    assert_eq!(world.send(list).await.unwrap_err(), "invalid_request", "nor is a list an event");
    let off = World::start(None, false).await;
    assert_eq!(off.rotate("token-1").await.unwrap_err(), "invalid_request");
    assert_eq!((world.registered().len(), off.registered().len()), (1, 1));
}
