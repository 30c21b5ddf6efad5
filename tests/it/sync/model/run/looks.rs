//! The rules that hold at any time of a history.

use jiff::SignedDuration;

use super::{
    super::history::{PAUSE, Profile, Step},
    OVERLAP, Run,
};

/// The wakes in a row that may read something without any change.
const FEW_WAKES: u32 = 3;

/// What may grow or narrow in a wake.
#[derive(PartialEq)]
pub(super) struct Standing {
    objects: usize,
    items: String,
}

impl Run<'_> {
    pub(super) fn standing(&self) -> Standing {
        let account = self.harness.aws.account();
        let feeds = account.items("FEED");
        let cursor =
            feeds.first().map(|feed| ["covered_until", "pass_position", "rechecks"].map(|name| feed.get(name)));
        let items = format!("{cursor:?} {:?} {:?}", account.items("JOB#"), account.items("QUARANTINE"));
        Standing { objects: account.objects.len(), items }
    }

    /// A wake that reads something brings something or narrows what is left, except for a few.
    pub(super) fn look_at_progress(&mut self, before: &Standing, calls_before: usize) {
        let calls = self.harness.sim.calls();
        let read = calls[calls_before..].iter().any(|call| call.host != sim::Host::Entra && call.status == 200);
        let is_working = {
            let account = self.harness.aws.account();
            let feeds = account.items("FEED");
            feeds.first().is_some_and(|feed| feed.contains_key("pass_position") || feed.contains_key("open_jobs"))
        };
        let stood_still = read && is_working && *before == self.standing();
        self.idle_wakes = if stood_still { self.idle_wakes + 1 } else { 0 };
        if self.history.profile == Profile::Calm && self.idle_wakes > FEW_WAKES {
            self.wrong.push(format!("{} wakes in a row changed nothing", self.idle_wakes));
        }
    }

    /// After a 429 nobody asks again at the same time.
    pub(super) fn look_at_throttling(&mut self, calls_before: usize, has_one_worker: bool) {
        let calls = self.harness.sim.calls();
        for host in [sim::Host::Graph, sim::Host::Defender] {
            let refused = calls[calls_before..].iter().filter(|call| call.host == host && call.status == 429).count();
            if refused > 1 && has_one_worker && self.history.profile == Profile::Calm {
                self.wrong.push(format!("{host:?} throttled {refused} requests of one time"));
            }
        }
    }

    /// Checks the rules that hold at any time.
    pub(super) fn look(&mut self) {
        let account = self.harness.aws.account();
        let sweep = account.items("FEED").first().and_then(|feed| feed.get("last_sweep").cloned());
        let missing = sweep.and_then(|sweep| sweep["M"]["missing"]["N"].as_str()?.parse::<u64>().ok()).unwrap_or(0);
        let set_aside = account.objects.iter().any(|object| object.key.starts_with("quarantine/"));
        let interrupted = account.items("FEED").first().is_some_and(|feed| feed.contains_key("pass_position"));
        drop(account);
        let now = self.clock.now();
        self.interrupted_since = interrupted.then(|| self.interrupted_since.unwrap_or(now));
        if self.interrupted_since.is_some_and(|since| now > since + OVERLAP) {
            // Behind a poll that stands still for so long, what arrives late is left to the sweep.
            self.for_sweeps = None;
        }
        if self.history.steps.iter().any(|step| matches!(step, Step::CreateInFuture { .. })) {
            // Polls read no further than to the present where a list does not hold what is dated later.
            self.for_sweeps = None;
        }
        if !set_aside && self.for_sweeps.is_some_and(|most| missing > most) {
            self.wrong
                .push(format!("a sweep had to deliver {missing} versions, and polls should have found most of them"));
        }
    }

    /// After a 429 nobody asks before the time named. Where AWS fails, that cannot be remembered.
    pub(super) fn ask_in_time(&mut self) {
        if !self.harness.aws.account().acted_faults.is_empty() {
            return;
        }
        let calls = self.harness.sim.calls();
        if self.history.world.calls_per_minute.is_some() {
            // Microsoft names other waits then.
            return;
        }
        for (index, call) in calls.iter().enumerate() {
            let pause = SignedDuration::from_secs(i64::try_from(PAUSE).unwrap());
            let until = call.at + pause;
            let mut later = calls[index..].iter().filter(|later| later.host == call.host);
            let early = later.find(|later| call.at < later.at && later.at < until);
            if let Some(early) = early.filter(|_| call.status == 429) {
                self.wrong.push(format!("{:?} was asked at {} after a 429 at {}", call.host, early.at, call.at));
            }
        }
    }

    /// No minute has more calls than Microsoft allows, those of the reserve among them. Where AWS fails, calls of a worker that
    /// died are not counted.
    pub(super) fn stay_within_limits(&mut self) {
        if !self.harness.aws.account().acted_faults.is_empty() {
            return;
        }
        let calls = self.harness.sim.calls();
        for (host, most) in [(sim::Host::Graph, 100), (sim::Host::Defender, 50)] {
            let times: Vec<_> = calls.iter().filter(|call| call.host == host).map(|call| call.at).collect();
            let minute = SignedDuration::from_mins(1);
            let too_many = times.windows(most + 1).find(|calls| calls[most] < calls[0] + minute);
            if let Some([first, ..]) = too_many {
                self.wrong.push(format!("{host:?} was called more than {most} times in the minute from {first}"));
            }
        }
    }
}
