//! `cargo dev`: the whole system on this machine. `cargo dev --help` says the rest.

mod cli;
mod journey;
mod keyboard;
mod watch;
mod world;

use std::{collections::BTreeMap, path::Path, process::ExitCode, time::Duration};

use devstack::{Console, Ports, Progress as _, Stack, StackOptions};
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::{Command, HELP, Options};

/// How often customers are asked where somebody watches.
const POLL_EVERY: Duration = Duration::from_secs(5);

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
    let Ok(mut stop) = Stop::listen() else {
        console.error("signals cannot be caught");
        return ExitCode::FAILURE;
    };
    // Whatever is under way when a signal comes is dropped, and its processes with it.
    let stack = tokio::select! {
        stack = start(&options, &mut console) => stack,
        () = stop.wanted() => return ExitCode::FAILURE,
    };
    let stack = match stack {
        Ok(stack) => stack,
        Err(message) => {
            console.error(&message);
            return ExitCode::FAILURE;
        }
    };
    let outcome = tokio::select! {
        outcome = work(&stack, &options, &mut console) => outcome,
        () = stop.wanted() => {
            console.step("stopping");
            if options.once { Err("it was stopped".to_owned()) } else { Ok(()) }
        }
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
    let credential = options.live.as_deref().map(read_credential).transpose()?;
    let seconds = if options.once { 1 } else { POLL_EVERY.as_secs() };
    let port = options.port;
    let options = StackOptions {
        ports: Ports { api: port, entra: port + 1, graph: port + 2, defender: port + 3 },
        parameters: BTreeMap::from([("PollIntervalSeconds".to_owned(), seconds.to_string())]),
        live: credential.is_some(),
        credential,
        pump: !options.once,
        poll_every: Some(POLL_EVERY),
        fresh_logs: true,
        ..StackOptions::default()
    };
    Stack::start(options, console).await.map_err(|error| error.to_string())
}

async fn work(stack: &Stack, options: &Options, console: &mut Console) -> Result<(), String> {
    if options.once {
        return journey::run(stack, console).await.map_err(|failed| failed.to_string());
    }
    let logs = options.logs.then(|| stack.follow_logs());
    let introduced = match stack.sim() {
        Some(sim) => watch::introduce(stack, sim, console).await,
        None => watch::introduce_live(stack, console).await,
    };
    introduced.map_err(|failed| failed.to_string())?;
    Err(watch::watch(stack, logs, console).await.to_string())
}

fn read_credential(file: &Path) -> Result<Value, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let credential: Value = serde_json::from_str(&text).map_err(|_| format!("{} is not JSON", file.display()))?;
    if credential["client_id"].is_string() {
        Ok(credential)
    } else {
        Err(format!("{} has no client_id", file.display()))
    }
}

/// The ways in which a terminal or a supervisor ends a program.
struct Stop([Signal; 3]);

impl Stop {
    fn listen() -> std::io::Result<Self> {
        let [interrupt, terminate, hangup] = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        Ok(Self([signal(interrupt)?, signal(terminate)?, signal(hangup)?]))
    }

    async fn wanted(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
