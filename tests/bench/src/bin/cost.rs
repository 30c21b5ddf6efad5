//! `cost`: the bills of a month for 10, 1,000 and 100,000 tenants, from measured counts and list prices.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use bench::{
    cost::{Bill, Line, Load, month, tenants_served},
    deployment::TEMPLATE,
    measured::Measured,
    prices::Prices,
};
use devstack::Console;
use serde::de::DeserializeOwned;

const HELP: &str = "\
Computes the bill of a month from the counts that `scale` measured and from list prices. Nothing is measured in AWS.

    cargo run --package bench --bin cost -- [OPTIONS]

    --interval S        the poll interval in seconds (60)
    --max-interval S    POLL_MAX_INTERVAL_SECONDS, the longest interval of a quiet tenant (the same as --interval)
    --changes N         versions that one tenant has to deliver in a day (10)
    --measured FILE     the file that `scale --write` wrote (tests/bench/measured.json)
    --prices FILE       list prices (tests/bench/prices.json)
    --help              print this help
";

/// The numbers of tenants for which bills are computed.
const TENANTS: [f64; 3] = [10.0, 1_000.0, 100_000.0];

struct Options {
    interval: f64,
    max_interval: f64,
    changes: f64,
    measured: PathBuf,
    prices: PathBuf,
}

fn main() -> ExitCode {
    let mut console = Console::default();
    let outcome = match parse(std::env::args().skip(1)) {
        Ok(Some(options)) => run(&options, &mut console),
        Ok(None) => {
            console.line(HELP.trim_end());
            Ok(())
        }
        Err(message) => Err(message),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            console.error(&message);
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut options = Options {
        interval: 60.0,
        max_interval: 0.0,
        changes: 10.0,
        measured: here.join("measured.json"),
        prices: here.join("prices.json"),
    };
    while let Some(argument) = arguments.next() {
        if argument == "--help" {
            return Ok(None);
        }
        let value = arguments.next().ok_or_else(|| format!("{argument} needs a value; see --help"))?;
        match argument.as_str() {
            "--interval" => options.interval = number(&argument, &value, 1.0)?,
            "--max-interval" => options.max_interval = number(&argument, &value, 1.0)?,
            "--changes" => options.changes = number(&argument, &value, 0.0)?,
            "--measured" => options.measured = value.into(),
            "--prices" => options.prices = value.into(),
            _ => return Err(format!("{argument} is not an option of cost; run it with --help to list the options")),
        }
    }
    Ok(Some(options))
}

fn number(option: &str, value: &str, min: f64) -> Result<f64, String> {
    let number = value.parse().ok().filter(|number: &f64| number.is_finite() && *number >= min);
    number.ok_or_else(|| format!("{option} needs a number, at least {min}"))
}

fn read<T: DeserializeOwned>(file: &Path) -> Result<T, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))
}

fn run(options: &Options, console: &mut Console) -> Result<(), String> {
    let measured: Measured = read(&options.measured)?;
    let prices: Prices = read(&options.prices)?;
    let mut bills = Vec::new();
    for tenants in TENANTS {
        let load = Load {
            tenants,
            interval: options.interval,
            max_interval: options.max_interval.max(options.interval),
            changes_per_day: options.changes,
        };
        bills.push(month(load, &measured, &prices, &TEMPLATE)?);
    }
    for line in table(&bills, options, &measured, &prices) {
        console.line(&line);
    }
    Ok(())
}

