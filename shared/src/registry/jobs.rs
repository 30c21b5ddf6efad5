//! Jobs: backfills and sweeps, with their progress.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use aws_sdk_dynamodb::types::AttributeValue;

use super::{Registry, condition_held, number, tenant_pk, text, to_item};
use crate::{
    error::{Error, Result},
    queue::SyncKind,
    tenant::TenantId,
};

/// The most that a job spans: Defender XDR keeps its data for 180 days.
/// <https://learn.microsoft.com/defender-xdr/data-privacy>
pub const MAX_JOB_SPAN: SignedDuration = SignedDuration::from_hours(180 * 24);

/// How long a job can be looked up once it has ended.
const KEPT_FOR: SignedDuration = SignedDuration::from_hours(90 * 24);

/// After how many failures in a row, none of them Microsoft's, a job is given up.
const MOST_FAILURES: u32 = 20;

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Brings incidents that are older than the feed.
    Backfill,
    /// Compares what Microsoft shows with what was delivered, and delivers what is missing.
    Sweep,
}

impl From<JobKind> for SyncKind {
    fn from(kind: JobKind) -> Self {
        match kind {
            JobKind::Backfill => Self::Backfill,
            JobKind::Sweep => Self::Sweep,
        }
    }
}

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// Nothing was done yet.
    Queued,
    /// Some of it was done.
    Running,
    /// All of it was done.
    Done,
    /// Stopped by the operator.
    Cancelled,
    /// Given up: something of ours failed again and again. Polls are not held up by it.
    Failed,
}

impl JobStatus {
    /// Whether there is work left.
    pub fn is_open(self) -> bool {
        match self {
            Self::Queued | Self::Running => true,
            Self::Done | Self::Cancelled | Self::Failed => false,
        }
    }
}

/// One job. `from` and `to` are times of last update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Names it within its tenant.
    pub job_id: String,
    /// Whose incidents.
    pub tenant_id: TenantId,
    /// What it does.
    pub kind: JobKind,
    /// How it stands.
    pub status: JobStatus,
    /// Where it begins.
    pub from: Timestamp,
    /// Where it ends.
    pub to: Timestamp,
    /// Everything before this time is done.
    pub covered_until: Timestamp,
    /// How many seconds of last update it asks for at once, once that is known.
    pub width: Option<i64>,
    /// Versions compared.
    pub checked: u64,
    /// Versions delivered.
    pub delivered: u64,
    /// Failures in a row that are neither Microsoft's nor the tenant's.
    #[serde(default)]
    pub failures: u32,
}

impl Job {
    /// A job of which nothing is done.
    pub fn new(job_id: String, tenant_id: TenantId, kind: JobKind, from: Timestamp, to: Timestamp) -> Self {
        Self {
            job_id,
            tenant_id,
            kind,
            status: JobStatus::Queued,
            from,
            to,
            covered_until: from,
            width: None,
            checked: 0,
            delivered: 0,
            failures: 0,
        }
    }

    /// Notes a failure of ours; after too many in a row the job has failed.
    pub fn failed_once_more(&mut self) {
        self.failures += 1;
        if self.failures >= MOST_FAILURES {
            self.status = JobStatus::Failed;
        }
    }

    /// How much of its span is done, from 0 to 1.
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

fn sort_key(job_id: &str) -> String {
    format!("JOB#{job_id}")
}

impl Registry {
    /// Writes a new job and notes it as open. A job of that name that is there already stays as it is.
    pub async fn create_job(&self, job: &Job) -> Result<()> {
        let mut item = to_item(job)?;
        item.insert("pk".into(), text(tenant_pk(&job.tenant_id)));
        item.insert("sk".into(), text(sort_key(&job.job_id)));
        let outcome = self
            .client
            .put_item()
            .table_name(&self.table)
            .set_item(Some(item))
            .condition_expression("attribute_not_exists(pk)")
            .send()
            .await;
        if condition_held("dynamodb:PutItem", outcome)? {
            self.mark_job(&job.tenant_id, "ADD", &job.job_id).await?;
        }
        Ok(())
    }

