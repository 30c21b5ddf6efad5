//! The measured system: a stack with the relay in front of its AWS, and a simulator with the real Microsoft's latency.

use std::{collections::BTreeMap, time::Duration};

use bench::{
    counts::{Counts, float},
    relay::Relay,
};
use devstack::{Console, Failed, Stack, StackOptions};
use sim::{Fault, FaultKind, Host, Sim};

/// The range of Microsoft's response times.
const MIN_LATENCY_MILLIS: u64 = 150;
const MAX_LATENCY_MILLIS: u64 = 400;
/// The binaries of the measured functions, each with the prefix of its counts.
const MEASURED_FUNCTIONS: [(&str, &str); 2] = [("incident-fetch", "fetch"), ("incident-dispatch", "dispatch")];

/// Triggers of the functions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Triggers {
    /// The measurement ticks the schedule and drains the queue.
    ByHand,
    /// Schedule and queue trigger the functions as in AWS, with this poll interval.
    EverySeconds(u32),
}

/// The running parts of one measurement.
pub(crate) struct ScaleHarness {
    pub(crate) stack: Stack,
    pub(crate) sim: Sim,
    pub(crate) relay: Relay,
}

impl ScaleHarness {
    /// Starts a stack whose logs are in `target/bench/{name}`.
    pub(crate) async fn start(name: &str, triggers: Triggers, console: &mut Console) -> Result<Self, Failed> {
        let interval = match triggers {
            Triggers::ByHand => None,
            Triggers::EverySeconds(seconds) => Some(seconds),
        };
        let relay = Relay::start().await?;
        let endpoint = BTreeMap::from([("AWS_ENDPOINT_URL".to_owned(), relay.url().to_owned())]);
        let target = std::env::current_exe()?.ancestors().nth(2).map(std::path::Path::to_owned).unwrap_or_default();
        let options = StackOptions {
            parameters: BTreeMap::from([
                ("PollIntervalSeconds".to_owned(), interval.unwrap_or(60).to_string()),
                // By hand, tenants are quiet for long only where a measurement wants it.
                ("PollMaxIntervalSeconds".to_owned(), interval.unwrap_or(900).to_string()),
            ]),
            environment: BTreeMap::from([("*".to_owned(), endpoint)]),
            automatic_triggers: interval.is_some(),
            poll_interval: interval.map(|seconds| Duration::from_secs(seconds.into())),
            logs: Some(target.join("bench").join(name)),
            fresh_logs: true,
            ..StackOptions::default()
        };
        let stack = Stack::start(options, console).await?;
        relay.set_target(stack.aws().endpoint());
        let sim = stack.sim().cloned().ok_or_else(|| Failed("the stack has no simulator".to_owned()))?;
        let latency = FaultKind::Latency { least_millis: MIN_LATENCY_MILLIS, most_millis: MAX_LATENCY_MILLIS };
        sim.fault(Fault::new(latency));
        Ok(Self { stack, sim, relay })
    }

    /// Returns the counts since the start: those of the relay, the calls to Microsoft, and `invocations`, `seconds` and
    /// `log_bytes` of each measured function.
    pub(crate) async fn counts(&self) -> Counts {
        let mut counts = self.relay.counts();
        for call in self.sim.calls() {
            let operation = match call.host {
                Host::Entra => "token",
                Host::Graph | Host::Defender => "incidents",
            };
            counts.add(format!("microsoft:{operation}"), 1.0);
        }
        for (binary, name) in MEASURED_FUNCTIONS {
            let usage = self.stack.usage(binary);
            counts.add(format!("{name}.invocations"), float(usize::try_from(usage.invocations).unwrap_or_default()));
            counts.add(format!("{name}.seconds"), usage.total_duration.as_secs_f64());
            let lines = self.stack.logs(binary).await;
            counts.add(format!("{name}.log_bytes"), float(lines.iter().map(|line| line.len() + 1).sum()));
        }
        counts
    }

    /// Fails if a message is in the dead-letter queue or an invocation has failed.
    pub(crate) async fn check_failures(&self) -> Result<(), Failed> {
        let dead_letters = self.stack.dead_letters().await?.len();
        if dead_letters > 0 {
            return Err(Failed(format!("{dead_letters} messages became dead letters")));
        }
        match self.stack.take_failures().first() {
            Some(failure) => Err(Failed(format!("an invocation failed: {failure}"))),
            None => Ok(()),
        }
    }
}
