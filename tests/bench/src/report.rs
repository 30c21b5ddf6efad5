//! Figures beside what they must be.

use std::{process::ExitCode, time::Duration};

use devstack::{Console, Failed};

/// Runs a measurement. The exit code says whether all its figures hold.
pub async fn run(measure: impl AsyncFnOnce(&mut Console) -> Result<bool, Failed>) -> ExitCode {
    let mut console = Console::default();
    if cfg!(debug_assertions) {
        console.line("Debug builds: counts hold, times do not. Add --release.");
    }
    match measure(&mut console).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failed) => {
            console.error(&failed.to_string());
            ExitCode::FAILURE
        }
    }
}

/// A figure of ours beside that of the floor or the peer, and the ratio that it may have.
#[derive(Debug)]
pub struct Figure {
    /// The measured thing.
    pub name: String,
    /// Ours, with its unit.
    pub ours: String,
    /// The other one, with its unit; empty where there is none.
    pub other: String,
    /// Ours divided by the other one, or by the bound.
    pub ratio: f64,
    /// The largest ratio that is right.
    pub most: f64,
}

impl Figure {
    /// A time of ours beside another one, at most `most` times as long.
    pub fn of_times(name: impl Into<String>, ours: Duration, other: Duration, most: f64) -> Self {
        let ratio = ours.as_secs_f64() / other.as_secs_f64().max(f64::MIN_POSITIVE);
        Self { name: name.into(), ours: shown(ours), other: shown(other), ratio, most }
    }

    /// An amount of ours that must not be above `most`.
    pub fn of_amount(name: impl Into<String>, ours: f64, most: f64, unit: &str) -> Self {
        let ratio = if most > 0.0 { ours / most } else { 1.0 + ours };
        Self {
            name: name.into(),
            ours: format!("{ours:.2} {unit}"),
            other: format!("{most:.2} {unit}"),
            ratio,
            most: 1.0,
        }
    }

    /// Returns true if the figure is what it must be.
    pub fn holds(&self) -> bool {
        self.ratio <= self.most
    }
}

/// Prints figures as a table. Returns true if all hold.
pub fn print(console: &mut Console, other: &str, figures: &[Figure]) -> bool {
    console.line(&format!("| figure | ours | {other} | ratio | at most | |"));
    console.line("|---|---|---|---|---|---|");
    for figure in figures {
        let Figure { name, ours, other, ratio, most } = figure;
        let verdict = if figure.holds() { "holds" } else { "**missed**" };
        console.line(&format!("| {name} | {ours} | {other} | {ratio:.2} | {most:.2} | {verdict} |"));
    }
    figures.iter().all(Figure::holds)
}

/// A duration with three digits.
pub fn shown(duration: Duration) -> String {
    let micros = duration.as_secs_f64() * 1e6;
    if micros < 1_000.0 { format!("{micros:.0} µs") } else { format!("{:.2} ms", micros / 1_000.0) }
}

/// The value below which `percent` of the values lie. Zero without values.
pub fn percentile(values: &mut [Duration], percent: usize) -> Duration {
    values.sort_unstable();
    values.get((values.len() * percent / 100).min(values.len().saturating_sub(1))).copied().unwrap_or_default()
}
