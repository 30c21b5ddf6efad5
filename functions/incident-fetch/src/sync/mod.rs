//! The sync: every version of every incident of a tenant is delivered, and nothing gets stuck.
//!
//! A span of time is done only when one single answer holds all of it; nothing depends on the order of rows, on `$skip`,
//! or on rows that move while they are read. What is delivered are versions: S3 first, then the event, then the registry,
//! then the cursor, so that a crash anywhere repeats work and loses nothing.

mod bisect;
mod ingest;
pub(crate) mod window;
mod windows;

use std::{collections::HashMap, time::Duration};

use jiff::{SignedDuration, Timestamp};

use shared::{
    clock::Clock,
    delivery::{
        bucket::{Batch, Bucket, Format},
        events::Events,
    },
    error::{Error, Result},
    http::Deadline,
    incident::{span::Span, version::DeliveredVersion},
    incident_api::client::{CallBudget, Incidents, TenantClient},
    microsoft::IncidentApi,
    queue::SyncKind,
    registry::{
        Registry, Write,
        feed::{Feed, LastSweep},
        jobs::{Job, JobKind, JobStatus},
        lease::Lease,
        quarantine::QuarantineEntry,
        tenants::Tenant,
        versions::VersionBlock,
    },
    tenant::TenantId,
};

/// Kept back from the invocation's time for what must be written at its end.
const FOR_COMMIT: Duration = Duration::from_millis(900);

/// How often the whole overlap is read of a tenant whose overlap does not fit into one answer.
const WHOLE_OVERLAP_EVERY: SignedDuration = SignedDuration::from_mins(5);

/// The overlap in between.
const SHORT_OVERLAP: SignedDuration = SignedDuration::from_secs(60);

/// When an incident is read again that came without alerts.
const RECHECK_AFTER: SignedDuration = SignedDuration::from_mins(15);

/// What a sync works with.
#[derive(Clone)]
pub(crate) struct SyncContext {
    /// The client for both surfaces.
    pub(crate) incidents: Incidents,
    /// The table.
    pub(crate) registry: Registry,
    /// The bucket.
    pub(crate) bucket: Bucket,
    /// The bus.
    pub(crate) events: Events,
    /// The time.
    pub(crate) clock: Clock,
    /// The deployment's choices.
    pub(crate) settings: Settings,
}

/// The deployment's choices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// How often a tenant is asked.
    pub(crate) poll_interval: SignedDuration,
    /// How far back every poll looks again.
    pub(crate) overlap: SignedDuration,
    /// Where a new tenant's feed starts, before its activation.
    pub(crate) first_lookback: SignedDuration,
    /// The schema of delivered incidents.
    pub(crate) format: Format,
}

/// Why work on a tenant ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// There is nothing more to do.
    Done,
    /// The invocation's time is used up; the work goes on in the next one.
    OutOfTime,
    /// A poll is due, and goes before other work.
    PollDue,
    /// Another worker has the lease now, or the tenant is no longer to be read.
    Overtaken,
}

/// What came of a piece of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SyncStats {
    /// Records that were read.
    pub(crate) checked: u64,
    /// Versions that were delivered.
    pub(crate) delivered: u64,
    /// Older versions than the delivered ones: answers that lag behind.
    pub(crate) stale: u64,
    /// Records and spans that were set aside.
    pub(crate) set_aside: u64,
    /// Whether the cursor, or a job's progress, moved.
    pub(crate) moved: bool,
    /// Whether a failing window is less wide now: what fails is being found.
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
    /// Versions known, by neighbourhood and incident.
    known: HashMap<VersionBlock, HashMap<String, DeliveredVersion>>,
    batch: Batch,
    /// Different incidents in the batch that were never delivered before.
    created: u64,
    /// The fewest rows at which this surface has offered more than it gave.
    cap: u32,
    /// Whether an answer said that it was not all (206).
    partial_answers: bool,
    set_aside: Vec<QuarantineEntry>,
    /// How often something was met that has to be set aside, new or not.
    met: u64,
    /// How much of what was delivered is counted for a job, or is not one's.
    credited: u64,
    /// Whether the first answer of the pass held all of its window.
    first_was_whole: Option<bool>,
    /// What has been done so far.
    pub(crate) tally: SyncStats,
}

