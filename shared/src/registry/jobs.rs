//! The jobs of a tenant: backfills and sweeps, with their progress.

use aws_sdk_dynamodb::{operation::update_item::builders::UpdateItemFluentBuilder, types::AttributeValue};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    Registry, Write,
    position::Position,
    table::{number, put_if, text, to_item, update_if},
    tenant_pk,
};
use crate::{
    error::{Error, Result},
    queue::SyncKind,
    tenant::TenantId,
    text::UnknownWord,
};

/// The longest span of a job. Defender XDR keeps its data for 180 days.
/// <https://learn.microsoft.com/defender-xdr/data-privacy>
pub const MAX_JOB_SPAN: SignedDuration = SignedDuration::from_hours(180 * 24);

/// The time for which an ended job stays in the table.
const ENDED_JOB_TTL: SignedDuration = SignedDuration::from_hours(90 * 24);

/// The number of failures in a row, none of them Microsoft's, after which a job fails.
const MAX_JOB_FAILURES: u32 = 20;

/// The time without progress after which a sweep fails, so that the next one starts from the beginning.
const MAX_SWEEP_STANDSTILL: SignedDuration = SignedDuration::from_hours(24);

/// The kinds of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "&'static str")]
pub enum JobKind {
    /// Delivers incidents that are older than the feed.
    Backfill,
    /// Compares the incidents that Microsoft shows with the delivered versions, and delivers the missing ones.
    Sweep,
    /// A kind of a newer release, which alone works on it.
    Unknown(UnknownWord),
}

impl JobKind {
    /// The interface's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backfill => "backfill",
            Self::Sweep => "sweep",
            Self::Unknown(word) => word.as_str(),
        }
    }
}

impl From<String> for JobKind {
    fn from(text: String) -> Self {
        let known = [Self::Backfill, Self::Sweep].into_iter().find(|known| known.as_str() == text);
        known.unwrap_or(Self::Unknown(UnknownWord::of(&text)))
    }
}

impl From<JobKind> for &'static str {
    fn from(kind: JobKind) -> Self {
        kind.as_str()
    }
}

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "&'static str")]
pub enum JobStatus {
    /// No worker has started it.
    Queued,
    /// A worker has started it.
    Running,
    /// Its whole span was read.
    Done,
    /// The operator cancelled it.
    Cancelled,
    /// Our side failed too many times in a row, or it is a sweep that came no further for a day or could compare nothing.
    /// Polls continue.
    Failed,
    /// A status of a newer release, which alone works on the job.
    Unknown(UnknownWord),
}

impl JobStatus {
    const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Done, Self::Cancelled, Self::Failed];

    /// Returns true while there is work left that this release knows of.
    pub fn is_open(self) -> bool {
        match self {
            Self::Queued | Self::Running => true,
            Self::Done | Self::Cancelled | Self::Failed | Self::Unknown(_) => false,
        }
    }

    /// The interface's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Unknown(word) => word.as_str(),
        }
    }
}

impl From<String> for JobStatus {
    fn from(text: String) -> Self {
        Self::ALL.into_iter().find(|known| known.as_str() == text).unwrap_or(Self::Unknown(UnknownWord::of(&text)))
    }
}

impl From<JobStatus> for &'static str {
    fn from(status: JobStatus) -> Self {
        status.as_str()
    }
}

/// One backfill or sweep. `from` and `to` are times of last update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The identifier, unique within the tenant.
    pub job_id: String,
    /// The tenant whose incidents it reads.
    pub tenant_id: TenantId,
    /// The kind of work, backfill or sweep.
    pub kind: JobKind,
    /// The state at the last commit.
    pub status: JobStatus,
    /// The start of its span.
    pub from: Timestamp,
    /// The end of its span, not included.
    pub to: Timestamp,
    /// The cursor: everything before this time was read.
    pub covered_until: Timestamp,
    /// The position of its pass. `None` before the first window.
    #[serde(default)]
    pub pass_position: Option<Position>,
    /// The number of versions that were compared with the delivered ones.
    pub checked: u64,
    /// The number of versions that the job delivered.
    pub delivered: u64,
    /// The number of failures in a row that are neither Microsoft's nor the tenant's.
    #[serde(default)]
    pub failures: u32,
    /// The time at which it last came further. `None`: no worker has started it.
    #[serde(default)]
    pub progressed_at: Option<Timestamp>,
    /// The number of commits. A worker whose number is not the stored one was overtaken by another.
    #[serde(default)]
    pub commits: u64,
}

