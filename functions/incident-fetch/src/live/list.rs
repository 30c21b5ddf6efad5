//! The windows of a live list, read from the newest backwards until a page is full.

use jiff::{SignedDuration, Timestamp};
use shared::{
    error::{Call, Error, Result},
    http::Deadline,
    incident::{record::Alerts, span::Span},
    incident_api::{
        client::TokenFreshness,
        list::{ListEnd, MAX_EMPTY_PAGES},
        query::{IncidentQuery, MAX_SKIP},
    },
    registry::{
        position::{ListPosition, PageSizes},
        tenants::Tenant,
    },
};

use super::{
    page::{MAX_RESPONSE_BYTES, PageBuilder, Position, Row, TenantPage, escaped_len, truncate_to_fit},
    render::{Renderer, warn_too_large},
    request::ListRequest,
};
use crate::{
    App,
    sync::{
        page_read::{PageRead, PartialResponse},
        paging::{AskedPage, PageStep, note_page, skip_of},
        window::floor,
    },
};

/// The maximum number of calls to Microsoft for one page of one tenant, once at least one window was read completely.
const MAX_CALLS: u32 = 20;

/// The resolution of the time filters of the incident APIs.
const FILTER_RESOLUTION: SignedDuration = SignedDuration::from_secs(1);

impl App {
    /// Reads and renders the newest incidents of a tenant that a caller wants. `sizes` are those of the pages that the
    /// tenant's API has shown.
    pub(crate) async fn tenant_page(
        &self,
        tenant: &Tenant,
        sizes: PageSizes,
        request: &ListRequest,
        deadline: Deadline,
    ) -> Result<TenantPage> {
        let page = PageBuilder::new(request.limit);
        let mut list = LiveList { app: self, tenant, request, deadline, page, sizes, calls: 0 };
        let read_from = Box::pin(list.read()).await?;
        let mut page = TenantPage { rows: Vec::new(), complete_to: list.page.complete_to(read_from) };
        let mut renderer = Renderer::new(self, tenant, request.format);
        let (mut bytes, mut last_position) = (0, None);
        for (position, record) in list.page.rows {
            if page.complete_to.as_ref().is_some_and(|complete_to| position > *complete_to) {
                break;
            }
            if let Some(incident) = renderer.render(record).await? {
                bytes += escaped_len(incident.get());
                if bytes > MAX_RESPONSE_BYTES {
                    page.complete_to = last_position;
                    break;
                }
                page.rows.push(Row { position: position.clone(), incident });
            }
            last_position = Some(position);
        }
        Ok(page)
    }
}

/// One tenant's list while it is read.
struct LiveList<'a> {
    app: &'a App,
    tenant: &'a Tenant,
    request: &'a ListRequest,
    deadline: Deadline,
    page: PageBuilder,
    sizes: PageSizes,
    calls: u32,
}

/// The facts about a window that decide which one is read next.
#[derive(Clone, Copy)]
struct WindowRead {
    /// The whole window was read.
    complete: bool,
    /// The number of rows that were read.
    rows: u32,
    /// The oldest last update of them.
    oldest: Option<Timestamp>,
}

