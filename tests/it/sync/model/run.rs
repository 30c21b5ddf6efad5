//! Runs a history: Microsoft, AWS, a schedule, a queue and two workers, on a clock that is moved by hand.
//!
//! Long, because one history needs all of its parts: the actors, the schedule, the clock and the final comparison.

mod looks;
mod microsoft;
mod operator;
mod settle;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_config::SdkConfig;
use aws_double::{Account, Aws, AwsFault, BUCKET, BUS, Defects, FaultPosition, QUEUE_URL, TABLE};
use incident_dispatch::App as Dispatch;
use incident_fetch::App as Fetch;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    http::HttpClient,
    lambda::runtime::Platform,
    microsoft::IncidentApi,
    registry::{Registry, jobs::JobKind, tenants::Status},
    tenant::TenantId,
};
use sim::{App, Limits, Sim, SimOptions, TenantSeed};

use super::{
    history::{History, Profile, Step, TickWorkers},
    oracle,
    relay::{self, ConnectorDefect},
};
use crate::{
    backends::{CLIENT_ID, platform},
    sync::harness::{active, invocation, start_of_test},
};

const SECRET: &str = "canary-client-secret";

/// The overlap of polls, by the interface.
const OVERLAP: SignedDuration = SignedDuration::from_secs(900);

/// A defect that the model must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PlantedDefect {
    StrictGt,
    SkipPaging,
    CursorBeforeS3,
    NoOverlap,
    NoFence,
    EmptyPageEnds,
    ShortPageEnds,
    ForgottenPosition,
    CursorPastReading,
    ForgottenThrottling,
    ForgottenCalls,
    IgnoredRefusedEvents,
    SkippedIncidentEvents,
    CountsApart,
    IgnoredPause,
    OverwrittenCancellation,
}

/// The servers that histories share. Histories run one after another.
pub(super) struct ModelHarness {
    sim: Sim,
    aws: Aws,
    config: SdkConfig,
    outbound: HttpClient,
    lives: u32,
    runs: u32,
}

/// One version that Microsoft could have shown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    pub(super) last_update: Timestamp,
    pub(super) status: String,
    pub(super) redirect: Option<u64>,
    pub(super) alerts: BTreeSet<String>,
}

/// The versions that Microsoft could have shown, by incident, in their order.
pub(super) type Ledger = BTreeMap<String, Vec<Version>>;

/// The end of a history, for the oracle.
pub(super) struct Outcome {
    pub(super) tenant: String,
    pub(super) history: History,
    pub(super) ledger: Ledger,
    /// The incidents that Microsoft shows at the end.
    pub(super) present: BTreeMap<String, Version>,
    pub(super) objects: Vec<(String, Vec<u8>)>,
    pub(super) events: Vec<(String, Value)>,
    /// The numbers of open incidents by severity.
    pub(super) open_counts: BTreeMap<String, usize>,
    /// The incidents that are marked as open, with their severities.
    pub(super) open_marks: BTreeMap<String, String>,
    /// Found while it ran.
    pub(super) wrong: Vec<String>,
    pub(super) acted_faults: Vec<String>,
    /// The tenant was moved to the other API.
    pub(super) switched: bool,
    /// Something was changed under its old time.
    pub(super) silent: bool,
    pub(super) is_offboarded: bool,
}

#[derive(Clone)]
struct Worker {
    life: String,
    app: Fetch,
    /// The time of an invocation.
    time: Duration,
}

impl Worker {
    async fn hand_over(&self, id: &str, body: &str) -> Value {
        let records = json!({"Records": [{"messageId": id, "body": body, "eventSource": "aws:sqs"}]});
        self.app.handle(records, invocation(self.time)).await.unwrap()
    }
}

