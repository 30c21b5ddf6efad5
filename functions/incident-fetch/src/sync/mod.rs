//! The sync: every version of every incident of a tenant is delivered, and nothing gets stuck.
//!
//! A window of time is done only when one list holds all of it: one response, or pages that join without a gap. Nothing
//! depends on the order of rows, or on rows that move while they are read. Versions are delivered: S3 first, then the
//! events, then the registry, then the cursor. A crash anywhere repeats work and loses nothing.
//!
//! | file | holds |
//! |---|---|
//! | `tenant` | the one entry: a message of the queue is work on a tenant |
//! | `tenant_status` | the tenant's status before and after the work |
//! | `follow_up` | what has to follow the work |
//! | `poll` | a poll, its retries, and whose turn comes next |
//! | `job` | backfills and sweeps |
//! | `pass` | a pass over a span: where it stands, and whose it is |
//! | `windows` | one pass, window by window |
//! | `window_page` | the way on after a page of a window |
//! | `window_second` | the way on in a second with more rows than one list shows |
//! | `window_failure` | the way on after a window that failed |
//! | `window` | the pure rules for windows: where they end, and where they are split |
//! | `second` | the pure rules for seconds that one list does not hold |
//! | `crowded` | the pure rules for those whose rows have no order by creation |
//! | `paging` | the pure rules for the pages of one list |
//! | `inseparable` | rows that no split tells apart |
//! | `failure_search` | the search for what fails |
//! | `bisect` | a failing second, incident by incident |
//! | `quarantine` | whatever cannot be read, and its retries |
//! | `page_read` | what a response showed, and whether it can be believed |
//! | `ingest` | records on their way into the bucket |

mod bisect;
mod crowded;
mod failure_search;
mod follow_up;
mod ingest;
mod inseparable;
mod job;
pub(crate) mod page_read;
pub(crate) mod paging;
mod pass;
mod poll;
mod quarantine;
mod second;
pub(crate) mod tenant;
mod tenant_status;
pub(crate) mod window;
mod window_failure;
mod window_page;
mod window_second;
mod windows;

use std::{collections::HashMap, time::Duration};

use jiff::{SignedDuration, Timestamp};

use self::page_read::PartialResponse;

use shared::{
    clock::Clock,
    delivery::{
        bucket::{Batch, Bucket, Format},
        events::{Events, IncidentEvents},
    },
    error::{Call, Error, Result},
    http::Deadline,
    incident::{record::Alerts, span::Span, version::DeliveredVersion},
    incident_api::{
        client::{CallBudget, Incidents, RESPONSE_TIMEOUT, TenantClient, TokenFreshness},
        list::IncidentList,
        query::IncidentQuery,
    },
    microsoft::IncidentApi,
    queue::SyncKind,
    registry::{
        Registry, Write, feed::Feed, lease::Lease, quarantine::QuarantineEntry, tenants::Tenant, versions::VersionBlock,
    },
    tenant::TenantId,
};

/// The part of the invocation's time that is kept for the writes at its end.
const COMMIT_RESERVE: Duration = Duration::from_millis(900);

/// The time left below which no request is started.
const MIN_TIME_FOR_REQUEST: Duration = Duration::from_millis(200);

/// The time that the delivery of a whole list may take.
const TIME_TO_DELIVER: Duration = Duration::from_secs(3);

/// The time left below which our own deadline may be the cause of a failed request.
const MIN_TIME_TO_BLAME_MICROSOFT: Duration = Duration::from_secs(1);

/// The time for which windows are read without alerts, once the API has shown that it lists them only so.
const TIME_WITHOUT_ALERTS: SignedDuration = SignedDuration::from_mins(15);

/// The time after which an incident is read again that had no alerts.
const RECHECK_DELAY: SignedDuration = SignedDuration::from_mins(15);

/// The clients and settings of a sync.
#[derive(Clone)]
pub(crate) struct SyncContext {
    pub(crate) incidents: Incidents,
    pub(crate) registry: Registry,
    pub(crate) bucket: Bucket,
    pub(crate) events: Events,
    pub(crate) clock: Clock,
    pub(crate) settings: Settings,
}

