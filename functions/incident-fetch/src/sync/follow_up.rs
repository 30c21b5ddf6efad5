//! What has to follow on a tenant after work on it: when it is polled again, and which message goes on.

use jiff::{SignedDuration, Timestamp};
use shared::{
    error::{Error, Result},
    queue::{SyncKind, SyncMessage},
    registry::{
        feed::Feed,
        lease::{Lease, QUIET_WRITE_INTERVAL},
        tenants::{Status, Tenant},
    },
    tenant::Reason,
};

use super::{Stop, SyncStats, is_transient, tenant::TenantSync};

/// The time after which a paused tenant is tried again.
pub(crate) const PROBE_INTERVAL: SignedDuration = SignedDuration::from_mins(15);

/// The longest time between two polls of a tenant that fails.
const MAX_BACKOFF: SignedDuration = SignedDuration::from_mins(15);

/// The longest time between two polls of a tenant that Microsoft refuses for a reason that nothing explains.
const MAX_REFUSAL_BACKOFF: SignedDuration = SignedDuration::from_hours(1);

/// The number of unexplained refusals in a row that pause a tenant. At the default pace the last one comes after an hour.
const REFUSALS_BEFORE_PAUSE: u32 = 7;

/// The shortest wait of a job that was stopped by an error. The budget has a dozen calls again after it.
const MIN_JOB_DELAY: SignedDuration = SignedDuration::from_secs(30);

/// The outcome in the log where Microsoft refuses the tenant.
pub(super) const REFUSED: &str = "refused";

/// The work that has to follow on a tenant.
pub(super) struct FollowUp {
    /// The reason for the end of the work, where it was not an error.
    pub(super) stop: Option<Stop>,
    /// The time before which the tenant is not due; `None`: as it is stored.
    pub(super) due_at: Option<Timestamp>,
    /// The outcome in the log.
    pub(super) outcome: &'static str,
    /// The tenant is active.
    pub(super) active: bool,
}

impl FollowUp {
    /// Returns true for work that came to its end, after which nothing has to follow.
    pub(super) fn is_quiet(&self) -> bool {
        self.active && self.stop == Some(Stop::Done) && self.due_at.is_none()
    }
}

impl TenantSync {
    /// Applies an outcome to the tenant and its feed, and reports what has to follow.
    ///
    /// # Errors
    /// The outcome's error where our side failed, and those of AWS.
    pub(super) async fn follow_up(
        &self,
        tenant: &Tenant,
        lease: &mut Lease,
        outcome: Result<Stop>,
        stats: SyncStats,
    ) -> Result<FollowUp> {
        let now = self.context.clock.now();
        let active = tenant.status == Status::Active;
        match outcome {
            Ok(stop) => {
                let active = active || (stop == Stop::Done || stats.moved) && self.is_resumed(tenant).await?;
                let due_at = (stop == Stop::Done).then(|| self.next_poll_of_quiet_tenant(&lease.feed, now)).flatten();
                Ok(FollowUp { stop: Some(stop), due_at, outcome: stop.as_str(), active })
            }
            Err(error) => self.follow_up_of_failure(tenant, lease, error, stats, now).await,
        }
    }

    async fn is_resumed(&self, tenant: &Tenant) -> Result<bool> {
        Ok(self.resume_tenant(tenant).await? == Status::Active)
    }

    async fn follow_up_of_failure(
        &self,
        tenant: &Tenant,
        lease: &mut Lease,
        error: Error,
        stats: SyncStats,
        now: Timestamp,
    ) -> Result<FollowUp> {
        let active = tenant.status == Status::Active;
        let ended = |outcome| FollowUp { stop: None, due_at: None, outcome, active };
        match error {
            Error::Throttled { until } => {
                let active = active || stats.moved && self.is_resumed(tenant).await?;
                Ok(FollowUp { due_at: Some(until), active, ..ended("throttled") })
            }
            Error::Refused(reason) => {
                self.pause_tenant(tenant, reason).await?;
                Ok(FollowUp { due_at: Some(now + PROBE_INTERVAL), active: false, ..ended(REFUSED) })
            }
            // The polls of all tenants stay due. The breaker keeps them from Entra until the credential is good again.
            Error::CredentialRejected => Ok(ended("credential_rejected")),
            Error::CredentialUnusable { .. } => Ok(ended("credential_unusable")),
            Error::TenantNotActive(_) | Error::NotFound => Ok(FollowUp { active: false, ..ended("not_active") }),
            Error::DeadlineExceeded => Ok(FollowUp { stop: Some(Stop::OutOfTime), ..ended("out_of_time") }),
            Error::Upstream { status: 400..=499, .. } | Error::FilterNotApplied { .. }
                if !is_transient(&error) || !stats.narrowed =>
            {
                let failures = count_failure(lease);
                tracing::warn!(code = error.code().0, cause = %error, failures, "Microsoft refuses the tenant");
                let pauses = active && failures >= REFUSALS_BEFORE_PAUSE;
                if pauses {
                    self.pause_tenant(tenant, Reason::Unavailable).await?;
                }
                let due_at = Some(now + self.backoff(failures, MAX_REFUSAL_BACKOFF));
                Ok(FollowUp { due_at, active: active && !pauses, ..ended(REFUSED) })
            }
            error if is_transient(&error) => {
                // A search that makes progress continues at the usual pace. An outage is polled less and less often.
                let failures = if stats.narrowed { lease.feed.failures } else { count_failure(lease) };
                tracing::warn!(code = error.code().0, cause = %error, failures, "Microsoft could not be read");
                let due_at = Some(now + self.backoff(failures, MAX_BACKOFF));
                Ok(FollowUp { due_at, ..ended("upstream_failed") })
            }
            error => Err(error),
        }
    }

    /// Queues the next work on the tenant, so that it continues by itself.
    pub(super) async fn queue_follow_up(
        &self,
        message: &SyncMessage,
        job_id: Option<String>,
        lease: &Lease,
        stats: SyncStats,
        follow_up: &FollowUp,
    ) -> Result<()> {
        let now = self.context.clock.now();
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

    pub(super) async fn requeue_job(&self, message: &SyncMessage, job_id: String, delay: SignedDuration) -> Result<()> {
        let message = SyncMessage { job_id: Some(job_id), ..message.clone() };
        self.queue.send(&message, delay).await
    }

    /// The time of the next poll of a tenant without news for a while; `None`: the usual interval. A shorter stretch than
    /// the time for which quiet polls write nothing would cost the writes that it saves.
    fn next_poll_of_quiet_tenant(&self, feed: &Feed, now: Timestamp) -> Option<Timestamp> {
        let interval = self.context.settings.poll_interval;
        let longest = self.poll_max_interval.max(interval);
        let quiet = feed.last_news_at.or(feed.started_at).map_or(SignedDuration::ZERO, |news| now.duration_since(news));
        let stretched = (quiet / 10).min(longest);
        (stretched > interval && stretched >= longest.min(QUIET_WRITE_INTERVAL)).then(|| now + stretched)
    }

    fn backoff(&self, failures: u32, longest: SignedDuration) -> SignedDuration {
        let factor = 1_i32 << failures.saturating_sub(1).min(10);
        self.context.settings.poll_interval.saturating_mul(factor).min(longest)
    }
}

fn count_failure(lease: &mut Lease) -> u32 {
    lease.feed.failures = lease.feed.failures.saturating_add(1);
    lease.feed.failures
}