struct Run<'a> {
    harness: &'a mut ModelHarness,
    history: History,
    tenant: TenantId,
    id: String,
    clock: Clock,
    api: IncidentApi,
    hosts: [String; 2],
    overlap: &'static str,
    workers: Vec<Worker>,
    dispatch: (String, Dispatch),
    ledger: Arc<Mutex<Ledger>>,
    ids: Vec<String>,
    turn: usize,
    wrong: Vec<String>,
    /// The number of versions that appeared only behind the overlap, so that only a sweep finds them. `None`: any number,
    /// because Microsoft's responses were untrue.
    for_sweeps: Option<u64>,
    /// Since when a poll waits to go on.
    interrupted_since: Option<Timestamp>,
    switched: bool,
    silent: bool,
    /// As the operator has set it.
    status: Status,
    /// The jobs that the operator has cancelled.
    cancelled: Vec<String>,
    /// The wakes in a row that read something and changed nothing.
    idle_wakes: u32,
}

impl ModelHarness {
    pub(super) async fn start() -> Self {
        let sim = Sim::start(SimOptions::default()).await.unwrap();
        sim.register_app(App {
            client_id: CLIENT_ID.into(),
            client_secrets: vec![SECRET.into()],
            requested_roles: vec!["SecurityIncident.Read.All".into(), "Incident.Read.All".into()],
            ..App::default()
        });
        let aws = Aws::start(start_of_test).await.unwrap();
        let config = aws_double::base_config().await;
        Self { sim, aws, config, outbound: HttpClient::default(), lives: 0, runs: 0 }
    }

    /// Runs a history to its end and returns all that is wrong with it.
    pub(super) async fn judge(&mut self, history: &History, planted: Option<PlantedDefect>) -> Vec<String> {
        let mut run = Run::start(self, history.clone(), planted).await;
        for step in &history.steps {
            run.step(step).await;
        }
        run.settle().await;
        oracle::judge(&run.outcome())
    }

    fn life(&mut self, tries: u32) -> (String, SdkConfig) {
        self.lives += 1;
        let life = format!("life-{}", self.lives);
        let config = self.aws.config_of(&self.config, &life, tries);
        (life, config)
    }
}

impl<'a> Run<'a> {
    async fn start(harness: &'a mut ModelHarness, history: History, planted: Option<PlantedDefect>) -> Self {
        harness.runs += 1;
        let digit = harness.runs % 16;
        let id = format!("{digit:x}1111111-2222-4333-8444-{:012x}", harness.runs);
        let tenant: TenantId = id.parse().unwrap();
        let clock = Clock::by_hand(start_of_test());
        let defects = Defects {
            ignores_fence: planted == Some(PlantedDefect::NoFence),
            writes_objects_last: planted == Some(PlantedDefect::CursorBeforeS3),
            forgets_position: planted == Some(PlantedDefect::ForgottenPosition),
            covers_past_reading: planted == Some(PlantedDefect::CursorPastReading),
            forgets_throttling: planted == Some(PlantedDefect::ForgottenThrottling),
            forgets_calls: planted == Some(PlantedDefect::ForgottenCalls),
            ignores_refused_events: planted == Some(PlantedDefect::IgnoredRefusedEvents),
            skips_refused_incident_events: planted == Some(PlantedDefect::SkippedIncidentEvents),
            counts_apart: planted == Some(PlantedDefect::CountsApart),
            ignores_pause: planted == Some(PlantedDefect::IgnoredPause),
            ignores_cancellation: planted == Some(PlantedDefect::OverwrittenCancellation),
        };
        let now = clock.clone();
        harness.aws.reset(move || now.now(), defects);
        let credential = json!({"client_id": CLIENT_ID, "client_secret": SECRET});
        harness.aws.account().set_secret("secret", &credential);
        let sim = &harness.sim;
        sim.clear_faults();
        sim.clear_calls();
        sim.clock().freeze(start_of_test() - SignedDuration::from_secs(history.world.clock_ahead));
        set_up(harness, &history, &id, planted);
        let ledger: Arc<Mutex<Ledger>> = Arc::default();
        let hosts = hosts(&harness.sim, &id, &ledger, planted).await;
        let api = history.api;
        let (life, config) = harness.life(1);
        let registry = Registry::new(&config, TABLE.into());
        registry.create_tenant(&active(tenant, api)).await.unwrap();
        registry.open_feed(&tenant, clock.now()).await.unwrap();
        let dispatch = (life, dispatcher(&config, &clock));
        let mut run = Self {
            harness,
            history,
            tenant,
            id,
            clock,
            api,
            hosts,
            overlap: if planted == Some(PlantedDefect::NoOverlap) { "0" } else { "900" },
            workers: Vec::new(),
            dispatch,
            ledger,
            ids: Vec::new(),
            turn: 0,
            wrong: Vec::new(),
            for_sweeps: Some(0),
            interrupted_since: None,
            switched: false,
            silent: false,
            status: Status::Active,
            cancelled: Vec::new(),
            idle_wakes: 0,
        };
        for _ in 0..2 {
            let worker = run.worker();
            run.workers.push(worker);
        }
        run.clear_faults();
        run
    }

