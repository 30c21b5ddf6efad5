//! `cargo dev`: the whole system on this machine. `cargo dev --help` lists the options.

mod chaos;
mod cli;
mod credential;
mod customers;
mod journey;
mod keyboard;
mod upgrade;
mod watch;

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use devstack::{Builds, Console, Ports, Progress as _, Stack, StackOptions};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    chaos::Chaos,
    cli::{Command, HELP, Options},
    credential::CredentialSource,
};

/// The poll interval, short enough to watch.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> ExitCode {
    let mut console = Console::default();
    let options = match cli::parse(std::env::args().skip(1)) {
        Ok(Command::Help) => {
            console.line(HELP.trim_end());
            return ExitCode::SUCCESS;
        }
        Ok(Command::Run(options)) => options,
        Err(message) => {
            console.error(&message);
            return ExitCode::from(2);
        }
    };
    let Ok(mut signals) = EndSignals::listen() else {
        console.error("the handlers for signals cannot be installed");
        return ExitCode::FAILURE;
    };
    // A signal drops the start that is in progress, and kills its processes thereby.
    let stack = tokio::select! {
        stack = start(&options, &mut console) => stack,
        () = signals.received() => return ExitCode::FAILURE,
    };
    let stack = match stack {
        Ok(stack) => stack,
        Err(message) => {
            console.error(&message);
            return ExitCode::FAILURE;
        }
    };
    let mut chaos = options.chaos.then(Chaos::default);
    let outcome = tokio::select! {
        outcome = run(&stack, &options, chaos.as_mut(), &mut console) => outcome,
        () = signals.received() => {
            console.step("stopping");
            if options.once { Err("it was stopped".to_owned()) } else { Ok(()) }
        }
    };
    let outcome = match (&outcome, &mut chaos) {
        (Ok(()), Some(chaos)) => chaos.end(&stack, &mut console).await.map_err(|failed| failed.to_string()),
        _ => outcome,
    };
    stack.shutdown().await;
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            console.error(&message);
            ExitCode::FAILURE
        }
    }
}

async fn start(options: &Options, console: &mut Console) -> Result<Stack, String> {
    let credential = options.live.as_ref().map(CredentialSource::read).transpose()?;
    let seconds = if options.once { 1 } else { POLL_INTERVAL.as_secs() };
    let port = options.port;
    let mut parameters = BTreeMap::from([("PollIntervalSeconds".to_owned(), seconds.to_string())]);
    if options.once && options.chaos {
        parameters.insert("IncidentEvents".to_owned(), "summary".to_owned());
    }
    let options = StackOptions {
        ports: Ports { api: port, entra: port + 1, graph: port + 2, defender: port + 3 },
        parameters,
        live: credential.is_some(),
        credential,
        automatic_triggers: !options.once,
        poll_interval: Some(POLL_INTERVAL),
        fresh_logs: true,
        builds: if options.chaos { Builds::ThisAndLater } else { Builds::This },
        ..StackOptions::default()
    };
    Stack::start(options, console).await.map_err(|error| error.to_string())
}

async fn run(stack: &Stack, options: &Options, chaos: Option<&mut Chaos>, console: &mut Console) -> Result<(), String> {
    if options.once {
        let done = match chaos {
            Some(chaos) => chaos.each_fault_once(stack, console).await,
            None => journey::run(stack, console).await,
        };
        return done.map_err(|failed| failed.to_string());
    }
    let logs = options.logs.then(|| stack.follow_logs());
    let prepared = match stack.sim() {
        Some(sim) => watch::prepare(stack, sim, console).await,
        None => watch::prepare_live(stack, console).await,
    };
    prepared.map_err(|failed| failed.to_string())?;
    let chaos = async {
        match chaos {
            Some(chaos) => chaos.one_fault_after_the_other(stack).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        failed = watch::run(stack, logs, console) => Err(failed.to_string()),
        outcome = chaos => outcome.map_err(|failed| failed.to_string()),
    }
}

/// The signals by which a terminal or a supervisor ends a program.
struct EndSignals([Signal; 3]);

impl EndSignals {
    fn listen() -> std::io::Result<Self> {
        let [interrupt, terminate, hangup] = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        Ok(Self([signal(interrupt)?, signal(terminate)?, signal(hangup)?]))
    }

    async fn received(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
