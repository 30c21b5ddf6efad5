//! `cargo dev --chaos`: everything that Microsoft, AWS and a process can do wrong, one after the other, while incidents
//! change. At the end each version that Microsoft shows must be delivered.

use std::{collections::BTreeMap, time::Duration};

use devstack::{Console, Failed, Progress as _, Stack};
use jiff::Timestamp;
use serde_json::{Value, json};
use sim::{Fault, FaultKind, Host, RetryAfter, Sim};

use crate::{
    customers::{CONTOSO, Customer, FABRIKAM, NORTHWIND},
    journey,
};

const CUSTOMERS: [&Customer; 3] = [&CONTOSO, &FABRIKAM, &NORTHWIND];

/// The functions that sync.
const FUNCTIONS: [&str; 2] = ["incident-fetch", "incident-dispatch"];

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
    Microsoft(Fault),
    /// A service of AWS, and the kind of `aws_faults.py`.
    Aws(&'static str, &'static str),
    /// A function that is killed at work.
    Killed(&'static str),
    /// In the middle of polls, all processes are replaced by those of a later release, or of this one again.
    Release(Release),
}

/// The release whose processes run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Release {
    This,
    Later,
}

/// All faults by name.
fn faults() -> Vec<(String, Injection)> {
    let on = |host, kind| Injection::Microsoft(Fault::new(kind).on(host).times(HITS));
    let list = |kind| Injection::Microsoft(Fault::new(kind).times(HITS));
    let mut faults = Vec::new();
    for (host, name) in [(Host::Entra, "Entra"), (Host::Graph, "Graph"), (Host::Defender, "Defender")] {
        for (kind, what) in [
            (FaultKind::status(500), "500"),
            (FaultKind::status(503), "503"),
            (FaultKind::BadGateway, "502 as HTML"),
            (FaultKind::Throttle { retry_after: RetryAfter::Seconds(1) }, "429"),
            (FaultKind::Reset, "connection reset"),
            (FaultKind::Hang { millis: 400 }, "late response"),
            (FaultKind::Truncate { at: None }, "body ends early"),
            (FaultKind::Cut, "connection closes in the body"),
            (FaultKind::SlowBody { chunk: 512, millis: 20 }, "slow body"),
        ] {
            faults.push((format!("{name}: {what}"), on(host, kind)));
        }
    }
    for (kind, what) in [
        (FaultKind::DateSkew { seconds: 3600 }, "Date an hour ahead"),
        (FaultKind::DateSkew { seconds: -3600 }, "Date an hour behind"),
        (FaultKind::UnreadableDate, "Date that is no date"),
        (FaultKind::IgnoredFilter, "filter not applied"),
        (FaultKind::ForeignNextLink { url: "http://127.0.0.1:9/incidents?$skip=1".into() }, "next link elsewhere"),
        (FaultKind::LoopingNextLink, "next link to the same page"),
        (FaultKind::EmptyPage, "page without rows"),
        (FaultKind::SilentCap { rows: 2 }, "cap without a next link"),
        (FaultKind::Stale { versions: 1 }, "stale read"),
        (FaultKind::ExpiresInString, "expires_in as text"),
        (FaultKind::OpaqueToken, "opaque token"),
        (FaultKind::WrongTid { tid: "99999999-9999-4999-8999-999999999999".into() }, "token of another tenant"),
    ] {
        faults.push((format!("Microsoft: {what}"), list(kind)));
    }
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
    faults
}

/// One version of an incident.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    tenant_id: String,
    incident_id: String,
    last_updated: Timestamp,
}

/// The versions that Microsoft showed, each with the fault during which it came.
#[derive(Default)]
pub(crate) struct Chaos {
    shown: BTreeMap<Version, String>,
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
        journey::onboard_all(stack, CUSTOMERS, console).await?;
        self.look(sim, BEFORE);
        for (turn, (name, injection)) in faults().into_iter().enumerate() {
            console.step(&name);
            inject(stack, sim, &injection).await?;
            for customer in CUSTOMERS {
                customer.change_one_incident(sim, turn);
            }
            self.look(sim, &name);
            for _ in 0..TICKS {
                work(stack, &injection).await;
            }
            if let Injection::Release(Release::Later) = injection {
                wait_for_later_items(stack).await?;
            }
            heal(stack, sim).await?;
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
                inject(stack, sim, &injection).await?;
                for _ in 0..FAULT_SECONDS {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    self.look(sim, &name);
                    injection.kill(stack);
                }
                heal(stack, sim).await?;
            }
        }
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
            let text = |name: &str| line[name].as_str().unwrap_or_default();
            let Ok(last_updated) = text("last_updated").parse() else { continue };
            let (tenant_id, incident_id) = (text("tenant_id").to_owned(), text("incident_id").to_owned());
            let version = Version { tenant_id, incident_id, last_updated };
            *delivered.entry(version).or_default().entry(text("key")).or_default() += 1;
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

    /// Heals everything, waits until all is delivered, and prints the table.
    ///
    /// # Errors
    /// A version that Microsoft shows is not delivered.
    pub(crate) async fn end(&self, stack: &Stack, console: &mut Console) -> Result<(), Failed> {
        let sim = simulator(stack)?;
        console.step("healing, and delivering the rest");
        heal(stack, sim).await?;
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
            if *kind == "poll" && self.missing(sim, &lines) == 0 && started.elapsed() > TICK_INTERVAL * 2 {
                break;
            }
            tokio::time::sleep(TICK_INTERVAL).await;
        }
        self.print(sim, &lines, console);
        stack.take_failures();
        let later = stack.later_release(false).await?;
        if !later.lost.is_empty() {
            return Err(Failed(format!("lost what a later release stored: {}", later.lost.join(", "))));
        }
        console.line(&format!("{} items of the later release kept what this one does not know", later.marked));
        match self.missing(sim, &lines) {
            0 => Ok(()),
            missing => Err(Failed(format!("{missing} versions that Microsoft shows are not delivered"))),
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

async fn heal(stack: &Stack, sim: &Sim) -> Result<(), Failed> {
    sim.clear_faults();
    stack.fail_aws(&json!([])).await?;
    Ok(())
}

async fn inject(stack: &Stack, sim: &Sim, injection: &Injection) -> Result<(), Failed> {
    match injection {
        Injection::Microsoft(fault) => sim.fault(fault.clone()),
        Injection::Aws(service, kind) => {
            stack.fail_aws(&json!([{"service": service, "kind": kind, "times": HITS}])).await?;
        }
        Injection::Release(release) => drop(stack.later_release(*release == Release::Later).await?),
        Injection::Killed(_) => {}
    }
    Ok(())
}

impl Injection {
    /// Kills the processes that this is about, whatever they do.
    fn kill(&self, stack: &Stack) {
        match self {
            Self::Killed(function) => stack.kill(function),
            Self::Release(_) => FUNCTIONS.into_iter().for_each(|function| stack.kill(function)),
            Self::Microsoft(_) | Self::Aws(..) => {}
        }
    }
}

/// Ticks until items of the later release are stored. The failures before may have put the next polls off.
async fn wait_for_later_items(stack: &Stack) -> Result<(), Failed> {
    let started = devstack::instant();
    while stack.later_release(true).await?.marked == 0 {
        if started.elapsed() > RECOVERY_TIMEOUT {
            return Err(Failed("no item was written as a later release does".to_owned()));
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
