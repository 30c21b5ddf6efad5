//! One pass over a span of last update, window by window, the oldest first.

use std::ops::ControlFlow;

use jiff::{SignedDuration, Timestamp};

use super::{
    PollPlan, Progress, Stop, Worker,
    failure_search::{FailureSearch, NextStep},
    ingest::PageRead,
    is_transient,
    window::{ceil, covered_by, floor, next_window, seconds, width_after_complete, width_after_incomplete},
};
use shared::{
    error::{Error, Result},
    incident::span::Span,
    incident_api::query::IncidentQuery,
    queue::SyncKind,
    registry::{Write, jobs::Job},
};

/// A pass over a span of last update.
pub(super) struct Pass<'a> {
    /// Everything before this time was read.
    at: Timestamp,
    /// The width of the next window, in seconds.
    width: Option<i64>,
    /// The end of the span; `None`: the present.
    end: Option<Timestamp>,
    /// The job that the progress belongs to; `None`: it belongs to the feed.
    job: Option<&'a mut Job>,
    /// The search for what fails, while windows fail.
    search: Option<FailureSearch>,
}

/// A window and the query for it.
struct Window {
    span: Span,
    /// Our time just before the request.
    requested_at: Timestamp,
    query: IncidentQuery,
}

impl Window {
    fn seconds(&self) -> i64 {
        seconds(self.span, self.requested_at)
    }

    fn width_after_incomplete(&self, page: &PageRead) -> i64 {
        width_after_incomplete(self.span, self.requested_at, &page.update_times(), self.query.top)
    }
}

impl<'a> Pass<'a> {
    /// The pass of a poll, up to the present.
    pub(super) fn of_poll(plan: &PollPlan) -> Self {
        Self { at: floor(plan.from), width: plan.width, end: None, job: None, search: None }
    }

    /// The pass of a job from `from` to `to`.
    pub(super) fn of_job(from: Timestamp, to: Timestamp, job: &'a mut Job) -> Self {
        Self { at: floor(from), width: job.width, end: Some(ceil(to)), job: Some(job), search: None }
    }
}

impl Worker<'_> {
    /// Reads and delivers everything in a span.
    pub(super) async fn pass(&mut self, mut pass: Pass<'_>) -> Result<Stop> {
        loop {
            let now = self.sync.clock.now();
            let Some(span) = next_window(pass.at, pass.width, pass.end, now, &self.quarantined_spans()) else {
                return Ok(Stop::Done);
            };
            if self.out_of_time() {
                self.remember_position(&mut pass);
                return Ok(Stop::OutOfTime);
            }
            if pass.job.is_some() && self.poll_is_due() {
                return Ok(Stop::PollDue);
            }
            let window = Window { span, requested_at: now, query: IncidentQuery::of(span, self.api) };
            let mut page = PageRead::default();
            let step = match self.read(&window.query, &mut page).await {
                Ok(()) => self.on_response(&mut pass, &window, &page).await?,
                Err(error) if is_transient(&error) => self.on_failure(&mut pass, &window, &page, error).await?,
                Err(error) => {
                    // Rows that arrived before the error are worth delivering.
                    if !matches!(error, Error::Internal(_) | Error::TenantNotActive(_)) {
                        self.flush().await?;
                    }
                    self.remember_position(&mut pass);
                    return Err(error);
                }
            };
            if let ControlFlow::Break(stop) = step {
                return Ok(stop);
            }
        }
    }

    /// Goes on after a response: past a window that is complete, or with a narrower one.
    async fn on_response(
        &mut self,
        pass: &mut Pass<'_>,
        window: &Window,
        page: &PageRead,
    ) -> Result<ControlFlow<Stop>> {
        self.flush().await?;
        let complete = self.is_complete(page, &window.query);
        self.first_window_was_complete.get_or_insert(complete);
        if let Some(search) = &mut pass.search {
            search.note_response(page.rows);
        }
        let mut span = window.span;
        if complete {
            pass.width = span.to.map(|_| width_after_complete(span, window.requested_at, page.rows, window.query.top));
        } else if window.seconds() > 1 {
            pass.width = Some(window.width_after_incomplete(page));
            return Ok(ControlFlow::Continue(()));
        } else {
            span.to = Some(span.from + SignedDuration::from_secs(1));
            let resumes = self.lease.feed.resume_at == Some(pass.at) && pass.job.is_none();
            let read_before = self.lease.feed.resume_created.filter(|_| resumes);
            if self.read_crowded_second(span, page, read_before).await? == Progress::OutOfTime {
                pass.width = Some(1);
                self.remember_position(pass);
                return Ok(ControlFlow::Break(Stop::OutOfTime));
            }
        }
        self.go_past(pass, span, page).await
    }

    /// Notes that a window was read completely, and commits that.
    async fn go_past(&mut self, pass: &mut Pass<'_>, span: Span, page: &PageRead) -> Result<ControlFlow<Stop>> {
        let covered = covered_by(span, self.response_time(page));
        if let Some(job) = &mut pass.job {
            job.checked += u64::from(page.rows);
            job.covered_until = span.to.unwrap_or(covered);
        } else {
            self.advance_cursor(covered);
        }
        let Some(to) = span.to.filter(|to| pass.end.is_none_or(|end| *to < end)) else {
            return Ok(ControlFlow::Break(Stop::Done));
        };
        pass.at = to;
        if let Some(search) = &mut pass.search {
            search.shrink_failing_window_to(to);
            pass.width = search.next_width().or(pass.width);
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
        window: &Window,
        page: &PageRead,
        error: Error,
    ) -> Result<ControlFlow<Stop>> {
        self.flush().await?;
        if self.deadline_may_have_caused_failure() {
            // The window was too much for the time that was left.
            pass.width = Some(window.width_after_incomplete(page));
            self.remember_position(pass);
            return Ok(ControlFlow::Break(Stop::OutOfTime));
        }
        let search = pass.search.get_or_insert_with(|| FailureSearch::new(pass.width));
        search.last_error = Some(error.clone());
        match self.next_step_after_failure(window.span, window.requested_at, search).await? {
            NextStep::Retry => {}
            NextStep::Narrow { width } => pass.width = Some(width),
            NextStep::ContinueAt(at) => (pass.at, pass.width) = (at, search.width_before),
            NextStep::GiveUp { next_width } => {
                self.stats.narrowed = next_width.is_some_and(|width| window.seconds() > width);
                pass.width = next_width;
                self.remember_position(pass);
                return Err(error);
            }
        }
        self.remember_position(pass);
        Ok(ControlFlow::Continue(()))
    }

    /// Stores the position of a pass in its job or in the feed.
    fn remember_position(&mut self, pass: &mut Pass<'_>) {
        if let Some(job) = &mut pass.job {
            job.width = pass.width;
        } else {
            (self.lease.feed.resume_at, self.lease.feed.resume_width) = (Some(pass.at), pass.width);
        }
    }

    fn advance_cursor(&mut self, until: Timestamp) {
        if self.kind != SyncKind::Poll {
            return;
        }
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
        self.remember_position(pass);
        match &mut pass.job {
            Some(job) => {
                job.failures = 0;
                self.add_delivered_to_job(job);
                if self.sync.registry.commit_job(job, self.sync.clock.now()).await? == Write::Conflict {
                    return Ok(Write::Conflict);
                }
            }
            None => self.lease.feed.resume_created = None,
        }
        self.sync.registry.commit_feed(self.lease).await
    }
}
