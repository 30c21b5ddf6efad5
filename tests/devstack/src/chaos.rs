//! `cargo dev --chaos`: each kind of fault of the simulator, faults of the AWS services that functions call, and killed
//! processes, one after the other, while incidents change, and an upgrade to a second build of the functions and back. At the
//! end each version that Microsoft shows must be delivered. A refused app credential has no part in it, because it stops all
//! tenants for minutes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use devstack::{Console, Failed, Progress as _, Release, Stack};
use jiff::Timestamp;
use serde_json::{Value, json};
use sim::{Fault, FaultKind, Host, RetryAfter, Sim};

use crate::{
    customers::{CONTOSO, Customer, FABRIKAM, NORTHWIND},
    journey,
    upgrade::{self, Begun},
};

const CUSTOMERS: [&Customer; 3] = [&CONTOSO, &FABRIKAM, &NORTHWIND];

/// The functions that sync.
const FUNCTIONS: [&str; 2] = ["incident-fetch", "incident-dispatch"];

/// The AADSTS number for a consent that is missing.
const CONSENT_MISSING: u32 = 65_001;

/// The number of requests that a fault hits. A client's own repetitions do not outlast it.
const HITS: u32 = 12;

/// The ticks while a fault lasts.
const TICKS: usize = 2;

/// The time that a fault lasts where somebody watches.
const FAULT_SECONDS: u32 = 15;

/// The name of the row of versions that were there before the first fault.
const BEFORE: &str = "(before the faults)";

/// The time after the last fault in which all must be delivered. Failures made the sync wait longer and longer.
const RECOVERY_TIMEOUT: Duration = Duration::from_mins(5);

/// The time between two ticks: the poll interval of the run.
const TICK_INTERVAL: Duration = Duration::from_millis(1100);

/// The effect of one fault.
enum Injection {
    Microsoft(Vec<Fault>, Reach),
    /// A service of AWS, and the kind of `aws_faults.py`.
    Aws(&'static str, &'static str),
    /// A function that is killed at work.
    Killed(&'static str),
    /// In the middle of polls, all processes are replaced by those of a later release, or of this one again.
    Release(Release),
}

/// The requests that a kind of fault is tried on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Those of each host, one host after the other.
    EachHost,
    /// Those of both incident APIs.
    IncidentApis,
    /// Requests for tokens. Processes keep tokens, so new ones are started.
    Tokens,
    /// Requests for tokens, with an outcome that pauses tenants. They must be resumed.
    Pause,
}

/// A new kind of fault does not compile without its reach.
fn reach(kind: &FaultKind) -> Reach {
    match kind {
        // Without `Retry-After`, Entra's 503 makes the whole tenant wait for a minute.
        FaultKind::Status { status: 503, headers, .. } if headers.is_empty() => Reach::IncidentApis,
        FaultKind::Throttle { retry_after: RetryAfter::Date(_) | RetryAfter::Body(_) | RetryAfter::Absent } => {
            Reach::IncidentApis
        }
        FaultKind::Status { .. }
        | FaultKind::Throttle { .. }
        | FaultKind::BadGateway
        | FaultKind::Reset
        | FaultKind::Hang { .. }
        | FaultKind::Truncate { .. }
        | FaultKind::Cut
        | FaultKind::SlowBody { .. } => Reach::EachHost,
        FaultKind::Latency { .. }
        | FaultKind::Rewrite { .. }
        | FaultKind::DateSkew { .. }
        | FaultKind::UnreadableDate
        | FaultKind::IgnoredFilter
        | FaultKind::ForeignNextLink { .. }
        | FaultKind::LoopingNextLink
        | FaultKind::EmptyPage
        | FaultKind::ExpiredSkiptoken
        | FaultKind::SilentCap { .. }
        | FaultKind::Stale { .. } => Reach::IncidentApis,
        FaultKind::Aadsts { code: CONSENT_MISSING } | FaultKind::MissingRoles => Reach::Pause,
        FaultKind::Aadsts { .. }
        | FaultKind::WrongTid { .. }
        | FaultKind::OpaqueToken
        | FaultKind::ExpiresInString
        | FaultKind::ExpiresIn { .. }
        | FaultKind::Claims { .. } => Reach::Tokens,
    }
}

