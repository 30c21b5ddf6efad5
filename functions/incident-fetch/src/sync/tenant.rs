//! The sync of one tenant: one message of the queue is a poll, a job, or both.

use jiff::{SignedDuration, Timestamp};
use shared::{
    entra::token_cache::Tokens,
    error::{Error, Result},
    http::Deadline,
    lambda::event::Message,
    onboarding::Onboarding,
    queue::{SyncKind, SyncMessage, SyncQueue},
    registry::{
        Write,
        feed::Feed,
        jobs::JobKind,
        lease::{Acquired, Lease},
        tenants::{Status, Tenant},
    },
    telemetry::{self, Metric},
};

use super::{
    Stop, SyncContext, SyncStats, Worker,
    follow_up::{FollowUp, REFUSED},
};

/// The shortest interval of polls whose calls the budget's reserve holds.
const RESERVE_INTERVAL: SignedDuration = SignedDuration::from_mins(1);

/// The time by which a lease outlives its invocation's deadline. Every write of the invocation has ended by then.
pub(crate) const LEASE_MARGIN: SignedDuration = SignedDuration::from_millis(1500);

/// The delay of a job's message that found another worker on its tenant.
const BUSY_DELAY: SignedDuration = SignedDuration::from_secs(5);

/// The time after which polls take over a job that no message continues any more.
const ABANDONED_JOB_AGE: SignedDuration = SignedDuration::from_mins(5);

/// The result of one message.
pub(crate) enum Worked {
    /// The message has log lines of its own, where there is something to report.
    Logged,
    /// A poll that found nothing. The polls of one invocation share a line.
    Quiet(QuietPoll),
}

/// The counts of polls that found nothing.
#[derive(Clone, Copy, Default)]
pub(crate) struct QuietPoll {
    /// The records that were compared with the delivered versions.
    pub(crate) checked: u64,
    /// The records older than the delivered version.
    pub(crate) stale: u64,
    /// The time by which the tenant's feed lags.
    pub(crate) lag: SignedDuration,
}

/// The work beside a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// The job of the message alone.
    OfJob,
    /// The retries that follow a poll, too.
    OfPoll,
    /// Everything that the last poll has left no call for: the retries, and each open job.
    PassedOver,
}

/// The end of the work beside a poll.
struct ExtraWork {
    outcome: Result<Stop>,
    /// True if a row was read or a position moved.
    progressed: bool,
}

/// The sync of tenants, with all that it stands on.
#[derive(Clone)]
pub(crate) struct TenantSync {
    pub(crate) context: SyncContext,
    pub(crate) onboarding: Onboarding,
    pub(crate) tokens: Tokens,
    pub(crate) queue: SyncQueue,
    /// The longest time between two polls of a quiet tenant.
    pub(crate) poll_max_interval: SignedDuration,
    /// The time that a sweep looks back.
    pub(crate) sweep: SignedDuration,
}

impl TenantSync {
    /// Works on the tenant of a message: a poll, a job, or both.
    pub(crate) async fn run(&self, message: &SyncMessage, envelope: &Message, deadline: Deadline) -> Result<Worked> {
        let (tenant_id, now) = (message.tenant_id, self.context.clock.now());
        let left = SignedDuration::try_from(deadline.left()).unwrap_or(SignedDuration::ZERO);
        let until = now + left + LEASE_MARGIN;
        let (stored, read) = self.context.registry.read_lease(&tenant_id, now, until).await?;
        if message.kind == SyncKind::Poll && is_superseded(&read, envelope) {
            tracing::info!(outcome = "superseded", "message dropped");
            return Ok(Worked::Logged);
        }
        let is_settled =
            stored.as_ref().is_some_and(|tenant| tenant.status == Status::Active && tenant.verification.is_none());
        let Some(tenant) = self.syncable_tenant(&tenant_id, stored, deadline).await? else { return Ok(Worked::Logged) };
        if matches!(read, Acquired::Busy) && message.kind == SyncKind::Poll {
            tracing::info!(kind = ?message.kind, outcome = "busy", "another worker is on the tenant");
            return Ok(Worked::Logged);
        }
        if let Acquired::Lease(mut lease) = read
            && is_settled
            && self.may_be_quiet(message, envelope, &lease.feed)
        {
            if self.context.settings.poll_interval >= RESERVE_INTERVAL {
                lease.reserve_next_call();
            }
            if let Some(worked) = self.work(message, None, &tenant, &mut lease, deadline).await? {
                return Ok(worked);
            }
        }
        let job_id = match message.kind {
            SyncKind::Poll => None,
            SyncKind::Backfill => {
                Some(self.find_or_create_job(JobKind::Backfill, message, &envelope.message_id).await?)
            }
            // A sweep needs a readable tenant. The next scheduled one comes tomorrow.
            SyncKind::Sweep if message.job_id.is_none() && tenant.status != Status::Active => {
                return Ok(Worked::Logged);
            }
            SyncKind::Sweep => Some(self.find_or_create_job(JobKind::Sweep, message, &envelope.message_id).await?),
            // No work on the feed.
            SyncKind::Hunt => return Ok(Worked::Logged),
        };
        match self.context.registry.acquire_lease(&tenant_id, now, until).await? {
            Acquired::Lease(mut lease) => {
                let worked = self.work(message, job_id, &tenant, &mut lease, deadline).await?;
                Ok(worked.unwrap_or(Worked::Logged))
            }
            Acquired::NoFeed => Ok(Worked::Logged),
            Acquired::Busy => {
                tracing::info!(kind = ?message.kind, outcome = "busy", "another worker is on the tenant");
                // The other worker polls. A job needs its message again.
                if let Some(id) = job_id {
                    self.requeue_job(message, id, BUSY_DELAY).await?;
                }
                Ok(Worked::Logged)
            }
        }
    }

