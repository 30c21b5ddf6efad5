//! `scale`: measures the local stack with many tenants. `--help` lists the options.

mod dispatch;
mod harness;
mod lag;
mod options;
mod polls;

use std::process::ExitCode;

use bench::measured::{Conditions, Measured};
use devstack::{Console, Failed, Progress as _};
use shared::clock::Clock;

use crate::{
    harness::{ScaleHarness, Triggers},
    options::{HELP, Options, Part},
};

#[tokio::main]
async fn main() -> ExitCode {
    let mut console = Console::default();
    let options = match options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            console.line(HELP.trim_end());
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            console.error(&message);
            return ExitCode::from(2);
        }
    };
    match Box::pin(measure(&options, &mut console)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            console.error(&failed.to_string());
            ExitCode::FAILURE
        }
    }
}

async fn measure(options: &Options, console: &mut Console) -> Result<(), Failed> {
    let conditions = Conditions {
        on: Clock::system().now().strftime("%Y-%m-%d").to_string(),
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        build: "debug".to_owned(),
        tenants: options.tenants,
        interval_seconds: options.interval,
    };
    console.line(&format!(
        "On {}: {} cores, debug builds of the functions, AWS by moto, Microsoft by the simulator.",
        conditions.on, conditions.cores
    ));
    let mut measured = Measured { conditions, ..Measured::default() };
    if options.includes(Part::Polls) || options.includes(Part::Dispatch) {
        let harness = ScaleHarness::start("by-hand", Triggers::ByHand, console).await?;
        let outcome = measure_by_hand(&harness, options, &mut measured, console).await;
        harness.stack.shutdown().await;
        outcome?;
    }
    if options.includes(Part::Lag) {
        let harness = ScaleHarness::start("lag", Triggers::EverySeconds(options.interval), console).await?;
        let outcome = lag::measure(&harness, options, console).await;
        harness.stack.shutdown().await;
        measured.lag = outcome?;
    }
    if let Some(file) = &options.write {
        let text = serde_json::to_string_pretty(&measured).map_err(|error| Failed(error.to_string()))?;
        std::fs::write(file, text + "\n")?;
        console.step(&format!("wrote {}", file.display()));
    }
    Ok(())
}

async fn measure_by_hand(
    harness: &ScaleHarness,
    options: &Options,
    measured: &mut Measured,
    console: &mut Console,
) -> Result<(), Failed> {
    if options.includes(Part::Polls) {
        polls::measure(harness, options.sample, measured, console).await?;
    }
    if options.includes(Part::Dispatch) {
        measured.dispatch = dispatch::measure(harness, options.due, console).await?;
    }
    Ok(())
}
