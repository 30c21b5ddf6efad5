//! The queue's side: one message is work on one tenant.

use crate::{
    App,
    sync::{Stop, SyncStats, Worker},
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
    tenant::{Reason, TenantId},
};
use tracing::Instrument;

/// A lease outlives its invocation's deadline by this much: what the invocation still writes is then surely written.
const LEASE_MARGIN: SignedDuration = SignedDuration::from_millis(1500);

/// When a tenant is tried again that is paused by a reason.
const PROBE_EVERY: SignedDuration = SignedDuration::from_mins(15);

/// The longest pause after failures.
const LONGEST_BACKOFF: SignedDuration = SignedDuration::from_mins(15);

/// When a job's message comes back that found another worker on its tenant.
const BUSY: SignedDuration = SignedDuration::from_secs(5);

/// How long a job waits at least when it was stopped: a dozen calls are affordable again then.
const ENOUGH_BUDGET: SignedDuration = SignedDuration::from_secs(30);

/// After how long polls take over a job that nobody drives any more.
const ABANDONED: SignedDuration = SignedDuration::from_mins(5);

/// What the names of the schedule's sweeps begin with.
const SCHEDULED: &str = "scheduled-";

impl App {
    /// Works on all messages of a batch at once; those that failed are named in the answer.
    pub(crate) async fn take_messages(&self, messages: Vec<Message>, deadline: Deadline) -> Value {
        let tasks: Vec<_> = messages
            .into_iter()
            .map(|message| {
                let (app, id) = (self.clone(), message.message_id.clone());
                // A task of its own: a panic over one tenant's data must not take the batch with it.
                let work = async move { Box::pin(app.take_message(message, deadline)).await }.in_current_span();
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

    async fn take_message(&self, message: Message, deadline: Deadline) -> Result<()> {
        let body = message.body.as_deref().unwrap_or_default();
        let Some(job) = SyncMessage::parse(body) else {
            tracing::error!(message_id = message.message_id, outcome = "not_understood", "message failed");
            return Err(Error::InvalidRequest("The message is not understood.".into()));
        };
        let span = tracing::info_span!("tenant", tenant_id = %job.tenant_id);
        let outcome = self.work(&job, &message.message_id, deadline).instrument(span.clone()).await;
        let Err(error) = outcome else { return Ok(()) };
        let fails = error.fails_message();
        span.in_scope(|| {
            let code = error.code().0;
            tracing::error!(message_id = message.message_id, kind = ?job.kind, code, fails, cause = %error, "message failed");
        });
        if fails { Err(error) } else { Ok(()) }
    }

    async fn work(&self, message: &SyncMessage, message_id: &str, deadline: Deadline) -> Result<()> {
        let Some(tenant) = self.workable(&message.tenant_id, deadline).await? else { return Ok(()) };
        let job_id = match message.kind {
            SyncKind::Poll => None,
            SyncKind::Backfill => Some(self.open_job(JobKind::Backfill, message, message_id).await?),
            // What cannot be read cannot be compared; the day's sweep comes again tomorrow.
            SyncKind::Sweep if message.job_id.is_none() && tenant.status != Status::Active => return Ok(()),
            SyncKind::Sweep => Some(self.open_job(JobKind::Sweep, message, message_id).await?),
        };
        let now = self.clock.now();
        let left = SignedDuration::try_from(deadline.left()).unwrap_or(SignedDuration::ZERO);
        let mut lease = match self.registry.acquire_lease(&tenant.tenant_id, now, now + left + LEASE_MARGIN).await? {
            Acquired::Lease(lease) => lease,
            Acquired::NoFeed => return Ok(()),
            Acquired::Busy => {
                tracing::info!(kind = ?message.kind, outcome = "busy", "another worker is on the tenant");
                // A poll is being done just now; a job's message has to come back.
                return match job_id {
                    Some(id) => self.go_on_with(message, id, BUSY).await,
                    None => Ok(()),
                };
            }
        };
        let mut worker = Worker::new(&self.sync, &tenant, &mut lease, deadline);
        let outcome = self.run(&mut worker, message.kind, job_id.as_deref()).await;
        let tally = worker.tally;
        let after = self.after(&tenant, &mut lease, outcome, tally).await?;
        self.conclude(message, job_id, &tenant, &lease, tally, after).await
    }

    /// The tenant, if it is to be worked on.
    async fn workable(&self, tenant_id: &TenantId, deadline: Deadline) -> Result<Option<Tenant>> {
        let Some(tenant) = self.registry.tenant(tenant_id).await? else {
            tracing::warn!(outcome = "unknown_tenant", "message dropped");
            return Ok(None);
        };
        match (tenant.status, tenant.reason) {
            (Status::Active, _) => Ok(Some(tenant)),
            (Status::Pending, _) => {
                let tenant = self.onboarding.advance(tenant_id, deadline).await?;
                if tenant.status == Status::Active {
                    return Ok(Some(tenant));
                }
                if let Some(verification) = &tenant.verification {
                    self.registry.set_due(tenant_id, verification.next_try_at).await?;
                }
                tracing::info!(outcome = "pending", "tenant is not usable yet");
                Ok(None)
            }
            // Never active: what may be read, and where, is yet to be found out.
            (Status::Paused, Some(reason)) if reason != Reason::Operator && tenant.activated_at.is_none() => {
                let tenant = self.onboarding.retry_paused(&tenant, deadline).await?;
                if tenant.status == Status::Active {
                    return Ok(Some(tenant));
                }
                self.registry.set_due(tenant_id, self.clock.now() + PROBE_EVERY).await?;
                tracing::info!(outcome = "refused", "tenant is not usable yet");
                Ok(None)
            }
            // Paused by a reason that Microsoft gave: each poll is a probe.
            (Status::Paused, Some(reason)) if reason != Reason::Operator => Ok(Some(tenant)),
            (Status::Paused | Status::Offboarded, _) => {
                self.registry.stop_feed(tenant_id).await?;
                if self.registry.tenant(tenant_id).await?.is_some_and(|tenant| tenant.status == Status::Active) {
                    // It was resumed at this very moment, and must not fall out of what is due.
                    self.registry.open_feed(tenant_id, self.clock.now()).await?;
                }
                tracing::info!(outcome = "not_active", "message dropped");
                Ok(None)
            }
        }
    }

    /// The job of a message: the one that it names, or one that it begins.
    async fn open_job(&self, kind: JobKind, message: &SyncMessage, message_id: &str) -> Result<String> {
        let tenant_id = message.tenant_id;
        let job_id = match &message.job_id {
            Some(job_id) => job_id.clone(),
            // One sweep of the schedule at a time: the one that is open covers what the next would.
            None if kind == JobKind::Sweep => {
                let open = self.registry.feed(&tenant_id).await?.map(|feed| feed.open_jobs).unwrap_or_default();
                let scheduled = open.into_iter().find(|job_id| job_id.starts_with(SCHEDULED));
                scheduled.unwrap_or_else(|| format!("{SCHEDULED}{message_id}"))
            }
            // A message that comes twice begins one job.
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

    /// A poll first, where one is wanted or due, and then the job.
    async fn run(&self, worker: &mut Worker<'_>, kind: SyncKind, job_id: Option<&str>) -> Result<Stop> {
        let now = self.clock.now();
        if kind == SyncKind::Poll || worker.poll_is_due() {
            let stop = worker.poll().await?;
            if stop != Stop::Done {
                return Ok(stop);
            }
        }
        let abandoned = worker.feed().jobs_driven_at.is_none_or(|driven_at| driven_at + ABANDONED < now);
        let jobs: Vec<String> = match job_id {
            Some(id) => vec![id.to_owned()],
            None if abandoned => worker.feed().open_jobs.iter().cloned().collect(),
            None => Vec::new(),
        };
        for id in jobs {
            let stop = self.drive(worker, &id).await?;
            if stop != Stop::Done {
                return Ok(stop);
            }
        }
        Ok(Stop::Done)
    }

    /// Drives one job as far as time and budget allow, with polls in between whenever one is due.
    async fn drive(&self, worker: &mut Worker<'_>, job_id: &str) -> Result<Stop> {
        loop {
            let Some(mut job) = self.registry.job(&worker.tenant_id(), job_id).await? else { return Ok(Stop::Done) };
            if !job.status.is_open() {
                return Ok(Stop::Done);
            }
            match worker.drive(&mut job).await? {
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

    /// What an outcome means for the tenant, and when it is asked next; `None`: when the dispatcher has said.
    async fn after(
        &self,
        tenant: &Tenant,
        lease: &mut Lease,
        outcome: Result<Stop>,
        tally: SyncStats,
    ) -> Result<After> {
        let now = self.clock.now();
        let mut active = tenant.status == Status::Active;
        let after = match outcome {
            Ok(stop) => {
                if !active && (stop == Stop::Done || tally.moved) {
                    active = self.resume(tenant).await?;
                }
                let due_at = (stop == Stop::Done).then(|| self.quiet_until(&lease.feed, now)).flatten();
                After { stop: Some(stop), due_at, outcome: outcome_of(stop) }
            }
            Err(Error::Throttled { until }) if !active && tally.moved => {
                active = self.resume(tenant).await?;
                After { stop: None, due_at: Some(until), outcome: "throttled" }
            }
            Err(Error::Throttled { until }) => After { stop: None, due_at: Some(until), outcome: "throttled" },
            Err(Error::Refused(reason)) => {
                self.pause(tenant, reason).await?;
                active = false;
                After { stop: None, due_at: Some(now + PROBE_EVERY), outcome: "refused" }
            }
            // Every tenant's polls stay due; the breaker keeps them from Entra until the credential is good again.
            Err(Error::CredentialRejected) => After { stop: None, due_at: None, outcome: "credential_rejected" },
            Err(Error::TenantNotActive(_) | Error::NotFound) => {
                active = false;
                After { stop: None, due_at: None, outcome: "not_active" }
            }
            Err(Error::DeadlineExceeded) => After { stop: Some(Stop::OutOfTime), due_at: None, outcome: "out_of_time" },
            Err(
                error @ (Error::Upstream { .. }
                | Error::Malformed { .. }
                | Error::Partial { .. }
                | Error::Unreachable { .. }),
            ) => {
                // The search for what fails goes on at the usual pace; an outage is met less and less often.
                if !tally.narrowed {
                    lease.feed.failures = lease.feed.failures.saturating_add(1);
                }
                tracing::warn!(code = error.code().0, cause = %error, failures = lease.feed.failures, "Microsoft could not be read");
                After { stop: None, due_at: Some(now + self.backoff(lease.feed.failures)), outcome: "upstream_failed" }
            }
            Err(error) => {
                // What was read and committed before stays; the message comes again.
                let _ = self.registry.release_lease(lease).await?;
                return Err(error);
            }
        };
        if self.registry.release_lease(lease).await? == Write::Conflict {
            return Ok(After { stop: Some(Stop::Overtaken), due_at: None, outcome: "overtaken" });
        }
        let lag = lease.feed.covered_until.map(|covered| now.duration_since(covered).as_secs());
        #[expect(clippy::cast_precision_loss, reason = "metrics")]
        let mut values =
            vec![("Delivered", "Count", tally.delivered as f64), ("Quarantined", "Count", tally.set_aside as f64)];
        // A paused tenant falls behind as a matter of course, and has a reason and an alarm of its own.
        #[expect(clippy::cast_precision_loss, reason = "a metric")]
        values.extend(lag.filter(|_| active).map(|lag| ("LagSeconds", "Seconds", lag as f64)));
        let embedded_metrics = telemetry::emf(now, Some(&tenant.tenant_id), &values);
        tracing::info!(
            target: telemetry::RECORD,
            embedded_metrics,
            outcome = after.outcome,
            api = tenant.api.as_str(),
            calls = lease.calls,
            checked = tally.checked,
            stale = tally.stale,
            "tenant worked on"
        );
        Ok(after)
    }

    /// Sees to it that what is left goes on by itself.
    async fn conclude(
        &self,
        message: &SyncMessage,
        job_id: Option<String>,
        tenant: &Tenant,
        lease: &Lease,
        tally: SyncStats,
        after: After,
    ) -> Result<()> {
        let now = self.clock.now();
        if let Some(due_at) = after.due_at {
            self.registry.set_due(&tenant.tenant_id, due_at).await?;
        }
        let job_is_open = job_id.as_ref().is_some_and(|id| lease.feed.open_jobs.contains(id));
        let progress = tally.moved || tally.delivered > 0;
        match (job_id, after.stop) {
            (Some(id), Some(Stop::OutOfTime | Stop::PollDue)) if job_is_open => {
                self.go_on_with(message, id, SignedDuration::ZERO).await
            }
            (Some(id), None) if job_is_open => {
                let wait = after.due_at.map_or(PROBE_EVERY, |due_at| due_at.duration_since(now));
                // A budget that has just one call to give again would be spent call by call.
                self.go_on_with(message, id, wait.max(ENOUGH_BUDGET)).await
            }
            // Without progress the next dispatch is soon enough: this may be what does not fit into an invocation.
            (None, Some(Stop::OutOfTime)) if progress => {
                self.queue.send(&SyncMessage::new(tenant.tenant_id, SyncKind::Poll), SignedDuration::ZERO).await
            }
            _ => Ok(()),
        }
    }

    async fn go_on_with(&self, message: &SyncMessage, job_id: String, delay: SignedDuration) -> Result<()> {
        let message = SyncMessage { job_id: Some(job_id), ..message.clone() };
        self.queue.send(&message, delay).await
    }

    /// Until when a tenant may be left alone that has had no news for a while.
    fn quiet_until(&self, feed: &Feed, now: Timestamp) -> Option<Timestamp> {
        let interval = self.sync.settings.poll_interval;
        let quiet = feed.last_news_at.or(feed.started_at).map_or(SignedDuration::ZERO, |news| now.duration_since(news));
        let pause = (quiet / 10).clamp(interval, self.poll_max_interval.max(interval));
        (pause > interval).then(|| now + pause)
    }

    fn backoff(&self, failures: u32) -> SignedDuration {
        let factor = 1_i32 << failures.saturating_sub(1).min(10);
        self.sync.settings.poll_interval.saturating_mul(factor).min(LONGEST_BACKOFF)
    }

    async fn pause(&self, tenant: &Tenant, reason: Reason) -> Result<()> {
        self.tokens.forget(&tenant.tenant_id);
        let change = |tenant: &mut Tenant| {
            // The operator's word, and an offboarding, outlast what Microsoft says.
            if matches!(tenant.status, Status::Active | Status::Paused) && tenant.reason != Some(Reason::Operator) {
                (tenant.status, tenant.reason) = (Status::Paused, Some(reason));
            }
            Ok(())
        };
        let (before, after) = self.registry.change_tenant(&tenant.tenant_id, change).await?;
        self.events.tenant_status_changed(Some(&before), &after).await
    }

    /// Whether the tenant is active then.
    async fn resume(&self, tenant: &Tenant) -> Result<bool> {
        let now = self.clock.now();
        let change = |tenant: &mut Tenant| {
            if tenant.status == Status::Paused && tenant.reason != Some(Reason::Operator) {
                (tenant.status, tenant.reason) = (Status::Active, None);
                tenant.activated_at.get_or_insert(now);
            }
            Ok(())
        };
        let (before, after) = self.registry.change_tenant(&tenant.tenant_id, change).await?;
        self.events.tenant_status_changed(Some(&before), &after).await?;
        Ok(after.status == Status::Active)
    }
}

/// What follows from an outcome.
struct After {
    /// Why the work ended, where it was not an error.
    stop: Option<Stop>,
    /// When the tenant is due again, where that is not for the dispatcher to say.
    due_at: Option<Timestamp>,
    /// A word for the log.
    outcome: &'static str,
}

fn outcome_of(stop: Stop) -> &'static str {
    match stop {
        Stop::Done => "done",
        Stop::OutOfTime => "out_of_time",
        Stop::PollDue => "poll_due",
        Stop::Overtaken => "overtaken",
    }
}
