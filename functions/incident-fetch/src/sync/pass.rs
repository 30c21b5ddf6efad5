//! A pass over a span of last update: where it stands, and whose it is.

use jiff::{SignedDuration, Timestamp};
use shared::{
    incident::span::Span,
    incident_api::query::IncidentQuery,
    registry::{
        jobs::Job,
        position::{CrowdedSecond, Position, RowTimes},
    },
};

use super::{
    crowded::note_rows,
    failure_search::FailureSearch,
    paging::MAX_LIST_ROWS,
    poll::{PollPlan, SHORT_OVERLAP},
    window::{
        RowOrder, TARGET_FULLNESS, Window, ceil, covered_by, end_by_pace, estimated_rows, floor, next_window,
        rows_by_pace, seconds, split_at,
    },
};

/// The time ahead of now that clocks may differ by. Polls come to it soon.
const PRESENT_OF_POLLS: SignedDuration = SignedDuration::from_hours(1);

/// The time after its end in which a sweep looks for what is dated later than now.
const FUTURE_OF_SWEEPS: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);

/// A pass over a span of last update.
pub(super) struct Pass<'a> {
    /// What is still to read.
    pub(super) position: Position,
    /// The end of the span; `None`: the present.
    pub(super) end: Option<Timestamp>,
    pub(super) owner: PassOwner<'a>,
    /// The search for what fails, while windows fail.
    pub(super) search: Option<FailureSearch>,
    /// The rows and the seconds of the last complete window.
    pub(super) pace: Option<(u32, i64)>,
    /// The window whose list was seen to be short enough to be read.
    pub(super) fits: Option<Span>,
    /// The failures of the present part of a second.
    pub(super) second_failures: u32,
    /// The time of the last response.
    pub(super) shown_at: Option<Timestamp>,
    /// What is dated from the present on has a window of its own.
    parts_future: bool,
}

/// The owner of a pass, which its progress belongs to.
pub(super) enum PassOwner<'a> {
    /// The feed: its cursor moves.
    Feed,
    /// A backfill or a sweep.
    Job(&'a mut Job),
    /// The retry of a quarantined span. It ends at the first failure.
    Retry,
}

/// A window and the query for its next page.
pub(super) struct AskedWindow {
    pub(super) window: Window,
    /// Our time just before the request.
    pub(super) requested_at: Timestamp,
    pub(super) query: IncidentQuery,
}

impl AskedWindow {
    pub(super) fn seconds(&self) -> i64 {
        seconds(self.window.span, self.requested_at)
    }

    /// True for a window that only times of creation split further.
    pub(super) fn is_second(&self) -> bool {
        self.window.created.is_some() || self.seconds() == 1
    }

    /// Returns true if a second of this window can have a window of its own. In an open window, it must be past.
    pub(super) fn can_isolate(&self, second: Timestamp, shown_at: Timestamp) -> bool {
        let end = second + SignedDuration::from_secs(1);
        let span = self.window.span;
        span.contains(second) && (span.to.is_some() || end <= floor(covered_by(span, shown_at)))
    }

    pub(super) fn second(&self) -> Span {
        let from = self.window.span.from;
        Span { from, to: Some(from + SignedDuration::from_secs(1)) }
    }
}

