//! Hunts: one query over many tenants, as a job.
//!
//! A request stores the hunt and queues a message for each tenant ([`request`]). A worker runs the query in one tenant and
//! streams its rows into the bucket ([`tenant`], [`rows`]). What all of them gave so far is computed from the stored items
//! ([`progress`]), so that no counter can differ from them.

mod progress;
mod request;
mod rows;
mod tenant;

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};
use shared::{
    error::{Error, Result},
    http::Deadline,
    lambda::event::{HttpRequest, HttpResponse},
    queue::{SyncKind, SyncMessage},
    random::random_uuid,
    registry::hunts::{Column, HUNT_LIFETIME, Hunt, HuntId, MAX_HUNTED_TENANTS},
    telemetry::RECORD,
    tenant::TenantId,
    text::hex,
};

use self::{
    progress::{HuntProgress, HuntStatus},
    request::{HuntRequest, WaitSeconds},
};
use crate::App;

/// The largest table in a response, as [`crate::live::escaped_len`] counts.
const MAX_TABLE_BYTES: u64 = 5_000_000;

/// The part of a caller's time that is kept for the table, after the wait for the tenants, or for the end of a hunt that
/// could not be queued.
const TABLE_RESERVE: Duration = Duration::from_secs(3);

/// The part of a caller's time that is kept for the response.
const RESPONSE_RESERVE: Duration = Duration::from_millis(500);

/// The time between two looks at a hunt that a caller waits for. The first looks follow faster.
const MAX_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The number of objects of a table that are read at the same time.
const CONCURRENT_READS: usize = 16;

/// The progress of a hunt, as callers read it.
#[derive(Serialize)]
struct HuntBody {
    hunt_id: HuntId,
    status: HuntStatus,
    tenants_total: usize,
    tenants_done: usize,
    rows: u64,
    schema: Vec<Column>,
    failures: Vec<Value>,
    objects: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    results: Option<Vec<Box<RawValue>>>,
    truncated: bool,
}

impl App {
    /// `POST /hunting`: starts a hunt, and returns its table if all tenants respond within the wait.
    pub(crate) async fn start_hunt(&self, request: &HttpRequest, deadline: Deadline) -> Result<HttpResponse> {
        let wanted = HuntRequest::parse(request)?;
        let wait = wanted.wait;
        let hunt = self.new_hunt(wanted, &request.caller()?.name).await?;
        self.registry.create_hunt(&hunt).await?;
        // Before the first message: a tenant may be worked on although the request ends early.
        tracing::info!(target: RECORD, audit = true,
            hunt_id = %hunt.hunt_id,
            caller = hunt.caller,
            // The text may quote anything. The table has it for a month.
            query_sha256 = hex(digest(&SHA256, hunt.query.as_bytes()).as_ref()),
            timespan = hunt.timespan,
            tenants = hunt.tenants.len(),
            "hunt started"
        );
        if let Err(error) = deadline.reserving(TABLE_RESERVE).run(Box::pin(self.queue_hunt(&hunt))).await {
            // The caller does not get the id and so could not cancel the hunt.
            self.registry.cancel_hunt(&hunt.hunt_id, self.clock.now()).await?;
            return Err(error);
        }
        let progress = self.wait_for_hunt(&hunt.hunt_id, wait, deadline).await?;
        let done = progress.status(self.clock.now()) == HuntStatus::Done;
        let results = if done { self.table(&progress, deadline).await? } else { None };
        let Some(results) = results else {
            return Ok(HttpResponse::json(202, &json!({"hunt_id": hunt.hunt_id, "status": HuntStatus::Running})));
        };
        let body = self.hunt_body(&progress, Some(results));
        let HuntBody { hunt_id, status, schema, failures, results, truncated, .. } = body;
        Ok(HttpResponse::json(200, &TableBody { hunt_id, status, schema, results, failures, truncated }))
    }

    /// `GET /hunting/{hunt_id}`: the progress, with the table once it is complete and if it fits.
    pub(crate) async fn read_hunt(&self, request: &HttpRequest, deadline: Deadline) -> Result<HttpResponse> {
        let hunt_id = hunt_id(request)?;
        let wait = WaitSeconds::of_query(request)?;
        let progress = self.wait_for_hunt(&hunt_id, wait, deadline).await?;
        let ended = progress.status(self.clock.now()) != HuntStatus::Running;
        let results = if ended { self.table(&progress, deadline).await? } else { None };
        Ok(HttpResponse::json(200, &self.hunt_body(&progress, results)))
    }

    /// `DELETE /hunting/{hunt_id}`: no further tenant is started. A hunt that is over stays as it is.
    pub(crate) async fn cancel_hunt(&self, request: &HttpRequest) -> Result<HttpResponse> {
        let hunt_id = hunt_id(request)?;
        request.parameters(&[])?;
        let caller = &request.caller()?.name;
        let now = self.clock.now();
        if self.hunt_progress(&hunt_id).await?.status(now) == HuntStatus::Running {
            self.registry.cancel_hunt(&hunt_id, now).await?;
            tracing::info!(target: RECORD, audit = true, %hunt_id, caller, "hunt cancelled");
        }
        Ok(HttpResponse::empty(204))
    }