impl Job {
    /// A queued job for the span from `from` to `to`.
    pub fn new(job_id: String, tenant_id: TenantId, kind: JobKind, from: Timestamp, to: Timestamp) -> Self {
        Self {
            job_id,
            tenant_id,
            kind,
            status: JobStatus::Queued,
            from,
            to,
            covered_until: from,
            pass_position: None,
            checked: 0,
            delivered: 0,
            failures: 0,
            progressed_at: None,
            commits: 0,
        }
    }

    /// The work that is left. `None`: it has ended, or only a newer release works on it.
    pub fn open_work(&self) -> Option<SyncKind> {
        match self.kind {
            _ if !self.status.is_open() => None,
            JobKind::Backfill => Some(SyncKind::Backfill),
            JobKind::Sweep => Some(SyncKind::Sweep),
            JobKind::Unknown(_) => None,
        }
    }

    /// Returns true if nobody works on it any more, whatever the release.
    pub fn has_ended(&self) -> bool {
        matches!(self.status, JobStatus::Done | JobStatus::Cancelled | JobStatus::Failed)
    }

    /// Returns true for a sweep that came no further for a day.
    pub fn stands_still(&self, now: Timestamp) -> bool {
        self.kind == JobKind::Sweep && self.progressed_at.is_some_and(|at| at + MAX_SWEEP_STANDSTILL < now)
    }

    /// Counts a failure of ours. After twenty in a row the job has failed.
    pub fn failed_once_more(&mut self) {
        self.failures += 1;
        if self.failures >= MAX_JOB_FAILURES {
            self.status = JobStatus::Failed;
        }
    }

    /// The part of its span that was read, from 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "a fraction that people read")]
    pub fn fraction(&self) -> f64 {
        let span = self.to.duration_since(self.from).as_secs();
        let done = self.covered_until.duration_since(self.from).as_secs();
        match self.status {
            JobStatus::Done => 1.0,
            _ if span <= 0 => 0.0,
            _ => (done as f64 / span as f64).clamp(0.0, 1.0),
        }
    }
}

/// The condition that a job is stored and not finished.
const IS_OPEN: &str = "attribute_exists(pk) AND #status IN (:queued, :running)";

fn sort_key(job_id: &str) -> String {
    format!("JOB#{job_id}")
}

impl Registry {
    /// Writes a new job and adds it to the open jobs of its tenant. An existing job with its identifier is kept.
    pub async fn create_job(&self, job: &Job) -> Result<()> {
        let mut item = to_item(job)?;
        item.insert("pk".into(), text(tenant_pk(&job.tenant_id)));
        item.insert("sk".into(), text(sort_key(&job.job_id)));
        match put_if(self.put(item).condition_expression("attribute_not_exists(pk)")).await? {
            Write::Done => self.add_open_job(&job.tenant_id, &job.job_id).await,
            Write::Conflict => Ok(()),
        }
    }

    /// Reads a job of a tenant with a consistent read.
    pub async fn job(&self, tenant: &TenantId, job_id: &str) -> Result<Option<Job>> {
        self.get(&tenant_pk(tenant), &sort_key(job_id)).await
    }

    /// Cancels a job that is not finished. Returns the job as it then is, or `None` for an unknown one.
    pub async fn cancel_job(&self, tenant: &TenantId, job_id: &str, now: Timestamp) -> Result<Option<Job>> {
        let update = self
            .update_open_job(tenant, job_id)
            .update_expression("SET #status = :cancelled, expires_at = :expires")
            .expression_attribute_values(":cancelled", text("cancelled"))
            .expression_attribute_values(":expires", number((now + ENDED_JOB_TTL).as_second()));
        if update_if(update).await? == Write::Done {
            self.remove_open_job(tenant, job_id).await?;
        }
        self.job(tenant, job_id).await
    }

