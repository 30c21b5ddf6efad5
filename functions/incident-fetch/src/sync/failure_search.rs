//! The search for what fails: a failing window is split until the bad record stands alone.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::{
    Worker,
    bisect::SecondListing,
    is_transient,
    page_read::PageRead,
    paging::MAX_LIST_ROWS,
    pass::PassOwner,
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

/// The maximum number of requests of a search in which nothing could be read. More of that is an outage.
const MAX_FRUITLESS_REQUESTS: u32 = 8;

/// After this many failed polls with the tenant still responding, the failing second is treated as a bad record, not as an
/// outage, and is read incident by incident.
const FAILED_POLLS_BEFORE_QUARANTINE: u32 = 8;

/// The number of failures in a row after which the tenant is probed again.
const FAILURES_BEFORE_PROBE: u32 = 3;

/// The facts that are known while windows fail.
#[derive(Debug, Default)]
pub(super) struct FailureSearch {
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
    /// The window that failed last.
    failed_window: Option<Span>,
    /// The window that is known to fail and begins where the pass stands.
    failing_window: Option<Span>,
    /// The failure that the search deals with now.
    failure: Option<Failure>,
    /// The API listed the first failing window, or a part of it, without alerts.
    pub(super) lists_without_alerts: bool,
    /// The seconds of the rows that are not delivered yet, where that list was complete.
    new_row_seconds: Option<BTreeSet<Timestamp>>,
}

/// The next step after a window has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextStep {
    /// The same window is requested once more.
    Retry,
    /// A window of this many seconds is requested.
    Narrow { width: i64 },
    /// The window was read as far as it is readable. The pass continues at its end.
    ContinueAt(Timestamp),
    /// The window is a second with more rows than one list shows. It is split at the time of creation of one of them.
    SplitSecond { created: Timestamp },
    /// Incidents are readable, but not with their alerts. They are read without.
    WithoutAlerts,
    /// Nothing is readable now. The next pass begins with a window of this many seconds.
    GiveUp { next_width: Option<i64> },
}

/// The next action of a search: a request, whose outcome goes to the method named here, or the end of its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The tenant is probed: [`FailureSearch::on_probe`].
    Probe,
    /// The failing window is listed without alerts: [`FailureSearch::on_list_without_alerts`].
    ListWithoutAlerts,
    /// Another window is read, to distinguish a bad record from an outage: [`FailureSearch::on_other_window`].
    ReadOther(Span),
    /// A second is read incident by incident: [`FailureSearch::on_bisected`].
    Bisect(Span, SecondListing),
    /// The pass takes this step.
    Take(NextStep),
}

/// The failure that a search deals with now.
#[derive(Clone, Copy, Debug)]
struct Failure {
    window: Span,
    /// The end of the window; of an open one, the present.
    end: Timestamp,
    /// It is the second one of its window, which was requested once more.
    retry_failed: bool,
    suspect: Suspect,
}

/// The likely cause of a failure that no narrower window avoids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suspect {
    /// Other windows may fail as well.
    Outage,
    /// The tenant is readable otherwise.
    Record,
}

/// A list of the failing window without alerts.
#[derive(Debug)]
pub(super) struct ListWithoutAlerts {
    /// The seconds of the rows that are not delivered yet, where the list is complete.
    pub(super) new_row_seconds: Option<BTreeSet<Timestamp>>,
}

