//! One pass over a span of last update, window by window, the oldest first.

use std::ops::ControlFlow;

use jiff::{SignedDuration, Timestamp};

use super::{
    PollPlan, Progress, Stop, Worker,
    failure_search::{FailureSearch, NextStep},
    ingest::PageRead,
    is_transient,
    paging::{AskedPage, MAX_LIST_ROWS, PageStep, note_page, skip_of},
    window::{
        Window, ceil, covered_by, end_by_pace, estimated_rows, floor, go_past, middle, next_window, seconds, split_at,
        split_point, split_second,
    },
};
use shared::{
    error::{Error, Result},
    incident::span::Span,
    incident_api::query::IncidentQuery,
    queue::SyncKind,
    registry::{Write, jobs::Job, position::Position},
};

/// A pass over a span of last update.
pub(super) struct Pass<'a> {
    /// What is still to read.
    pub(super) position: Position,
    /// The end of the span; `None`: the present.
    end: Option<Timestamp>,
    owner: PassOwner<'a>,
    /// The search for what fails, while windows fail.
    search: Option<FailureSearch>,
    /// Pages do not join, so that each window has to fit into one response.
    is_unordered: bool,
    /// The rows and the seconds of the last complete window.
    pace: Option<(u32, i64)>,
    /// The rows that the next window has shown so far.
    rows: u32,
    /// The failures of the present part of a second.
    second_failures: u32,
}

/// The owner of a pass, which its progress belongs to.
enum PassOwner<'a> {
    /// The feed: its cursor moves.
    Feed,
    /// A backfill or a sweep.
    Job(&'a mut Job),
    /// The retry of a quarantined span. It ends at the first failure.
    Retry,
}

/// A window and the query for its next page.
struct AskedWindow {
    window: Window,
    /// Our time just before the request.
    requested_at: Timestamp,
    query: IncidentQuery,
}

impl AskedWindow {
    fn seconds(&self) -> i64 {
        seconds(self.window.span, self.requested_at)
    }

    /// True for a window that only times of creation split further.
    fn is_second(&self) -> bool {
        self.window.created.is_some() || self.seconds() == 1
    }

    fn second(&self) -> Span {
        let from = self.window.span.from;
        Span { from, to: Some(from + SignedDuration::from_secs(1)) }
    }
}

impl<'a> Pass<'a> {
    fn new(position: Position, end: Option<Timestamp>, owner: PassOwner<'a>) -> Self {
        let (search, pace) = (None, None);
        Self { position, end, owner, search, is_unordered: false, pace, rows: 0, second_failures: 0 }
    }

    /// The pass of a poll, up to the present.
    pub(super) fn of_poll(plan: &PollPlan) -> Self {
        Self::new(plan.position.clone(), None, PassOwner::Feed)
    }

    /// The pass of a job from `from` to `to`.
    pub(super) fn of_job(from: Timestamp, to: Timestamp, job: &'a mut Job) -> Self {
        let position = job.pass_position.clone().filter(|position| position.at >= floor(from));
        Self::new(position.unwrap_or_else(|| Position::at(floor(from))), Some(ceil(to)), PassOwner::Job(job))
    }

    /// The pass of a retry over a quarantined span.
    pub(super) fn of_retry(position: Position, to: Timestamp) -> Self {
        Self::new(position, Some(ceil(to)), PassOwner::Retry)
    }

    fn wanted_rows(&self, top: u32) -> u32 {
        if self.is_unordered { top } else { MAX_LIST_ROWS }
    }