    /// Writes a job's progress. [`Write::Conflict`]: the job was cancelled or deleted meanwhile, or another worker has
    /// written its progress since this one read it.
    pub async fn commit_job(&self, job: &mut Job, now: Timestamp) -> Result<Write> {
        let next = Job { commits: job.commits + 1, ..job.clone() };
        let mut item = to_item(&next)?;
        let mut attribute = |name: &str| item.remove(name).ok_or_else(|| Error::Internal("a job is incomplete".into()));
        let (status, position, progressed_at) =
            (attribute("status")?, attribute("pass_position")?, attribute("progressed_at")?);
        // DynamoDB ignores a TTL that is not a number: NULL keeps the item.
        let expires =
            if next.status.is_open() { AttributeValue::Null(true) } else { number((now + ENDED_JOB_TTL).as_second()) };
        let update = self
            .update_open_job(&next.tenant_id, &next.job_id)
            .update_expression(
                "SET #status = :status, covered_until = :covered, checked = :checked, delivered = :delivered, \
                 pass_position = :position, failures = :failures, progressed_at = :progressed, expires_at = :expires, \
                 commits = :commits",
            )
            .condition_expression(format!("{IS_OPEN} AND (attribute_not_exists(commits) OR commits = :before)"))
            .expression_attribute_values(":before", number(job.commits))
            .expression_attribute_values(":commits", number(next.commits))
            .expression_attribute_values(":status", status)
            .expression_attribute_values(":covered", text(next.covered_until.to_string()))
            .expression_attribute_values(":checked", number(next.checked))
            .expression_attribute_values(":delivered", number(next.delivered))
            .expression_attribute_values(":failures", number(next.failures))
            .expression_attribute_values(":expires", expires)
            .expression_attribute_values(":progressed", progressed_at)
            .expression_attribute_values(":position", position);
        let stored = match update_if(update).await? {
            Write::Done => Some(next.clone()),
            // The response to an own commit may have been lost.
            Write::Conflict => self.job(&next.tenant_id, &next.job_id).await?,
        };
        if stored.as_ref().is_none_or(Job::has_ended) {
            self.remove_open_job(&next.tenant_id, &next.job_id).await?;
        }
        if stored.as_ref() != Some(&next) {
            return Ok(Write::Conflict);
        }
        *job = next;
        Ok(Write::Done)
    }

    /// Adds a job to the open jobs of its tenant.
    pub async fn add_open_job(&self, tenant: &TenantId, job_id: &str) -> Result<()> {
        self.change_open_jobs(tenant, "ADD open_jobs :job", job_id).await
    }

    /// Removes a job from the open jobs of its tenant.
    pub async fn remove_open_job(&self, tenant: &TenantId, job_id: &str) -> Result<()> {
        self.change_open_jobs(tenant, "DELETE open_jobs :job", job_id).await
    }

    async fn change_open_jobs(&self, tenant: &TenantId, expression: &str, job_id: &str) -> Result<()> {
        let update = self
            .update_feed(tenant)
            .update_expression(expression)
            // An offboarded tenant has no feed, and a late job must not create one.
            .condition_expression("attribute_exists(pk)")
            .expression_attribute_values(":job", AttributeValue::Ss(vec![job_id.to_owned()]));
        update_if(update).await.map(|_| ())
    }

    /// An update with the condition that the job is not finished.
    fn update_open_job(&self, tenant: &TenantId, job_id: &str) -> UpdateItemFluentBuilder {
        self.update(tenant_pk(tenant), sort_key(job_id))
            .condition_expression(IS_OPEN)
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":queued", text("queued"))
            .expression_attribute_values(":running", text("running"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_fails_only_after_many_failures_in_a_row() {
        let at: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        let tenant = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
        let mut job = Job::new("j".into(), tenant, JobKind::Backfill, at, at);
        for _ in 1..MAX_JOB_FAILURES {
            job.failed_once_more();
            assert!(job.status.is_open());
        }
        job.failed_once_more();
        assert_eq!(job.status, JobStatus::Failed);
    }
}
