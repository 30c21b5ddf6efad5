//! One pass over a span of last update, window by window, the oldest first.

use std::ops::ControlFlow;

use jiff::{SignedDuration, Timestamp};

use super::{
    Progress, Stop, Worker, is_transient,
    page_read::PageRead,
    paging::{AskedPage, MAX_LIST_ROWS, PageStep, note_page, skip_of},
    pass::{AskedWindow, Pass, PassOwner},
    poll::SHORT_OVERLAP,
    second::{crowded_second, end_list_of_second, isolate_second, split_second},
    window::{
        RowOrder, Window, covered_by, estimated_rows, floor, go_past, split_at, split_point, split_point_of_long_list,
    },
};
use shared::{
    error::{Error, Result},
    incident::{record::Alerts, span::Span},
    incident_api::query::IncidentQuery,
    queue::SyncKind,
    registry::{
        Write,
        position::{Readings, RowTimes, SecondPosition},
    },
};

impl Worker<'_> {
    /// Reads and delivers everything in a span. However the pass ends, its position is stored in its owner.
    pub(super) async fn pass(&mut self, pass: &mut Pass<'_>) -> Result<Stop> {
        let outcome = Box::pin(self.read_windows(pass)).await;
        match &mut pass.owner {
            PassOwner::Feed => self.lease.feed.pass_position = Some(pass.position.clone()),
            PassOwner::Job(job) => job.pass_position = Some(pass.position.clone()),
            PassOwner::Retry => {}
        }
        outcome
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
            let skip = pass.position.list.as_ref().map_or(0, skip_of);
            let alerts = match pass.owner {
                PassOwner::Feed | PassOwner::Job(_) => self.alerts_of_windows(now),
                PassOwner::Retry => Alerts::Included,
            };
            let created = window.created;
            let after = pass.position.after_empty_pages.take().filter(|after| after.to == window.span.to);
            let next_page = after.as_ref().map(|after| after.page.clone());
            let query = IncidentQuery { created, skip, next_page, alerts, ..IncidentQuery::of(window.span, self.api) };
            let asked = AskedWindow { window, requested_at: now, query };
            let mut page = PageRead::after(after);
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
                    // Rows that arrived before the error are worth delivering.
                    if !matches!(error, Error::Internal(_) | Error::TenantNotActive(_)) {
                        self.flush().await?;
                    }
                    return Err(error);
                }
            };
            if let ControlFlow::Break(stop) = step {
                return Ok(stop);
            }
        }
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
        let Some(readings) = readings else { return self.read(&asked.query, page).await.map(|()| None) };
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

    /// Goes on after a page: to the next one, past a window that is complete, or with a part of a window that is too full.
    async fn on_page(
        &mut self,
        pass: &mut Pass<'_>,
        asked: &AskedWindow,
        page: &PageRead,
    ) -> Result<ControlFlow<Stop>> {
        self.flush().await?;
        let is_first_page = pass.position.list.is_none();
        let top = asked.query.top;
        let of_page = AskedPage {
            to: asked.window.span.to,
            top,
            shown_at: self.response_time(page),
            confirms_end: self.kind == SyncKind::Sweep,
        };
        pass.shown_at = Some(of_page.shown_at);
        let shown_at = pass.position.list.as_ref().map_or(of_page.shown_at, |list| list.shown_at);
        let has_long_future = self.lease.feed.has_long_future;
        let sizes = self.lease.feed.page_sizes(self.api);
        let (step, new_rows) = note_page(&mut pass.position.list, page, of_page, sizes);
        let looks_complete = pass.position.list.as_ref().is_none_or(|list| list.looked_complete);
        self.first_window_was_complete.get_or_insert(looks_complete);
        self.stats.moved |= new_rows > 0;
        if let Some(search) = &mut pass.search {
            search.note_response(page.rows);
        }
        let is_long = matches!(step, PageStep::TooLong | PageStep::Unordered);
        if (is_long || step == PageStep::NextPage && (pass.position.is_unordered || has_long_future))
            && pass.gains_nothing_from(asked.window.span, shown_at)
        {
            return Ok(ControlFlow::Break(Stop::Done));
        }
        match step {
            PageStep::Complete => {
                let rows = pass.position.list.as_ref().map_or(page.rows, |list| list.rows);
                self.go_past(pass, asked, shown_at, rows).await
            }
            PageStep::NextPage if is_first_page && !looks_complete => {
                self.after_first_page(pass, asked, page, shown_at).await
            }
            PageStep::NextPage => self.after_next_page(pass, asked, page).await,
            PageStep::TooLong | PageStep::Unordered => {
                pass.position.is_unordered |= step == PageStep::Unordered;
                if asked.is_second() {
                    return Ok(self.split_second(pass, asked, shown_at));
                }
                let wanted = if step == PageStep::TooLong { MAX_LIST_ROWS } else { 0 };
                let shown = pass.position.list.as_ref().map_or(&[][..], |list| &list.shown);
                if let Some(second) = crowded_second(shown).filter(|second| asked.can_isolate(*second, shown_at)) {
                    self.isolate_second(pass, asked, second);
                    return Ok(ControlFlow::Continue(()));
                }
                let mut at = split_point_of_long_list(asked.window.span, asked.requested_at, shown, wanted);
                if asked.window.span.to.is_none() {
                    // What lies behind it is for a later pass, if no list holds it.
                    at = at.min(floor(covered_by(asked.window.span, shown_at)));
                }
                self.split(pass, asked, at);
                Ok(ControlFlow::Continue(()))
            }
        }
    }

    /// Goes on after the first page of a list that has more: with the next page if the list can be read to its end, else with
    /// a part of the window.
    async fn after_first_page(
        &mut self,
        pass: &mut Pass<'_>,
        asked: &AskedWindow,
        page: &PageRead,
        shown_at: Timestamp,
    ) -> Result<ControlFlow<Stop>> {
        let (window, now) = (asked.window.span, asked.requested_at);
        let wanted = pass.wanted_rows(asked.query.top);
        let shown: Vec<RowTimes> = page.times().collect();
        if asked.is_second() {
            // A list with an order is ended where it becomes too long, so that no page of it was for nothing.
            let has_order = RowOrder::of(&shown).is_some();
            if pass.position.is_unordered || !has_order && self.has_row_after(asked, MAX_LIST_ROWS).await? {
                return Ok(self.split_second(pass, asked, shown_at));
            }
            return Ok(ControlFlow::Continue(()));
        }
        let crowded = crowded_second(&shown).filter(|second| asked.can_isolate(*second, shown_at));
        if let Some(second) = crowded {
            if pass.position.is_unordered || self.has_row_after(asked, MAX_LIST_ROWS).await? {
                self.isolate_second(pass, asked, second);
            }
            return Ok(ControlFlow::Continue(()));
        }
        let newest_first = RowOrder::of(&shown).is_some_and(|order| order.newest_first);
        let is_unordered = pass.position.is_unordered;
        if (newest_first || is_unordered) && estimated_rows(window, now, &shown) > f64::from(wanted) {
            self.split(pass, asked, split_point(window, now, &shown, wanted));
        } else if is_unordered
            || !newest_first && pass.may_be_too_long(asked, &shown) && self.has_row_after(asked, MAX_LIST_ROWS).await?
        {
            self.split(pass, asked, split_point_of_long_list(window, now, &shown, wanted));
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Goes on after a further page. Where the newest rows come first, their density is a good guess, so it is put to the
    /// proof only where two pages did not hold the list.
    async fn after_next_page(
        &mut self,
        pass: &mut Pass<'_>,
        asked: &AskedWindow,
        last_page: &PageRead,
    ) -> Result<ControlFlow<Stop>> {
        let Some(list) = &pass.position.list else { return Ok(ControlFlow::Continue(())) };
        if asked.is_second() && list.rows >= MAX_LIST_ROWS {
            let times: Vec<RowTimes> = last_page.times().collect();
            self.stats.moved |= end_list_of_second(&mut pass.position, &times);
            return Ok(ControlFlow::Continue(()));
        }
        let (shown, page) = (&list.shown, list.last_page.len());
        if (page + 1..=2 * page).contains(&shown.len())
            && !asked.is_second()
            && RowOrder::of(shown).is_some_and(|order| order.newest_first)
            && pass.may_be_too_long(asked, shown)
            && self.has_row_after(asked, MAX_LIST_ROWS).await?
        {
            let at = split_point_of_long_list(asked.window.span, asked.requested_at, shown, MAX_LIST_ROWS);
            self.split(pass, asked, at);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Returns true if the list of a window has more than `rows` rows. A failure shows nothing.
    async fn has_row_after(&mut self, asked: &AskedWindow, rows: u32) -> Result<bool> {
        Ok(self.row_after(&asked.query, rows).await?.rows > 0)
    }

    /// Reads the row after the first `rows` of a list: a page without rows where the list is not longer. A failure shows
    /// nothing.
    pub(super) async fn row_after(&mut self, list: &IncidentQuery, rows: u32) -> Result<PageRead> {
        let query = IncidentQuery { skip: rows, next_page: None, top: 1, ..list.clone() };
        let mut page = PageRead::default();
        match self.read(&query, &mut page).await {
            Ok(()) => Ok(page),
            Err(error) if is_transient(&error) => Ok(PageRead::default()),
            Err(error) => Err(error),
        }
    }

    fn isolate_second(&mut self, pass: &mut Pass<'_>, asked: &AskedWindow, second: Timestamp) {
        self.stats.moved = true;
        isolate_second(&mut pass.position, asked.window.span, second);
    }

    fn split(&mut self, pass: &mut Pass<'_>, asked: &AskedWindow, at: Timestamp) {
        self.stats.moved = true;
        let is_present = asked.window.span.to.is_none() && at + SHORT_OVERLAP >= asked.requested_at;
        self.lease.feed.has_long_future |= is_present && matches!(pass.owner, PassOwner::Feed);
        split_at(&mut pass.position, asked.window.span, asked.requested_at, at);
    }

    /// Splits a second, or a part of it, that one list does not hold. Rows that no split tells apart are paged until
    /// as many were seen as the list has places.
    fn split_second(&mut self, pass: &mut Pass<'_>, asked: &AskedWindow, shown_at: Timestamp) -> ControlFlow<Stop> {
        let list = pass.position.list.take();
        let shown = list.as_ref().map_or(&[][..], |list| &list.shown);
        let created: Vec<_> = shown.iter().map(|row| row.created).collect();
        let known: Vec<_> = created.iter().flatten().map(|time| RowTimes { updated: *time, created: None }).collect();
        let wanted = if pass.position.is_unordered { 0 } else { MAX_LIST_ROWS };
        let part = asked.window.created.unwrap_or(Span { from: Timestamp::UNIX_EPOCH, to: None });
        let preferred = split_point_of_long_list(part, asked.requested_at, &known, wanted);
        self.stats.moved = true;
        if !split_second(&mut pass.position, &created, Some(preferred)) {
            let readings = Readings::from_beginning(shown_at, asked.window.created.is_some());
            pass.position.second.get_or_insert_with(SecondPosition::all_of_it).readings = Some(readings);
        }
        ControlFlow::Continue(())
    }

    /// Notes that a window was read completely, and commits that.
    pub(super) async fn go_past(
        &mut self,
        pass: &mut Pass<'_>,
        asked: &AskedWindow,
        shown_at: Timestamp,
        rows: u32,
    ) -> Result<ControlFlow<Stop>> {
        pass.second_failures = 0;
        let span = if asked.is_second() && asked.window.span.to.is_none() && pass.position.second.is_some() {
            asked.second()
        } else {
            asked.window.span
        };
        if let PassOwner::Job(job) = &mut pass.owner {
            job.checked += u64::from(rows);
        }
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
        if let Some(search) = &mut pass.search {
            search.shrink_failing_window_to(to);
            pass.position.ends = search.ends_after(to);
            if let Some(width) = search.next_width() {
                let at = to + SignedDuration::from_secs(width);
                if pass.position.ends.last().is_none_or(|end| at < *end) {
                    pass.position.ends.push(at);
                }
            }
            if search.is_over() {
                pass.search = None;
            }
        }
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
