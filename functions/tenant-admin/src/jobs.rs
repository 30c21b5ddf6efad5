//! Backfills and sweeps that an operator asks for.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::json;
use shared::{
    error::{Error, Result},
    lambda::event::HttpResponse,
    queue::SyncMessage,
    random::random_uuid,
    registry::{
        jobs::{Job, JobKind, JobStatus, MAX_JOB_SPAN},
        tenants::Status,
    },
    telemetry::RECORD,
    tenant::TenantId,
};

use crate::{
    App, Call,
    input::{Body, bare, invalid},
};

#[derive(Serialize)]
struct Progress<'a> {
    job_id: &'a str,
    kind: JobKind,
    status: JobStatus,
    from: Timestamp,
    to: Timestamp,
    covered_until: Timestamp,
    delivered: u64,
    fraction: f64,
}

/// What a job is asked to be.
#[derive(Debug, PartialEq)]
struct Order {
    kind: JobKind,
    from: Timestamp,
    to: Timestamp,
}

impl Order {
    /// A sweep that names no beginning looks back as far as `sweep`.
    fn read(body: &Body, now: Timestamp, sweep: SignedDuration) -> Result<Self> {
        let (kind, usual) = match body.text("kind")? {
            Some("backfill") => (JobKind::Backfill, MAX_JOB_SPAN),
            Some("sweep") => (JobKind::Sweep, sweep),
            Some(_) | None => return Err(invalid("`kind` must be backfill or sweep.")),
        };
        let to = match body.instant("to")? {
            Some(to) if to > now => return Err(invalid("`to` must not lie in the future.")),
            Some(to) => to,
            None => Timestamp::from_second(now.as_second()).unwrap_or(now),
        };
        let from = match body.instant("from")? {
            Some(from) => from,
            None => to.checked_sub(usual).map_err(|_| invalid("`to` lies too far back."))?,
        };
        if from >= to {
            return Err(invalid("`from` must lie before `to`, which is now where it is not given."));
        }
        if to.duration_since(from) > MAX_JOB_SPAN {
            let days = MAX_JOB_SPAN.as_hours() / 24;
            return Err(invalid(format!("`from` must lie at most {days} days before `to`.")));
        }
        Ok(Self { kind, from, to })
    }
}

impl App {
    /// `POST /tenants/{tenant_id}/sync`
    pub(crate) async fn start_job(&self, call: &Call<'_>, tenant: TenantId) -> Result<HttpResponse> {
        let known = self.clients.registry.known_tenant(&tenant).await?;
        call.request.parameters(&[])?;
        let body = Body::read(call.request, &["kind", "from", "to"])?.without_nulls();
        let Order { kind, from, to } = Order::read(&body, self.clock.now(), self.config.sweep)?;
        if known.status != Status::Active {
            return Err(Error::TenantNotActive(known.reason));
        }

        let job = Job::new(random_uuid(self.random.as_ref())?.to_string(), tenant, kind, from, to);
        self.clients.registry.create_job(&job).await?;
        let message = SyncMessage {
            from: Some(from),
            to: Some(to),
            job_id: Some(job.job_id.clone()),
            ..SyncMessage::new(tenant, kind.into())
        };
        if let Err(error) = self.queue.send(&message, SignedDuration::ZERO).await {
            // Nobody knows its name, so nobody could cancel it.
            self.clients.registry.cancel_job(&tenant, &job.job_id, self.clock.now()).await?;
            return Err(error);
        }
        tracing::info!(target: RECORD, audit = true, actor = call.actor, job_id = job.job_id, kind = ?kind, from = %from, to = %to,
            "job started"
        );
        Ok(HttpResponse::json(202, &json!({"job_id": job.job_id})))
    }

    /// `GET /tenants/{tenant_id}/sync/{job_id}`
    pub(crate) async fn show_job(&self, call: &Call<'_>, tenant: TenantId, job_id: &str) -> Result<HttpResponse> {
        let job_id = canonical(job_id)?;
        self.onboarded(&tenant).await?;
        let job = self.clients.registry.job(&tenant, job_id).await?.ok_or(Error::NotFound)?;
        call.request.parameters(&[])?;
        Ok(HttpResponse::json(200, &progress(&job)))
    }

