//! `mandate`, the operator's program: it speaks to the HTTP API with the caller's own AWS credentials.

#![expect(clippy::result_large_err, reason = "a run has one problem at most, which ends it")]

use std::process::ExitCode;

use clap::Parser;

pub mod advice;
pub mod api;
pub mod args;
mod aws;
mod check;
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
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") => {
            Output::of_process(true).problem(&advice::on(Problem::usage(&error)));
            return ExitCode::from(2);
        }
        Err(error) => error.exit(),
    };
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
    let ends_itself = matches!(&cli.command, Command::Hunt(args) if args.id.is_none());
    tokio::select! {
        // Ctrl-C is listened for from the first poll on, so that it never ends a command that has begun in another way.
        biased;
        _ = tokio::signal::ctrl_c(), if !ends_itself => {
            if runs_until_then { Ok(()) } else { Err(Problem::new("interrupted", "Ctrl-C ended the command.")) }
        }
        outcome = run(cli, out) => outcome,
    }
}

async fn run(cli: Cli, out: Output) -> Result<(), Problem> {
    let named = |text: Option<String>| text.filter(|text| !text.is_empty());
    let target = Target { api: named(cli.global.api), stack: named(cli.global.stack) };
    // Not every command needs the API.
    let session = async || Ok::<_, Problem>(Session { api: Api::connect(&target).await?, out: out.clone() });
    match cli.command {
        Command::Invite(args) => session().await?.invite(&args).await,
        Command::Invitations => session().await?.invitations().await,
        Command::Revoke { invitation_id } => session().await?.revoke(&invitation_id).await,
        Command::Tenants { status } => session().await?.tenants(status).await,
        Command::Tenant(one) => session().await?.tenant(&one).await,
        Command::Pause(one) => session().await?.pause(&one).await,
        Command::Resume(one) => session().await?.resume(&one).await,
        Command::Change(args) => session().await?.change(&args).await,
        Command::Offboard { one, yes } => session().await?.offboard(&one, yes).await,
        Command::Backfill(args) => session().await?.start_job("backfill", &args).await,
        Command::Sweep(args) => session().await?.start_job("sweep", &args).await,
        Command::Job(args) => session().await?.job(&args).await,
        Command::Incidents(args) => session().await?.incidents(&args).await,
        Command::Incident(args) => session().await?.incident(&args).await,
        Command::Set(args) => session().await?.set(&args).await,
        Command::Hunt(args) => session().await?.hunt(&args).await,
        Command::Token(args) => session().await?.token(&args).await,
        Command::Check(args) => session().await?.check(&args).await,
        Command::Console(args) => console::serve(session().await?.api, &out, &args).await,
        Command::Mcp => mcp::serve(session().await?.api).await,
        Command::Register(args) => entra::register::run(&args, &out).await,
        Command::Certificate(args) => entra::certificate::run(&args, &out).await,
        Command::Completions { shell } => shell::completions(shell),
        Command::Man => shell::man(),
    }
}