/// The outcome of reading another window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OtherWindow {
    /// It was read, or fails now with another error than a transient one.
    Readable,
    /// It fails, too.
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
        self.failed_window = None;
    }

    /// Returns true if this window failed, and nothing was read since.
    pub(super) fn has_failed(&self, window: Span) -> bool {
        self.failed_window == Some(window)
    }

    /// Begins to deal with the failure of a window: it is requested once more, and then less and less of it until the bad
    /// record stands alone. The split begins only if anything at all is readable of this tenant.
    pub(super) fn on_failure(&mut self, window: Span, now: Timestamp, suspect: Suspect) -> Action {
        self.requests += 1;
        self.failed_window = Some(window);
        if self.requests == 1 {
            return Action::Take(NextStep::Retry);
        }
        let end = window.to.unwrap_or_else(|| ceil(now) + SignedDuration::from_secs(1));
        self.failing_window = Some(Span { from: window.from, to: Some(end) });
        self.failures_in_a_row += 1;
        if self.gave_up_because().is_some() {
            return Action::Take(self.give_up(self.next_width()));
        }
        let failure = Failure { window, end, retry_failed: self.requests == 2, suspect };
        self.failure = Some(failure);
        if failure.retry_failed || self.failures_in_a_row >= FAILURES_BEFORE_PROBE {
            self.requests += 1;
            return Action::Probe;
        }
        self.narrow(failure)
    }

    /// Goes on after a probe of the tenant.
    pub(super) fn on_probe(&mut self, is_readable: bool) -> Action {
        let Some(failure) = self.failure else { return Action::Take(NextStep::Retry) };
        if !is_readable {
            return Action::Take(NextStep::GiveUp { next_width: failure.window.seconds() });
        }
        self.failures_in_a_row = 0;
        if failure.retry_failed { Action::ListWithoutAlerts } else { self.narrow(failure) }
    }

    /// Goes on after a list without alerts. `None`: the API has none, or it failed.
    pub(super) fn on_list_without_alerts(&mut self, list: Option<ListWithoutAlerts>) -> Action {
        self.requests += 1;
        self.lists_without_alerts = list.is_some();
        self.new_row_seconds = list.and_then(|list| list.new_row_seconds);
        match self.failure {
            Some(failure) => self.narrow(failure),
            None => Action::Take(NextStep::Retry),
        }
    }

    /// Goes on after another window, of which so many rows were read.
    pub(super) fn on_other_window(&mut self, outcome: OtherWindow, rows: u32) -> Action {
        self.requests += 1;
        self.anything_read |= rows > 0;
        match outcome {
            OtherWindow::Readable => self.failures_in_a_row = 0,
            OtherWindow::Failing => self.failures_in_a_row += 1,
        }
        let Some(failure) = self.failure else { return Action::Take(NextStep::Retry) };
        match self.split_point() {
            // One second is left.
            None if outcome == OtherWindow::Failing => Action::Take(self.give_up(Some(1))),
            None => self.bisect(failure),
            Some(split_point) if self.gave_up_because().is_some() => Action::Take(self.give_up(Some(split_point))),
            Some(width) => Action::Take(NextStep::Narrow { width }),
        }
    }

    /// Goes on after a second that was read incident by incident.
    pub(super) fn on_bisected(&mut self) -> Action {
        self.failing_window = None;
        match self.failure.take() {
            Some(failure) => Action::Take(NextStep::ContinueAt(failure.end)),
            None => Action::Take(NextStep::Retry),
        }
    }

    /// A part of the failing window, once another window has shown that it is not an outage.
    fn narrow(&self, failure: Failure) -> Action {
        match self.split_point() {
            None if !self.anything_read && failure.suspect == Suspect::Outage => {
                Action::ReadOther(Span { from: failure.end, to: None })
            }
            None => self.bisect(failure),
            // The other part distinguishes one bad record from an outage.
            Some(split_point) if !self.anything_read => Action::ReadOther(Span {
                from: failure.window.from + SignedDuration::from_secs(split_point),
                to: failure.window.to,
            }),
            Some(width) => Action::Take(NextStep::Narrow { width }),
        }
    }

    fn bisect(&self, failure: Failure) -> Action {
        let listing = match self.new_row_seconds {
            Some(_) => SecondListing::WithoutAlerts,
            None => SecondListing::Unavailable,
        };
        Action::Bisect(Span { from: failure.window.from, to: Some(failure.end) }, listing)
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
    /// Decides what follows after a window has failed, with the requests that the search needs for it.
    pub(super) async fn next_step_after_failure(
        &mut self,
        window: Span,
        now: Timestamp,
        search: &mut FailureSearch,
        owner: &PassOwner<'_>,
    ) -> Result<NextStep> {
        // A job's failures are no polls of the feed, which go on beside it and succeed.
        let polls_succeed = matches!(owner, PassOwner::Job(_)) && !self.poll_is_due();
        let suspect = if polls_succeed || self.lease.feed.failures >= FAILED_POLLS_BEFORE_QUARANTINE {
            Suspect::Record
        } else {
            Suspect::Outage
        };
        let mut action = search.on_failure(window, now, suspect);
        loop {
            action = match action {
                Action::Take(step) => return Ok(step),
                Action::Probe => search.on_probe(match self.probe_tenant().await {
                    // It says nothing about the tenant.
                    Err(error @ Error::Throttled { .. }) => return Err(error),
                    probed => probed.is_ok(),
                }),
                Action::ListWithoutAlerts => search.on_list_without_alerts(self.list_without_alerts(window).await?),
                Action::ReadOther(other) => {
                    let (outcome, rows) = self.read_other_window(other).await?;
                    search.on_other_window(outcome, rows)
                }
                Action::Bisect(second, listing) => {
                    let row = self.row_after(&IncidentQuery::of(second, self.api), MAX_LIST_ROWS).await?;
                    if let Some(created) = row.times().find_map(|row| row.created) {
                        return Ok(NextStep::SplitSecond { created });
                    }
                    self.bisect_second(second, listing).await?;
                    search.on_bisected()
                }
            };
        }
    }

    /// Reads another window, to see whether anything is readable. Returns the number of its rows, too.
    async fn read_other_window(&mut self, other: Span) -> Result<(OtherWindow, u32)> {
        let mut page = PageRead::default();
        let outcome = self.read(&IncidentQuery::of(other, self.api), &mut page).await;
        self.flush().await?;
        match outcome {
            Ok(()) => Ok((OtherWindow::Readable, page.rows)),
            Err(error) if is_transient(&error) => Ok((OtherWindow::Failing, page.rows)),
            Err(error) => Err(error),
        }
    }

    /// Lists a failing window without alerts, which only Graph can, to see where the rows are that are not delivered yet.
    /// `None`: the list could not be read to its end.
    async fn list_without_alerts(&mut self, window: Span) -> Result<Option<ListWithoutAlerts>> {
        if self.api != IncidentApi::Graph {
            return Ok(None);
        }
        let query = IncidentQuery { alerts: Alerts::Omitted, ..IncidentQuery::of(window, self.api) };
        let tenant = self.tenant.tenant_id;
        let mut list = match self.list(&query).await {
            Ok(list) => list,
            Err(error) if is_transient(&error) => return Ok(None),
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
        let list_of = |has_more: bool| ListWithoutAlerts { new_row_seconds: (!has_more).then_some(seconds) };
        Ok(list.end().ok().map(|end| list_of(end.more)))
    }

    /// Sends a small query with an empty result. An error shows that the tenant is not readable at all.
    pub(super) async fn probe_tenant(&mut self) -> Result<()> {
        let tomorrow = ceil(self.sync.clock.now() + SignedDuration::from_hours(24));
        let span = Span { from: tomorrow, to: None };
        let query = IncidentQuery { top: 1, alerts: Alerts::Omitted, ..IncidentQuery::of(span, self.api) };
        self.read(&query, &mut PageRead::default()).await
    }
}

#[cfg(test)]
mod tests;