/// Each kind of fault at Microsoft at least once, by name.
fn kinds() -> Vec<(FaultKind, &'static str)> {
    let header = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    let claim = |name: &str, value: &str| [(name.to_owned(), Value::from(value))].into_iter().collect();
    vec![
        (FaultKind::status(500), "500"),
        (FaultKind::Status { status: 503, body: None, headers: header("retry-after", "1") }, "503 with a wait"),
        (FaultKind::BadGateway, "502 as HTML"),
        (FaultKind::Throttle { retry_after: RetryAfter::Seconds(1) }, "429"),
        (FaultKind::Reset, "connection reset"),
        (FaultKind::Hang { millis: 400 }, "late response"),
        (FaultKind::Truncate { at: None }, "body ends early"),
        (FaultKind::Cut, "connection closes in the body"),
        (FaultKind::SlowBody { chunk: 512, millis: 20 }, "slow body"),
        (FaultKind::status(503), "503"),
        (FaultKind::Throttle { retry_after: RetryAfter::Date(1) }, "429 with a date"),
        (FaultKind::Throttle { retry_after: RetryAfter::Body(1) }, "429 with a wait in the body"),
        (FaultKind::Latency { least_millis: 50, most_millis: 400 }, "uneven latency"),
        (FaultKind::Rewrite { status: 206, headers: header("warning", "199 - \"partial\"") }, "206 with a warning"),
        (FaultKind::DateSkew { seconds: 3600 }, "Date an hour ahead"),
        (FaultKind::DateSkew { seconds: -3600 }, "Date an hour behind"),
        (FaultKind::UnreadableDate, "Date that is no date"),
        (FaultKind::IgnoredFilter, "filter not applied"),
        (FaultKind::ForeignNextLink { url: "http://127.0.0.1:9/incidents?$skip=1".into() }, "next link elsewhere"),
        (FaultKind::LoopingNextLink, "next link to the same page"),
        (FaultKind::EmptyPage, "page without rows"),
        (FaultKind::ExpiredSkiptoken, "expired skip token"),
        (FaultKind::SilentCap { rows: 2 }, "cap without a next link"),
        (FaultKind::Stale { versions: 1 }, "stale read"),
        (FaultKind::ExpiresInString, "expires_in as text"),
        (FaultKind::ExpiresIn { seconds: 1 }, "token for one second"),
        (FaultKind::OpaqueToken, "opaque token"),
        (FaultKind::WrongTid { tid: "99999999-9999-4999-8999-999999999999".into() }, "token of another tenant"),
        (FaultKind::Claims { claims: claim("aud", "https://api.example.com") }, "token for another API"),
        (FaultKind::Aadsts { code: 90_033 }, "Entra is busy"),
        (FaultKind::Aadsts { code: CONSENT_MISSING }, "consent is missing"),
        (FaultKind::MissingRoles, "token without roles"),
    ]
}

/// The injections of a kind of fault by name.
fn injections(kind: FaultKind, what: &str) -> Vec<(String, Injection)> {
    let reach = reach(&kind);
    let on = |host, kind| Fault::new(kind).on(host).times(HITS);
    match reach {
        Reach::EachHost => [(Host::Entra, "Entra"), (Host::Graph, "Graph"), (Host::Defender, "Defender")]
            .map(|(host, name)| (format!("{name}: {what}"), Injection::Microsoft(vec![on(host, kind.clone())], reach)))
            .into(),
        Reach::IncidentApis => {
            let mut faults: Vec<_> = [Host::Graph, Host::Defender].map(|host| on(host, kind.clone())).into();
            if kind == FaultKind::ExpiredSkiptoken {
                // The lists have one page. An empty one makes a second.
                faults.push(Fault::new(FaultKind::EmptyPage).times(HITS));
            }
            vec![(format!("Microsoft: {what}"), Injection::Microsoft(faults, reach))]
        }
        Reach::Tokens | Reach::Pause => {
            vec![(format!("Microsoft: {what}"), Injection::Microsoft(vec![on(Host::Entra, kind)], reach))]
        }
    }
}