    /// Returns true for a poll that may end without a write: nothing of the feed waits to be written, and no other message
    /// waits for what this one writes.
    fn may_be_quiet(&self, message: &SyncMessage, envelope: &Message, feed: &Feed) -> bool {
        let interval = self.context.settings.poll_interval;
        let waited = envelope.sent_at.is_some_and(|sent_at| sent_at + interval < self.context.clock.now());
        let is_settled =
            feed.covered_until.is_some() && feed.pass_position.is_none() && feed.failures == 0 && !feed.passed_over;
        message.kind == SyncKind::Poll && is_settled && !waited
    }

    /// Polls and runs a job under a lease, taken or not. `None`: the lease was not taken, and another worker had it
    /// meanwhile. Nothing was written then, and what was read may be old.
    async fn work(
        &self,
        message: &SyncMessage,
        job_id: Option<String>,
        tenant: &Tenant,
        lease: &mut Lease,
        deadline: Deadline,
    ) -> Result<Option<Worked>> {
        let mut worker = Worker::new(&self.context, tenant, lease, deadline);
        let outcome = Box::pin(self.poll_and_run_jobs(&mut worker, message.kind, job_id.as_deref())).await;
        let stats = worker.stats;
        if lease.is_lost() {
            // With a lease that was taken, the other worker has done or does the work.
            return Ok(lease.was_taken().then_some(Worked::Logged));
        }
        let follow_up = match self.follow_up(tenant, lease, outcome, stats).await {
            Ok(follow_up) => follow_up,
            Err(error) => {
                // Everything committed before stays. SQS delivers the message again.
                if lease.was_taken() {
                    let _ = self.context.registry.release_lease(lease, None, self.context.clock.now()).await?;
                }
                return Err(error);
            }
        };
        let now = self.context.clock.now();
        let is_quiet = follow_up.is_quiet() && lease.found_nothing();
        if !(is_quiet && lease.may_stay_unwritten(now))
            && self.context.registry.release_lease(lease, follow_up.due_at, now).await? == Write::Conflict
        {
            if !lease.was_taken() {
                return Ok(None);
            }
            return Ok(Some(Worked::Logged));
        }
        let lag = lease.feed.covered_until.map(|covered| now.duration_since(covered));
        if is_quiet && let Some(lag) = lag {
            return Ok(Some(Worked::Quiet(QuietPoll { checked: stats.checked, stale: stats.stale, lag })));
        }
        log_outcome(message.kind, tenant, lease, stats, &follow_up, now);
        self.queue_follow_up(message, job_id, lease, stats, &follow_up).await?;
        Ok(Some(Worked::Logged))
    }