    /// The time by Microsoft's clock.
    fn microsoft_now(&self) -> Timestamp {
        self.harness.sim.clock().now()
    }

    /// A worker with nothing in memory.
    fn worker(&mut self) -> Worker {
        let (life, aws) = self.harness.life(self.history.tries);
        let fixed = [
            ("APP_CREDENTIAL_SECRET_ID", "secret"),
            ("ENTRA_AUTHORITY_HOST", self.harness.sim.entra_url()),
            ("GRAPH_ENDPOINT", &self.hosts[0]),
            ("DEFENDER_ENDPOINT", &self.hosts[1]),
            ("TABLE_NAME", TABLE),
            ("SYNC_QUEUE_URL", QUEUE_URL),
            ("INCIDENT_BUCKET", BUCKET),
            ("EVENT_BUS_NAME", BUS),
            ("POLL_OVERLAP_SECONDS", self.overlap),
            ("INCIDENT_EVENTS", if self.history.has_incident_events() { "summary" } else { "none" }),
        ];
        let lookup = |name: &str| fixed.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let config = shared::config::load(&lookup, incident_fetch::Config::read).unwrap();
        let platform = Platform { http: self.harness.outbound.clone(), ..platform(&aws, &self.clock) };
        Worker { life, app: Fetch::new(config, &platform), time: self.history.invocation_time() }
    }

    fn advance(&self, millis: i64) {
        self.clock.advance(SignedDuration::from_millis(millis));
        let ahead = SignedDuration::from_secs(self.history.world.clock_ahead);
        self.harness.sim.clock().freeze(self.clock.now() - ahead);
    }

    fn note(&self, incident: &str) {
        note(&self.harness.sim, &self.id, incident, &self.ledger);
    }

