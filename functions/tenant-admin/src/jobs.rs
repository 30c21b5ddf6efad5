//! Backfills and sweeps that an operator starts, reads and cancels.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::json;
use shared::{
    error::{Error, Result},
    lambda::event::HttpResponse,
    queue::{SyncKind, SyncMessage},
    random::random_uuid,
    registry::{
        jobs::{Job, JobKind, JobStatus, MAX_JOB_SPAN},
        tenants::Status,
    },
    telemetry::RECORD,
    tenant::TenantId,
};

use crate::{
    AdminRequest, App,
    input::{Body, expect_no_input, invalid},
};

#[derive(Serialize)]
struct JobProgress<'a> {
    job_id: &'a str,
    kind: JobKind,
    status: JobStatus,
    from: Timestamp,
    to: Timestamp,
    covered_until: Timestamp,
    delivered: u64,
    fraction: f64,
}

impl<'a> JobProgress<'a> {
    fn new(job: &'a Job) -> Self {
        Self {
            job_id: &job.job_id,
            kind: job.kind,
            status: job.status,
            from: job.from,
            to: job.to,
            covered_until: job.covered_until,
            delivered: job.delivered,
            fraction: job.fraction(),
        }
    }
}

/// The time by which a job may be longer than [`MAX_JOB_SPAN`], the documented most. A caller who asks for "180 days
/// ago" computes that time before the request arrives, and in local time, where a change of the clocks lies in between.
const JOB_SPAN_TOLERANCE: SignedDuration = SignedDuration::from_hours(2);

/// The job that a request body describes. `from` and `to` are times of last update.
#[derive(Debug, PartialEq)]
struct JobRequest {
    kind: JobKind,
    work: SyncKind,
    from: Timestamp,
    to: Timestamp,
}

impl JobRequest {
    /// Parses a body. Without `from`, a backfill spans [`MAX_JOB_SPAN`] and a sweep spans `sweep`.
    fn parse(body: &Body, now: Timestamp, sweep: SignedDuration) -> Result<Self> {
        let (kind, work, default_span) = match body.text("kind")? {
            Some("backfill") => (JobKind::Backfill, SyncKind::Backfill, MAX_JOB_SPAN),
            Some("sweep") => (JobKind::Sweep, SyncKind::Sweep, sweep),
            Some(_) | None => return Err(invalid("`kind` must be backfill or sweep.")),
        };
        let to = match body.time("to")? {
            Some(to) if to > now => return Err(invalid("`to` must not be in the future.")),
            Some(to) => to,
            None => Timestamp::from_second(now.as_second()).unwrap_or(now),
        };
        let from = match body.time("from")? {
            Some(from) => from,
            None => to.checked_sub(default_span).map_err(|_| invalid("`to` is too early."))?,
        };
        if from >= to {
            return Err(invalid("`from` must be before `to`, which defaults to now."));
        }
        if to.duration_since(from) > MAX_JOB_SPAN + JOB_SPAN_TOLERANCE {
            let days = MAX_JOB_SPAN.as_hours() / 24;
            return Err(invalid(format!("`from` must be at most {days} days before `to`.")));
        }
        Ok(Self { kind, work, from, to })
    }
}

impl App {
    /// `POST /tenants/{tenant_id}/sync`: queues a backfill or a sweep of an active tenant.
    pub(crate) async fn start_job(&self, request: &AdminRequest<'_>, tenant: TenantId) -> Result<HttpResponse> {
        let known = self.clients.registry.known_tenant(&tenant).await?;
        request.http.parameters(&[])?;
        let body = Body::parse(request.http, &["kind", "from", "to"])?.without_nulls();
        let JobRequest { kind, work, from, to } = JobRequest::parse(&body, self.clock.now(), self.config.sweep)?;
        if known.status != Status::Active {
            return Err(Error::TenantNotActive(known.reason));
        }

        let job = Job::new(random_uuid(self.random.as_ref())?.to_string(), tenant, kind, from, to);
        self.clients.registry.create_job(&job).await?;
        let message = SyncMessage {
            from: Some(from),
            to: Some(to),
            job_id: Some(job.job_id.clone()),
            ..SyncMessage::new(tenant, work)
        };
        if let Err(error) = self.queue.send(&message, SignedDuration::ZERO).await {
            // The caller does not get the id and so could not cancel the job.
            self.clients.registry.cancel_job(&tenant, &job.job_id, self.clock.now()).await?;
            return Err(error);
        }
        tracing::info!(target: RECORD, audit = true,
            actor = request.actor,
            job_id = job.job_id,
            kind = ?kind,
            from = %from,
            to = %to,
            "job started"
        );
        Ok(HttpResponse::json(202, &json!({"job_id": job.job_id})))
    }

    /// `GET /tenants/{tenant_id}/sync/{job_id}`: the progress of a job.
    pub(crate) async fn show_job(
        &self,
        request: &AdminRequest<'_>,
        tenant: TenantId,
        job_id: &str,
    ) -> Result<HttpResponse> {
        let job_id = parse_job_id(job_id)?;
        self.onboarded(&tenant).await?;
        let job = self.clients.registry.job(&tenant, job_id).await?.ok_or(Error::NotFound)?;
        request.http.parameters(&[])?;
        Ok(HttpResponse::json(200, &JobProgress::new(&job)))
    }

