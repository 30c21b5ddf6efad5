//! `mandate`, the operator's program: it speaks to the HTTP API with the caller's own AWS credentials.

use std::process::ExitCode;

use clap::Parser;

pub mod advice;
pub mod api;
pub mod args;
mod aws;
pub mod commands;
pub mod console;
mod entra;
mod incident;
mod mcp;
mod output;
pub mod problem;
mod text;
mod time;

use api::{Api, Target};
use args::{Cli, Command};
use commands::{Session, shell};
use output::Output;
use problem::Problem;

/// Runs the program. The exit status is 0 done, 1 failed, 2 usage.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let out = Output::of_process(cli.global.json);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            out.problem(&Problem::new("internal", format!("The program cannot start: {error}.")));
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(until_interrupted(cli, out.clone()));
    // A read of standard input may still wait, and would hold the program up.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) if problem.code == output::OUTPUT_CLOSED => ExitCode::SUCCESS,
        Err(problem) => {
            let problem = advice::on(problem);
            out.problem(&problem);
            if problem.code == "usage" || problem.code == "no_api" { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// Runs the command until it ends or Ctrl-C ends it. For what runs until then, Ctrl-C is the proper end.
async fn until_interrupted(cli: Cli, out: Output) -> Result<(), Problem> {
    let runs_until_then = match &cli.command {
        Command::Incidents(args) => args.follow,
        Command::Console(_) | Command::Mcp => true,
        _ => false,
    };
    let ends_itself = matches!(cli.command, Command::Hunt(_));
    tokio::select! {
        outcome = run(cli, out) => outcome,
        _ = tokio::signal::ctrl_c(), if !ends_itself => {
            if runs_until_then { Ok(()) } else { Err(Problem::new("interrupted", "Ctrl-C ended the command.")) }
        }
    }
}

async fn run(cli: Cli, out: Output) -> Result<(), Problem> {
    // These need no API.
    match cli.command {
        Command::Completions { shell } => return shell::completions(shell),
        Command::Man => return shell::man(),
        Command::Register(args) => return entra::register::run(&args, &out).await,
        Command::Certificate(args) => return entra::certificate::run(&args, &out).await,
        _ => {}
    }
    let target = Target { api: cli.global.api, stack: cli.global.stack };
    let api = Api::connect(&target).await?;
    let session = Session { api, out };
    match cli.command {
        Command::Invite(args) => session.invite(&args).await,
        Command::Invitations => session.invitations().await,
        Command::Revoke { invitation_id } => session.revoke(&invitation_id).await,
        Command::Tenants { status } => session.tenants(status).await,
        Command::Tenant(one) => session.tenant(&one).await,
        Command::Pause(one) => session.pause(&one).await,
        Command::Resume(one) => session.resume(&one).await,
        Command::Offboard { one, yes } => session.offboard(&one, yes).await,
        Command::Backfill(args) => session.start_job("backfill", &args).await,
        Command::Sweep(args) => session.start_job("sweep", &args).await,
        Command::Job(args) => session.job(&args).await,
        Command::Incidents(args) => session.incidents(&args).await,
        Command::Incident(args) => session.incident(&args).await,
        Command::Set(args) => session.set(&args).await,
        Command::Hunt(args) => session.hunt(&args).await,
        Command::Token(args) => session.token(&args).await,
        Command::Console(args) => console::serve(session.api, args).await,
        Command::Mcp => mcp::serve(session.api).await,
        Command::Completions { .. }
        | Command::Man
        | Command::Register(_)
        | Command::Certificate(_)
        | Command::Check(_) => Err(Problem::new("internal", "This command is not built in.")),
    }
}
