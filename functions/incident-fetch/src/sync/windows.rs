//! One pass over a span of last update, window by window, the oldest first.

use std::ops::ControlFlow;

use jiff::Timestamp;

use super::{
    Progress, Stop, Worker, is_transient,
    page_read::PageRead,
    paging::skip_of,
    pass::{AskedWindow, Pass, PassOwner},
    poll::SHORT_OVERLAP,
    window::{Window, covered_by, go_past, split_at},
};
use shared::{
    error::{Error, Result},
    incident::record::Alerts,
    incident_api::query::IncidentQuery,
    registry::Write,
};

impl Worker<'_> {
    /// Reads and delivers everything in a span. However the pass ends, its position is stored in its owner.
    pub(super) async fn pass(&mut self, pass: &mut Pass<'_>) -> Result<Stop> {
        let read = Box::pin(self.read_windows(pass)).await;
        let outcome = self.deliver_rest(read).await;
        if self.has_undelivered_versions() {
            // The next pass reads the list from its first page. Of windows before it all is delivered.
            (pass.position.list, pass.position.after_empty_pages) = (None, None);
        }
        match &mut pass.owner {
            PassOwner::Feed => self.lease.feed.pass_position = Some(pass.position.clone()),
            PassOwner::Job(job) => job.pass_position = Some(pass.position.clone()),
            PassOwner::Retry => {}
        }
        outcome
    }

    /// Delivers what was read before the pass ended: the rows of a list that was not read to its end.
    async fn deliver_rest(&mut self, read: Result<Stop>) -> Result<Stop> {
        match read {
            Err(error @ Error::TenantNotActive(_)) => Err(error),
            Err(error @ Error::Internal(_)) => {
                // AWS may fail for this page alone. If it fails again, the first error says more.
                let _ = self.flush().await;
                Err(error)
            }
            read => self.flush().await.and(read),
        }
    }

    async fn read_windows(&mut self, pass: &mut Pass<'_>) -> Result<Stop> {
        let top = self.api.largest_page();
        loop {
            let now = self.sync.clock.now();
            let mut quarantined = match pass.owner {
                PassOwner::Feed | PassOwner::Job(_) => self.quarantined_spans(),
                PassOwner::Retry => Vec::new(),
            };
            if pass.position.second.is_some() {
                // A part of the second that fails keeps no other part of it back.
                quarantined.retain(|span| !span.contains(pass.position.at));
            }
            if self.lease.feed.has_long_future {
                pass.part_future(now);
            }
            let Some(window) = pass.next_window(now, top, &quarantined) else { return Ok(Stop::Done) };
            if self.out_of_time() {
                return Ok(Stop::OutOfTime);
            }
            if matches!(pass.owner, PassOwner::Job(_)) && !self.has_turn && self.poll_is_due() {
                return Ok(Stop::PollDue);
            }
            let (asked, mut page) = self.next_query(pass, window, now);
            if self.quarantine_unsearched(pass, &asked).await? {
                continue;
            }
            let step = match self.read_next(pass, &asked, &mut page).await {
                Ok(None) => self.on_page(pass, &asked, &page).await?,
                Ok(Some(step)) => step,
                Err(error) if is_transient(&error) => {
                    let step = self.on_failure(pass, &asked, &page, error).await;
                    if let Err(Error::Throttled { .. }) = step {
                        pass.narrow_without_search(&asked);
                    }
                    step?
                }
                // Where a minute has few calls, the future must not keep retries and jobs waiting.
                Err(Error::Throttled { .. }) if pass.has_read_the_present(&asked) => return Ok(Stop::Done),
                Err(error) => {
                    pass.position.after_empty_pages = page.after_empty_pages;
                    if let Error::Throttled { .. } = error {
                        pass.narrow_without_search(&asked);
                    }
                    return Err(error);
                }
            };
            if let ControlFlow::Break(stop) = step {
                return Ok(stop);
            }
        }
    }

    /// The query for the next page of a window, and what earlier pages without rows have shown.
    fn next_query(&mut self, pass: &mut Pass<'_>, window: Window, now: Timestamp) -> (AskedWindow, PageRead) {
        let skip = pass.position.list.as_ref().map_or(0, skip_of);
        let alerts = match pass.owner {
            PassOwner::Feed | PassOwner::Job(_) => self.alerts_of_windows(now),
            PassOwner::Retry => Alerts::Included,
        };
        let created = window.created;
        let after = pass.position.after_empty_pages.take().filter(|after| after.to == window.span.to);
        let next_page = after.as_ref().map(|after| after.page.clone());
        let query = IncidentQuery { created, skip, next_page, alerts, ..IncidentQuery::of(window.span, self.api) };
        (AskedWindow { window, requested_at: now, query }, PageRead::after(after))
    }

    /// Reads the next page of the next window, or goes on with rows that no split tells apart and returns the step after
    /// them.
    async fn read_next(
        &mut self,
        pass: &mut Pass<'_>,
        asked: &AskedWindow,
        page: &mut PageRead,
    ) -> Result<Option<ControlFlow<Stop>>> {
        let readings = pass.position.second.as_mut().and_then(|second| second.readings.as_mut());
        let Some(readings) = readings else {
            if self.prepare_part(pass, asked).await? {
                return Ok(Some(ControlFlow::Continue(())));
            }
            return self.read(&asked.query, page).await.map(|()| None);
        };
        let created = asked.window.created.filter(|_| readings.is_part);
        let query = IncidentQuery { updated: asked.second(), created, skip: 0, ..asked.query.clone() };
        let step = match self.read_inseparable(&query, readings).await? {
            Progress::OutOfTime => ControlFlow::Break(Stop::OutOfTime),
            Progress::Complete => {
                let (shown_at, rows) = (readings.shown_at, readings.seen.len());
                self.go_past(pass, asked, shown_at, u32::try_from(rows).unwrap_or(u32::MAX)).await?
            }
        };
        Ok(Some(step))
    }

    pub(super) fn split(&mut self, pass: &mut Pass<'_>, asked: &AskedWindow, at: Timestamp) {
        self.stats.moved = true;
        let is_present = asked.window.span.to.is_none() && at + SHORT_OVERLAP >= asked.requested_at;
        self.lease.feed.has_long_future |= is_present && matches!(pass.owner, PassOwner::Feed);
        split_at(&mut pass.position, asked.window.span, asked.requested_at, at);
    }

    /// Delivers what a window held, notes that it was read completely, and commits that.
    pub(super) async fn go_past(
        &mut self,
        pass: &mut Pass<'_>,
        asked: &AskedWindow,
        shown_at: Timestamp,
        rows: u32,
    ) -> Result<ControlFlow<Stop>> {
        // One delivery for all pages of a list takes fewer calls than one for each.
        self.flush().await?;
        pass.second_failures = 0;
        let span = if asked.is_second() && asked.window.span.to.is_none() && pass.position.second.is_some() {
            asked.second()
        } else {
            asked.window.span
        };
        if let PassOwner::Job(job) = &mut pass.owner {
            job.checked += u64::from(rows);
        }
        pass.note_part(asked, rows);
        if !go_past(&mut pass.position, Window { span, ..asked.window }) {
            return Ok(ControlFlow::Continue(()));
        }
        pass.pace = Some((rows, asked.seconds())).filter(|_| asked.window.created.is_none());
        let covered = covered_by(span, shown_at);
        match &mut pass.owner {
            PassOwner::Feed => {
                self.advance_cursor(covered);
                self.lease.feed.has_long_future &= span.to.is_some();
            }
            PassOwner::Job(job) => job.covered_until = span.to.unwrap_or(covered).min(job.to),
            PassOwner::Retry => {}
        }
        let Some(to) = span.to.filter(|to| pass.end.is_none_or(|end| *to < end)) else {
            return Ok(ControlFlow::Break(Stop::Done));
        };
        pass.search_from(to);
        if self.commit_progress(pass).await? == Write::Conflict {
            return Ok(ControlFlow::Break(Stop::Overtaken));
        }
        if let Some(search) = &pass.search
            && let Some(error) = search.gave_up_because()
        {
            self.stats.narrowed = true;
            if !search.lists_without_alerts {
                return Err(error);
            }
            self.read_without_alerts(pass, to);
        }
        Ok(ControlFlow::Continue(()))
    }

    fn advance_cursor(&mut self, until: Timestamp) {
        let feed = &mut self.lease.feed;
        if feed.covered_until.is_none_or(|covered| covered < until) {
            feed.covered_until = Some(until);
            self.stats.moved = true;
        }
    }

    /// Commits progress in the middle of a pass. A conflict means that another worker has the lease, or that the job was
    /// cancelled.
    async fn commit_progress(&mut self, pass: &mut Pass<'_>) -> Result<Write> {
        self.stats.moved = true;
        let position = Some(pass.position.clone());
        match &mut pass.owner {
            PassOwner::Feed => self.lease.feed.pass_position = position,
            PassOwner::Job(job) => {
                job.failures = 0;
                job.pass_position = position;
                self.add_delivered_to_job(job);
                if self.sync.registry.commit_job(job, self.sync.clock.now()).await? == Write::Conflict {
                    return Ok(Write::Conflict);
                }
            }
            PassOwner::Retry => {}
        }
        self.commit_feed().await
    }
}
