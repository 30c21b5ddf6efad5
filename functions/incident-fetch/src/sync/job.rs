//! Backfills and sweeps.

use shared::{
    error::Result,
    queue::SyncMessage,
    registry::{
        feed::LastSweep,
        jobs::{Job, JobKind, JobStatus, MAX_JOB_SPAN},
    },
    telemetry::{self, Metric},
    tenant::TenantId,
};

use super::{Stop, Worker, pass::Pass, tenant::TenantSync};

/// The prefix of the names of scheduled sweeps.
const SCHEDULED_SWEEP_PREFIX: &str = "scheduled-";

impl TenantSync {
    /// Returns the id of the job that a message names, or of one that it starts.
    pub(super) async fn find_or_create_job(
        &self,
        kind: JobKind,
        message: &SyncMessage,
        message_id: &str,
    ) -> Result<String> {
        let tenant_id = message.tenant_id;
        let job_id = match &message.job_id {
            Some(job_id) => job_id.clone(),
            None if kind == JobKind::Sweep => self.scheduled_sweep(&tenant_id, message_id).await?,
            // A message that SQS delivers twice starts one job.
            None => message_id.to_owned(),
        };
        if self.context.registry.job(&tenant_id, &job_id).await?.is_none() {
            let now = self.context.clock.now();
            let to = message.to.map_or(now, |to| to.min(now));
            let longest = match kind {
                JobKind::Backfill => MAX_JOB_SPAN,
                JobKind::Sweep | JobKind::Unknown(_) => self.sweep,
            };
            let from = message.from.unwrap_or(to - longest).max(now - MAX_JOB_SPAN).min(to);
            self.context.registry.create_job(&Job::new(job_id.clone(), tenant_id, kind, from, to)).await?;
        }
        Ok(job_id)
    }

    /// The id of the sweep that a schedule starts, or of the one that is under way, which covers everything that the new one
    /// would.
    async fn scheduled_sweep(&self, tenant_id: &TenantId, message_id: &str) -> Result<String> {
        let now = self.context.clock.now();
        let feed = self.context.registry.feed(tenant_id).await?.unwrap_or_default();
        if let Some(since) = feed.last_sweep.map(|sweep| sweep.at).or(feed.started_at) {
            let age = Metric::seconds("SweepAgeSeconds", now.duration_since(since));
            telemetry::metrics(Some(tenant_id), &[age]);
        }
        for job_id in feed.open_jobs.iter().filter(|job_id| job_id.starts_with(SCHEDULED_SWEEP_PREFIX)) {
            if self.context.registry.job(tenant_id, job_id).await?.is_some_and(|job| !job.stands_still(now)) {
                return Ok(job_id.clone());
            }
        }
        Ok(format!("{SCHEDULED_SWEEP_PREFIX}{message_id}"))
    }

    /// Runs one job as far as time and budget allow, with polls in between whenever one is due.
    pub(super) async fn run_job(&self, worker: &mut Worker<'_>, job_id: &str) -> Result<Stop> {
        loop {
            let (registry, tenant) = (&self.context.registry, worker.tenant_id());
            let job = registry.job(&tenant, job_id).await?;
            // A worker that died between its two writes has left one of them undone.
            let is_listed = worker.feed().open_jobs.contains(job_id);
            if is_listed && job.as_ref().is_none_or(Job::has_ended) {
                Box::pin(registry.remove_open_job(&tenant, job_id)).await?;
            }
            let Some(mut job) = job.filter(|job| job.open_work().is_some()) else { return Ok(Stop::Done) };
            if !is_listed {
                Box::pin(registry.add_open_job(&tenant, job_id)).await?;
                worker.note_open_job(job_id);
            }
            match worker.run_job(&mut job).await? {
                Stop::PollDue => {
                    let mut stop = worker.poll().await?;
                    if stop == Stop::Done {
                        stop = worker.make_retries().await?;
                    }
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
}

impl Worker<'_> {
    /// Continues a job. Its progress is committed after each window.
    ///
    /// # Errors
    /// The error that stopped the job. Everything read before it is delivered.
    pub(crate) async fn run_job(&mut self, job: &mut Job) -> Result<Stop> {
        self.take_lease().await?;
        let Some(kind) = job.open_work() else { return Ok(Stop::Done) };
        self.kind = kind;
        self.lease.feed.jobs_driven_at = Some(self.sync.clock.now());
        self.load_quarantine().await?;
        job.status = JobStatus::Running;
        let (mut from, mut to) = (job.covered_until, job.to);
        if job.kind == JobKind::Sweep {
            // The feed never had anything older, and the polls still find anything newer themselves.
            let feed = &self.lease.feed;
            from = from.max(feed.started_at.unwrap_or(from));
            to = to.min(feed.covered_until.map_or(from, |covered| covered - self.sync.settings.overlap));
            if self.fails_sweep(job, from < to) {
                job.status = JobStatus::Failed;
                let _ = self.sync.registry.commit_job(job, self.sync.clock.now()).await?;
                return Ok(Stop::Done);
            }
        }
        let before = (job.covered_until, job.pass_position.clone());
        self.added_to_job = self.stats.delivered;
        let mut stop = if from < to { self.pass(&mut Pass::of_job(from, to, job)).await } else { Ok(Stop::Done) };
        if matches!(stop, Ok(Stop::Done)) && job.kind == JobKind::Sweep {
            stop = self.pass(&mut Pass::of_future(self.sync.clock.now(), job)).await;
        }
        self.add_delivered_to_job(job);
        let now = self.sync.clock.now();
        if job.progressed_at.is_none() || before != (job.covered_until, job.pass_position.clone()) {
            job.progressed_at = Some(now);
        }
        match &stop {
            Ok(Stop::Done) => (job.status, job.covered_until) = (JobStatus::Done, job.to),
            Err(error) if error.fails_message() => job.failed_once_more(),
            Ok(Stop::OutOfTime | Stop::PollDue | Stop::Overtaken) | Err(_) => {}
        }
        // The position is progress, too. Without it each run would begin with the same request.
        // A cancelled job keeps its status, and its next message finds it cancelled.
        let _ = self.sync.registry.commit_job(job, now).await?;
        let stop = stop?;
        if stop == Stop::Done && job.kind == JobKind::Sweep {
            self.lease.feed.last_sweep = Some(LastSweep { at: now, checked: job.checked, missing: job.delivered });
        }
        Ok(stop)
    }

    /// Notes a job that the stored feed has among its open ones now.
    fn note_open_job(&mut self, job_id: &str) {
        self.lease.feed.open_jobs.insert(job_id.to_owned());
    }

    /// Returns true for a sweep that came no further for a day, and for one that has nothing to compare because the feed has
    /// not come so far. Its end must not read like health.
    fn fails_sweep(&self, job: &Job, has_span: bool) -> bool {
        let covered_until = self.lease.feed.covered_until;
        let lags = covered_until.is_none_or(|covered| covered + self.sync.settings.overlap < job.to);
        let compares_nothing = lags && !has_span && job.pass_position.is_none();
        let stands_still = job.stands_still(self.sync.clock.now());
        if stands_still || compares_nothing {
            tracing::error!(job_id = job.job_id, stands_still, compares_nothing, "a sweep failed");
        }
        stands_still || compares_nothing
    }

    pub(super) fn add_delivered_to_job(&mut self, job: &mut Job) {
        job.delivered += self.stats.delivered - self.added_to_job;
        self.added_to_job = self.stats.delivered;
    }
}