    /// A job of a tenant.
    pub async fn job(&self, tenant: &TenantId, job_id: &str) -> Result<Option<Job>> {
        self.get(&tenant_pk(tenant), &sort_key(job_id)).await
    }

    /// Cancels a job that is not finished; tells how it then stands, or `None` if there is none.
    pub async fn cancel_job(&self, tenant: &TenantId, job_id: &str, now: Timestamp) -> Result<Option<Job>> {
        let outcome = self
            .update_job(tenant, job_id)
            .update_expression("SET #status = :cancelled, expires_at = :expires")
            .condition_expression("attribute_exists(pk) AND #status IN (:queued, :running)")
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":cancelled", text("cancelled"))
            .expression_attribute_values(":expires", number((now + KEPT_FOR).as_second()))
            .expression_attribute_values(":queued", text("queued"))
            .expression_attribute_values(":running", text("running"))
            .send()
            .await;
        if condition_held("dynamodb:UpdateItem", outcome)? {
            self.mark_job(tenant, "DELETE", job_id).await?;
        }
        self.job(tenant, job_id).await
    }

    /// Writes a job's progress, unless it was cancelled meanwhile: `false` then, and nothing was written.
    pub async fn commit_job(&self, job: &Job, now: Timestamp) -> Result<bool> {
        let status = to_item(job)?.remove("status").ok_or_else(|| Error::Internal("a job without a status".into()))?;
        // What is not a number is no time to live.
        let ended = !job.status.is_open();
        let expires = if ended { number((now + KEPT_FOR).as_second()) } else { AttributeValue::Null(true) };
        let outcome = self
            .update_job(&job.tenant_id, &job.job_id)
            .update_expression(
                "SET #status = :status, covered_until = :covered, checked = :checked, delivered = :delivered, \
                 #width = :width, failures = :failures, expires_at = :expires",
            )
            .condition_expression("attribute_exists(pk) AND #status IN (:queued, :running)")
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":status", status)
            .expression_attribute_values(":covered", text(job.covered_until.to_string()))
            .expression_attribute_values(":checked", number(job.checked))
            .expression_attribute_values(":delivered", number(job.delivered))
            .expression_attribute_values(":failures", number(job.failures))
            .expression_attribute_values(":expires", expires)
            .expression_attribute_names("#width", "width")
            .expression_attribute_values(":width", job.width.map_or(AttributeValue::Null(true), number))
            .expression_attribute_values(":queued", text("queued"))
            .expression_attribute_values(":running", text("running"))
            .send()
            .await;
        let written = condition_held("dynamodb:UpdateItem", outcome)?;
        if !job.status.is_open() || !written {
            self.mark_job(&job.tenant_id, "DELETE", &job.job_id).await?;
        }
        Ok(written)
    }

    async fn mark_job(&self, tenant: &TenantId, verb: &str, job_id: &str) -> Result<()> {
        let outcome = self
            .update_feed(tenant)
            .update_expression(format!("{verb} open_jobs :job"))
            // An offboarded tenant has no feed, and gets none by a job that came too late.
            .condition_expression("attribute_exists(pk)")
            .expression_attribute_values(":job", AttributeValue::Ss(vec![job_id.to_owned()]))
            .send()
            .await;
        condition_held("dynamodb:UpdateItem", outcome).map(|_| ())
    }

    fn update_job(
        &self,
        tenant: &TenantId,
        job_id: &str,
    ) -> aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder {
        self.client
            .update_item()
            .table_name(&self.table)
            .key("pk", text(tenant_pk(tenant)))
            .key("sk", text(sort_key(job_id)))
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
        for _ in 1..MOST_FAILURES {
            job.failed_once_more();
            assert!(job.status.is_open());
        }
        job.failed_once_more();
        assert_eq!(job.status, JobStatus::Failed);
    }
}
