//! The worker: one message of the queue is work on one tenant.

use crate::{
    App,
    sync::{Stop, SyncStats, Worker, is_transient},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use shared::{
    error::{Error, Result},
    http::Deadline,
    lambda::event::Message,
    queue::{SyncKind, SyncMessage},
    registry::{
        Write,
        feed::Feed,
        jobs::{Job, JobKind, MAX_JOB_SPAN},
        lease::{Acquired, Lease},
        tenants::{Status, Tenant},
    },
    telemetry,
    tenant::Reason,
};
use tracing::Instrument;

/// The time by which a lease outlives its invocation's deadline. Every write of the invocation has ended by then.
const LEASE_MARGIN: SignedDuration = SignedDuration::from_millis(1500);

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
    /// Processes all messages of a batch at once. The response names those that failed (partial batch response).
    pub(crate) async fn process_messages(&self, messages: Vec<Message>, deadline: Deadline) -> Value {
        let tasks: Vec<_> = messages
            .into_iter()
            .map(|message| {
                let (app, id) = (self.clone(), message.message_id.clone());
                // A task of its own: a panic over one tenant's data must not take the batch with it.
                let work = async move { Box::pin(app.process_message(message, deadline)).await }.in_current_span();
                (id, tokio::spawn(work))
            })
            .collect();
        let mut failures = Vec::new();
        for (id, task) in tasks {
            let failed = task.await.map_or_else(
                |_| {
                    tracing::error!(message_id = id, outcome = "panicked", "message failed");
                    true
                },
                |outcome| outcome.is_err(),
            );
            if failed {
                telemetry::internal_failure(self.clock.now());
                failures.push(json!({"itemIdentifier": id}));
            }
        }
        json!({"batchItemFailures": failures})
    }

    async fn process_message(&self, message: Message, deadline: Deadline) -> Result<()> {
        let body = message.body.as_deref().unwrap_or_default();
        let Some(job) = SyncMessage::parse(body) else {
            tracing::error!(message_id = message.message_id, outcome = "not_understood", "message failed");
            return Err(Error::InvalidRequest("The message is not a sync message.".into()));
        };
        let span = tracing::info_span!("tenant", tenant_id = %job.tenant_id);
        // Nothing outlives the invocation, not even a call to AWS that hangs. What was not committed is done again.
        let work = self.sync_tenant(&job, &message.message_id, deadline);
        let outcome = deadline.run(work).instrument(span.clone()).await;
        let Err(error) = outcome else { return Ok(()) };
        let fails = error.fails_message();
        span.in_scope(|| {
            let code = error.code().0;
            tracing::error!(message_id = message.message_id, kind = ?job.kind, code, fails, cause = %error, "message failed");
        });
        if fails { Err(error) } else { Ok(()) }
    }

    async fn sync_tenant(&self, message: &SyncMessage, message_id: &str, deadline: Deadline) -> Result<()> {
        let Some(tenant) = self.syncable_tenant(&message.tenant_id, deadline).await? else { return Ok(()) };
        let job_id = match message.kind {
            SyncKind::Poll => None,
            SyncKind::Backfill => Some(self.find_or_create_job(JobKind::Backfill, message, message_id).await?),
            // A sweep needs a readable tenant. The next scheduled one comes tomorrow.
            SyncKind::Sweep if message.job_id.is_none() && tenant.status != Status::Active => return Ok(()),
            SyncKind::Sweep => Some(self.find_or_create_job(JobKind::Sweep, message, message_id).await?),
        };
        let now = self.clock.now();
        let left = SignedDuration::try_from(deadline.left()).unwrap_or(SignedDuration::ZERO);
        let mut lease = match self.registry.acquire_lease(&tenant.tenant_id, now, now + left + LEASE_MARGIN).await? {
            Acquired::Lease(lease) => lease,
            Acquired::NoFeed => return Ok(()),
            Acquired::Busy => {
                tracing::info!(kind = ?message.kind, outcome = "busy", "another worker is on the tenant");
                // The other worker polls. A job needs its message again.
                return match job_id {
                    Some(id) => self.requeue_job(message, id, BUSY_DELAY).await,
                    None => Ok(()),
                };
            }
        };
        let mut worker = Worker::new(&self.sync, &tenant, &mut lease, deadline);
        let outcome = self.poll_and_run_jobs(&mut worker, message.kind, job_id.as_deref()).await;
        let stats = worker.stats;
        let follow_up = self.record_outcome(&tenant, &mut lease, outcome, stats).await?;
        self.schedule_follow_up(message, job_id, &lease, stats, follow_up).await
    }

    /// Returns the id of the job that a message names, or of one that it starts.
    async fn find_or_create_job(&self, kind: JobKind, message: &SyncMessage, message_id: &str) -> Result<String> {
        let tenant_id = message.tenant_id;
        let job_id = match &message.job_id {
            Some(job_id) => job_id.clone(),
            // One scheduled sweep at a time: an open one covers everything that the next would.
            None if kind == JobKind::Sweep => {
                let open = self.registry.feed(&tenant_id).await?.map(|feed| feed.open_jobs).unwrap_or_default();
                let scheduled = open.into_iter().find(|job_id| job_id.starts_with(SCHEDULED_SWEEP_PREFIX));
                scheduled.unwrap_or_else(|| format!("{SCHEDULED_SWEEP_PREFIX}{message_id}"))
            }
            // A message that SQS delivers twice starts one job.
            None => message_id.to_owned(),
        };
        if self.registry.job(&tenant_id, &job_id).await?.is_none() {
            let now = self.clock.now();
            let to = message.to.map_or(now, |to| to.min(now));
            let longest = match kind {
                JobKind::Backfill => MAX_JOB_SPAN,
                JobKind::Sweep => self.sweep,
            };
            let from = message.from.unwrap_or(to - longest).max(now - MAX_JOB_SPAN).min(to);
            self.registry.create_job(&Job::new(job_id.clone(), tenant_id, kind, from, to)).await?;
        }
        Ok(job_id)
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
            if !job.status.is_open() {
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
                    if stop == Stop::Done {
                        let fraction = job.fraction();
                        tracing::info!(job_id, kind = ?job.kind, checked = job.checked, delivered = job.delivered, fraction, "job done");
                        if job.kind == JobKind::Sweep {
                            #[expect(clippy::cast_precision_loss, reason = "a metric")]
                            let missing = job.delivered as f64;
                            let tenant = worker.tenant_id();
                            telemetry::metrics(self.clock.now(), Some(&tenant), &[("SweepMissing", "Count", missing)]);
                        }
                    }
                    return Ok(stop);
                }
            }
        }
    }

    /// Applies an outcome to the tenant and its feed, gives the lease back, and reports what has to follow.
    async fn record_outcome(
        &self,
        tenant: &Tenant,
        lease: &mut Lease,
        outcome: Result<Stop>,
        stats: SyncStats,
    ) -> Result<FollowUp> {
        let now = self.clock.now();
        let mut active = tenant.status == Status::Active;
        let follow_up = match outcome {
            Ok(stop) => {
                if !active && (stop == Stop::Done || stats.moved) {
                    active = self.resume_tenant(tenant).await? == Status::Active;
                }
                let due_at = (stop == Stop::Done).then(|| self.next_poll_of_quiet_tenant(&lease.feed, now)).flatten();
                FollowUp { stop: Some(stop), due_at, outcome: stop.as_str() }
            }
            Err(Error::Throttled { until }) => {
                if !active && stats.moved {
                    active = self.resume_tenant(tenant).await? == Status::Active;
                }
                FollowUp { stop: None, due_at: Some(until), outcome: "throttled" }
            }
            Err(Error::Refused(reason)) => {
                self.pause_tenant(tenant, reason).await?;
                active = false;
                FollowUp { stop: None, due_at: Some(now + PROBE_INTERVAL), outcome: "refused" }
            }
            // The polls of all tenants stay due. The breaker keeps them from Entra until the credential is good again.
            Err(Error::CredentialRejected) => FollowUp { stop: None, due_at: None, outcome: "credential_rejected" },
            Err(Error::TenantNotActive(_) | Error::NotFound) => {
                active = false;
                FollowUp { stop: None, due_at: None, outcome: "not_active" }
            }
            Err(Error::DeadlineExceeded) => {
                FollowUp { stop: Some(Stop::OutOfTime), due_at: None, outcome: "out_of_time" }
            }
            Err(error @ Error::Upstream { status: 400..=499, .. }) if !is_transient(&error) || !stats.narrowed => {
                lease.feed.failures = lease.feed.failures.saturating_add(1);
                let failures = lease.feed.failures;
                tracing::warn!(code = error.code().0, cause = %error, failures, "Microsoft refuses the tenant");
                if active && failures >= REFUSALS_BEFORE_PAUSE {
                    self.pause_tenant(tenant, Reason::Unavailable).await?;
                    active = false;
                }
                let due_at = now + self.backoff(failures, MAX_REFUSAL_BACKOFF);
                FollowUp { stop: None, due_at: Some(due_at), outcome: "refused" }
            }
            Err(error) if is_transient(&error) => {
                // A search that makes progress continues at the usual pace. An outage is polled less and less often.
                if !stats.narrowed {
                    lease.feed.failures = lease.feed.failures.saturating_add(1);
                }
                let failures = lease.feed.failures;
                tracing::warn!(code = error.code().0, cause = %error, failures, "Microsoft could not be read");
                FollowUp {
                    stop: None,
                    due_at: Some(now + self.backoff(failures, MAX_BACKOFF)),
                    outcome: "upstream_failed",
                }
            }
            Err(error) => {
                // Everything committed before stays. SQS delivers the message again.
                let _ = self.registry.release_lease(lease).await?;
                return Err(error);
            }
        };
        if self.registry.release_lease(lease).await? == Write::Conflict {
            return Ok(FollowUp { stop: Some(Stop::Overtaken), due_at: None, outcome: Stop::Overtaken.as_str() });
        }
        log_outcome(tenant, lease, stats, &follow_up, active, now);
        Ok(follow_up)
    }

    /// Schedules the next work on the tenant, so that it continues by itself.
    async fn schedule_follow_up(
        &self,
        message: &SyncMessage,
        job_id: Option<String>,
        lease: &Lease,
        stats: SyncStats,
        follow_up: FollowUp,
    ) -> Result<()> {
        let now = self.clock.now();
        if let Some(due_at) = follow_up.due_at {
            self.registry.set_due(&lease.tenant, due_at).await?;
        }
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

    /// The time of the next poll of a tenant without news for a while; `None`: the usual interval.
    fn next_poll_of_quiet_tenant(&self, feed: &Feed, now: Timestamp) -> Option<Timestamp> {
        let interval = self.sync.settings.poll_interval;
        let quiet = feed.last_news_at.or(feed.started_at).map_or(SignedDuration::ZERO, |news| now.duration_since(news));
        let stretched = (quiet / 10).clamp(interval, self.poll_max_interval.max(interval));
        (stretched > interval).then(|| now + stretched)
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
    /// The time at which the tenant is due again; `None`: as the dispatcher scheduled it.
    due_at: Option<Timestamp>,
    /// The outcome in the log.
    outcome: &'static str,
}

fn log_outcome(tenant: &Tenant, lease: &Lease, stats: SyncStats, follow_up: &FollowUp, active: bool, now: Timestamp) {
    let lag = lease.feed.covered_until.map(|covered| now.duration_since(covered).as_secs());
    #[expect(clippy::cast_precision_loss, reason = "metrics")]
    let mut values =
        vec![("Delivered", "Count", stats.delivered as f64), ("Quarantined", "Count", stats.quarantined as f64)];
    // A paused tenant always falls behind. It has a reason and an alarm of its own.
    #[expect(clippy::cast_precision_loss, reason = "a metric")]
    values.extend(lag.filter(|_| active).map(|lag| ("LagSeconds", "Seconds", lag as f64)));
    let embedded_metrics = telemetry::emf(now, Some(&tenant.tenant_id), &values);
    tracing::info!(
        target: telemetry::RECORD,
        embedded_metrics,
        outcome = follow_up.outcome,
        api = tenant.api.as_str(),
        calls = lease.calls,
        checked = stats.checked,
        stale = stats.stale,
        dropped_rechecks = stats.dropped_rechecks,
        "tenant worked on"
    );
}
