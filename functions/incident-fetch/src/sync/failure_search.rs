//! The search for what fails: a failing window is split until the bad record stands alone.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::{
    Worker,
    bisect::SecondListing,
    is_transient,
    page_read::PageRead,
    window::{ceil, floor},
};
use shared::{
    error::{Error, Result},
    incident::{
        record::{Alerts, Record},
        span::Span,
        version::{ReadTime, VersionComparison, compare},
    },
    incident_api::query::IncidentQuery,
    microsoft::IncidentApi,
};

/// The maximum number of requests of a search in which nothing could be read.
const MAX_FRUITLESS_REQUESTS: u32 = 8;

/// The number of disjoint failing windows that count as an outage while nothing could be read.
const OUTAGE_WINDOWS: usize = 3;

/// After this many failed polls with the tenant still responding, the failing second is treated as a bad record, not as an
/// outage, and is read incident by incident.
const FAILED_POLLS_BEFORE_QUARANTINE: u32 = 8;

/// The number of failures in a row after which the tenant is probed again.
const FAILURES_BEFORE_PROBE: u32 = 3;

/// The facts that are known while windows fail.
#[derive(Debug, Default)]
pub(super) struct FailureSearch {
    /// Failing windows. None of them lies within another.
    failing_windows: Vec<Span>,
    /// A row was read since the search began.
    anything_read: bool,
    /// Requests since the search began.
    requests: u32,
    /// Failures since the last successful response of the tenant.
    failures_in_a_row: u32,
    /// The ends of windows before the search. It adds others, which mean nothing once it is over.
    ends_before: Vec<Timestamp>,
    /// The most recent failure.
    pub(super) last_error: Option<Error>,
    /// The window that is known to fail and begins where the pass stands.
    failing_window: Option<Span>,
    /// The API listed the first failing window, or a part of it, without alerts.
    pub(super) lists_without_alerts: bool,
    /// The seconds of the rows that are not delivered yet, where that list was complete.
    new_row_seconds: Option<BTreeSet<Timestamp>>,
}

/// The next step after a window has failed.
pub(super) enum NextStep {
    /// The same window is requested once more.
    Retry,
    /// A window of this many seconds is requested.
    Narrow { width: i64 },
    /// The window was read as far as it is readable. The pass continues at its end.
    ContinueAt(Timestamp),
    /// Incidents are readable, but not with their alerts. They are read without.
    WithoutAlerts,
    /// Nothing is readable now. The next pass begins with a window of this many seconds.
    GiveUp { next_width: Option<i64> },
}

/// The result of reading a second window to tell a bad record from an outage.
#[derive(PartialEq)]
enum OtherWindow {
    Readable,
    Failing,
}

impl FailureSearch {
    /// A search that begins with the first failure of a window.
    pub(super) fn new(ends_before: Vec<Timestamp>) -> Self {
        Self { ends_before, ..Self::default() }
    }

    /// The ends of the windows after `at`, without those that the search has added.
    pub(super) fn ends_after(&self, at: Timestamp) -> Vec<Timestamp> {
        self.ends_before.iter().copied().filter(|end| *end > at).collect()
    }

    /// Notes a successful response with this many rows.
    pub(super) fn note_response(&mut self, rows: u32) {
        self.anything_read |= rows > 0;
        self.requests += 1;
        self.failures_in_a_row = 0;
    }

    fn add_failing(&mut self, window: Span) {
        let within = |failing: &Span| {
            failing.from <= window.from
                && (failing.to.is_none() || window.to.is_some_and(|to| failing.to.is_some_and(|end| to <= end)))
        };
        self.failing_windows.retain(|failing| !within(failing));
        self.failing_windows.push(window);
    }

    fn is_outage(&self) -> bool {
        !self.anything_read && self.failing_windows.len() >= OUTAGE_WINDOWS
    }

    /// The step after a search in which nothing could be read with alerts.
    fn give_up(&self, next_width: Option<i64>) -> NextStep {
        if self.lists_without_alerts { NextStep::WithoutAlerts } else { NextStep::GiveUp { next_width } }
    }

    /// The error to give up with after many requests in which nothing could be read.
    pub(super) fn gave_up_because(&self) -> Option<Error> {
        let fruitless = self.failing_window.is_some() && !self.anything_read && self.requests >= MAX_FRUITLESS_REQUESTS;
        fruitless.then(|| self.last_error.clone()).flatten()
    }

    /// Notes that everything before `at` was read. The failing record lies after it.
    pub(super) fn shrink_failing_window_to(&mut self, at: Timestamp) {
        let rest = |failing: Span| failing.to.is_some_and(|to| at < to).then_some(Span { from: at, to: failing.to });
        self.failing_window = self.failing_window.and_then(rest);
    }

    /// Returns true if no window is known to fail any more. A later failure begins a new search.
    pub(super) fn is_over(&self) -> bool {
        self.failing_window.is_none()
    }

    /// The width of the next window within the failing one, in seconds.
    pub(super) fn next_width(&self) -> Option<i64> {
        self.split_point().or(self.failing_window.map(|_| 1))
    }

