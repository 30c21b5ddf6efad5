//! Windows of seconds with more rows than one list shows.

use jiff::Timestamp;
use shared::{
    error::Result,
    incident_api::query::{IncidentQuery, MAX_SKIP},
    queue::SyncKind,
    registry::position::{Readings, RowTimes, SecondPosition},
};

use super::{
    Worker,
    crowded::{Look, PartStep, first_sample, is_too_long, longest_list, next_step, note_look},
    page_read::PageRead,
    paging::MAX_LIST_ROWS,
    pass::{AskedWindow, Pass},
    second::{come_in_order_of_creation, isolate_second, split_second},
    window::{floor, split_point_of_long_list},
};

impl Worker<'_> {
    /// Splits the next part of a crowded second, or looks at its list, so that its list is read to the end once it is begun.
    /// Returns false if the list can be read now.
    pub(super) async fn prepare_part(&mut self, pass: &mut Pass<'_>, asked: &AskedWindow) -> Result<bool> {
        if pass.position.list.is_some() || asked.query.next_page.is_some() {
            return Ok(false);
        }
        let Some(crowded) = pass.crowded_part(asked) else { return Ok(false) };
        let (part, longest) = (asked.window.created, longest_list(crowded.page, self.confirms_ends()));
        let split = match next_step(crowded, part, longest) {
            PartStep::Read => return Ok(false),
            PartStep::Split(split) => Some(split),
            PartStep::Look { skip } => {
                let look = self.look(&asked.query, skip, crowded.page, asked.window.span.from).await?;
                note_look(crowded, part, &look, longest)
            }
        };
        self.stats.moved = true;
        let Some(split) = split else { return Ok(true) };
        let shown: Vec<_> = split.shown.into_iter().map(Some).collect();
        if !split_second(&mut pass.position, &shown, Some(split.at))
            && let Some(crowded) = &mut pass.position.crowded
        {
            // Its list shows whether it is too long.
            crowded.fits = Some(true);
        }
        Ok(true)
    }

    /// Returns true if the list that begins with the page `first` is too long to be read, and notes what it has shown of the
    /// rows of `second` where these have no order.
    pub(super) async fn is_too_long(
        &mut self,
        pass: &mut Pass<'_>,
        asked: &AskedWindow,
        first: &PageRead,
        second: Timestamp,
    ) -> Result<bool> {
        let longest = longest_list(first.rows, self.confirms_ends());
        let look = self.look(&asked.query, MAX_SKIP, first.rows, second).await?;
        let is_too_long = is_too_long(&look, longest);
        let of_second: Vec<RowTimes> = first.times().filter(|row| floor(row.updated) == second).collect();
        if is_too_long && !come_in_order_of_creation(of_second.iter().chain(&look.of_second)) {
            pass.position.crowded = Some(first_sample(second, first.rows, &of_second, &look, longest));
        }
        Ok(is_too_long)
    }

    /// Reads the rows of a list with pages of `page` rows behind the first `skip` ones, and says what they show of `second`.
    /// A failure shows nothing.
    async fn look(&mut self, list: &IncidentQuery, skip: u32, page: u32, second: Timestamp) -> Result<Look> {
        let shown = self.rows_after(list, skip, list.top).await?;
        let of_second = shown.times().filter(|row| floor(row.updated) == second).collect();
        Ok(Look { rows: shown.rows, has_more: shown.more || shown.rows >= page, of_second })
    }

    /// A sweep does not believe that a page is the last one, because it looks for what polls have missed.
    pub(super) fn confirms_ends(&self) -> bool {
        self.kind == SyncKind::Sweep
    }

    /// Gives a second a window of its own where the list with `page` is too long, or its rows have no fixed order.
    pub(super) async fn isolate_if_too_long(
        &mut self,
        pass: &mut Pass<'_>,
        asked: &AskedWindow,
        page: &PageRead,
        second: Timestamp,
    ) -> Result<()> {
        if pass.position.is_unordered || self.is_too_long(pass, asked, page, second).await? {
            self.isolate_second(pass, asked, second);
        }
        Ok(())
    }

    pub(super) fn isolate_second(&mut self, pass: &mut Pass<'_>, asked: &AskedWindow, second: Timestamp) {
        self.stats.moved = true;
        isolate_second(&mut pass.position, asked.window.span, second);
    }

    /// Splits a second, or a part of it, that one list does not hold. Rows that no split tells apart are paged until
    /// as many were seen as the list has places.
    pub(super) fn split_second(&mut self, pass: &mut Pass<'_>, asked: &AskedWindow, shown_at: Timestamp) {
        let list = pass.position.list.take();
        let shown = list.as_ref().map_or(&[][..], |list| &list.shown);
        let created: Vec<_> = shown.iter().map(|row| row.created).collect();
        let known: Vec<_> = created.iter().flatten().map(|time| RowTimes { updated: *time, created: None }).collect();
        let wanted = if pass.position.is_unordered { 0 } else { MAX_LIST_ROWS };
        let part = asked.window.created.unwrap_or(SecondPosition::WHOLE);
        let preferred = split_point_of_long_list(part, asked.requested_at, &known, wanted);
        self.stats.moved = true;
        if !split_second(&mut pass.position, &created, Some(preferred)) {
            let readings = Readings::from_beginning(shown_at, asked.window.created.is_some());
            pass.position.second.get_or_insert_with(SecondPosition::all_of_it).readings = Some(readings);
        }
    }
}