impl<'a> Pass<'a> {
    fn new(position: Position, end: Option<Timestamp>, owner: PassOwner<'a>) -> Self {
        Self {
            position,
            end,
            owner,
            search: None,
            pace: None,
            fits: None,
            second_failures: 0,
            shown_at: None,
            parts_future: false,
        }
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

    /// The pass of a sweep over what is dated so much later than now that no clock explains it. Polls read no further than to
    /// the present where their lists do not hold that.
    pub(super) fn of_future(now: Timestamp, job: &'a mut Job) -> Self {
        let end = ceil(job.to) + FUTURE_OF_SWEEPS;
        // The position where the sweep's own span ended is none of this pass.
        let is_of_future = |position: &Position| position.at >= job.to + PRESENT_OF_POLLS;
        let position = job.pass_position.clone().filter(is_of_future);
        Self::new(
            position.unwrap_or_else(|| Position::at(ceil(now + PRESENT_OF_POLLS))),
            Some(end),
            PassOwner::Job(job),
        )
    }

    /// The pass of a retry over a quarantined span.
    pub(super) fn of_retry(position: Position, to: Timestamp) -> Self {
        Self::new(position, Some(ceil(to)), PassOwner::Retry)
    }

    /// Returns true if the cursor cannot move past the beginning of a window, whatever is read of it: it reaches from the
    /// present into the future. If no list holds it, the present is for a later pass, and the future for sweeps.
    pub(super) fn gains_nothing_from(&self, window: Span, shown_at: Timestamp) -> bool {
        matches!(self.owner, PassOwner::Feed)
            && window.to.is_none()
            && window.from >= floor(covered_by(window, shown_at))
    }

    /// Returns true if nothing is left after the last response but the future, and what the next poll reads in any case.
    pub(super) fn has_read_the_present(&self, next: &AskedWindow) -> bool {
        let window = next.window.span;
        matches!(self.owner, PassOwner::Feed)
            && self.position.list.is_none()
            && window.to.is_none()
            && self.shown_at.is_some_and(|shown_at| window.from >= covered_by(window, shown_at) - SHORT_OVERLAP)
    }

    /// Gives what is dated from the present on a window of its own, once.
    pub(super) fn part_future(&mut self, now: Timestamp) {
        let window = Span { from: self.position.at, to: None };
        let present = floor(covered_by(window, now));
        let is_open = self.position.ends.is_empty() && self.position.list.is_none() && self.position.second.is_none();
        if !self.parts_future && matches!(self.owner, PassOwner::Feed) && is_open && window.from < present {
            self.parts_future = true;
            split_at(&mut self.position, window, now, present);
        }
    }

    /// Goes on with the search for what fails behind a window that was read.
    pub(super) fn search_from(&mut self, to: Timestamp) {
        let Some(search) = &mut self.search else { return };
        search.shrink_failing_window_to(to);
        self.position.ends = search.ends_after(to);
        if let Some(width) = search.next_width() {
            let at = to + SignedDuration::from_secs(width);
            if self.position.ends.last().is_none_or(|end| at < *end) {
                self.position.ends.push(at);
            }
        }
        if search.is_over() {
            self.search = None;
        }
    }

    /// Narrows a window that has failed where no call is left to search for the reason. The next work has a call for a part
    /// of it.
    pub(super) fn narrow_without_search(&mut self, asked: &AskedWindow) {
        let search_failed = self.search.as_ref().is_some_and(|search| search.has_failed(asked.window.span));
        if !(search_failed || self.second_failures > 0) || matches!(self.owner, PassOwner::Retry) {
            return;
        }
        if asked.is_second() {
            self.position.failures_without_search += 1;
        } else {
            let half = asked.window.span.from + SignedDuration::from_secs(asked.seconds() / 2);
            split_at(&mut self.position, asked.window.span, asked.requested_at, half);
        }
    }

    /// What is known of the rows of a window's second, if there are more of them than one list shows, in no order.
    pub(super) fn crowded_part(&mut self, asked: &AskedWindow) -> Option<&mut CrowdedSecond> {
        let is_known = asked.is_second() && !self.position.is_unordered;
        self.position.crowded.as_mut().filter(|crowded| is_known && crowded.at == asked.window.span.from)
    }

    /// Notes that a window was read, which may be a part of a crowded second.
    pub(super) fn note_part(&mut self, read: &AskedWindow, rows: u32) {
        if let Some(crowded) = self.crowded_part(read) {
            note_rows(crowded, read.window.created, rows);
            crowded.fits = None;
        }
    }

    pub(super) fn wanted_rows(&self, top: u32) -> u32 {
        if self.position.is_unordered { top } else { MAX_LIST_ROWS }
    }

    /// Returns true if the list of a window, which has shown a first page, may be too long to be read page by page.
    pub(super) fn may_be_too_long(&self, asked: &AskedWindow, shown: &[RowTimes]) -> bool {
        let (window, now) = (asked.window.span, asked.requested_at);
        let pace = self.pace.filter(|(rows, _)| *rows > 0);
        let longest = f64::from(MAX_LIST_ROWS);
        let by_pace = pace.map(|pace| rows_by_pace(pace, asked.seconds()));
        match RowOrder::of(shown) {
            // Where the newest come first, the time without rows behind them counts. What the window before it showed counts,
            // too, unless it was much thinner.
            Some(order) if order.newest_first => {
                let estimated = estimated_rows(window, now, shown);
                estimated > longest * TARGET_FULLNESS * 0.9 && by_pace.is_none_or(|by_pace| by_pace < estimated / 2.0)
            }
            Some(order) => order.rows_in(window, now, shown) > longest,
            None => by_pace.is_none_or(|by_pace| by_pace > longest),
        }
    }

    /// The next window, shorter where the last one shows that it would be too full.
    pub(super) fn next_window(&mut self, now: Timestamp, top: u32, quarantined: &[Span]) -> Option<Window> {
        let window = next_window(&mut self.position, self.end, now, quarantined)?;
        let is_new = window.created.is_none() && self.position.list.is_none();
        let end =
            self.pace.filter(|_| is_new).and_then(|pace| end_by_pace(window.span, now, pace, self.wanted_rows(top)));
        let Some(end) = end else { return Some(window) };
        split_at(&mut self.position, window.span, now, end);
        next_window(&mut self.position, self.end, now, quarantined)
    }
}