/// All faults by name.
fn faults() -> Vec<(String, Injection)> {
    let mut faults: Vec<_> = kinds().into_iter().flat_map(|(kind, what)| injections(kind, what)).collect();
    for service in ["dynamodb", "s3", "sqs", "events", "secretsmanager"] {
        for kind in ["throttled", "failing", "lost"] {
            faults.push((format!("AWS: {service} {kind}"), Injection::Aws(service, kind)));
        }
    }
    for function in FUNCTIONS {
        faults.push((format!("{function} killed at work"), Injection::Killed(function)));
    }
    faults.push(("upgrade to a later release".to_owned(), Injection::Release(Release::Later)));
    faults.push(("way back from it".to_owned(), Injection::Release(Release::This)));
    // Each tenant waits for a minute, so that no other fault could follow.
    faults.extend(injections(FaultKind::Throttle { retry_after: RetryAfter::Absent }, "429 without a wait"));
    faults
}

/// One version of an incident.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    tenant_id: String,
    incident_id: String,
    last_updated: Timestamp,
}

impl Version {
    /// The version of a delivered line, or of an event's detail.
    fn of(value: &Value) -> Option<Self> {
        let text = |name: &str| value[name].as_str();
        let last_updated = text("last_updated")?.parse().ok()?;
        Some(Self { tenant_id: text("tenant_id")?.into(), incident_id: text("incident_id")?.into(), last_updated })
    }
}

/// The versions that Microsoft showed, each with the fault during which it came.
#[derive(Default)]
pub(crate) struct Chaos {
    shown: BTreeMap<Version, String>,
    /// A fault pauses tenants now.
    pauses: bool,
    /// Each fault comes once, and the deployment sends an event for each version.
    is_unattended: bool,
}

/// The versions of one fault.
#[derive(Default)]
struct Row {
    shown: usize,
    delivered: usize,
    /// Versions that the next one replaced before a poll saw them.
    replaced: usize,
    missing: usize,
    repeated: usize,
}