fn table(bills: &[Bill], options: &Options, measured: &Measured, prices: &Prices) -> Vec<String> {
    let of_each = |value: &dyn Fn(&Bill) -> String| -> String {
        bills.iter().fold(String::new(), |row, bill| format!("{row}{:>24}", value(bill)))
    };
    let row = |name: &str, value: &dyn Fn(&Bill) -> String| format!("{name:<32}{}", of_each(value));
    let conditions = &measured.conditions;
    let mut lines = vec![
        "Computed, not measured: a month of 30 days, in US dollars, without free tiers and discounts.".to_owned(),
        format!(
            "Counts of {} ({} builds, {} cores); list prices of {}, {}.",
            conditions.on, conditions.build, conditions.cores, prices.region, prices.on
        ),
        format!(
            "A poll every {} to {} s, {} versions of a tenant a day.",
            options.interval,
            options.max_interval.max(options.interval),
            options.changes
        ),
        String::new(),
        row("tenants", &|bill| grouped(bill.load.tenants)),
        row("calls to Microsoft", &|bill| format!("{} M", amount(bill.microsoft_calls / 1e6))),
    ];
    for (index, line) in bills.first().map(|bill| bill.lines.as_slice()).unwrap_or_default().iter().enumerate() {
        let cell = |bill: &Bill| {
            let line = &bill.lines[index];
            let unit = line.unit.replace("million", "M");
            format!("{} {:>9}", format!("{} {unit}", amount(line.amount)).trim_end(), grouped_cents(line.usd))
        };
        lines.push(row(line.name, &cell));
    }
    lines.extend([
        row("total", &|bill| grouped_cents(bill.total())),
        row("for each tenant", &|bill| format!("{:.4}", bill.total() / bill.load.tenants)),
        String::new(),
        row("concurrent batches, on average", &|bill| format!("{:.1}", bill.concurrency)),
        String::new(),
        format!(
            "FetchMaximumConcurrency {} can poll at most {} tenants a minute, at the measured speed of polls.",
            TEMPLATE.maximum_concurrency,
            grouped(tenants_served(TEMPLATE.maximum_concurrency.into(), TEMPLATE.tick, measured).round())
        ),
    ]);
    for bill in bills {
        let share = |line: &&Line| format!("{} {:.0} %", line.name, 100.0 * line.usd / bill.total());
        let dearest: Vec<String> = bill.dearest(4).iter().map(share).collect();
        lines.push(format!("What costs most at {} tenants: {}.", grouped(bill.load.tenants), dearest.join(", ")));
    }
    lines.push(format!(
        "Prices that were not seen on AWS's own page (prices.json has their sources): {}.",
        unverified(prices)
    ));
    lines
}

/// Returns the names of the prices that were not seen on AWS's own page.
fn unverified(prices: &Prices) -> String {
    let names = prices.prices.iter().filter(|(_, price)| price.unverified.is_some()).map(|(name, _)| name.as_str());
    names.collect::<Vec<_>>().join(", ")
}

/// Formats a number with three significant digits, and all digits of larger whole numbers.
fn amount(value: f64) -> String {
    if value >= 100.0 {
        grouped(value.round())
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else if value.fract().abs() < f64::EPSILON {
        format!("{value}")
    } else {
        format!("{value:.3}")
    }
}

/// Formats a whole number with a comma between groups of three digits.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn grouped_cents(value: f64) -> String {
    let cents = format!("{value:.2}");
    let (whole, fraction) = cents.split_once('.').unwrap_or((&cents, "00"));
    format!("{}.{fraction}", grouped(whole.parse().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_and_grouped() {
        assert_eq!([0.0, 999.0, 1_000.0, 4_320_000.0].map(grouped), ["0", "999", "1,000", "4,320,000"]);
        assert_eq!([0.004, 1234.5, 1_000_000.0].map(grouped_cents), ["0.00", "1,234.50", "1,000,000.00"]);
        assert_eq!([0.0432, 1.0, 43.26, 4321.9].map(amount), ["0.043", "1", "43.3", "4,322"]);
    }

    #[test]
    fn options_have_defaults_and_limits() {
        let options = |line: &str| parse(line.split_whitespace().map(str::to_owned));
        let chosen = options("--max-interval 900 --changes 0").unwrap().unwrap();
        let chosen = [chosen.interval, chosen.max_interval, chosen.changes].map(f64::to_bits);
        assert_eq!(chosen, [60.0_f64, 900.0, 0.0].map(f64::to_bits));
        assert!(options("--help").unwrap().is_none());
        for wrong in ["--interval", "--interval 0", "--changes x", "--more 1"] {
            assert!(options(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn committed_counts_and_prices_make_a_table() {
        let options = parse(std::iter::empty()).unwrap().unwrap();
        run(&options, &mut Console::default()).unwrap();
    }
}
