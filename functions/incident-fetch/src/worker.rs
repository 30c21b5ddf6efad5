//! The worker: one message of the queue is work on one tenant.

use crate::{
    App,
    messages::{QuietPoll, Worked},
    sync::{Stop, SyncStats, Worker, is_transient},
};
use jiff::{SignedDuration, Timestamp};
use shared::{
    error::{Error, Result},
    http::Deadline,
    lambda::event::Message,
    queue::{SyncKind, SyncMessage},
    registry::{
        Write,
        feed::Feed,
        jobs::{Job, JobKind, JobStatus, MAX_JOB_SPAN},
        lease::{Acquired, Lease, QUIET_WRITE_INTERVAL},
        tenants::{Status, Tenant},
    },
    telemetry::{self, Metric},
    tenant::{Reason, TenantId},
};

/// The shortest interval of polls whose calls the budget's reserve holds.
const RESERVE_INTERVAL: SignedDuration = SignedDuration::from_mins(1);

/// The time by which a lease outlives its invocation's deadline. Every write of the invocation has ended by then.
pub(crate) const LEASE_MARGIN: SignedDuration = SignedDuration::from_millis(1500);

/// The time after which a paused tenant is tried again.
pub(crate) const PROBE_INTERVAL: SignedDuration = SignedDuration::from_mins(15);

/// The longest time between two polls of a tenant that fails.
const MAX_BACKOFF: SignedDuration = SignedDuration::from_mins(15);

/// The longest time between two polls of a tenant that Microsoft refuses for a reason that nothing explains.
const MAX_REFUSAL_BACKOFF: SignedDuration = SignedDuration::from_hours(1);

/// The number of unexplained refusals in a row that pause a tenant. At the default pace the last one comes after an hour.
const REFUSALS_BEFORE_PAUSE: u32 = 7;

/// The delay of a job's message that found another worker on its tenant.
const BUSY_DELAY: SignedDuration = SignedDuration::from_secs(5);

/// The shortest wait of a job that was stopped by an error. The budget has a dozen calls again after it.
const MIN_JOB_DELAY: SignedDuration = SignedDuration::from_secs(30);

/// The time after which polls take over a job that no message continues any more.
const ABANDONED_JOB_AGE: SignedDuration = SignedDuration::from_mins(5);

/// The prefix of the names of scheduled sweeps.
const SCHEDULED_SWEEP_PREFIX: &str = "scheduled-";

impl App {
    /// Works on the tenant of a message: a poll, a job, or both.
    pub(crate) async fn sync_tenant(
        &self,
        message: &SyncMessage,
        envelope: &Message,
        deadline: Deadline,
    ) -> Result<Worked> {
        let (tenant_id, now) = (message.tenant_id, self.clock.now());
        let left = SignedDuration::try_from(deadline.left()).unwrap_or(SignedDuration::ZERO);
        let until = now + left + LEASE_MARGIN;
        let (stored, read) = self.registry.read_lease(&tenant_id, now, until).await?;
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
            if self.sync.settings.poll_interval >= RESERVE_INTERVAL {
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
        match self.registry.acquire_lease(&tenant_id, now, until).await? {
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
        let interval = self.sync.settings.poll_interval;
        let waited = envelope.sent_at.is_some_and(|sent_at| sent_at + interval < self.clock.now());
        let is_settled = feed.covered_until.is_some() && feed.pass_position.is_none() && feed.failures == 0;
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
        let mut worker = Worker::new(&self.sync, tenant, lease, deadline);
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
                    let _ = self.registry.release_lease(lease, None, self.clock.now()).await?;
                }
                return Err(error);
            }
        };
        let now = self.clock.now();
        let is_quiet = follow_up.is_quiet() && lease.found_nothing();
        if !(is_quiet && lease.may_stay_unwritten(now))
            && self.registry.release_lease(lease, follow_up.due_at, now).await? == Write::Conflict
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

    /// Returns the id of the job that a message names, or of one that it starts.
    async fn find_or_create_job(&self, kind: JobKind, message: &SyncMessage, message_id: &str) -> Result<String> {
        let tenant_id = message.tenant_id;
        let job_id = match &message.job_id {
            Some(job_id) => job_id.clone(),
            None if kind == JobKind::Sweep => self.scheduled_sweep(&tenant_id, message_id).await?,
            // A message that SQS delivers twice starts one job.
            None => message_id.to_owned(),
        };
        if self.registry.job(&tenant_id, &job_id).await?.is_none() {
            let now = self.clock.now();
            let to = message.to.map_or(now, |to| to.min(now));
            let longest = match kind {
                JobKind::Backfill => MAX_JOB_SPAN,
                JobKind::Sweep | JobKind::Unknown(_) => self.sweep,
            };
            let from = message.from.unwrap_or(to - longest).max(now - MAX_JOB_SPAN).min(to);
            self.registry.create_job(&Job::new(job_id.clone(), tenant_id, kind, from, to)).await?;
        }
        Ok(job_id)
    }