    /// `DELETE /tenants/{tenant_id}/sync/{job_id}`: cancels a job. A finished job does not change.
    pub(crate) async fn cancel_job(
        &self,
        request: &AdminRequest<'_>,
        tenant: TenantId,
        job_id: &str,
    ) -> Result<HttpResponse> {
        let job_id = parse_job_id(job_id)?;
        self.onboarded(&tenant).await?;
        let before = self.clients.registry.job(&tenant, job_id).await?.ok_or(Error::NotFound)?;
        expect_no_input(request.http)?;
        let after =
            self.clients.registry.cancel_job(&tenant, job_id, self.clock.now()).await?.ok_or(Error::NotFound)?;
        if before.status != after.status {
            tracing::info!(target: RECORD, audit = true, actor = request.actor, job_id, "job cancelled");
        }
        Ok(HttpResponse::json(200, &JobProgress::new(&after)))
    }
}

/// Returns `job_id` if it has the form of our own ids, so that no other text reaches the registry.
fn parse_job_id(job_id: &str) -> Result<&str> {
    let parsed = uuid::Uuid::try_parse(job_id).map_err(|_| Error::NotFound)?;
    if parsed.to_string() == job_id { Ok(job_id) } else { Err(Error::NotFound) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use shared::lambda::event::HttpRequest;

    use super::*;

    fn parse(body: &Value) -> Result<JobRequest> {
        let request = HttpRequest { body: body.to_string().into_bytes(), ..HttpRequest::default() };
        let body = Body::parse(&request, &["kind", "from", "to"])?.without_nulls();
        JobRequest::parse(&body, "2026-11-22T10:00:00.5Z".parse().unwrap(), SignedDuration::from_hours(72))
    }

    fn span(request: &JobRequest) -> (String, String) {
        (request.from.to_string(), request.to.to_string())
    }

    #[test]
    fn job_without_bounds_gets_the_span_of_its_kind() {
        let backfill = parse(&json!({"kind": "backfill"})).unwrap();
        assert_eq!(span(&backfill), ("2026-05-26T10:00:00Z".into(), "2026-11-22T10:00:00Z".into()));
        let sweep = parse(&json!({"kind": "sweep", "from": null})).unwrap();
        assert_eq!(span(&sweep), ("2026-11-19T10:00:00Z".into(), "2026-11-22T10:00:00Z".into()));
        let until = parse(&json!({"kind": "backfill", "to": "2026-11-01T00:00:00Z"})).unwrap();
        assert_eq!(span(&until), ("2026-05-05T00:00:00Z".into(), "2026-11-01T00:00:00Z".into()));
        let since = parse(&json!({"kind": "backfill", "from": "2026-11-01T00:00:00.25Z"})).unwrap();
        assert_eq!(span(&since), ("2026-11-01T00:00:00.25Z".into(), "2026-11-22T10:00:00Z".into()));
    }

    #[test]
    fn invalid_bounds_are_reported_by_name() {
        let table = [
            (json!({}), "kind"),
            (json!({"kind": "poll"}), "kind"),
            (json!({"kind": 1}), "kind"),
            (json!({"kind": "backfill", "to": "2026-11-22T10:00:01Z"}), "`to`"),
            (json!({"kind": "backfill", "from": "2026-11-22T10:00:00Z"}), "`from`"),
            (json!({"kind": "backfill", "from": "2026-11-02T00:00:00Z", "to": "2026-11-01T00:00:00Z"}), "`from`"),
            (json!({"kind": "backfill", "from": "2026-05-26T07:59:59Z"}), "180 days"),
            (json!({"kind": "sweep", "from": 5}), "`from`"),
            (json!({"kind": "sweep", "to": "yesterday"}), "`to`"),
            (json!({"kind": "sweep", "until": "x"}), "kind, from, to"),
        ];
        for (body, named) in table {
            match parse(&body) {
                Err(Error::InvalidRequest(detail)) => assert!(detail.contains(named), "{body}: {detail}"),
                other => panic!("{body}: {other:?}"),
            }
        }
    }

    #[test]
    fn job_of_180_days_may_take_a_while_to_arrive() {
        // 11:00 at UTC+1 in November, 180 days back at 11:00 of UTC+2, sent half a minute later.
        let job = parse(&json!({"kind": "backfill", "from": "2026-05-26T08:59:30Z"})).unwrap();
        assert_eq!(span(&job), ("2026-05-26T08:59:30Z".into(), "2026-11-22T10:00:00Z".into()));
    }

    #[test]
    fn progress_has_the_members_of_the_interface() {
        let request = parse(&json!({"kind": "backfill", "from": "2026-11-22T08:00:00Z"})).unwrap();
        let tenant = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
        let mut job = Job::new("j".into(), tenant, request.kind, request.from, request.to);
        job.covered_until = "2026-11-22T09:00:00Z".parse().unwrap();
        assert_eq!(
            serde_json::to_string(&JobProgress::new(&job)).unwrap(),
            concat!(
                r#"{"job_id":"j","kind":"backfill","status":"queued","#,
                r#""from":"2026-11-22T08:00:00Z","to":"2026-11-22T10:00:00Z","#,
                r#""covered_until":"2026-11-22T09:00:00Z","delivered":0,"fraction":0.5}"#
            )
        );
    }

    #[test]
    fn job_ids_have_one_accepted_form() {
        let id = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
        assert!(parse_job_id(id).is_ok());
        for wrong in ["", "x", "%2e%2e", &id.to_uppercase(), &id.replace('-', "")] {
            assert_eq!(parse_job_id(wrong), Err(Error::NotFound));
        }
    }
}
