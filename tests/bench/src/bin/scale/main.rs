//! `scale`: measures how the local stack bears many tenants. `--help` says the rest.

mod dispatch;
mod lag;
mod options;
mod polls;
mod setting;

use std::process::ExitCode;

use bench::cost::{Conditions, Measured};
use devstack::{Console, Failed, Progress as _};
use shared::clock::Clock;

use crate::{
    options::{HELP, Options, Part},
    setting::Setting,
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
    if options.wants(Part::Polls) || options.wants(Part::Dispatch) {
        let setting = Setting::start("by-hand", None, console).await?;
        let outcome = by_hand(&setting, options, &mut measured, console).await;
        setting.stack.shutdown().await;
        outcome?;
    }
    if options.wants(Part::Lag) {
        let setting = Setting::start("lag", Some(options.interval), console).await?;
        let outcome = lag::measure(&setting, options, console).await;
        setting.stack.shutdown().await;
        measured.lag = outcome?;
    }
    if let Some(file) = &options.write {
        let text = serde_json::to_string_pretty(&measured).map_err(|error| Failed(error.to_string()))?;
        std::fs::write(file, text + "\n")?;
        console.step(&format!("wrote {}", file.display()));
    }
    Ok(())
}

async fn by_hand(
    setting: &Setting,
    options: &Options,
    measured: &mut Measured,
    console: &mut Console,
) -> Result<(), Failed> {
    if options.wants(Part::Polls) {
        polls::measure(setting, options.sample, measured, console).await?;
    }
    if options.wants(Part::Dispatch) {
        measured.dispatch = dispatch::measure(setting, options.due, console).await?;
    }
    Ok(())
}
