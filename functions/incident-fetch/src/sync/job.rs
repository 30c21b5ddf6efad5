//! Backfills and sweeps.

use shared::{
    error::Result,
    registry::{
        feed::LastSweep,
        jobs::{Job, JobKind, JobStatus},
    },
};

use super::{Stop, Worker, pass::Pass};

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

    /// Returns true for a sweep that came no further for a day, and for one that has nothing to compare because the feed has
    /// not come so far. Its end must not read like health.
    fn fails_sweep(&self, job: &Job, has_span: bool) -> bool {
        let covered_until = self.lease.feed.covered_until;
        let lags = covered_until.is_none_or(|covered| covered + self.sync.settings.overlap < job.to);
        let (stands_still, compares_nothing) = (job.stands_still(self.sync.clock.now()), lags && !has_span);
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
