//! A poll: when it is due, what it reads, its retries, and whose turn comes next where calls are few.

use jiff::{SignedDuration, Timestamp};
use shared::{
    error::Result,
    queue::SyncKind,
    registry::{Write, position::Position},
};

use super::{Progress, Stop, Worker, pass::Pass, window::floor};

/// The interval between readings of the whole overlap, for a tenant whose overlap does not fit into one response.
const WHOLE_OVERLAP_INTERVAL: SignedDuration = SignedDuration::from_mins(5);

/// The overlap of the polls in between.
pub(super) const SHORT_OVERLAP: SignedDuration = SignedDuration::from_secs(60);

/// The lag above which a throttled poll is more urgent than retries and jobs.
const MAX_LAG_OF_TURNS: SignedDuration = SignedDuration::from_mins(10);

/// The plan of a poll.
pub(super) struct PollPlan {
    /// The position at which the poll begins.
    pub(super) position: Position,
    /// The poll reads the whole overlap, not only its latest part.
    pub(super) reads_whole_overlap: bool,
}

impl Worker<'_> {
    /// Brings the feed up to date.
    ///
    /// # Errors
    /// The error that stopped the poll. Everything read before it is delivered.
    pub(crate) async fn poll(&mut self) -> Result<Stop> {
        self.kind = SyncKind::Poll;
        let now = self.sync.clock.now();
        self.load_quarantine().await?;
        let is_first_poll = self.lease.feed.covered_until.is_none();
        let plan = self.plan_poll(now);
        self.first_window_was_complete = None;
        let stop = self.pass(&mut Pass::of_poll(&plan)).await?;
        if stop == Stop::Done {
            let feed = &mut self.lease.feed;
            feed.pass_position = None;
            feed.last_success_at = Some(self.sync.clock.now());
            feed.failures = 0;
            if plan.reads_whole_overlap {
                feed.overlap_started_at = Some(now);
            }
            if plan.reads_whole_overlap && !is_first_poll {
                // An overlap that one response holds is read by every poll.
                feed.overlap_read_at = (self.first_window_was_complete == Some(false)).then_some(now);
            }
        }
        Ok(stop)
    }

    /// Reads again what is due for it: incidents without alerts, and what is in quarantine.
    ///
    /// # Errors
    /// The error that stopped it.
    pub(super) async fn make_retries(&mut self) -> Result<Stop> {
        if self.quarantine.is_empty() {
            self.load_quarantine().await?;
        }
        if !self.has_due_retries(self.sync.clock.now()) {
            return Ok(Stop::Done);
        }
        // The poll's own work is committed before anything else is tried.
        if self.commit_feed().await? == Write::Conflict {
            return Ok(Stop::Overtaken);
        }
        if self.recheck().await? == Progress::OutOfTime
            || Box::pin(self.retry_quarantined()).await? == Progress::OutOfTime
        {
            return Ok(Stop::OutOfTime);
        }
        Ok(Stop::Done)
    }

    /// Returns true if retries or jobs wait although this poll made calls and the feed is not far behind.
    pub(super) fn leaves_work_waiting(&self) -> bool {
        let (feed, now) = (&self.lease.feed, self.sync.clock.now());
        let is_current = feed.covered_until.is_some_and(|covered| now <= covered + MAX_LAG_OF_TURNS);
        is_current && self.lease.calls > 0 && (!feed.open_jobs.is_empty() || self.has_due_retries(now))
    }

    /// Lets the next work begin with what this poll has left no call for.
    pub(super) fn pass_over(&mut self) {
        self.lease.feed.passed_over = true;
    }

    /// Returns true if this work begins with what the last poll has left no call for. The next work begins with a poll.
    pub(super) fn takes_turn(&mut self) -> bool {
        self.has_turn = std::mem::take(&mut self.lease.feed.passed_over);
        self.has_turn
    }

    pub(super) fn end_turn(&mut self) {
        self.has_turn = false;
    }

    /// Returns true if a poll is due, which goes before other work.
    pub(crate) fn poll_is_due(&self) -> bool {
        let last = self.lease.feed.last_success_at;
        last.is_none_or(|last| self.sync.clock.now() >= last + self.sync.settings.poll_interval)
    }

    fn has_due_retries(&self, now: Timestamp) -> bool {
        self.lease.feed.rechecks.iter().any(|recheck| recheck.at <= now)
            || self.quarantine.iter().any(|entry| entry.next_try_at <= now)
    }

    fn plan_poll(&mut self, now: Timestamp) -> PollPlan {
        let settings = self.sync.settings;
        let activated_at = self.tenant.activated_at.unwrap_or(now);
        let feed = &mut self.lease.feed;
        let started_at = *feed.started_at.get_or_insert(activated_at - settings.first_lookback);
        let covered_until = *feed.covered_until.get_or_insert(started_at);
        if let Some(position) = feed.pass_position.clone() {
            return PollPlan { position, reads_whole_overlap: false };
        }
        let reads_whole_overlap = feed.overlap_read_at.is_none_or(|read_at| now >= read_at + WHOLE_OVERLAP_INTERVAL);
        let begin = if reads_whole_overlap {
            // Incidents may have appeared late since the overlap was last read, however long ago that is, or since a first
            // pass of several works began. Twice the overlap is enough, because the time before was read just now.
            let earliest = covered_until - settings.overlap;
            let begun_at = feed.overlap_started_at.map_or(earliest, |started_at| started_at.max(earliest));
            covered_until.min(begun_at) - settings.overlap
        } else {
            covered_until - settings.overlap.min(SHORT_OVERLAP)
        };
        PollPlan { position: Position::at(floor(begin.max(started_at))), reads_whole_overlap }
    }
}