impl Chaos {
    /// `cargo dev --once --chaos`: each fault once, each with a change at every customer.
    pub(crate) async fn each_fault_once(&mut self, stack: &Stack, console: &mut Console) -> Result<(), Failed> {
        let sim = simulator(stack)?;
        for customer in CUSTOMERS {
            customer.seed(sim);
        }
        self.is_unattended = true;
        journey::onboard_all(stack, CUSTOMERS, console).await?;
        self.look(sim, BEFORE);
        let mut begun = None;
        for (turn, (name, injection)) in faults().into_iter().enumerate() {
            console.step(&name);
            self.inject(stack, sim, &injection).await?;
            for customer in CUSTOMERS {
                customer.change_one_incident(sim, turn);
            }
            self.look(sim, &name);
            for _ in 0..TICKS {
                work(stack, &injection).await;
            }
            self.heal(stack, sim).await?;
            match injection {
                Injection::Release(Release::Later) => {
                    // The processes of before may have delivered the others at their end.
                    for customer in CUSTOMERS {
                        customer.change_one_incident(sim, turn);
                    }
                    self.look(sim, &name);
                    wait_for_later_items(stack).await?;
                    begun = Some(Begun::by_the_later_release(stack).await?);
                }
                Injection::Release(Release::This) => {
                    stack.later_items(Some(Release::This)).await?;
                    if let Some(begun) = begun.take() {
                        begun.end_by_this_release(stack).await?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// `cargo dev --chaos`: one fault after the other, while somebody watches. Returns only an error.
    pub(crate) async fn one_fault_after_the_other(&mut self, stack: &Stack) -> Result<(), Failed> {
        let sim = simulator(stack)?;
        self.look(sim, BEFORE);
        loop {
            for (name, injection) in faults() {
                Console::default().step(&name);
                self.inject(stack, sim, &injection).await?;
                for _ in 0..FAULT_SECONDS {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    self.look(sim, &name);
                    injection.kill(stack);
                }
                self.heal(stack, sim).await?;
                if let Injection::Release(Release::This) = injection {
                    stack.later_items(Some(Release::This)).await?;
                }
            }
        }
    }

    async fn inject(&mut self, stack: &Stack, sim: &Sim, injection: &Injection) -> Result<(), Failed> {
        match injection {
            Injection::Microsoft(faults, reach) => {
                for fault in faults {
                    sim.fault(fault.clone());
                }
                self.pauses = *reach == Reach::Pause;
                if self.pauses || *reach == Reach::Tokens || faults.iter().any(|fault| fault.host == Some(Host::Entra))
                {
                    stack.kill("incident-fetch");
                }
            }
            Injection::Aws(service, kind) => {
                stack.fail_aws(&json!([{"service": service, "kind": kind, "times": HITS}])).await?;
            }
            Injection::Release(release) => {
                stack.deploy(*release);
                if *release == Release::Later {
                    stack.later_items(Some(Release::Later)).await?;
                }
            }
            Injection::Killed(_) => {}
        }
        Ok(())
    }

    async fn heal(&mut self, stack: &Stack, sim: &Sim) -> Result<(), Failed> {
        sim.clear_faults();
        stack.fail_aws(&json!([])).await?;
        if std::mem::take(&mut self.pauses) {
            // Its tokens have no roles.
            stack.kill("incident-fetch");
            for customer in CUSTOMERS {
                resume(stack, customer).await?;
            }
        }
        Ok(())
    }

    /// Notes the versions that are new since the last look.
    fn look(&mut self, sim: &Sim, fault: &str) {
        for version in present(sim) {
            self.shown.entry(version).or_insert_with(|| fault.to_owned());
        }
    }

    /// The rows by fault, in the order of the names.
    fn judge(&self, sim: &Sim, lines: &[Value]) -> BTreeMap<&str, Row> {
        let mut delivered: BTreeMap<Version, BTreeMap<&str, usize>> = BTreeMap::new();
        for line in lines {
            let Some(version) = Version::of(line) else { continue };
            *delivered.entry(version).or_default().entry(line["key"].as_str().unwrap_or_default()).or_default() += 1;
        }
        let present: Vec<_> = present(sim).collect();
        let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
        for (version, fault) in &self.shown {
            let row = rows.entry(fault).or_default();
            row.shown += 1;
            match delivered.get(version) {
                Some(keys) => {
                    row.delivered += 1;
                    row.repeated += keys.values().map(|count| count - 1).sum::<usize>();
                }
                None if present.contains(version) => row.missing += 1,
                None => row.replaced += 1,
            }
        }
        rows
    }

    fn missing(&self, sim: &Sim, lines: &[Value]) -> usize {
        self.judge(sim, lines).values().map(|row| row.missing).sum()
    }

    /// The number of versions that Microsoft shows and no event `Incident Changed` names.
    async fn unannounced(&self, stack: &Stack, sim: &Sim) -> Result<usize, Failed> {
        if !self.is_unattended {
            return Ok(0);
        }
        let events = stack.events().await?;
        let summaries = events.iter().filter(|event| event["detail-type"] == "Incident Changed");
        let announced: BTreeSet<_> = summaries.filter_map(|event| Version::of(&event["detail"])).collect();
        Ok(present(sim).filter(|version| !announced.contains(version)).count())
    }

    /// Heals everything, waits until all is delivered, and prints the table.
    ///
    /// # Errors
    /// A version that Microsoft shows is not delivered, or no event announces it.
    pub(crate) async fn end(&mut self, stack: &Stack, console: &mut Console) -> Result<(), Failed> {
        let sim = simulator(stack)?;
        console.step("healing, and delivering the rest");
        self.heal(stack, sim).await?;
        stack.deploy(Release::This);
        stack.kill_all();
        let started = devstack::instant();
        // Rows behind a silent cap are left to the sweep.
        let mut kinds = ["poll", "sweep"].iter().chain(std::iter::repeat(&"poll"));
        let mut lines = stack.delivered().await?;
        while let Some(kind) = kinds.next()
            && started.elapsed() < RECOVERY_TIMEOUT
        {
            // What fails shows in the table.
            let _ = stack.tick(kind).await;
            let _ = stack.drain_queue().await;
            lines = stack.delivered().await?;
            let is_complete = self.missing(sim, &lines) == 0 && self.unannounced(stack, sim).await? == 0;
            if *kind == "poll" && is_complete && started.elapsed() > TICK_INTERVAL * 2 {
                break;
            }
            tokio::time::sleep(TICK_INTERVAL).await;
        }
        self.print(sim, &lines, console);
        stack.take_failures();
        let items = stack.later_items(None).await?;
        upgrade::judge(&items, console)?;
        if self.is_unattended {
            upgrade::require_both_releases(&items)?;
        }
        match (self.missing(sim, &lines), self.unannounced(stack, sim).await?) {
            (0, 0) => Ok(()),
            (0, unannounced) => Err(Failed(format!("{unannounced} delivered versions have no event"))),
            (missing, _) => Err(Failed(format!("{missing} versions that Microsoft shows are not delivered"))),
        }
    }

    fn print(&self, sim: &Sim, lines: &[Value], console: &mut Console) {
        console.line("");
        console.line(&format!(
            "{:<42} {:>8} {:>10} {:>9} {:>8} {:>9}",
            "fault", "versions", "delivered", "replaced", "missing", "repeated"
        ));
        let mut total = Row::default();
        for (fault, row) in self.judge(sim, lines) {
            print_row(fault, &row, console);
            total.shown += row.shown;
            total.delivered += row.delivered;
            total.replaced += row.replaced;
            total.missing += row.missing;
            total.repeated += row.repeated;
        }
        print_row("total", &total, console);
    }
}

fn print_row(name: &str, row: &Row, console: &mut Console) {
    console.line(&format!(
        "{name:<42} {:>8} {:>10} {:>9} {:>8} {:>9}",
        row.shown, row.delivered, row.replaced, row.missing, row.repeated
    ));
}

/// The versions that Microsoft shows now.
fn present(sim: &Sim) -> impl Iterator<Item = Version> {
    CUSTOMERS.into_iter().flat_map(|customer| {
        let tenant_id = customer.tenant_id;
        sim.incidents(tenant_id).into_iter().map(move |incident| Version {
            tenant_id: tenant_id.to_owned(),
            incident_id: incident.id.to_string(),
            last_updated: incident.last_update,
        })
    })
}

fn simulator(stack: &Stack) -> Result<&Sim, Failed> {
    stack.sim().ok_or_else(|| Failed("--chaos needs the simulator".to_owned()))
}

/// Resumes a paused tenant as an operator does.
async fn resume(stack: &Stack, customer: &Customer) -> Result<(), Failed> {
    let started = devstack::instant();
    loop {
        let resumed = stack.call("POST", &format!("/tenants/{}/resume", customer.tenant_id), None).await?;
        // Whoever watches may not have onboarded this customer yet.
        if resumed.status == 404 || resumed.status == 200 && resumed.json()["status"] != "paused" {
            return Ok(());
        }
        if started.elapsed() > RECOVERY_TIMEOUT {
            return Err(Failed(format!("{} was not resumed: {}", customer.name, resumed.body)));
        }
        tokio::time::sleep(TICK_INTERVAL).await;
    }
}

impl Injection {
    /// Kills the processes that this is about, whatever they do.
    fn kill(&self, stack: &Stack) {
        match self {
            Self::Killed(function) => stack.kill(function),
            Self::Release(_) => stack.kill_all(),
            Self::Microsoft(..) | Self::Aws(..) => {}
        }
    }
}

/// Ticks until the later release has delivered something. The failures before may have put the next polls off.
async fn wait_for_later_items(stack: &Stack) -> Result<(), Failed> {
    let started = devstack::instant();
    while !stack.later_items(None).await?.kinds.contains_key("TENANT VERSIONS") {
        if started.elapsed() > RECOVERY_TIMEOUT {
            return Err(Failed("the later release delivered nothing".to_owned()));
        }
        tokio::time::sleep(TICK_INTERVAL).await;
        let _ = stack.tick("poll").await;
        let _ = stack.drain_queue().await;
    }
    Ok(())
}

/// One tick with its messages. Failures are the point.
async fn work(stack: &Stack, injection: &Injection) {
    tokio::time::sleep(TICK_INTERVAL).await;
    let work = async {
        let _ = stack.tick("poll").await;
        let _ = stack.drain_queue().await;
    };
    let kill = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        injection.kill(stack);
    };
    tokio::join!(work, kill);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_fault_has_a_row() {
        // The message for an unknown kind lists all kinds.
        let unknown = serde_json::from_value::<FaultKind>(json!({"kind": "unknown"})).unwrap_err().to_string();
        let (_, listed) = unknown.split_once("expected one of").unwrap();
        let all: BTreeSet<_> = listed.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert!(all.len() > 20, "{unknown}");
        let name = |kind: &FaultKind| serde_json::to_value(kind).unwrap()["kind"].as_str().unwrap().to_owned();
        let tried: BTreeSet<_> = kinds().iter().map(|(kind, _)| name(kind)).collect();
        assert_eq!(tried, all);
    }

    #[test]
    fn no_two_faults_have_one_name() {
        let faults = faults();
        let names: BTreeSet<_> = faults.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), faults.len());
        assert!(names.iter().all(|name| name.chars().count() <= 42), "the table has 42 columns for a name");
    }
}