/// The settings of the deployment that concern the sync.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// The time between two polls of a tenant.
    pub(crate) poll_interval: SignedDuration,
    /// The time before the cursor that every poll reads again.
    pub(crate) overlap: SignedDuration,
    /// The time before the activation of a tenant at which its feed starts.
    pub(crate) first_lookback: SignedDuration,
    /// The age from which an access token is replaced. A withdrawn consent shows when the next one is requested.
    pub(crate) max_token_age: SignedDuration,
    /// The schema of delivered incidents.
    pub(crate) format: Format,
    /// The events about delivered versions.
    pub(crate) incident_events: IncidentEvents,
}

impl Settings {
    /// An empty batch, to be delivered as the deployment wants it.
    fn new_batch(self) -> Batch {
        Batch::new(self.format, self.incident_events)
    }
}

/// The reason why work on a tenant ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Nothing is left to do for now.
    Done,
    /// The invocation's time ran out. The next one continues.
    OutOfTime,
    /// A poll is due. It goes before other work.
    PollDue,
    /// Another worker has the lease now, or the job was cancelled.
    Overtaken,
}

impl Stop {
    /// The outcome in the log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::OutOfTime => "out_of_time",
            Self::PollDue => "poll_due",
            Self::Overtaken => "overtaken",
        }
    }
}

/// The result of a piece of work that can be continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
enum Progress {
    Complete,
    OutOfTime,
}

/// The counts of one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SyncStats {
    /// Records that were compared with the delivered versions.
    pub(crate) checked: u64,
    /// Versions that were delivered.
    pub(crate) delivered: u64,
    /// Records older than the delivered version, from responses that lag behind.
    pub(crate) stale: u64,
    /// Incidents that are not read again, because too many wait for that.
    pub(crate) dropped_rechecks: u64,
    /// New entries of the quarantine.
    pub(crate) quarantined: u64,
    /// The cursor, or a job's progress, moved.
    pub(crate) moved: bool,
    /// A failing window became narrower: the search for what fails makes progress.
    pub(crate) narrowed: bool,
}

/// One worker on one tenant, for one invocation.
pub(crate) struct Worker<'a> {
    sync: &'a SyncContext,
    tenant: &'a Tenant,
    api: IncidentApi,
    lease: &'a mut Lease,
    deadline: Deadline,
    kind: SyncKind,
    /// The last delivered versions, by block and incident, as far as they were read.
    delivered_versions: HashMap<VersionBlock, HashMap<String, DeliveredVersion>>,
    batch: Batch,
    /// Different incidents in the batch of which no version was delivered before.
    created_in_batch: u64,
    /// New versions that were found, whether or not they are delivered yet.
    versions_found: u64,
    /// What becomes of the next response with status 206.
    next_partial_response: PartialResponse,
    quarantine: Vec<QuarantineEntry>,
    /// The number of times that something was found unreadable, whether or not it was in the quarantine before.
    quarantine_hits: u64,
    /// The part of `stats.delivered` that is already added to the job, or that belongs to no job.
    added_to_job: u64,
    /// The work begins with what the last poll has left no call for, so it yields to no poll.
    has_turn: bool,
    /// The first response of the poll held its whole window.
    first_window_was_complete: Option<bool>,
    /// The counts so far.
    pub(crate) stats: SyncStats,
}

impl<'a> Worker<'a> {
    /// A worker on `tenant`, with its lease, taken or not. It ends before `deadline`.
    pub(crate) fn new(sync: &'a SyncContext, tenant: &'a Tenant, lease: &'a mut Lease, deadline: Deadline) -> Self {
        Self {
            sync,
            tenant,
            api: tenant.api,
            lease,
            deadline: deadline.reserving(COMMIT_RESERVE),
            kind: SyncKind::Poll,
            delivered_versions: HashMap::new(),
            batch: sync.settings.new_batch(),
            created_in_batch: 0,
            versions_found: 0,
            next_partial_response: PartialResponse::Refused,
            quarantine: Vec::new(),
            quarantine_hits: 0,
            added_to_job: 0,
            has_turn: false,
            first_window_was_complete: None,
            stats: SyncStats::default(),
        }
    }

