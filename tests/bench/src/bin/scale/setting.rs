//! A stack with the relay in front of its AWS, and Microsoft as slow as it is.

use std::{collections::BTreeMap, time::Duration};

use bench::{
    counts::{Counts, float},
    relay::Relay,
};
use devstack::{Console, Failed, Stack, StackOptions};
use sim::{Fault, FaultKind, Sim, Surface};

/// How long Microsoft takes to answer, in milliseconds.
const LATENCY: (u64, u64) = (150, 400);
/// The functions that are measured, and what their counts begin with.
const MEASURED: [(&str, &str); 2] = [("incident-fetch", "fetch"), ("incident-dispatch", "dispatch")];

/// Everything that a measurement needs.
pub(crate) struct Setting {
    pub(crate) stack: Stack,
    pub(crate) sim: Sim,
    pub(crate) relay: Relay,
}

impl Setting {
    /// With `interval`, schedule and queue work by themselves, as deployed; otherwise when told.
    pub(crate) async fn start(name: &str, interval: Option<u32>, console: &mut Console) -> Result<Self, Failed> {
        let relay = Relay::start().await?;
        let endpoint = BTreeMap::from([("AWS_ENDPOINT_URL".to_owned(), relay.url().to_owned())]);
        let target = std::env::current_exe()?.ancestors().nth(2).map(std::path::Path::to_owned).unwrap_or_default();
        let options = StackOptions {
            parameters: BTreeMap::from([("PollIntervalSeconds".to_owned(), interval.unwrap_or(60).to_string())]),
            environment: BTreeMap::from([("*".to_owned(), endpoint)]),
            pump: interval.is_some(),
            poll_every: interval.map(|seconds| Duration::from_secs(seconds.into())),
            logs: Some(target.join("bench").join(name)),
            fresh_logs: true,
            ..StackOptions::default()
        };
        let stack = Stack::start(options, console).await?;
        relay.lead_to(stack.aws().endpoint());
        let sim = stack.sim().cloned().ok_or_else(|| Failed("the stack has no simulator".to_owned()))?;
        let (least_millis, most_millis) = LATENCY;
        sim.fault(Fault::new(FaultKind::Latency { least_millis, most_millis }));
        Ok(Self { stack, sim, relay })
    }

    /// What was counted so far: the relay's counts, calls to Microsoft, and of each function `invocations`, `seconds` and
    /// `log_bytes`.
    pub(crate) async fn counts(&self) -> Counts {
        let mut counts = self.relay.counts();
        for call in self.sim.calls() {
            let operation = match call.surface {
                Surface::Entra => "token",
                Surface::Graph | Surface::Defender => "incidents",
            };
            counts.add(format!("microsoft:{operation}"), 1.0);
        }
        for (binary, name) in MEASURED {
            let usage = self.stack.usage(binary);
            counts.add(format!("{name}.invocations"), float(usize::try_from(usage.invocations).unwrap_or_default()));
            counts.add(format!("{name}.seconds"), usage.busy.as_secs_f64());
            let lines = self.stack.logs(binary).await;
            counts.add(format!("{name}.log_bytes"), float(lines.iter().map(|line| line.len() + 1).sum()));
        }
        counts
    }

    /// No message may have become a dead letter, and no invocation may have failed.
    pub(crate) async fn check(&self) -> Result<(), Failed> {
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