    fn covered_until(&self) -> Option<Timestamp> {
        let account = self.harness.aws.account();
        account.items("FEED").first()?.get("covered_until")?["S"].as_str()?.parse().ok()
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Create { .. } | Step::CreateFirst | Step::CreateInFuture { .. } => self.create(step),
            Step::Update { .. } | Step::Silent { .. } | Step::Merge { .. } | Step::Move { .. } | Step::Hide { .. } => {
                self.change(step);
            }
            Step::Microsoft(_) | Step::Poison { .. } => self.fail(step),
            Step::Backlog { ticks } => {
                for _ in 0..*ticks {
                    self.advance(60_000);
                    self.stand_in_for_dispatch("poll");
                }
            }
            Step::Heal => self.clear_faults(),
            Step::Switch => self.switch().await,
            Step::Tick { millis, workers, aws, dispatch } => {
                self.advance(*millis);
                self.tick("poll", *workers, aws, dispatch.as_deref()).await;
            }
            Step::Job { kind: JobKind::Sweep, workers } => self.tick("sweep", *workers, &[], None).await,
            Step::Job { kind: JobKind::Backfill | JobKind::Unknown(_), workers } => {
                self.tick("backfill", *workers, &[], None).await;
            }
        }
    }

    /// The schedule ticks, and what lies on the queue is worked on. With `dispatch` it ticks for the function; without, for
    /// a stand-in of it, which needs no request.
    async fn tick(
        &mut self,
        kind: &str,
        mut workers: TickWorkers,
        aws: &[(FaultPosition, AwsFault)],
        dispatch: Option<&[(FaultPosition, AwsFault)]>,
    ) {
        if self.status == Status::Offboarded {
            return self.tick_of_offboarded().await;
        }
        if self.status == Status::Paused && matches!(workers, TickWorkers::One) && self.turn.is_multiple_of(2) {
            self.resume().await;
        }
        let (before, calls_before) = (self.standing(), self.harness.sim.calls().len());
        let is_one = matches!(workers, TickWorkers::One);
        match dispatch {
            Some(plan) => self.dispatch(kind, plan).await,
            None => self.stand_in_for_dispatch(kind),
        }
        self.turn += 1;
        self.harness.aws.account().plan(&self.workers[self.turn % 2].life, aws.to_vec());
        for _ in 0..8 {
            let mut messages: Vec<(String, String)> = {
                let received = self.harness.aws.account().receive(usize::MAX);
                received.into_iter().map(|message| (message.id, message.body)).collect()
            };
            if messages.is_empty()
                && matches!(workers, TickWorkers::Two | TickWorkers::Overtaken(..) | TickWorkers::Operated(..))
            {
                messages.push(("extra".into(), self.poll()));
            }
            if messages.is_empty() {
                break;
            }
            for (id, body) in messages {
                match std::mem::replace(&mut workers, TickWorkers::One) {
                    TickWorkers::One => {
                        let answer = self.workers[self.turn % 2].hand_over(&id, &body).await;
                        self.ended(self.turn % 2, &id, &answer);
                    }
                    TickWorkers::Two => {
                        let [one, two] = &self.workers[..] else { panic!("there are two workers") };
                        let (one, two) = tokio::join!(one.hand_over(&id, &body), two.hand_over(&id, &body));
                        self.ended(0, &id, &one);
                        self.ended(1, &id, &two);
                    }
                    TickWorkers::Overtaken(request, fault) => self.overtaken(&id, &body, request, fault).await,
                    TickWorkers::Operated(request, action) => self.operated(&id, &body, request, action).await,
                }
            }
        }
        self.look();
        self.look_at_progress(&before, calls_before);
        self.look_at_throttling(calls_before, is_one && aws.is_empty());
    }

    /// Does for the tenant what `incident-dispatch` would do.
    fn stand_in_for_dispatch(&self, kind: &str) {
        let now = self.clock.now();
        let mut account = self.harness.aws.account();
        // An offboarded tenant has none.
        let Some(feed) = account.item_mut(&format!("TENANT#{}", self.id), "FEED") else { return };
        let due = feed.get("due_at").and_then(|due| due["N"].as_str()?.parse::<i64>().ok());
        let Some(due) = due.filter(|_| feed.contains_key("due_shard")) else { return };
        if kind == "poll" && due > now.as_millisecond() {
            return;
        }
        let mut message = json!({"tenant_id": self.id, "kind": kind});
        if kind == "backfill" {
            message["from"] = json!((now - SignedDuration::from_hours(48)).to_string());
        }
        account.enqueue(&self.id, &message.to_string(), SignedDuration::ZERO);
    }

    async fn dispatch(&mut self, kind: &str, plan: &[(FaultPosition, AwsFault)]) {
        self.harness.aws.account().plan(&self.dispatch.0, plan.to_vec());
        // The next tick makes up for a failure.
        let _ = self.dispatch.1.handle(json!({"kind": kind}), invocation(Duration::from_secs(20))).await;
        if !self.harness.aws.account().end_invocation(&self.dispatch.0) {
            let (life, config) = self.harness.life(1);
            self.dispatch = (life, dispatcher(&config, &self.clock));
        }
    }

    fn poll(&self) -> String {
        json!({"tenant_id": self.id, "kind": "poll"}).to_string()
    }

    /// One worker sleeps until its lease has passed to the other, which does all that is to do; then the first goes on.
    async fn overtaken(&mut self, id: &str, body: &str, request: u32, fault: AwsFault) {
        let sleeper = self.turn % 2;
        let (worker, aws) = (self.workers[sleeper].clone(), self.harness.aws.clone());
        aws.account().plan(&worker.life, vec![(FaultPosition::Request(request), fault)]);
        let mut sleeping = std::pin::pin!(worker.hand_over(id, body));
        let answer = tokio::select! {
            answer = &mut sleeping => answer,
            () = aws.held() => {
                self.advance(45_000);
                let other = self.workers[1 - sleeper].hand_over("other", &self.poll()).await;
                self.ended(1 - sleeper, "other", &other);
                aws.release();
                sleeping.await
            }
        };
        self.ended(sleeper, id, &answer);
    }

    fn ended(&mut self, worker: usize, id: &str, answer: &Value) {
        if !self.harness.aws.account().end_invocation(&self.workers[worker].life) {
            self.workers[worker] = self.worker();
            return;
        }
        if answer["batchItemFailures"] == json!([]) {
            self.harness.aws.account().delete_message(id);
        } else if self.history.profile == Profile::Calm {
            self.wrong.push(format!("message {id} failed although nothing was wrong"));
        }
    }

    fn outcome(mut self) -> Outcome {
        self.ask_in_time();
        self.stay_within_limits();
        let present = self.present();
        let sim = &self.harness.sim;
        sim.remove_tenant(&self.id);
        for id in &self.cancelled {
            let account = self.harness.aws.account();
            let jobs = account.items(&format!("JOB#{id}"));
            if self.status != Status::Offboarded && jobs.iter().any(|job| job["status"]["S"] != "cancelled") {
                self.wrong.push(format!("a job was cancelled and went on: {jobs:?}"));
            }
        }
        let mut account = self.harness.aws.account();
        self.wrong.append(&mut account.regressions);
        Outcome {
            tenant: self.id.clone(),
            ledger: self.ledger.lock().unwrap().clone(),
            present,
            objects: account.objects.iter().map(|object| (object.key.clone(), object.body.to_vec())).collect(),
            events: std::mem::take(&mut account.events)
                .into_iter()
                .map(|event| (event.detail_type, event.detail))
                .collect(),
            open_counts: open_counts(&account),
            open_marks: open_marks(&account),
            wrong: self.wrong,
            acted_faults: std::mem::take(&mut account.acted_faults),
            switched: self.switched,
            silent: self.silent,
            is_offboarded: self.status == Status::Offboarded,
            history: self.history,
        }
    }

    /// The incidents that Microsoft shows and that belong to the feed.
    fn present(&self) -> BTreeMap<String, Version> {
        let begin = start_of_test() - SignedDuration::from_hours(24);
        let shown = |incident: &sim::Incident| !incident.hidden && incident.last_update >= begin;
        let incidents = self.harness.sim.incidents(&self.id).into_iter().filter(shown);
        incidents.map(|incident| (incident.id.to_string(), Version::of(&incident))).collect()
    }
}