impl<'a> Worker<'a> {
    /// A worker on `tenant`, whose lease it holds, that ends before `deadline`.
    pub(crate) fn new(sync: &'a SyncContext, tenant: &'a Tenant, lease: &'a mut Lease, deadline: Deadline) -> Self {
        Self {
            sync,
            tenant,
            api: tenant.api,
            lease,
            deadline: deadline.reserving(FOR_COMMIT),
            kind: SyncKind::Poll,
            known: HashMap::new(),
            batch: Batch::new(sync.settings.format),
            created: 0,
            cap: u32::MAX,
            partial_answers: false,
            set_aside: Vec::new(),
            met: 0,
            credited: 0,
            first_was_whole: None,
            tally: SyncStats::default(),
        }
    }

    /// Brings the feed up to date.
    ///
    /// # Errors
    /// Whatever stopped it; what was read before is delivered.
    pub(crate) async fn poll(&mut self) -> Result<Stop> {
        self.kind = SyncKind::Poll;
        let now = self.sync.clock.now();
        self.load_set_aside().await?;
        let begins = self.lease.feed.covered_until.is_none();
        let (from, width, whole_overlap) = self.start(now);
        self.first_was_whole = None;
        let mut stop = self.pass(from, width, None, None).await?;
        if stop == Stop::Done {
            let feed = &mut self.lease.feed;
            (feed.resume_at, feed.resume_width, feed.resume_created) = (None, None, None);
            feed.last_success_at = Some(self.sync.clock.now());
            feed.failures = 0;
            if whole_overlap {
                feed.overlap_begun_at = Some(now);
            }
            if whole_overlap && !begins {
                // Only an overlap that one answer cannot hold is not read by every poll.
                feed.overlap_read_at = (self.first_was_whole == Some(false)).then_some(now);
            }
            if self.has_more_to_read(now) {
                // The poll's own work is safe before anything else is tried.
                if self.sync.registry.commit_feed(self.lease).await? == Write::Conflict {
                    return Ok(Stop::Overtaken);
                }
                if !self.recheck().await? || !self.retry_quarantined().await? {
                    stop = Stop::OutOfTime;
                }
            }
        }
        Ok(stop)
    }

    fn has_more_to_read(&self, now: Timestamp) -> bool {
        self.lease.feed.rechecks.iter().any(|recheck| recheck.at <= now)
            || self.set_aside.iter().any(|one| one.next_try_at <= now)
    }

    /// Goes on with a job; its progress is written after each window.
    ///
    /// # Errors
    /// Whatever stopped it; what was read before is delivered.
    pub(crate) async fn drive(&mut self, job: &mut Job) -> Result<Stop> {
        self.kind = job.kind.into();
        self.lease.feed.jobs_driven_at = Some(self.sync.clock.now());
        self.load_set_aside().await?;
        job.status = JobStatus::Running;
        let (mut from, mut to) = (job.covered_until, job.to);
        if job.kind == JobKind::Sweep {
            // What is older was never the feed's, and what is newer is still the polls' own to find.
            let feed = &self.lease.feed;
            from = from.max(feed.started_at.unwrap_or(from));
            to = to.min(feed.covered_until.map_or(from, |covered| covered - self.sync.settings.overlap));
        }
        self.credited = self.tally.delivered;
        let stop = if from < to { self.pass(from, job.width, Some(to), Some(job)).await } else { Ok(Stop::Done) };
        self.credit(job);
        let now = self.sync.clock.now();
        match &stop {
            Ok(Stop::Done) => (job.status, job.covered_until) = (JobStatus::Done, job.to),
            Err(error) if error.fails_message() => job.failed_once_more(),
            Ok(Stop::OutOfTime | Stop::PollDue | Stop::Overtaken) | Err(_) => {}
        }
        // How wide to ask next is progress, too: without it each run would begin with the same vain question.
        // A cancelled job keeps its status. The next message of the job finds it so.
        let _ = self.sync.registry.commit_job(job, now).await?;
        let stop = stop?;
        if stop == Stop::Done && job.kind == JobKind::Sweep {
            self.lease.feed.last_sweep = Some(LastSweep { at: now, checked: job.checked, missing: job.delivered });
        }
        Ok(stop)
    }

