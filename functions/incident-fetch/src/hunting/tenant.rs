//! A hunt in one tenant: claim it, run the query, stream its rows into the bucket, and record what came of it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use shared::{
    error::{Call, Cause, Error, Result},
    http::Deadline,
    incident_api::client::CallBudget,
    microsoft::IncidentApi,
    queue::SyncMessage,
    registry::{
        Write,
        hunts::{Claim, Hunt, HuntId, HuntedTenant},
    },
    telemetry::{self, RECORD},
    tenant::{Reason, TenantId},
};

use super::{hunt_message, progress::failure_of, rows::write_rows};
use crate::{
    App,
    sync::tenant::{LEASE_MARGIN, Worked},
};

/// The time of an invocation that is kept for recording what came of a tenant.
const RECORD_RESERVE: Duration = Duration::from_secs(5);

/// The shortest time of an invocation in which a query is sent.
const MIN_TIME_FOR_QUERY: Duration = Duration::from_secs(10);

/// The number of failures that a repeat may cure, after which a tenant has failed.
const MAX_FAILURES: u32 = 3;

/// The wait after the first such failure. It doubles with each further one.
const FIRST_REPEAT_DELAY: SignedDuration = SignedDuration::from_secs(15);

/// What follows on a failure.
#[derive(Debug, PartialEq)]
enum NextTry {
    /// The tenant has failed.
    Never,
    /// A repeat may cure it.
    At(Timestamp),
    /// Microsoft or our budget allows no query before this time. None was sent.
    Throttled(Timestamp),
}

impl App {
    /// Works on the tenant of a hunt's message.
    pub(crate) async fn hunt_in_tenant(&self, message: &SyncMessage, deadline: Deadline) -> Result<Worked> {
        let named = message.job_id.as_deref().and_then(|id| id.parse::<HuntId>().ok());
        let hunt_id = named.ok_or_else(|| Error::InvalidRequest("The message names no hunt.".into()))?;
        let (tenant_id, now) = (message.tenant_id, self.clock.now());
        let hunt = self.registry.hunt(&hunt_id).await?;
        let is_wanted =
            |hunt: &Hunt| hunt.cancelled_at.is_none() && now < hunt.ends_at && hunt.tenants.contains(&tenant_id);
        let Some(hunt) = hunt.filter(is_wanted) else {
            tracing::info!(%hunt_id, outcome = "not_wanted", "message dropped");
            return Ok(Worked::Logged);
        };
        if deadline.left() < MIN_TIME_FOR_QUERY {
            return self.queue_again(&hunt_id, tenant_id, now).await;
        }
        let left = SignedDuration::try_from(deadline.left()).unwrap_or(SignedDuration::ZERO);
        match self.registry.claim_hunted_tenant(&hunt, &tenant_id, now, now + left + LEASE_MARGIN).await? {
            Claim::Claimed(mut tenant) => {
                let outcome = self.run_query(&hunt, &mut tenant, deadline.reserving(RECORD_RESERVE)).await;
                self.record_outcome(&hunt, *tenant, outcome).await?;
            }
            // Its message may be this one, and its worker may die.
            Claim::Busy(until) => {
                tracing::info!(%hunt_id, outcome = "busy", "another worker is on the tenant");
                return self.queue_again(&hunt_id, tenant_id, until).await;
            }
            Claim::Finished => tracing::info!(%hunt_id, outcome = "finished", "message dropped"),
        }
        Ok(Worked::Logged)
    }

    /// Runs the query in a claimed tenant, and puts its rows into the bucket.
    async fn run_query(&self, hunt: &Hunt, tenant: &mut HuntedTenant, deadline: Deadline) -> Result<()> {
        let work = async {
            let tenant_id = tenant.tenant_id;
            // Rows that a worker before has written count only while the tenant may be read.
            self.registry.active_tenant(&tenant_id).await?;
            if self.is_written(tenant).await? {
                return Ok(());
            }
            let mut client = self.incidents.of(tenant_id, IncidentApi::Graph, CallBudget::Table, deadline);
            let result = client.hunt(&query_body(hunt)).await.map_err(no_hunting_role)?;
            let mut lines = self.bucket.write_lines(object_name(hunt, tenant));
            match write_rows(tenant_id, result, &mut lines).await {
                Ok(rows) => tenant.result = Some(rows),
                Err(error) => {
                    lines.abandon().await;
                    return Err(error);
                }
            }
            // It may have been paused or offboarded meanwhile.
            if let Err(error) = self.registry.active_tenant(&tenant_id).await {
                lines.abandon().await;
                return Err(error);
            }
            let object = object_name(hunt, tenant);
            let Some(rows) = tenant.result.as_mut().filter(|rows| rows.rows > 0) else { return Ok(()) };
            rows.object = Some(object);
            // Recorded before the object is there: a worker that takes over knows what is in it.
            if self.registry.commit_hunted_tenant(hunt, tenant).await? == Write::Conflict {
                lines.abandon().await;
                return Ok(());
            }
            lines.complete().await
        };
        deadline.run(Box::pin(work)).await
    }

    /// Queues a tenant's message again, to come at a time or later.
    async fn queue_again(&self, hunt_id: &HuntId, tenant: TenantId, at: Timestamp) -> Result<Worked> {
        // A queue counts whole seconds, and the message must not come too early.
        let delay = at.duration_since(self.clock.now()).max(SignedDuration::ZERO) + SignedDuration::from_secs(1);
        self.hunt_queue.send(&hunt_message(hunt_id, tenant), delay).await?;
        Ok(Worked::Logged)
    }