    /// The id of the sweep that a schedule starts, or of the one that is under way, which covers everything that the new one
    /// would.
    async fn scheduled_sweep(&self, tenant_id: &TenantId, message_id: &str) -> Result<String> {
        let now = self.clock.now();
        let feed = self.registry.feed(tenant_id).await?.unwrap_or_default();
        if let Some(since) = feed.last_sweep.map(|sweep| sweep.at).or(feed.started_at) {
            let age = Metric::seconds("SweepAgeSeconds", now.duration_since(since));
            telemetry::metrics(Some(tenant_id), &[age]);
        }
        for job_id in feed.open_jobs.iter().filter(|job_id| job_id.starts_with(SCHEDULED_SWEEP_PREFIX)) {
            if self.registry.job(tenant_id, job_id).await?.is_some_and(|job| !job.stands_still(now)) {
                return Ok(job_id.clone());
            }
        }
        Ok(format!("{SCHEDULED_SWEEP_PREFIX}{message_id}"))
    }

    /// Polls if the message asks for it or a poll is due, and then runs the job.
    async fn poll_and_run_jobs(&self, worker: &mut Worker<'_>, kind: SyncKind, job_id: Option<&str>) -> Result<Stop> {
        let now = self.clock.now();
        if kind == SyncKind::Poll || worker.poll_is_due() {
            let stop = worker.poll().await?;
            if stop != Stop::Done {
                return Ok(stop);
            }
        }
        let abandoned = worker.feed().jobs_driven_at.is_none_or(|driven_at| driven_at + ABANDONED_JOB_AGE < now);
        let jobs: Vec<String> = match job_id {
            Some(id) => vec![id.to_owned()],
            None if abandoned => worker.feed().open_jobs.iter().cloned().collect(),
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

    /// Runs one job as far as time and budget allow, with polls in between whenever one is due.
    async fn run_job(&self, worker: &mut Worker<'_>, job_id: &str) -> Result<Stop> {
        loop {
            let Some(mut job) = self.registry.job(&worker.tenant_id(), job_id).await? else { return Ok(Stop::Done) };
            if job.open_work().is_none() {
                return Ok(Stop::Done);
            }
            match worker.run_job(&mut job).await? {
                Stop::PollDue => {
                    let stop = worker.poll().await?;
                    if stop != Stop::Done {
                        return Ok(stop);
                    }
                }
                stop => {
                    if stop == Stop::Done && job.status == JobStatus::Done {
                        let fraction = job.fraction();
                        tracing::info!(job_id, kind = ?job.kind, checked = job.checked, delivered = job.delivered, fraction, "job done");
                        if job.kind == JobKind::Sweep {
                            let missing = Metric::count("SweepMissing", job.delivered);
                            telemetry::metrics(Some(&worker.tenant_id()), &[missing]);
                        }
                    }
                    return Ok(stop);
                }
            }
        }
    }

    /// Applies an outcome to the tenant and its feed, and reports what has to follow.
    ///
    /// # Errors
    /// The outcome's error where our side failed, and those of AWS.
    async fn follow_up(
        &self,
        tenant: &Tenant,
        lease: &mut Lease,
        outcome: Result<Stop>,
        stats: SyncStats,
    ) -> Result<FollowUp> {
        let now = self.clock.now();
        let mut active = tenant.status == Status::Active;
        let mut follow_up = FollowUp { stop: None, due_at: None, outcome: "", active };
        match outcome {
            Ok(stop) => {
                if !active && (stop == Stop::Done || stats.moved) {
                    active = self.resume_tenant(tenant).await? == Status::Active;
                }
                let due_at = (stop == Stop::Done).then(|| self.next_poll_of_quiet_tenant(&lease.feed, now)).flatten();
                follow_up = FollowUp { stop: Some(stop), due_at, outcome: stop.as_str(), active };
            }
            Err(Error::Throttled { until }) => {
                if !active && stats.moved {
                    active = self.resume_tenant(tenant).await? == Status::Active;
                }
                follow_up = FollowUp { due_at: Some(until), outcome: "throttled", active, ..follow_up };
            }
            Err(Error::Refused(reason)) => {
                self.pause_tenant(tenant, reason).await?;
                let due_at = Some(now + PROBE_INTERVAL);
                follow_up = FollowUp { due_at, outcome: "refused", active: false, ..follow_up };
            }
            // The polls of all tenants stay due. The breaker keeps them from Entra until the credential is good again.
            Err(Error::CredentialRejected) => follow_up.outcome = "credential_rejected",
            Err(Error::CredentialUnusable { .. }) => follow_up.outcome = "credential_unusable",
            Err(Error::TenantNotActive(_) | Error::NotFound) => {
                follow_up = FollowUp { outcome: "not_active", active: false, ..follow_up };
            }
            Err(Error::DeadlineExceeded) => {
                follow_up = FollowUp { stop: Some(Stop::OutOfTime), outcome: "out_of_time", ..follow_up };
            }
            Err(error @ (Error::Upstream { status: 400..=499, .. } | Error::FilterNotApplied { .. }))
                if !is_transient(&error) || !stats.narrowed =>
            {
                let failures = count_failure(lease);
                tracing::warn!(code = error.code().0, cause = %error, failures, "Microsoft refuses the tenant");
                if active && failures >= REFUSALS_BEFORE_PAUSE {
                    self.pause_tenant(tenant, Reason::Unavailable).await?;
                    active = false;
                }
                let due_at = Some(now + self.backoff(failures, MAX_REFUSAL_BACKOFF));
                follow_up = FollowUp { due_at, outcome: "refused", active, ..follow_up };
            }
            Err(error) if is_transient(&error) => {
                // A search that makes progress continues at the usual pace. An outage is polled less and less often.
                let failures = if stats.narrowed { lease.feed.failures } else { count_failure(lease) };
                tracing::warn!(code = error.code().0, cause = %error, failures, "Microsoft could not be read");
                let due_at = Some(now + self.backoff(failures, MAX_BACKOFF));
                follow_up = FollowUp { due_at, outcome: "upstream_failed", ..follow_up };
            }
            Err(error) => return Err(error),
        }
        Ok(follow_up)
    }

    /// Queues the next work on the tenant, so that it continues by itself.
    async fn queue_follow_up(
        &self,
        message: &SyncMessage,
        job_id: Option<String>,
        lease: &Lease,
        stats: SyncStats,
        follow_up: &FollowUp,
    ) -> Result<()> {
        let now = self.clock.now();
        let job_is_open = job_id.as_ref().is_some_and(|id| lease.feed.open_jobs.contains(id));
        let progress = stats.moved || stats.delivered > 0;
        match (job_id, follow_up.stop) {
            (Some(id), Some(Stop::OutOfTime | Stop::PollDue)) if job_is_open => {
                self.requeue_job(message, id, SignedDuration::ZERO).await
            }
            (Some(id), None) if job_is_open => {
                let wait = follow_up.due_at.map_or(PROBE_INTERVAL, |due_at| due_at.duration_since(now));
                // A budget that has just one call again would otherwise be spent call by call.
                self.requeue_job(message, id, wait.max(MIN_JOB_DELAY)).await
            }
            // Without progress the next dispatch is soon enough: the work may not fit into any invocation.
            (None, Some(Stop::OutOfTime)) if progress => {
                self.queue.send(&SyncMessage::new(lease.tenant, SyncKind::Poll), SignedDuration::ZERO).await
            }
            _ => Ok(()),
        }
    }

    async fn requeue_job(&self, message: &SyncMessage, job_id: String, delay: SignedDuration) -> Result<()> {
        let message = SyncMessage { job_id: Some(job_id), ..message.clone() };
        self.queue.send(&message, delay).await
    }

    /// The time of the next poll of a tenant without news for a while; `None`: the usual interval. A shorter stretch than
    /// the time for which quiet polls write nothing would cost the writes that it saves.
    fn next_poll_of_quiet_tenant(&self, feed: &Feed, now: Timestamp) -> Option<Timestamp> {
        let interval = self.sync.settings.poll_interval;
        let longest = self.poll_max_interval.max(interval);
        let quiet = feed.last_news_at.or(feed.started_at).map_or(SignedDuration::ZERO, |news| now.duration_since(news));
        let stretched = (quiet / 10).min(longest);
        (stretched > interval && stretched >= longest.min(QUIET_WRITE_INTERVAL)).then(|| now + stretched)
    }

    fn backoff(&self, failures: u32, longest: SignedDuration) -> SignedDuration {
        let factor = 1_i32 << failures.saturating_sub(1).min(10);
        self.sync.settings.poll_interval.saturating_mul(factor).min(longest)
    }
}

/// The work that has to follow on a tenant.
struct FollowUp {
    /// The reason for the end of the work, where it was not an error.
    stop: Option<Stop>,
    /// The time before which the tenant is not due; `None`: as it is stored.
    due_at: Option<Timestamp>,
    /// The outcome in the log.
    outcome: &'static str,
    /// The tenant is active.
    active: bool,
}

impl FollowUp {
    /// Returns true for work that came to its end, after which nothing has to follow.
    fn is_quiet(&self) -> bool {
        self.active && self.stop == Some(Stop::Done) && self.due_at.is_none()
    }
}

/// Returns true for a message that waited while its tenant was polled.
fn is_superseded(read: &Acquired, envelope: &Message) -> bool {
    let Acquired::Lease(lease) = read else { return false };
    envelope.sent_at.is_some_and(|sent_at| lease.feed.last_success_at.is_some_and(|success| success >= sent_at))
}

fn count_failure(lease: &mut Lease) -> u32 {
    lease.feed.failures = lease.feed.failures.saturating_add(1);
    lease.feed.failures
}

fn log_outcome(kind: SyncKind, tenant: &Tenant, lease: &Lease, stats: SyncStats, follow_up: &FollowUp, now: Timestamp) {
    let lag = lease.feed.covered_until.map(|covered| now.duration_since(covered));
    // Microsoft has responded. A job's message may poll in between, but says nothing about what dispatch queued.
    let is_read = stats.moved || stats.checked > 0 || follow_up.stop.is_some_and(|stop| stop != Stop::OutOfTime);
    let polled = u64::from(is_read && kind == SyncKind::Poll);
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