    /// The next window, shorter where the last one shows that it would be too full.
    fn next_window(&mut self, now: Timestamp, top: u32, quarantined: &[Span]) -> Option<Window> {
        let window = next_window(&mut self.position, self.end, now, quarantined)?;
        let is_new = window.created.is_none() && self.position.list.is_none();
        let end =
            self.pace.filter(|_| is_new).and_then(|pace| end_by_pace(window.span, now, pace, self.wanted_rows(top)));
        let Some(end) = end else { return Some(window) };
        split_at(&mut self.position, window.span, now, end);
        next_window(&mut self.position, self.end, now, quarantined)
    }
}

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
            let quarantined = match pass.owner {
                PassOwner::Feed | PassOwner::Job(_) => self.quarantined_spans(),
                PassOwner::Retry => Vec::new(),
            };
            let Some(window) = pass.next_window(now, top, &quarantined) else { return Ok(Stop::Done) };
            if self.out_of_time() {
                return Ok(Stop::OutOfTime);
            }
            if matches!(pass.owner, PassOwner::Job(_)) && self.poll_is_due() {
                return Ok(Stop::PollDue);
            }
            let skip = pass.position.list.as_ref().map_or(0, skip_of);
            let query = IncidentQuery { created: window.created, skip, ..IncidentQuery::of(window.span, self.api) };
            let asked = AskedWindow { window, requested_at: now, query };
            let mut page = PageRead::default();
            let step = match self.read(&asked.query, &mut page).await {
                Ok(()) => self.on_page(pass, &asked, &page).await?,
                Err(error) if is_transient(&error) => self.on_failure(pass, &asked, &page, error).await?,
                Err(error) => {
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
        let shown_at = pass.position.list.as_ref().map_or(of_page.shown_at, |list| list.shown_at);
        let sizes = self.lease.feed.page_sizes(self.api);
        let (step, new_rows) = note_page(&mut pass.position.list, page, of_page, sizes);
        let looks_complete = pass.position.list.as_ref().is_none_or(|list| list.looked_complete);
        self.first_window_was_complete.get_or_insert(looks_complete);
        pass.rows += new_rows;
        self.stats.moved |= new_rows > 0;
        if let Some(search) = &mut pass.search {
            search.note_response(page.rows);
        }
        match step {
            PageStep::Complete => self.go_past(pass, asked, shown_at).await,
            PageStep::NextPage if is_first_page && !looks_complete => {
                let shown = page.times().map(|(updated, _)| updated).collect::<Vec<_>>();
                let wanted = pass.wanted_rows(top);
                let rows = estimated_rows(asked.window.span, asked.requested_at, &shown);
                let splits = pass.is_unordered || rows > f64::from(MAX_LIST_ROWS);
                if splits && !asked.is_second() {
                    let at = split_point(asked.window.span, asked.requested_at, &shown, wanted);
                    self.split(pass, asked, at);
                } else if pass.is_unordered {
                    return self.split_second(pass, asked, shown_at).await;
                }
                Ok(ControlFlow::Continue(()))
            }
            PageStep::NextPage => Ok(ControlFlow::Continue(())),
            PageStep::TooLong | PageStep::Unordered => {
                pass.is_unordered |= step == PageStep::Unordered;
                if asked.is_second() {
                    return self.split_second(pass, asked, shown_at).await;
                }
                let shown = pass.position.list.as_ref().map_or(&[][..], |list| &list.shown);
                let shown: Vec<Timestamp> = shown.iter().map(|(updated, _)| *updated).collect();
                self.split(pass, asked, middle(&shown).unwrap_or(asked.window.span.from));
                Ok(ControlFlow::Continue(()))
            }
        }
    }

    fn split(&mut self, pass: &mut Pass<'_>, asked: &AskedWindow, at: Timestamp) {
        pass.rows = 0;
        self.stats.moved = true;
        split_at(&mut pass.position, asked.window.span, asked.requested_at, at);
    }

    /// Splits a second, or a part of it, that one list does not hold. Rows that no split tells apart are paged until two
    /// readings agree.
    async fn split_second(
        &mut self,
        pass: &mut Pass<'_>,
        asked: &AskedWindow,
        shown_at: Timestamp,
    ) -> Result<ControlFlow<Stop>> {
        pass.rows = 0;
        let list = pass.position.list.take();
        let created: Vec<_> = list.iter().flat_map(|list| &list.shown).map(|(_, created)| *created).collect();
        if split_second(&mut pass.position, &created) {
            self.stats.moved = true;
            return Ok(ControlFlow::Continue(()));
        }
        match self.read_paged(asked.second(), asked.window.created).await {
            Ok(Progress::Complete) => self.go_past(pass, asked, shown_at).await,
            Ok(Progress::OutOfTime) => Ok(ControlFlow::Break(Stop::OutOfTime)),
            Err(error) if is_transient(&error) => self.on_failure_in_second(pass, asked, error).await,
            Err(error) => Err(error),
        }
    }

    /// Notes that a window was read completely, and commits that.
    async fn go_past(
        &mut self,
        pass: &mut Pass<'_>,
        asked: &AskedWindow,
        shown_at: Timestamp,
    ) -> Result<ControlFlow<Stop>> {
        let rows = std::mem::take(&mut pass.rows);
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
            PassOwner::Feed => self.advance_cursor(covered),
            PassOwner::Job(job) => job.covered_until = span.to.unwrap_or(covered),
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
        if let Some(error) = pass.search.as_ref().and_then(FailureSearch::gave_up_because) {
            self.stats.narrowed = true;
            return Err(error);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Goes on after a transient error: once more, with a narrower window, or past what was quarantined.
    async fn on_failure(
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
                let shown: Vec<Timestamp> = page.times().map(|(updated, _)| updated).collect();
                let at = middle(&shown).unwrap_or(window.from + SignedDuration::from_secs(asked.seconds() / 2));
                split_at(&mut pass.position, window, asked.requested_at, at);
            }
            return Ok(ControlFlow::Break(Stop::OutOfTime));
        }
        if matches!(pass.owner, PassOwner::Retry) {
            return Err(error);
        }
        if pass.position.second.is_some() {
            return self.on_failure_in_second(pass, asked, error).await;
        }
        let search = pass.search.get_or_insert_with(|| FailureSearch::new(pass.position.ends.clone()));
        search.last_error = Some(error.clone());
        let width_end = |width: i64| window.from + SignedDuration::from_secs(width);
        match self.next_step_after_failure(window, asked.requested_at, search).await? {
            NextStep::Retry => {}
            NextStep::Narrow { width } => {
                pass.rows = 0;
                split_at(&mut pass.position, window, asked.requested_at, width_end(width));
            }
            NextStep::ContinueAt(at) => {
                pass.rows = 0;
                pass.position = Position { ends: search.ends_after(at), ..Position::at(at) };
            }
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

    /// Goes on after a transient error in a second that is read by times of creation: once more, and then past it.
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
        if pass.second_failures > 1 {
            self.probe_tenant().await.map_err(|_| error)?;
            // Quarantined spans are left out, so that the pass goes on behind it.
            self.quarantine_span(asked.second(), "unreadable").await?;
            pass.second_failures = 0;
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