    /// Returns true if a worker before has put the rows into the bucket, and died before it could record that.
    async fn is_written(&self, tenant: &HuntedTenant) -> Result<bool> {
        match tenant.result.as_ref().and_then(|rows| rows.object.as_ref()) {
            Some(object) => self.bucket.has(object).await,
            None => Ok(false),
        }
    }

    /// Records what came of a tenant, or queues its next try.
    async fn record_outcome(&self, hunt: &Hunt, mut tenant: HuntedTenant, outcome: Result<()>) -> Result<()> {
        let now = self.clock.now();
        let mut next = NextTry::Never;
        if let Err(error) = &outcome {
            let failure = failure_of(error);
            tracing::warn!(hunt_id = %hunt.hunt_id, code = failure.code, reason = failure.reason, cause = %error, failures = tenant.failures, "hunt failed in a tenant");
            if matches!(error, Error::Internal(_)) {
                telemetry::internal_failure();
            }
            next = next_try(error, tenant.failures, now);
            tenant.failure = Some(failure);
        } else {
            tenant.failure = None;
        }
        tenant.claimed_until = None;
        let again_at = match next {
            NextTry::At(at) => {
                tenant.failures += 1;
                Some(at)
            }
            NextTry::Throttled(until) => Some(until),
            NextTry::Never => None,
        };
        if let Some(at) = again_at.filter(|at| *at < hunt.ends_at) {
            if self.registry.commit_hunted_tenant(hunt, &tenant).await? == Write::Done {
                self.queue_again(&hunt.hunt_id, tenant.tenant_id, at).await?;
            }
            return Ok(());
        }
        if tenant.failure.is_some() {
            tenant.result = None;
        }
        tenant.finished_at = Some(now);
        if self.registry.commit_hunted_tenant(hunt, &tenant).await? == Write::Conflict {
            tracing::info!(hunt_id = %hunt.hunt_id, outcome = "superseded", "another worker is on the tenant");
            return Ok(());
        }
        tracing::info!(target: RECORD, audit = true,
            hunt_id = %hunt.hunt_id,
            caller = hunt.caller,
            rows = tenant.result.as_ref().map(|result| result.rows),
            code = tenant.failure.as_ref().map(|failure| failure.code.as_str()),
            "tenant hunted"
        );
        Ok(())
    }
}

/// The body of Microsoft's call.
fn query_body(hunt: &Hunt) -> Value {
    let mut body = json!({"Query": hunt.query});
    if let Some(timespan) = &hunt.timespan {
        body["Timespan"] = json!(timespan);
    }
    body
}

/// The name of the object with a tenant's rows: the same for each try, so that there is at most one.
fn object_name(hunt: &Hunt, tenant: &HuntedTenant) -> String {
    format!("hunts/hunt_id={}/tenant_id={}/rows.ndjson.gz", hunt.hunt_id, tenant.tenant_id)
}

fn no_hunting_role(error: Error) -> Error {
    match error {
        Error::Refused(Reason::RoleMissing) => Error::Conflict {
            detail: "The customer has not consented to hunting.".into(),
            reason: Some(Reason::RoleMissing),
        },
        other => other,
    }
}

/// Decides what follows on a failure, after so many failures before it.
fn next_try(error: &Error, failures: u32, now: Timestamp) -> NextTry {
    let may_be_cured = match error {
        Error::Throttled { until } => return NextTry::Throttled(*until),
        Error::Upstream { status: 500..=599, .. }
        | Error::Malformed { .. }
        | Error::Partial { .. }
        | Error::CredentialRejected
        | Error::CredentialUnusable { .. }
        | Error::DeadlineExceeded
        | Error::Internal(_) => true,
        // The query may still be running, at the customer's cost.
        Error::Unreachable { cause, call, .. } => *cause != Cause::Timeout || *call != Call::Hunt,
        Error::Upstream { .. }
        | Error::QueryFailed(_)
        | Error::InvalidRequest(_)
        | Error::UnauthorizedCaller
        | Error::NotFound
        | Error::Conflict { .. }
        | Error::TenantNotActive(_)
        | Error::Gone
        | Error::Refused(_)
        | Error::FilterNotApplied { .. } => false,
    };
    if may_be_cured && failures + 1 < MAX_FAILURES {
        return NextTry::At(now + FIRST_REPEAT_DELAY * (1 << failures));
    }
    NextTry::Never
}

#[cfg(test)]
mod tests {
    use shared::error::QueryFailure;

    use super::*;

    #[test]
    fn only_failures_that_a_repeat_may_cure_are_repeated() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let after = |error: &Error, failures| next_try(error, failures, now);
        let busy = Error::Upstream { status: 504, call: Call::Hunt };
        assert_eq!(after(&busy, 0), NextTry::At(now + SignedDuration::from_secs(15)));
        assert_eq!(after(&busy, 1), NextTry::At(now + SignedDuration::from_secs(30)));
        assert_eq!(after(&busy, 2), NextTry::Never);
        let until = now + SignedDuration::from_hours(1);
        assert_eq!(after(&Error::Throttled { until }, 2), NextTry::Throttled(until));
        let unreachable = |cause| Error::Unreachable { call: Call::Hunt, cause, source: None };
        assert_ne!(after(&unreachable(Cause::Closed), 0), NextTry::Never);
        for error in [
            unreachable(Cause::Timeout),
            Error::QueryFailed(QueryFailure::Timeout),
            Error::Refused(Reason::ConsentMissing),
            Error::TenantNotActive(None),
            Error::Upstream { status: 404, call: Call::Hunt },
        ] {
            assert_eq!(after(&error, 0), NextTry::Never, "{error}");
        }
    }
}