    /// Polls if the message asks for it or a poll is due, and then makes the retries and runs the job. Where the last poll
    /// left no call for these, they come first, once.
    async fn poll_and_run_jobs(&self, worker: &mut Worker<'_>, kind: SyncKind, job_id: Option<&str>) -> Result<Stop> {
        let polls = kind == SyncKind::Poll || worker.poll_is_due();
        let was_passed_over = worker.takes_turn();
        let mut missed_its_turn = None;
        if was_passed_over {
            let work = self.retry_and_run_jobs(worker, Extent::PassedOver, job_id).await;
            worker.end_turn();
            match work.outcome {
                Ok(Stop::Done) => {}
                // It keeps its turn until a call is permitted.
                Err(error @ Error::Throttled { .. }) if !work.progressed => {
                    worker.pass_over();
                    missed_its_turn = Some(error);
                }
                outcome => return outcome,
            }
        }
        if polls {
            let polled = worker.poll().await;
            if !was_passed_over && matches!(polled, Err(Error::Throttled { .. })) && worker.leaves_work_waiting() {
                worker.pass_over();
            }
            let stop = polled?;
            if stop != Stop::Done {
                return Ok(stop);
            }
        }
        if was_passed_over {
            // The message of a job has to come again.
            return missed_its_turn.filter(|_| job_id.is_some()).map_or(Ok(Stop::Done), Err);
        }
        let extent = if polls { Extent::OfPoll } else { Extent::OfJob };
        let work = self.retry_and_run_jobs(worker, extent, job_id).await;
        if !work.progressed && matches!(work.outcome, Err(Error::Throttled { .. })) {
            worker.pass_over();
        }
        work.outcome
    }

    /// Makes the retries of a poll and runs the job.
    async fn retry_and_run_jobs(&self, worker: &mut Worker<'_>, extent: Extent, job_id: Option<&str>) -> ExtraWork {
        let before = std::mem::take(&mut worker.stats.moved);
        let checked = worker.stats.checked;
        let work = async {
            if extent != Extent::OfJob {
                let stop = worker.make_retries().await?;
                if stop != Stop::Done {
                    return Ok(stop);
                }
            }
            self.run_jobs(worker, extent, job_id).await
        };
        let outcome = work.await;
        let progressed = worker.stats.moved || worker.stats.checked > checked;
        worker.stats.moved |= before;
        ExtraWork { outcome, progressed }
    }

    /// Runs the job of a message; without one, the jobs that no message continues any more, or that polls have passed over.
    async fn run_jobs(&self, worker: &mut Worker<'_>, extent: Extent, job_id: Option<&str>) -> Result<Stop> {
        let (now, feed) = (self.context.clock.now(), worker.feed());
        let is_abandoned = feed.jobs_driven_at.is_none_or(|driven_at| driven_at + ABANDONED_JOB_AGE < now);
        let jobs: Vec<String> = match job_id {
            Some(id) => vec![id.to_owned()],
            None if is_abandoned || extent == Extent::PassedOver => feed.open_jobs.iter().cloned().collect(),
            None => Vec::new(),
        };
        for id in jobs {
            let stop = self.run_job(worker, &id).await?;
            if stop != Stop::Done {
                return Ok(stop);
            }
        }
        Ok(Stop::Done)
    }
}

/// Returns true for a message that waited while its tenant was polled.
fn is_superseded(read: &Acquired, envelope: &Message) -> bool {
    let Acquired::Lease(lease) = read else { return false };
    envelope.sent_at.is_some_and(|sent_at| lease.feed.last_success_at.is_some_and(|success| success >= sent_at))
}

fn log_outcome(kind: SyncKind, tenant: &Tenant, lease: &Lease, stats: SyncStats, follow_up: &FollowUp, now: Timestamp) {
    let lag = lease.feed.covered_until.map(|covered| now.duration_since(covered));
    // Microsoft has responded. A job's message may poll in between, but says nothing about what dispatch queued.
    let is_read = stats.moved || stats.checked > 0 || follow_up.stop.is_some_and(|stop| stop != Stop::OutOfTime);
    // A tenant that is not active is expected to be refused until its administrator acts.
    let is_still_refused = tenant.status != Status::Active && follow_up.outcome == REFUSED;
    let polled = u64::from((is_read || is_still_refused) && kind == SyncKind::Poll);
    let mut values = vec![
        Metric::count("Delivered", stats.delivered),
        Metric::count("Quarantined", stats.quarantined),
        Metric::count("Polled", polled),
    ];
    // A paused tenant always falls behind. It has a reason and an alarm of its own.
    values.extend(lag.filter(|_| follow_up.active).map(|lag| Metric::seconds("LagSeconds", lag)));
    telemetry::line_with_metrics(&values, || {
        tracing::info!(
            target: telemetry::RECORD,
            outcome = follow_up.outcome,
            api = tenant.api.as_str(),
            calls = lease.calls,
            checked = stats.checked,
            stale = stats.stale,
            dropped_rechecks = stats.dropped_rechecks,
            "tenant worked on"
        );
    });
}
