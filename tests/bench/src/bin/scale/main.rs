//! `scale`: measures the functions with many tenants. `--help` lists the options.

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
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failed) => {
            console.error(&failed.to_string());
            ExitCode::FAILURE
        }
    }
}

async fn measure(options: &Options, console: &mut Console) -> Result<bool, Failed> {
    let conditions = Conditions {
        on: Clock::system().now().strftime("%Y-%m-%d").to_string(),
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
        tenants: options.tenants,
        interval_seconds: options.interval,
    };
    console.line(&format!(
        "On {}: {} cores, {} builds of the functions, AWS and Microsoft on the same machine.",
        conditions.on, conditions.cores, conditions.build
    ));
    let mut measured = Measured { conditions, ..Measured::default() };
    if options.includes(Part::Polls) || options.includes(Part::Dispatch) {
        let harness = ScaleHarness::start(Triggers::ByHand, console).await?;
        measure_by_hand(&harness, options, &mut measured, console).await?;
    }
    let mut holds = true;
    if options.includes(Part::Lag) {
        measured.lag = lag::measure(options, console).await?;
        holds = lag::print(&measured.lag, options, console);
    }
    if options.part == Some(Part::Limit) {
        limit(options, console).await?;
    }
    if let Some(file) = &options.write {
        let text = serde_json::to_string_pretty(&measured).map_err(|error| Failed(error.to_string()))?;
        std::fs::write(file, text + "\n")?;
        console.step(&format!("wrote {}", file.display()));
    }
    Ok(holds)
}

/// Finds the number of tenants that this machine carries: doubles it until the lag is longer than it may be.
async fn limit(options: &Options, console: &mut Console) -> Result<(), Failed> {
    let mut carried = 0;
    let mut options = options.clone();
    loop {
        let lag = match lag::measure(&options, console).await {
            Ok(lag) => lag,
            Err(failed) => {
                console.line(&format!("{} tenants: {failed}", options.tenants));
                break;
            }
        };
        if !lag::print(&lag, &options, console) {
            break;
        }
        carried = options.tenants;
        options.tenants *= 2;
    }
    console.line("");
    console.line(&format!(
        "This machine carries {carried} tenants every {} s, and not {}. It runs AWS and Microsoft beside the functions.",
        options.interval, options.tenants
    ));
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