    /// The place to split the failing window, in seconds from its beginning; `None` if it is one second long.
    fn split_point(&self) -> Option<i64> {
        let failing = self.failing_window?;
        let seconds = failing.seconds().filter(|seconds| *seconds > 1)?;
        let rows: Vec<&Timestamp> =
            self.new_row_seconds.iter().flatten().filter(|row| failing.contains(**row)).collect();
        let split = match rows[..] {
            [] => seconds / 2,
            [only] => only.as_second() - failing.from.as_second(),
            _ => rows[rows.len() / 2].as_second() - failing.from.as_second(),
        };
        Some(split.clamp(1, seconds - 1))
    }
}

impl Worker<'_> {
    /// Decides what follows after a window has failed: the window once more, and then less and less of it until the bad
    /// record stands alone. The split begins only if anything at all is readable of this tenant.
    pub(super) async fn next_step_after_failure(
        &mut self,
        window: Span,
        now: Timestamp,
        search: &mut FailureSearch,
    ) -> Result<NextStep> {
        search.requests += 1;
        if search.requests == 1 {
            return Ok(NextStep::Retry);
        }
        let end = window.to.unwrap_or_else(|| ceil(now) + SignedDuration::from_secs(1));
        let closed = Span { from: window.from, to: Some(end) };
        search.add_failing(window);
        search.failing_window = Some(closed);
        search.failures_in_a_row += 1;
        if search.gave_up_because().is_some() {
            return Ok(search.give_up(search.next_width()));
        }
        let retry_failed = search.requests == 2;
        if retry_failed || search.failures_in_a_row >= FAILURES_BEFORE_PROBE {
            search.requests += 1;
            if self.probe_tenant().await.is_err() {
                return Ok(NextStep::GiveUp { next_width: window.seconds() });
            }
            search.failures_in_a_row = 0;
        }
        if retry_failed {
            self.list_without_alerts(window, search).await?;
            search.requests += 1;
        }
        let Some(split_point) = search.split_point() else {
            if !search.anything_read && self.lease.feed.failures < FAILED_POLLS_BEFORE_QUARANTINE {
                let other = Span { from: end, to: None };
                if self.read_other_window(other, search).await? == OtherWindow::Failing {
                    return Ok(NextStep::GiveUp { next_width: Some(1) });
                }
            }
            let listing = match search.new_row_seconds {
                Some(_) => SecondListing::WithoutAlerts,
                None => SecondListing::Unavailable,
            };
            self.bisect_second(closed, listing).await?;
            search.failing_window = None;
            return Ok(NextStep::ContinueAt(end));
        };
        if !search.anything_read {
            // The other part tells one bad record from an outage.
            let other = Span { from: window.from + SignedDuration::from_secs(split_point), to: window.to };
            let _ = self.read_other_window(other, search).await?;
            if search.is_outage() || search.gave_up_because().is_some() {
                return Ok(search.give_up(Some(split_point)));
            }
        }
        Ok(NextStep::Narrow { width: split_point })
    }

    /// Reads another window, to see whether anything is readable.
    async fn read_other_window(&mut self, other: Span, search: &mut FailureSearch) -> Result<OtherWindow> {
        search.requests += 1;
        let mut page = PageRead::default();
        let outcome = self.read(&IncidentQuery::of(other, self.api), &mut page).await;
        self.flush().await?;
        search.anything_read |= page.rows > 0;
        match outcome {
            Ok(()) => {
                search.failures_in_a_row = 0;
                Ok(OtherWindow::Readable)
            }
            Err(error) if is_transient(&error) => {
                search.failures_in_a_row += 1;
                search.add_failing(other);
                Ok(OtherWindow::Failing)
            }
            Err(error) => Err(error),
        }
    }

    /// Lists a failing window without alerts, which only Graph can, to see where the rows are that are not delivered yet.
    async fn list_without_alerts(&mut self, window: Span, search: &mut FailureSearch) -> Result<()> {
        if self.api != IncidentApi::Graph {
            return Ok(());
        }
        let query = IncidentQuery { alerts: Alerts::Omitted, ..IncidentQuery::of(window, self.api) };
        let tenant = self.tenant.tenant_id;
        let mut list = match self.list(&query).await {
            Ok(list) => list,
            Err(error) if is_transient(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let read_at = ReadTime { ours: self.sync.clock.now(), microsofts: list.date() };
        let mut seconds = BTreeSet::new();
        while let Ok(Some(row)) = list.next().await {
            let Ok(record) = Record::parse(&row, &tenant, self.api, Alerts::Omitted) else { continue };
            let api = self.api;
            let delivered = self.delivered_version(&record.incident_id).await?;
            if let VersionComparison::New { .. } = compare(delivered, &record, api, read_at) {
                seconds.insert(floor(record.last_updated));
            }
        }
        let end = list.end().ok();
        search.lists_without_alerts = end.is_some();
        search.new_row_seconds = end.filter(|end| !end.more).map(|_| seconds);
        Ok(())
    }

    /// Sends a small query with an empty result. An error shows that the tenant is not readable at all.
    pub(super) async fn probe_tenant(&mut self) -> Result<()> {
        let tomorrow = ceil(self.sync.clock.now() + SignedDuration::from_hours(24));
        let span = Span { from: tomorrow, to: None };
        let query = IncidentQuery { top: 1, alerts: Alerts::Omitted, ..IncidentQuery::of(span, self.api) };
        self.read(&query, &mut PageRead::default()).await
    }
}