/// The counts in the registry that are not zero.
fn open_counts(account: &Account) -> BTreeMap<String, usize> {
    let items = account.items("OPEN");
    let attributes = items.iter().flat_map(|item| item.iter()).filter(|(name, _)| *name != "schema");
    let counts = attributes.filter_map(|(name, value)| Some((name.clone(), value["N"].as_str()?.parse().unwrap())));
    counts.filter(|(_, count)| *count != 0).collect()
}

/// The marks in the registry, by incident.
fn open_marks(account: &Account) -> BTreeMap<String, String> {
    let blocks = account.items("VERSIONS#");
    let attributes = blocks.iter().flat_map(|block| block.iter());
    let mark =
        |(name, value): (&String, &Value)| Some((name.strip_prefix('o')?.to_owned(), value["S"].as_str()?.to_owned()));
    attributes.filter_map(mark).collect()
}

impl Version {
    fn of(incident: &sim::Incident) -> Self {
        Self {
            last_update: incident.last_update,
            status: incident.status.to_ascii_lowercase(),
            redirect: incident.redirect_incident_id,
            alerts: incident.alerts.iter().map(|alert| alert.id.clone()).collect(),
        }
    }
}

fn note(sim: &Sim, tenant: &str, incident: &str, ledger: &Mutex<Ledger>) {
    let known = sim.incident(tenant, incident).unwrap();
    let mut ledger = ledger.lock().unwrap();
    let versions = ledger.entry(incident.to_owned()).or_default();
    let version = Version::of(&known);
    if known.alerts_visible_from.is_some_and(|from| from > sim.clock().now()) {
        versions.push(Version { alerts: BTreeSet::new(), ..version.clone() });
    }
    versions.push(version);
}