    /// Takes the lease before the first write. What was read before is still true then.
    ///
    /// # Errors
    /// [`Error::Conflict`] when another worker had it since. Nothing that this worker read may be written then.
    async fn take_lease(&mut self) -> Result<()> {
        if self.sync.registry.take_lease(self.lease, self.sync.clock.now()).await? == Write::Done {
            return Ok(());
        }
        self.batch = self.sync.settings.new_batch();
        Err(another_worker())
    }

    async fn commit_feed(&mut self) -> Result<Write> {
        self.sync.registry.commit_feed(self.lease, self.sync.clock.now()).await
    }

    /// The tenant's incident API, paid for out of the lease's budget.
    fn client(&mut self) -> TenantClient<'_> {
        let budget = CallBudget::Lease(self.lease, self.kind);
        self.sync.incidents.of(self.tenant.tenant_id, self.api, budget, self.deadline)
    }

    /// Requests a list, with a token that is young enough to show a withdrawn consent in time. What was read before it is
    /// delivered first where the response may take most of the time that is left.
    async fn list(&mut self, query: &IncidentQuery) -> Result<IncidentList> {
        if self.deadline.left() < RESPONSE_TIMEOUT + TIME_TO_DELIVER {
            self.flush().await?;
        }
        let freshness = TokenFreshness::YoungerThan(self.sync.settings.max_token_age);
        self.client().list(query, freshness).await
    }

    /// The alerts that windows are read with at this time.
    fn alerts_of_windows(&self, now: Timestamp) -> Alerts {
        let without_until = self.lease.feed.without_alerts_until;
        let omits = self.api == IncidentApi::Graph && without_until.is_some_and(|until| now < until);
        if omits { Alerts::Omitted } else { Alerts::Included }
    }

    fn deadline_may_have_caused_failure(&self) -> bool {
        self.deadline.left() < MIN_TIME_TO_BLAME_MICROSOFT
    }

    fn out_of_time(&self) -> bool {
        self.deadline.left() < MIN_TIME_FOR_REQUEST
    }

    /// The tenant that this worker works on.
    pub(crate) fn tenant_id(&self) -> TenantId {
        self.tenant.tenant_id
    }

    /// The feed with this worker's changes.
    pub(crate) fn feed(&self) -> &Feed {
        &self.lease.feed
    }

    async fn load_quarantine(&mut self) -> Result<()> {
        if self.lease.feed.quarantined > 0 {
            self.quarantine = self.sync.registry.quarantine_entries(&self.tenant.tenant_id).await?;
            self.lease.feed.quarantined = self.quarantine.len() as u64;
        }
        Ok(())
    }

    /// The spans that polls leave out.
    fn quarantined_spans(&self) -> Vec<Span> {
        self.quarantine.iter().filter(|entry| entry.blocks).map(QuarantineEntry::span).collect()
    }
}

/// Another worker had the lease since this one began.
fn another_worker() -> Error {
    Error::Conflict { detail: "Another worker was on the tenant.".into(), reason: None }
}

/// Returns true for an error of Microsoft at this moment. A later or a smaller request may succeed.
pub(crate) fn is_transient(error: &Error) -> bool {
    match error {
        // Where Entra refuses the tenant, or the API each token, a smaller request changes nothing.
        Error::Upstream { status, call } => {
            !matches!((call, status), (Call::RequestToken, 400..=499) | (Call::ListIncidents, 401))
        }
        Error::Malformed { .. } | Error::Partial { .. } | Error::Unreachable { .. } => true,
        // Nor does one where the filter does not hold.
        Error::FilterNotApplied { .. }
        | Error::QueryFailed(_)
        | Error::InvalidRequest(_)
        | Error::UnauthorizedCaller
        | Error::NotFound
        | Error::Conflict { .. }
        | Error::TenantNotActive(_)
        | Error::Gone
        | Error::Throttled { .. }
        | Error::Refused(_)
        | Error::CredentialRejected
        | Error::CredentialUnusable { .. }
        | Error::DeadlineExceeded
        | Error::Internal(_) => false,
    }
}