    async fn new_hunt(&self, wanted: HuntRequest, caller: &str) -> Result<Hunt> {
        let tenants: Vec<TenantId> = match wanted.tenants {
            Some(named) => named,
            None => self.active_tenants().await?.iter().map(|tenant| tenant.tenant_id).collect(),
        };
        if tenants.len() > MAX_HUNTED_TENANTS {
            return Err(Error::InvalidRequest(format!("A hunt is over at most {MAX_HUNTED_TENANTS} tenants.")));
        }
        let now = self.clock.now();
        Ok(Hunt {
            hunt_id: random_uuid(self.random.as_ref())?.into(),
            query: wanted.query,
            timespan: wanted.timespan,
            caller: caller.to_owned(),
            tenants,
            malformed: wanted.malformed,
            created_at: now,
            ends_at: now + HUNT_LIFETIME,
            cancelled_at: None,
        })
    }

    async fn queue_hunt(&self, hunt: &Hunt) -> Result<()> {
        let messages: Vec<SyncMessage> =
            hunt.tenants.iter().map(|tenant| hunt_message(&hunt.hunt_id, *tenant)).collect();
        if self.hunt_queue.send_all(&messages).await? < messages.len() {
            return Err(Error::Internal("sqs:SendMessageBatch: messages of a hunt were refused".into()));
        }
        Ok(())
    }

    async fn hunt_progress(&self, hunt_id: &HuntId) -> Result<HuntProgress> {
        let (hunt, tenants) = self.registry.hunt_with_tenants(hunt_id).await?.ok_or(Error::NotFound)?;
        Ok(HuntProgress::new(hunt, tenants))
    }

    /// Returns the progress of a hunt once it has ended, or after the wait.
    async fn wait_for_hunt(&self, hunt_id: &HuntId, wait: WaitSeconds, deadline: Deadline) -> Result<HuntProgress> {
        let wait = deadline.reserving(TABLE_RESERVE).at_most(wait.into());
        let mut pause = Duration::from_millis(100);
        loop {
            let progress = self.hunt_progress(hunt_id).await?;
            let left = wait.left();
            if progress.status(self.clock.now()) != HuntStatus::Running || left.is_zero() {
                return Ok(progress);
            }
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(MAX_LOOK_INTERVAL);
        }
    }

    /// The rows of all tenants. `None`: they do not fit into a response, or into the time that is left for them.
    async fn table(&self, progress: &HuntProgress, deadline: Deadline) -> Result<Option<Vec<Box<RawValue>>>> {
        if progress.bytes() > MAX_TABLE_BYTES {
            return Ok(None);
        }
        let reads = progress.objects().into_iter().map(|object| self.rows_of_object(object));
        let reads = stream::iter(reads).buffered(CONCURRENT_READS).try_concat();
        match deadline.reserving(RESPONSE_RESERVE).run(Box::pin(reads)).await {
            Ok(rows) => Ok(Some(rows)),
            Err(Error::DeadlineExceeded) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn rows_of_object(&self, object: String) -> Result<Vec<Box<RawValue>>> {
        let lines = self.bucket.read_lines(&object, MAX_TABLE_BYTES).await?;
        let rows = lines.lines().map(|line| RawValue::from_string(line.to_owned())).collect::<Result<Vec<_>, _>>();
        rows.map_err(|error| Error::internal("a row of a hunt could not be read", error))
    }

    fn hunt_body(&self, progress: &HuntProgress, results: Option<Vec<Box<RawValue>>>) -> HuntBody {
        let now = self.clock.now();
        let status = progress.status(now);
        HuntBody {
            hunt_id: progress.hunt.hunt_id,
            status,
            tenants_total: progress.tenants_total(),
            tenants_done: progress.tenants_done(now),
            rows: progress.rows(),
            schema: progress.schema(),
            failures: progress.failures(now),
            objects: progress.objects(),
            truncated: progress.is_cut() || (status != HuntStatus::Running && results.is_none()),
            results,
        }
    }
}

/// The table of a hunt that ended within the wait.
#[derive(Serialize)]
struct TableBody {
    hunt_id: HuntId,
    status: HuntStatus,
    schema: Vec<Column>,
    results: Option<Vec<Box<RawValue>>>,
    failures: Vec<Value>,
    truncated: bool,
}

/// The hunt of the path. A malformed identifier is reported as `not_found`, exactly like an unknown one.
fn hunt_id(request: &HttpRequest) -> Result<HuntId> {
    request.path_parameter("hunt_id").parse().map_err(|_| Error::NotFound)
}

/// The message that runs a hunt in one tenant.
fn hunt_message(hunt_id: &HuntId, tenant: TenantId) -> SyncMessage {
    SyncMessage { job_id: Some(hunt_id.to_string()), ..SyncMessage::new(tenant, SyncKind::Hunt) }
}