    /// Counts for a job what was delivered since it was counted last.
    fn credit(&mut self, job: &mut Job) {
        job.delivered += self.tally.delivered - self.credited;
        self.credited = self.tally.delivered;
    }

    /// Where a poll begins, how wide it asks first, and whether it reads the whole overlap.
    fn start(&mut self, now: Timestamp) -> (Timestamp, Option<i64>, bool) {
        let settings = self.sync.settings;
        let activated_at = self.tenant.activated_at.unwrap_or(now);
        let feed = &mut self.lease.feed;
        let started_at = *feed.started_at.get_or_insert(activated_at - settings.first_lookback);
        let covered_until = *feed.covered_until.get_or_insert(started_at);
        if let Some(resume_at) = feed.resume_at {
            return (resume_at.max(started_at), feed.resume_width, false);
        }
        let whole = feed.overlap_read_at.is_none_or(|read_at| now >= read_at + WHOLE_OVERLAP_EVERY);
        if !whole {
            return ((covered_until - settings.overlap.min(SHORT_OVERLAP)).max(started_at), None, false);
        }
        // What has arrived late since the overlap was read last is still to be found, however late that reading is. After
        // a long outage as much again is enough: the rest of that time was read just now.
        let begun_at = feed.overlap_begun_at.unwrap_or(covered_until).max(covered_until - settings.overlap);
        ((covered_until.min(begun_at) - settings.overlap).max(started_at), None, true)
    }

    /// The tenant's incident API, paid for out of the lease's budget.
    fn client(&mut self) -> TenantClient<'_> {
        let budget = CallBudget::Lease(self.lease, self.kind);
        self.sync.incidents.of(self.tenant.tenant_id, self.api, budget, self.deadline)
    }

    /// Whether a failure just now may be nothing but our own deadline's.
    fn little_time_left(&self) -> bool {
        self.deadline.left() < Duration::from_secs(1)
    }

    fn out_of_time(&self) -> bool {
        self.deadline.left() < Duration::from_millis(200)
    }

    /// The tenant worked on.
    pub(crate) fn tenant_id(&self) -> TenantId {
        self.tenant.tenant_id
    }

    /// The feed as this worker has it.
    pub(crate) fn feed(&self) -> &Feed {
        &self.lease.feed
    }

    /// Whether it is time for a poll, which goes before other work.
    pub(crate) fn poll_is_due(&self) -> bool {
        let last = self.lease.feed.last_success_at;
        last.is_none_or(|last| self.sync.clock.now() >= last + self.sync.settings.poll_interval)
    }

    async fn load_set_aside(&mut self) -> Result<()> {
        if self.lease.feed.quarantined > 0 {
            self.set_aside = self.sync.registry.quarantine_entries(&self.tenant.tenant_id).await?;
            self.lease.feed.quarantined = self.set_aside.len() as u64;
        }
        Ok(())
    }

    fn blocked(&self) -> Vec<Span> {
        self.set_aside.iter().filter(|one| one.blocks).map(QuarantineEntry::span).collect()
    }
}

/// Whether an error says something about Microsoft's health at this moment, so that a smaller question may do better.
fn is_transient(error: &Error) -> bool {
    match error {
        Error::Upstream { .. } | Error::Malformed { .. } | Error::Partial { .. } | Error::Unreachable { .. } => true,
        Error::InvalidRequest(_)
        | Error::UnauthorizedCaller
        | Error::NotFound
        | Error::Conflict { .. }
        | Error::TenantNotActive(_)
        | Error::Gone
        | Error::Throttled { .. }
        | Error::Refused(_)
        | Error::CredentialRejected
        | Error::DeadlineExceeded
        | Error::Internal(_) => false,
    }
}