impl LiveList<'_> {
    /// Reads as much as a page takes, or as much as there is time for. Returns the time from which on the page has seen
    /// all incidents; `None`: it has seen the whole list.
    async fn read(&mut self) -> Result<Option<Timestamp>> {
        let ListRequest { from: begin, to, ref after, .. } = *self.request;
        let begin = floor(begin);
        let after = after.as_ref().and_then(|after| second_after(after.last_updated()));
        let mut end = [to.and_then(second_from), after].into_iter().flatten().min();
        let mut from = begin;
        let (mut read_from, mut guessed) = (None, false);
        while end.is_none_or(|end| begin < end) {
            if self.calls >= MAX_CALLS && read_from.is_some() {
                return Ok(read_from);
            }
            // The end of the window. Without one, updates from ahead of our clock are in its last second.
            let ahead = || second_after(self.app.clock.now().max(from)).unwrap_or(Timestamp::MAX);
            let present = end.unwrap_or_else(ahead);
            let mut query = IncidentQuery::of(Span { from, to: end }, self.tenant.api);
            query.equal = self.request.conditions(self.tenant.api);
            let mut outcome = self.read_window(&query).await;
            let crowded =
                outcome.as_ref().is_ok_and(|read| !read.complete) && present.duration_since(from) <= FILTER_RESOLUTION;
            if crowded {
                let first_rows = outcome.as_ref().map_or(0, |read| read.rows);
                let second = self.read_crowded_second(&query, first_rows).await;
                outcome = second.map(|()| WindowRead { complete: true, rows: 0, oldest: None });
            }
            let WindowRead { complete, oldest, .. } = match outcome {
                Ok(read) => read,
                Err(Error::Throttled { .. } | Error::DeadlineExceeded) if read_from.is_some() => return Ok(read_from),
                Err(error) => return Err(error),
            };
            if complete {
                if self.page.is_full(from) || from == begin {
                    return Ok(None);
                }
                // The page has room left after this window. The next one lies before it and is twice as long. The length
                // of a crowded second says nothing about that.
                (read_from, end, guessed) = (Some(from), Some(from), false);
                let earlier = from.checked_sub(present.duration_since(from) * 2).ok().filter(|_| !crowded);
                from = earlier.map_or(begin, |earlier| earlier.max(begin));
            } else {
                // The rows of the response are the newest as a rule. The window that begins in the second after the
                // oldest of them then holds all others. Where that fails, the window is halved.
                let half = (present.duration_since(from).as_secs() / 2).max(1);
                let guess = oldest.and_then(second_after).filter(|guess| !guessed && *guess > from);
                from = guess.unwrap_or(from + SignedDuration::from_secs(half)).min(present - FILTER_RESOLUTION);
                guessed = true;
            }
        }
        Ok(None)
    }

    /// Reads a window by the rules of the sync: only a list that was read to its end is complete. Further pages are read
    /// while the list may be shorter than one full page. They show what lies behind a short page.
    async fn read_window(&mut self, query: &IncidentQuery) -> Result<WindowRead> {
        let mut list: Option<ListPosition> = None;
        let mut oldest: Option<Timestamp> = None;
        loop {
            let skip = list.as_ref().map_or(0, skip_of);
            let page = self.read_page(&IncidentQuery { skip, ..query.clone() }).await?;
            oldest = oldest.into_iter().chain(page.times().map(|row| row.updated)).min();
            let shown_at = page.response_time(self.app.clock.now());
            let asked = AskedPage { to: query.updated.to, top: query.top, shown_at, confirms_end: false };
            let (step, _) = note_page(&mut list, &page, asked, &mut self.sizes);
            let rows = list.as_ref().map_or(page.rows, |list| list.rows);
            if step != PageStep::NextPage || rows >= query.top {
                return Ok(WindowRead { complete: step == PageStep::Complete, rows, oldest });
            }
        }
    }

    /// Reads one response into the page. One that leaves something out is asked for again, once.
    async fn read_page(&mut self, query: &IncidentQuery) -> Result<PageRead> {
        match self.read_page_once(query).await {
            Err(Error::Partial { .. }) => self.read_page_once(query).await,
            outcome => outcome,
        }
    }

    async fn read_page_once(&mut self, query: &IncidentQuery) -> Result<PageRead> {
        self.calls += 1;
        let deadline = self.deadline;
        // Without time left a request is not worth a call of the budget.
        if deadline.left().is_zero() {
            return Err(Error::DeadlineExceeded);
        }
        deadline.run(self.read_rows(query)).await.map_err(|error| match error {
            // The call had less time than Microsoft may take.
            Error::Unreachable { .. } if deadline.left().is_zero() => Error::DeadlineExceeded,
            other => other,
        })
    }

    async fn read_rows(&mut self, query: &IncidentQuery) -> Result<PageRead> {
        let (mut query, mut page) = (query.clone(), PageRead::default());
        for _ in 0..MAX_EMPTY_PAGES {
            let end = self.read_response(&query, &mut page).await?;
            let Some(next) = page.after_empty_page(&end, &query) else { return Ok(page) };
            query = next;
        }
        Err(Error::Malformed { call: Call::ListIncidents })
    }

    async fn read_response(&mut self, query: &IncidentQuery, page: &mut PageRead) -> Result<ListEnd> {
        let tenant = self.tenant.tenant_id;
        let mut rows = self.app.client(self.tenant, self.deadline).list(query, TokenFreshness::Cached).await?;
        while let Some(row) = rows.next_record(&tenant, self.tenant.api, Alerts::Included).await? {
            let record = match row {
                Ok(record) => record,
                // The sync quarantines a row that cannot be parsed. A list shows the others.
                Err((_, row)) => {
                    page.note_unreadable(&row);
                    continue;
                }
            };
            page.note(&record, query);
            let position = Position::of(tenant, &record);
            if !self.request.wants(&record, &position) {
                continue;
            }
            match truncate_to_fit(record.into_record()) {
                Some(record) => self.page.add(position, record),
                None => warn_too_large(&position),
            }
        }
        let end = rows.end()?;
        // Nothing finds later what a list leaves out, so no partial response is accepted.
        page.judge(&end, self.app.clock.now(), PartialResponse::Refused)?;
        Ok(end)
    }

    /// Pages through a second that one response does not hold. Where it has more incidents than Graph lets a client
    /// skip, the list shows those that can be read and continues before that second. The sync splits such a second by
    /// time of creation and delivers all of it.
    async fn read_crowded_second(&mut self, query: &IncidentQuery, first_rows: u32) -> Result<()> {
        let mut skip = first_rows;
        while skip <= MAX_SKIP {
            let page = self.read_page(&IncidentQuery { skip, ..query.clone() }).await?;
            if page.is_last(query.top, self.sizes) {
                return Ok(());
            }
            skip += page.rows;
        }
        tracing::warn!(second = %query.updated.from, "a second holds more incidents than a list can show");
        Ok(())
    }
}

/// The whole second at an instant or after it; `None` at the end of time.
fn second_from(instant: Timestamp) -> Option<Timestamp> {
    if floor(instant) == instant { Some(instant) } else { second_after(instant) }
}

/// The first whole second after an instant; `None` at the end of time.
fn second_after(instant: Timestamp) -> Option<Timestamp> {
    floor(instant).checked_add(FILTER_RESOLUTION).ok()
}
