//! The end of a history: its faults end, and everything comes to rest. A stretch that is read to its end, too.

use jiff::SignedDuration;
use shared::{microsoft::IncidentApi, registry::tenants::Status};

use super::{
    super::history::{History, Step, TickWorkers},
    ModelHarness, Run, oracle,
};

/// The most minutes that a history may take to come to rest. With two calls a minute, polls leave one, and a hundred
/// incidents without alerts are read again before a sweep has its turn.
const MINUTES_TO_REST: u32 = 300;

impl ModelHarness {
    /// Polls until all is read that a history creates at its beginning. Returns the requests for lists and the fewest pages
    /// that hold the rows.
    pub(in super::super) async fn calls_and_pages(&mut self, history: &History) -> (usize, usize) {
        let mut run = Run::start(self, history.clone(), None).await;
        let creates = |step: &&Step| matches!(step, Step::Create { .. } | Step::CreateFirst);
        for step in history.steps.iter().take_while(creates) {
            run.step(step).await;
        }
        let host = match history.api {
            IncidentApi::Graph => sim::Host::Graph,
            IncidentApi::Defender => sim::Host::Defender,
        };
        for _ in 0..MINUTES_TO_REST {
            run.tick("poll", TickWorkers::One, &[], None).await;
            if run.harness.aws.account().items("FEED")[0].contains_key("last_success_at") {
                let calls = run.harness.sim.calls();
                let lists = calls.iter().filter(|call| call.host == host && call.path.ends_with("/incidents")).count();
                let largest = usize::try_from(history.api.largest_page()).unwrap();
                let page = history.world.pages.map_or(largest, |(rows, _)| rows);
                return (lists, run.ids.len().div_ceil(page).max(1));
            }
            run.advance(61_000);
        }
        panic!("nothing is read to its end of {history:#?}");
    }
}

impl Run<'_> {
    /// The faults end, and enough time passes.
    pub(super) async fn settle(&mut self) {
        if self.status == Status::Offboarded {
            return;
        }
        if self.status == Status::Paused {
            self.resume().await;
        }
        self.clear_faults();
        if self.history.world.alerts_fail && self.api == IncidentApi::Graph {
            self.settle_without_alerts().await;
        }
        self.history.world.alerts_fail = false;
        self.clear_faults();
        if self.history.world.calls_per_minute.is_some() {
            for _ in 0..MINUTES_TO_REST {
                self.advance(61_000);
                self.tick("poll", TickWorkers::One, &[], None).await;
                if self.is_quiet() {
                    break;
                }
            }
        }
        let pauses = [61, 1_000, 1_000, 60, 1_000, 3_700, 7_200, 7_200, 22_000, 22_000];
        for (turn, pause) in pauses.into_iter().chain(std::iter::repeat_n(22_000, 10)).enumerate() {
            self.advance(pause * 1_000);
            self.tick("poll", TickWorkers::One, &[], None).await;
            if turn > 0 && self.is_quiet() {
                break;
            }
        }
        self.tick("sweep", TickWorkers::One, &[], None).await;
        for _ in 0..MINUTES_TO_REST {
            if self.is_quiet() {
                break;
            }
            self.advance(61_000);
            self.tick("poll", TickWorkers::One, &[], None).await;
        }
        if !self.is_quiet() {
            let account = self.harness.aws.account();
            let feed = format!("{:?} {:?}", account.items("FEED"), account.items("QUARANTINE"));
            drop(account);
            self.wrong.push(format!("it never comes to rest: {feed}"));
        }
        // The last work may have left no call for the poll of its minute.
        self.advance(61_000);
        self.tick("poll", TickWorkers::One, &[], None).await;
        let world = &self.history.world;
        // A quiet poll writes every five minutes. Without a `Date` a response is taken for a minute old, and our clock may be
        // behind.
        let most = 310 + if world.has_no_date { 60 } else { 0 } + (-world.clock_ahead).max(0);
        // A poll that is refused comes again two minutes later.
        let most = most + if world.calls_per_minute.is_some() { 122 } else { 0 };
        let lag = self.covered_until().map(|covered| self.microsoft_now().duration_since(covered));
        if lag.is_none_or(|lag| lag > SignedDuration::from_secs(most)) {
            self.wrong.push(format!("the feed lags behind by {lag:?}"));
        }
    }

    /// Everything is delivered within an hour, if without its alerts. A sweep finds what appeared too late for polls.
    async fn settle_without_alerts(&mut self) {
        let mut missing = Vec::new();
        for minute in 0..60 {
            self.advance(61_000);
            let kind = if minute == 30 { "sweep" } else { "poll" };
            self.tick(kind, TickWorkers::One, &[], None).await;
            let delivered = oracle::delivered_incidents(&self.harness.aws.account().objects);
            missing = self.present().into_keys().filter(|id| !delivered.contains(id)).collect();
            if missing.is_empty() {
                return;
            }
        }
        self.wrong.push(format!("{} were not delivered while alerts fail", missing.join(", ")));
    }

    /// Returns `true` if nothing is left to do.
    fn is_quiet(&self) -> bool {
        let account = self.harness.aws.account();
        let feeds = account.items("FEED");
        let [feed] = feeds[..] else { return false };
        let profile = account.items("PROFILE")[0];
        // A feed writes what changed: a number that was never written is zero.
        let is_zero = |name: &str| feed.get(name).is_none_or(|number| number["N"] == "0");
        !feed.contains_key("pass_position")
            && !feed.contains_key("open_jobs")
            && is_zero("quarantined")
            && account.items("QUARANTINE").is_empty()
            && is_zero("failures")
            && profile["status"]["S"] == "active"
            && account.is_queue_empty()
    }
}