fn dispatcher(aws: &SdkConfig, clock: &Clock) -> Dispatch {
    let lookup = |name: &str| match name {
        "TABLE_NAME" => Some(TABLE.to_owned()),
        "SYNC_QUEUE_URL" => Some(QUEUE_URL.to_owned()),
        _ => None,
    };
    Dispatch::new(shared::config::load(&lookup, incident_dispatch::Config::read).unwrap(), &platform(aws, clock))
}

/// Makes the world of a history at Microsoft.
fn set_up(harness: &ModelHarness, history: &History, id: &str, planted: Option<PlantedDefect>) {
    let sim = &harness.sim;
    let world = &history.world;
    sim.configure(|behaviour| {
        *behaviour = sim::Behaviour::default();
        for list in [&mut behaviour.graph, &mut behaviour.defender] {
            (list.order, list.shuffle_ties) = (world.order, world.shuffle_ties);
            (list.page_size, list.empty_pages) = (world.pages.map(|pages| pages.0), world.empty_pages);
            if let Some((_, link)) = world.pages {
                list.next_link = link;
            }
            if planted == Some(PlantedDefect::SkipPaging) {
                (list.order, list.shuffle_ties) = (sim::Order::UpdatedAscending, false);
            }
        }
    });
    sim.add_tenant(TenantSeed {
        tenant_id: id.to_owned(),
        domain: format!("t{}.example", harness.runs),
        ..TenantSeed::default()
    });
    sim.grant(id, CLIENT_ID, &[IncidentApi::Graph.write_role(), IncidentApi::Defender.write_role()]);
    for host in [sim::Host::Graph, sim::Host::Defender] {
        sim.set_limits(host, Some(id), Limits { per_minute: world.calls_per_minute, ..Limits::default() });
    }
}

/// The URLs of both APIs, of relays where one acts out the planted defect.
async fn hosts(sim: &Sim, id: &str, ledger: &Arc<Mutex<Ledger>>, planted: Option<PlantedDefect>) -> [String; 2] {
    let mut hosts = [sim.graph_url().to_owned(), sim.defender_url().to_owned()];
    let defect = match planted {
        Some(PlantedDefect::StrictGt) => Some(ConnectorDefect::StrictlyAfter),
        Some(PlantedDefect::SkipPaging) => Some(ConnectorDefect::BySkip),
        Some(PlantedDefect::EmptyPageEnds) => Some(ConnectorDefect::EmptyPageEnds),
        Some(PlantedDefect::ShortPageEnds) => Some(ConnectorDefect::ShortPageEnds),
        _ => None,
    };
    if let Some(defect) = defect {
        for host in &mut hosts {
            let (sim, ledger, id, left) = (sim.clone(), ledger.clone(), id.to_owned(), Mutex::new(2));
            let moves = move |row: &Value| {
                let incident = row.get("id").or(row.get("incidentId")).unwrap();
                let incident = incident.as_str().map_or_else(|| incident.to_string(), str::to_owned);
                let mut left = left.lock().unwrap();
                if *left > 0 {
                    *left -= 1;
                    sim.update_incident(&id, &incident, |incident| incident.assigned_to = Some("ada".into()));
                    note(&sim, &id, &incident, &ledger);
                }
            };
            *host = relay::start(host.clone(), defect, Arc::new(moves)).await;
        }
    }
    hosts
}
