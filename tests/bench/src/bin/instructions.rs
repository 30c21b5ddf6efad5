//! `instructions`: the machine instructions of the hot path, counted by callgrind and compared with the committed counts.
//!
//! `--write` stores the counts. The exit code is 0 if they hold, 1 if they do not, and 3 if they could not be checked.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
};

use bench::{
    binaries,
    counts::float,
    fleet::tenant_ids,
    lambda::Function,
    report::{self, Figure},
    stand::{Stand, event_of, incident, poll_message},
};
use devstack::{Console, Failed, Progress as _};
use serde::{Deserialize, Serialize};
use shared::microsoft::IncidentApi;
use tokio::process::Command;

/// The parts of the hot path, with the number of times that each is done.
const PARTS: [(&str, u32); 4] = [("parse", 50), ("convert", 50), ("compress", 2), ("compare", 5_000)];

/// The numbers of quiet polls. What the second run does more than the first is the cost of so many polls.
const POLLS: (u32, u32) = (5, 25);

/// The ratio to the committed counts above which the check fails.
const MOST: f64 = 1.05;

/// Exit code: nothing was checked.
const NOT_CHECKED: u8 = 3;

/// The committed counts, and what they hold for.
#[derive(Serialize, Deserialize)]
struct Committed {
    conditions: Conditions,
    instructions: BTreeMap<String, u64>,
}

/// What decides the number of instructions beside the code. Under valgrind, a processor shows its own extensions only as far
/// as valgrind knows them.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Conditions {
    rustc: String,
    valgrind: String,
    libc: String,
    processor: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut console = Console::default();
    match check(std::env::args().nth(1).as_deref() == Some("--write"), &mut console).await {
        Ok(code) => code,
        Err(failed) => {
            console.error(&failed.to_string());
            ExitCode::FAILURE
        }
    }
}

async fn check(write: bool, console: &mut Console) -> Result<ExitCode, Failed> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.json");
    let conditions = Conditions {
        rustc: output("rustc", &["--version"]).await?,
        valgrind: output("valgrind", &["--version"]).await.unwrap_or_default(),
        libc: output("getconf", &["GNU_LIBC_VERSION"]).await?,
        processor: processor()?,
    };
    let committed = match std::fs::read(&file) {
        Ok(json) => {
            serde_json::from_slice(&json).map(Some).map_err(|error| Failed(format!("instructions.json: {error}")))
        }
        Err(_) => Ok(None),
    };
    // A file of another form is replaced.
    let committed: Option<Committed> = if write { committed.unwrap_or_default() } else { committed? };
    let why_not = if conditions.valgrind.is_empty() {
        Some("valgrind is not installed")
    } else if write {
        None
    } else {
        match &committed {
            None => Some("there are no committed counts"),
            Some(committed) if committed.conditions != conditions => {
                Some("the committed counts are of another compiler, valgrind, libc or kind of processor")
            }
            Some(_) => None,
        }
    };
    if let Some(why) = why_not {
        console.line(&format!("not checked: {why}"));
        return Ok(ExitCode::from(NOT_CHECKED));
    }
    let counted = count(console).await?;
    let holds = committed.is_none_or(|committed| compare(console, &counted, &committed.instructions));
    if write {
        let text = serde_json::to_string_pretty(&Committed { conditions, instructions: counted });
        std::fs::write(file, text.map_err(|error| Failed(error.to_string()))? + "\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn compare(console: &mut Console, counted: &BTreeMap<String, u64>, committed: &BTreeMap<String, u64>) -> bool {
    let number = |count: u64| float(usize::try_from(count).unwrap_or(usize::MAX));
    let figures: Vec<Figure> = counted
        .iter()
        .map(|(part, count)| {
            let before = committed.get(part).copied().unwrap_or_default();
            Figure {
                name: format!("instructions, {part}"),
                ours: count.to_string(),
                other: before.to_string(),
                ratio: number(*count) / number(before).max(1.0),
                most: MOST,
            }
        })
        .collect();
    report::print(console, "committed", &figures)
}

/// Counts each part, once.
async fn count(console: &mut Console) -> Result<BTreeMap<String, u64>, Failed> {
    let functions = binaries::functions(&["incident-fetch"], console).await?;
    let work = binaries::of_bench("work", console).await?;
    console.step("counting");
    let mut counted = BTreeMap::new();
    for (part, times) in PARTS {
        let out = out_file(part);
        let mut counts = [0, 0];
        for (count, times) in counts.iter_mut().zip([0, times]) {
            let mut command = Command::new("valgrind");
            command.args(arguments(&out)).arg(&work).args([part, &times.to_string()]);
            let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().await?;
            if !status.success() {
                return Err(Failed(format!("{part} failed")));
            }
            *count = total(&out)?;
        }
        counted.insert(part.to_owned(), (counts[1].saturating_sub(counts[0])) / u64::from(times));
    }
    let polls = [
        quiet_polls(&functions["incident-fetch"], POLLS.0).await?,
        quiet_polls(&functions["incident-fetch"], POLLS.1).await?,
    ];
    counted.insert("quiet poll".to_owned(), polls[1].saturating_sub(polls[0]) / u64::from(POLLS.1 - POLLS.0));
    Ok(counted)
}

/// The instructions of a process that starts and polls a tenant so many times.
async fn quiet_polls(binary: &Path, polls: u32) -> Result<u64, Failed> {
    let stand = Stand::start().await?;
    let tenant = tenant_ids(1)?[0];
    stand.onboard(tenant, IncidentApi::Defender, (0..3).map(|number| incident(number, 7_200))).await?;
    let out = out_file("poll");
    let arguments = arguments(&out);
    let binary = binary.to_string_lossy();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain([&*binary]).collect();
    let mut function = Function::start(Path::new("/usr/bin/valgrind"), &arguments, &stand.variables()).await?;
    for _ in 0..polls {
        function.invoke(&event_of(&[poll_message(&tenant)])).await?;
    }
    function.end().await?;
    total(&out)
}

fn arguments(out: &Path) -> [String; 3] {
    ["--tool=callgrind".to_owned(), "--quiet".to_owned(), format!("--callgrind-out-file={}", out.display())]
}

fn out_file(part: &str) -> PathBuf {
    std::env::temp_dir().join(format!("mandate-instructions-{part}.{}", std::process::id()))
}

/// The total of a file that callgrind wrote.
fn total(out: &Path) -> Result<u64, Failed> {
    let text = std::fs::read_to_string(out)?;
    let total = text.lines().rev().find_map(|line| {
        let rest = line.strip_prefix("totals:").or_else(|| line.strip_prefix("summary:"))?;
        rest.trim().parse().ok()
    });
    std::fs::remove_file(out)?;
    total.ok_or_else(|| Failed("callgrind wrote no total".to_owned()))
}

/// The extensions of the processor that libraries choose code by and valgrind shows.
fn processor() -> Result<Vec<String>, Failed> {
    const CHOSEN: [&str; 3] = ["avx2", "rdrand", "rdseed"];
    let info = std::fs::read_to_string("/proc/cpuinfo")?;
    let flags = info.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |flag: &&str| flags.split_whitespace().any(|other| other == *flag);
    Ok(CHOSEN.into_iter().filter(has).map(str::to_owned).collect())
}

async fn output(program: &str, arguments: &[&str]) -> Result<String, Failed> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().await?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