    /// `DELETE /tenants/{tenant_id}/sync/{job_id}`: one that is finished stays as it is.
    pub(crate) async fn cancel_job(&self, call: &Call<'_>, tenant: TenantId, job_id: &str) -> Result<HttpResponse> {
        let job_id = canonical(job_id)?;
        self.onboarded(&tenant).await?;
        let before = self.clients.registry.job(&tenant, job_id).await?.ok_or(Error::NotFound)?;
        bare(call.request)?;
        let after =
            self.clients.registry.cancel_job(&tenant, job_id, self.clock.now()).await?.ok_or(Error::NotFound)?;
        if before.status != after.status {
            tracing::info!(target: RECORD, audit = true, actor = call.actor, job_id, "job cancelled");
        }
        Ok(HttpResponse::json(200, &progress(&after)))
    }
}

/// The identifier as we make them; nothing else is asked for.
fn canonical(job_id: &str) -> Result<&str> {
    let parsed = uuid::Uuid::try_parse(job_id).map_err(|_| Error::NotFound)?;
    if parsed.to_string() == job_id { Ok(job_id) } else { Err(Error::NotFound) }
}

fn progress(job: &Job) -> Progress<'_> {
    Progress {
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use shared::lambda::event::HttpRequest;

    use super::*;

    fn order(body: &Value) -> Result<Order> {
        let request = HttpRequest { body: body.to_string().into_bytes(), ..HttpRequest::default() };
        let body = Body::read(&request, &["kind", "from", "to"])?.without_nulls();
        Order::read(&body, "2026-11-22T10:00:00.5Z".parse().unwrap(), SignedDuration::from_hours(72))
    }

    fn span(order: &Order) -> (String, String) {
        (order.from.to_string(), order.to.to_string())
    }

    #[test]
    fn a_job_has_the_span_of_its_kind_where_none_is_named() {
        let backfill = order(&json!({"kind": "backfill"})).unwrap();
        assert_eq!(span(&backfill), ("2026-05-26T10:00:00Z".into(), "2026-11-22T10:00:00Z".into()));
        let sweep = order(&json!({"kind": "sweep", "from": null})).unwrap();
        assert_eq!(span(&sweep), ("2026-11-19T10:00:00Z".into(), "2026-11-22T10:00:00Z".into()));
        let until = order(&json!({"kind": "backfill", "to": "2026-11-01T00:00:00Z"})).unwrap();
        assert_eq!(span(&until), ("2026-05-05T00:00:00Z".into(), "2026-11-01T00:00:00Z".into()));
        let since = order(&json!({"kind": "backfill", "from": "2026-11-01T00:00:00.25Z"})).unwrap();
        assert_eq!(span(&since), ("2026-11-01T00:00:00.25Z".into(), "2026-11-22T10:00:00Z".into()));
    }

    #[test]
    fn spans_that_cannot_be_read_are_refused_by_name() {
        let table = [
            (json!({}), "kind"),
            (json!({"kind": "poll"}), "kind"),
            (json!({"kind": 1}), "kind"),
            (json!({"kind": "backfill", "to": "2026-11-22T10:00:01Z"}), "`to`"),
            (json!({"kind": "backfill", "from": "2026-11-22T10:00:00Z"}), "`from`"),
            (json!({"kind": "backfill", "from": "2026-11-02T00:00:00Z", "to": "2026-11-01T00:00:00Z"}), "`from`"),
            (json!({"kind": "backfill", "from": "2026-05-26T09:59:59Z"}), "180 days"),
            (json!({"kind": "sweep", "from": 5}), "`from`"),
            (json!({"kind": "sweep", "to": "yesterday"}), "`to`"),
            (json!({"kind": "sweep", "until": "x"}), "kind, from, to"),
        ];
        for (body, named) in table {
            match order(&body) {
                Err(Error::InvalidRequest(what)) => assert!(what.contains(named), "{body}: {what}"),
                other => panic!("{body}: {other:?}"),
            }
        }
    }

    #[test]
    fn progress_has_the_fields_of_the_interface() {
        let order = order(&json!({"kind": "backfill", "from": "2026-11-22T08:00:00Z"})).unwrap();
        let tenant = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
        let mut job = Job::new("j".into(), tenant, order.kind, order.from, order.to);
        job.covered_until = "2026-11-22T09:00:00Z".parse().unwrap();
        assert_eq!(
            serde_json::to_string(&progress(&job)).unwrap(),
            r#"{"job_id":"j","kind":"backfill","status":"queued","from":"2026-11-22T08:00:00Z","to":"2026-11-22T10:00:00Z","covered_until":"2026-11-22T09:00:00Z","delivered":0,"fraction":0.5}"#
        );
    }

    #[test]
    fn only_our_own_form_names_a_job() {
        let id = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
        assert!(canonical(id).is_ok());
        for wrong in ["", "x", "%2e%2e", &id.to_uppercase(), &id.replace('-', "")] {
            assert_eq!(canonical(wrong), Err(Error::NotFound));
        }
    }
}
