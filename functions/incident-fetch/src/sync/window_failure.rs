//! The way on after a window that failed.

use std::ops::ControlFlow;

use jiff::{SignedDuration, Timestamp};
use shared::{
    error::{Error, Result},
    incident::record::Alerts,
};

use super::{
    Stop, TIME_WITHOUT_ALERTS, Worker,
    failure_search::{FailureSearch, NextStep},
    page_read::PageRead,
    paging::MAX_LIST_ROWS,
    pass::{AskedWindow, Pass, PassOwner},
    second::{end_list_of_second, split_second},
    window::{middle, seconds, split_at},
};

/// The number of failures of a second, in works that had no call to search for the reason, after which it is quarantined.
const MAX_FAILURES_WITHOUT_SEARCH: u32 = 4;

impl Worker<'_> {
    /// Goes on after a transient error: once more, with a narrower window, or past what was quarantined.
    pub(super) async fn on_failure(
        &mut self,
        pass: &mut Pass<'_>,
        asked: &AskedWindow,
        page: &PageRead,
        error: Error,
    ) -> Result<ControlFlow<Stop>> {
        self.flush().await?;
        let window = asked.window.span;
        if self.deadline_may_have_caused_failure() {
            // The window was too much for the time that was left.
            if !asked.is_second() && pass.position.list.is_none() {
                let shown: Vec<Timestamp> = page.times().map(|row| row.updated).collect();
                let at = middle(shown).unwrap_or(window.from + SignedDuration::from_secs(asked.seconds() / 2));
                split_at(&mut pass.position, window, asked.requested_at, at);
            }
            return Ok(ControlFlow::Break(Stop::OutOfTime));
        }
        if matches!(pass.owner, PassOwner::Retry) {
            return Err(error);
        }
        if asked.query.alerts == Alerts::Omitted {
            // It is not the alerts, or not they alone.
            self.lease.feed.without_alerts_until = None;
            return Err(error);
        }
        if pass.position.second.is_some() || asked.is_second() && pass.position.list.is_some() {
            return self.on_failure_in_second(pass, asked, error).await;
        }
        let search = pass.search.get_or_insert_with(|| FailureSearch::new(pass.position.ends.clone()));
        search.last_error = Some(error.clone());
        let width_end = |width: i64| window.from + SignedDuration::from_secs(width);
        match self.next_step_after_failure(window, asked.requested_at, search, &pass.owner).await? {
            NextStep::Retry => {}
            NextStep::Narrow { width } => {
                split_at(&mut pass.position, window, asked.requested_at, width_end(width));
            }
            NextStep::ContinueAt(at) => {
                pass.position.move_to(at);
                pass.position.ends = search.ends_after(at);
            }
            NextStep::SplitSecond { created } => {
                self.stats.moved = true;
                split_second(&mut pass.position, &[Some(created)], None);
            }
            NextStep::WithoutAlerts => self.read_without_alerts(pass, window.from),
            NextStep::GiveUp { next_width } => {
                self.stats.narrowed = next_width.is_some_and(|width| asked.seconds() > width);
                pass.position.ends = search.ends_after(window.from);
                if let Some(width) = next_width.filter(|width| seconds(window, asked.requested_at) > *width) {
                    split_at(&mut pass.position, window, asked.requested_at, width_end(width));
                }
                return Err(error);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Ends a search: the windows from `at` on are read without alerts, for a while.
    pub(super) fn read_without_alerts(&mut self, pass: &mut Pass<'_>, at: Timestamp) {
        tracing::warn!("Microsoft lists incidents only without their alerts");
        self.lease.feed.without_alerts_until = Some(self.sync.clock.now() + TIME_WITHOUT_ALERTS);
        pass.position.move_to(at);
        if let Some(search) = pass.search.take() {
            pass.position.ends = search.ends_after(at);
        }
    }

    /// Goes on after a transient error in a second that is read by times of creation or page by page: once more, then in
    /// smaller parts, and at last past what cannot be read.
    async fn on_failure_in_second(
        &mut self,
        pass: &mut Pass<'_>,
        asked: &AskedWindow,
        error: Error,
    ) -> Result<ControlFlow<Stop>> {
        if self.deadline_may_have_caused_failure() {
            return Ok(ControlFlow::Break(Stop::OutOfTime));
        }
        if matches!(pass.owner, PassOwner::Retry) {
            return Err(error);
        }
        pass.second_failures += 1;
        if pass.second_failures == 1 {
            return Ok(ControlFlow::Continue(()));
        }
        match self.probe_tenant().await {
            Ok(()) => {}
            Err(throttled @ Error::Throttled { .. }) => return Err(throttled),
            Err(_) => return Err(error),
        }
        // Whatever lies behind the page that fails may be more than one list can show.
        if self.split_failing_second(pass, asked).await? {
            self.stats.moved = true;
            pass.second_failures = 0;
            return Ok(ControlFlow::Continue(()));
        }
        self.bisect_page(&asked.query).await?;
        self.go_past(pass, asked, asked.requested_at, 0).await
    }

    /// Splits a second, or a part of it, that fails: before the page that fails, or where its list is too long. Returns false
    /// if the list is short and fails at once.
    async fn split_failing_second(&mut self, pass: &mut Pass<'_>, asked: &AskedWindow) -> Result<bool> {
        let last_page = pass.position.list.as_ref().map(|list| list.last_page_shown().to_vec());
        if end_list_of_second(&mut pass.position, &last_page.unwrap_or_default()) {
            return Ok(true);
        }
        pass.position.list = None;
        let row = self.row_after(&asked.query, MAX_LIST_ROWS).await?;
        let created: Vec<_> = row.times().map(|row| row.created).collect();
        Ok(split_second(&mut pass.position, &created, None))
    }

    /// Quarantines a second for which no call was left after several failures, without a request to it. Returns true if
    /// the pass goes on behind it. Its retries have calls of their own.
    pub(super) async fn quarantine_unsearched(&mut self, pass: &mut Pass<'_>, asked: &AskedWindow) -> Result<bool> {
        let failures = pass.position.failures_without_search;
        if failures < MAX_FAILURES_WITHOUT_SEARCH || !asked.is_second() || matches!(pass.owner, PassOwner::Retry) {
            return Ok(false);
        }
        self.probe_tenant().await?;
        self.quarantine_span(asked.second(), "not_read_to_its_end").await?;
        pass.position.move_to(asked.second().from + SignedDuration::from_secs(1));
        pass.search = None;
        Ok(true)
    }
}
