//! The way on after a page of a window: the next page, the next window, or a part of this one.

use std::ops::ControlFlow;

use jiff::{SignedDuration, Timestamp};
use shared::{error::Result, incident_api::query::IncidentQuery, registry::position::RowTimes};

use super::{
    Stop, Worker, is_transient,
    page_read::PageRead,
    paging::{AskedPage, MAX_LIST_ROWS, PageStep, note_page},
    pass::{AskedWindow, Pass},
    second::{begins_to_crowd, come_in_order_of_creation, crowded_second, end_list_of_second},
    window::{RowOrder, covered_by, estimated_rows, floor, split_point, split_point_of_long_list},
};

impl Worker<'_> {
    /// Goes on after a page: to the next one, past a window that is complete, or with a part of a window that is too full.
    pub(super) async fn on_page(
        &mut self,
        pass: &mut Pass<'_>,
        asked: &AskedWindow,
        page: &PageRead,
    ) -> Result<ControlFlow<Stop>> {
        if !self.batch.is_empty() {
            // Another worker of the tenant shows at the first news, not at the end of the list.
            self.take_lease().await?;
        }
        let is_first_page = pass.position.list.is_none();
        let of_page = AskedPage {
            to: asked.window.span.to,
            top: asked.query.top,
            shown_at: self.response_time(page),
            confirms_end: self.confirms_ends(),
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
            PageStep::NextPage => {
                if !is_first_page || looks_complete {
                    self.after_next_page(pass, asked, page, shown_at).await?;
                } else if asked.is_second() {
                    self.after_first_page_of_second(pass, asked, page, shown_at).await?;
                } else {
                    self.after_first_page(pass, asked, page, shown_at).await?;
                }
                Ok(ControlFlow::Continue(()))
            }
            PageStep::TooLong | PageStep::Unordered => {
                pass.position.is_unordered |= step == PageStep::Unordered;
                let wanted = if step == PageStep::TooLong { MAX_LIST_ROWS } else { 0 };
                self.split_long_list(pass, asked, shown_at, wanted);
                Ok(ControlFlow::Continue(()))
            }
        }
    }

    /// Goes on with a part of a window whose rows no list holds: its first `wanted` rows or, with 0, half of it.
    fn split_long_list(&mut self, pass: &mut Pass<'_>, asked: &AskedWindow, shown_at: Timestamp, wanted: u32) {
        if asked.is_second() {
            return self.split_second(pass, asked, shown_at);
        }
        let shown = pass.position.list.as_ref().map_or(&[][..], |list| &list.shown);
        if let Some(second) = crowded_second(shown).filter(|second| asked.can_isolate(*second, shown_at)) {
            return self.isolate_second(pass, asked, second);
        }
        let mut at = split_point_of_long_list(asked.window.span, asked.requested_at, shown, wanted);
        if asked.window.span.to.is_none() {
            // What lies behind it is for a later pass, if no list holds it.
            at = at.min(floor(covered_by(asked.window.span, shown_at)));
        }
        self.split(pass, asked, at);
    }

    /// Goes on after the first page of a list that has more: with the next page if the list can be read to its end, else with
    /// a part of the window.
    async fn after_first_page(
        &mut self,
        pass: &mut Pass<'_>,
        asked: &AskedWindow,
        page: &PageRead,
        shown_at: Timestamp,
    ) -> Result<()> {
        let (window, now) = (asked.window.span, asked.requested_at);
        let wanted = pass.wanted_rows(asked.query.top);
        let shown: Vec<RowTimes> = page.times().collect();
        let is_unordered = pass.position.is_unordered;
        if let Some(second) = crowded_second(&shown).filter(|second| asked.can_isolate(*second, shown_at)) {
            return self.isolate_if_too_long(pass, asked, page, second).await;
        }
        let newest_first = RowOrder::of(&shown).is_some_and(|order| order.newest_first);
        if (newest_first || is_unordered) && estimated_rows(window, now, &shown) > f64::from(wanted) {
            let by_density = split_point(window, now, &shown, wanted);
            // Of a pass's first window nothing else is known, and much of what happens is recent.
            let is_first_window = pass.pace.is_none() && pass.position.ends.is_empty();
            let at = if is_first_window && !is_unordered {
                self.end_of_list(pass, asked, by_density).await?
            } else {
                Some(by_density)
            };
            if let Some(at) = at {
                self.split(pass, asked, at);
            }
        } else if is_unordered
            || !newest_first && pass.may_be_too_long(asked, &shown) && self.has_row_after(asked, MAX_LIST_ROWS).await?
        {
            self.split(pass, asked, split_point_of_long_list(window, now, &shown, wanted));
        }
        Ok(())
    }

    /// Goes on after the first page of a second, or of a part of it. A list in the order of creation is ended where it becomes
    /// too long, so that no page of it was for nothing.
    async fn after_first_page_of_second(
        &mut self,
        pass: &mut Pass<'_>,
        asked: &AskedWindow,
        page: &PageRead,
        shown_at: Timestamp,
    ) -> Result<()> {
        if pass.position.is_unordered {
            self.split_second(pass, asked, shown_at);
            return Ok(());
        }
        let shown: Vec<RowTimes> = page.times().collect();
        let is_prepared = pass.crowded_part(asked).is_some();
        if is_prepared
            || come_in_order_of_creation(&shown)
            || !self.is_too_long(pass, asked, page, asked.window.span.from).await?
        {
            return Ok(());
        }
        if asked.window.created.is_some() {
            self.split_second(pass, asked, shown_at);
        } else {
            pass.position.list = None;
        }
        Ok(())
    }

    /// Goes on after a further page. Where the newest rows come first, their density is a good guess, so it is put to the
    /// proof only where two pages did not hold the list.
    async fn after_next_page(
        &mut self,
        pass: &mut Pass<'_>,
        asked: &AskedWindow,
        last_page: &PageRead,
        shown_at: Timestamp,
    ) -> Result<()> {
        let Some(list) = &pass.position.list else { return Ok(()) };
        if asked.is_second() && list.rows >= MAX_LIST_ROWS {
            let times: Vec<RowTimes> = last_page.times().collect();
            self.stats.moved |= end_list_of_second(&mut pass.position, &times);
            return Ok(());
        }
        let (shown, page) = (&list.shown, list.last_page.len());
        if let Some(second) = begins_to_crowd(shown, page).filter(|second| asked.can_isolate(*second, shown_at)) {
            return self.isolate_if_too_long(pass, asked, last_page, second).await;
        }
        if (page + 1..=2 * page).contains(&shown.len())
            && !asked.is_second()
            && pass.fits != Some(asked.window.span)
            && crowded_second(shown).is_none()
            && RowOrder::of(shown).is_some_and(|order| order.newest_first)
            && pass.may_be_too_long(asked, shown)
            && self.has_row_after(asked, MAX_LIST_ROWS).await?
        {
            let at = split_point_of_long_list(asked.window.span, asked.requested_at, shown, MAX_LIST_ROWS);
            self.split(pass, asked, at);
        }
        Ok(())
    }

    /// Returns the place to split a window whose list is too long, the newest rows first: the newer part is as long as a list
    /// may be, or begins at `by_density` where the rows are not in the order of their last update. `None`: the list fits.
    async fn end_of_list(
        &mut self,
        pass: &mut Pass<'_>,
        asked: &AskedWindow,
        by_density: Timestamp,
    ) -> Result<Option<Timestamp>> {
        let row = self.row_after(&asked.query, MAX_LIST_ROWS).await?;
        if row.rows == 0 {
            pass.fits = Some(asked.window.span);
            return Ok(None);
        }
        let shown = pass.position.list.as_ref().map_or(&[][..], |list| &list.shown);
        let updates = shown.iter().map(|row| row.updated).chain(row.times().map(|row| row.updated));
        let is_newest_first = updates.is_sorted_by(|left, right| left >= right);
        let after = row.times().next().map(|row| floor(row.updated) + SignedDuration::from_secs(1));
        Ok(Some(after.filter(|_| is_newest_first).unwrap_or(by_density)))
    }

    /// Returns true if the list of a window has more than `rows` rows. A failure shows nothing.
    async fn has_row_after(&mut self, asked: &AskedWindow, rows: u32) -> Result<bool> {
        Ok(self.row_after(&asked.query, rows).await?.rows > 0)
    }

    /// Reads the row after the first `rows` of a list: a page without rows where the list is not longer, or the call fails.
    pub(super) async fn row_after(&mut self, list: &IncidentQuery, rows: u32) -> Result<PageRead> {
        self.rows_after(list, rows, 1).await
    }

    /// Reads up to `top` rows of a list after the first `skip`. A failure shows nothing.
    pub(super) async fn rows_after(&mut self, list: &IncidentQuery, skip: u32, top: u32) -> Result<PageRead> {
        let query = IncidentQuery { skip, next_page: None, top, ..list.clone() };
        let mut page = PageRead::default();
        match self.read(&query, &mut page).await {
            Ok(()) => Ok(page),
            Err(error) if is_transient(&error) => Ok(PageRead::default()),
            Err(error) => Err(error),
        }
    }
}
