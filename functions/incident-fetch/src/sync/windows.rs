//! One pass over a span of last update, window by window, the oldest first.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::{
    Stop, Worker,
    ingest::{Reading, Shown},
    is_transient,
    window::{ceil, floor, length, narrowed, next_span, reached, widened},
};
use shared::{
    error::{Error, Result},
    incident::{
        record::{Alerts, Record},
        span::Span,
        version::{VersionComparison, compare},
    },
    incident_api::{
        client::TokenFreshness,
        query::{IncidentQuery, MAX_SKIP},
    },
    microsoft::IncidentApi,
    queue::SyncKind,
    registry::{Write, jobs::Job},
};

/// How often a second whose rows share all instants is read, at most, until two readings agree.
const READINGS: usize = 3;

/// The most requests of a pass, from the first failure on, while nothing at all could be read.
const MOST_IN_VAIN: u32 = 8;

/// After how many failed polls in a row a second is read incident by incident although nothing else can be read: what
/// lasts so long, while the tenant answers, is no outage.
const PATIENCE: u32 = 8;

/// After how many failures in a row it is asked anew whether the tenant can be asked at all.
const DOUBTFUL: u32 = 3;

/// What is known while windows fail.
#[derive(Debug, Default)]
struct Trouble {
    /// Windows that fail, none within another.
    failing: Vec<Span>,
    /// Whether any row was read since the trouble began.
    anything_read: bool,
    /// Requests since then.
    asked: u32,
    /// Failures since something could be read, or since the tenant was found to be there.
    in_a_row: u32,
    /// How wide it was asked before.
    width: Option<i64>,
    /// What failed last.
    last: Option<Error>,
    /// The window that is known to fail and begins where the pass stands.
    bad: Option<Span>,
    /// Where a list without alerts could be had: the seconds of the rows that were not delivered yet.
    rows: Option<BTreeSet<Timestamp>>,
}

impl Trouble {
    fn add(&mut self, span: Span) {
        let within = |failing: &Span| {
            failing.from <= span.from
                && (failing.to.is_none() || span.to.is_some_and(|to| failing.to.is_some_and(|end| to <= end)))
        };
        self.failing.retain(|failing| !within(failing));
        self.failing.push(span);
    }

    /// Three disjoint windows fail and nothing can be read: that is not one bad record.
    fn is_outage(&self) -> bool {
        !self.anything_read && self.failing.len() >= 3
    }

    /// What to give up with, if much was asked and nothing could be read.
    fn in_vain(&self) -> Option<Error> {
        let in_vain = self.bad.is_some() && !self.anything_read && self.asked >= MOST_IN_VAIN;
        in_vain.then(|| self.last.clone()).flatten()
    }

    /// Notes that everything before `at` was read: what is bad lies behind it.
    fn passed(&mut self, at: Timestamp) {
        self.bad = self.bad.and_then(|bad| bad.to.is_some_and(|to| at < to).then_some(Span { from: at, to: bad.to }));
    }

    /// Where to cut the bad window, as a number of seconds from its beginning; none where it is one second long.
    fn cut(&self) -> Option<i64> {
        let bad = self.bad?;
        let length = bad.seconds().filter(|seconds| *seconds > 1)?;
        let rows: Vec<&Timestamp> = self.rows.iter().flatten().filter(|row| bad.contains(**row)).collect();
        let seconds = match rows[..] {
            [] => length / 2,
            [only] => only.as_second() - bad.from.as_second(),
            _ => rows[rows.len() / 2].as_second() - bad.from.as_second(),
        };
        Some(seconds.clamp(1, length - 1))
    }
}

impl Worker<'_> {
    /// Reads everything from `from` to `end`; without an end, up to the present. Progress goes into the feed, or into
    /// `job` where there is one.
    pub(super) async fn pass(
        &mut self,
        from: Timestamp,
        mut width: Option<i64>,
        end: Option<Timestamp>,
        mut job: Option<&mut Job>,
    ) -> Result<Stop> {
        let mut at = floor(from);
        let end = end.map(ceil);
        let mut trouble: Option<Trouble> = None;
        loop {
            let now = self.sync.clock.now();
            let Some(span) = next_span(at, width, end, now, &self.blocked()) else { return Ok(Stop::Done) };
            if self.out_of_time() {
                return Ok(self.pause(at, width, &mut job));
            }
            if job.is_some() && self.poll_is_due() {
                return Ok(Stop::PollDue);
            }
            let question = IncidentQuery::of(span, self.api);
            let mut reading = Reading::default();
            match self.read(&question, &mut reading).await {
                Ok(()) => {
                    self.flush().await?;
                    let whole = self.is_whole(&reading, &question);
                    self.first_was_whole.get_or_insert(whole);
                    if let Some(trouble) = &mut trouble {
                        trouble.anything_read |= reading.rows > 0;
                        trouble.asked += 1;
                        trouble.in_a_row = 0;
                    }
                    let mut span = span;
                    if !whole && length(span, now) > 1 {
                        width = Some(narrowed(span, now, &reading.times(), question.top));
                        continue;
                    }
                    if whole {
                        width = span.to.map(|_| widened(span, now, reading.rows, question.top));
                    } else {
                        span.to = Some(span.from + SignedDuration::from_secs(1));
                        let goes_on = self.lease.feed.resume_at == Some(at) && job.is_none();
                        if !self.read_crowded(span, &reading, goes_on).await? {
                            return Ok(self.pause(at, Some(1), &mut job));
                        }
                    }
                    let covered = reached(span, self.answered_at(&reading));
                    if let Some(job) = &mut job {
                        job.checked += u64::from(reading.rows);
                        job.covered_until = span.to.unwrap_or(covered);
                    } else {
                        self.covered(covered);
                    }
                    let Some(to) = span.to.filter(|to| end.is_none_or(|end| *to < end)) else {
                        return Ok(Stop::Done);
                    };
                    at = to;
                    if let Some(known) = &mut trouble {
                        known.passed(at);
                        width = known.cut().or(known.bad.map(|_| 1)).or(width);
                        if known.bad.is_none() {
                            // It is over. What fails next is another matter.
                            trouble = None;
                        }
                    }
                    if !self.keep(at, width, &mut job).await? {
                        return Ok(Stop::Overtaken);
                    }
                    if let Some(error) = trouble.as_ref().and_then(Trouble::in_vain) {
                        self.tally.narrowed = true;
                        return Err(error);
                    }
                }
                Err(error) if is_transient(&error) => {
                    self.flush().await?;
                    if self.little_time_left() {
                        // Too much for what was left: ask for less when there is time again.
                        let less = narrowed(span, now, &reading.times(), question.top);
                        return Ok(self.pause(at, Some(less), &mut job));
                    }
                    let trouble = trouble.get_or_insert_with(|| Trouble { width, ..Trouble::default() });
                    trouble.last = Some(error.clone());
                    match self.descend(span, now, trouble).await? {
                        Descent::Again => {}
                        Descent::Narrower(narrower) => width = Some(narrower),
                        Descent::Past(to) => (at, width) = (to, trouble.width),
                        Descent::GiveUp(narrower) => {
                            self.tally.narrowed = narrower.is_some_and(|narrower| length(span, now) > narrower);
                            self.pause(at, narrower, &mut job);
                            return Err(error);
                        }
                    }
                    self.pause(at, width, &mut job);
                }
                Err(error) => {
                    // What came is worth delivering whatever ended the answer; the error tells the rest.
                    if !matches!(error, Error::Internal(_) | Error::TenantNotActive(_)) {
                        self.flush().await?;
                    }
                    self.pause(at, width, &mut job);
                    return Err(error);
                }
            }
        }
    }

    /// Notes where the work goes on.
    fn pause(&mut self, at: Timestamp, width: Option<i64>, job: &mut Option<&mut Job>) -> Stop {
        if let Some(job) = job {
            job.width = width;
        } else {
            (self.lease.feed.resume_at, self.lease.feed.resume_width) = (Some(at), width);
        }
        Stop::OutOfTime
    }

    fn covered(&mut self, until: Timestamp) {
        if self.kind != SyncKind::Poll {
            return;
        }
        let feed = &mut self.lease.feed;
        if feed.covered_until.is_none_or(|covered| covered < until) {
            feed.covered_until = Some(until);
            self.tally.moved = true;
        }
    }

    /// Writes progress in the middle of a pass. `false`: the lease is lost, or the job was cancelled.
    async fn keep(&mut self, at: Timestamp, width: Option<i64>, job: &mut Option<&mut Job>) -> Result<bool> {
        self.tally.moved = true;
        self.pause(at, width, job);
        match job {
            Some(job) => {
                job.failures = 0;
                self.credit(job);
                if self.sync.registry.commit_job(job, self.sync.clock.now()).await? == Write::Conflict {
                    return Ok(false);
                }
            }
            None => self.lease.feed.resume_created = None,
        }
        Ok(self.sync.registry.commit_feed(self.lease).await? == Write::Done)
    }

    /// What to do about a window that cannot be read: once more, and then, if anything at all can be read of this tenant,
    /// less and less of it, until what is bad stands alone.
    async fn descend(&mut self, span: Span, now: Timestamp, trouble: &mut Trouble) -> Result<Descent> {
        trouble.asked += 1;
        if trouble.asked == 1 {
            return Ok(Descent::Again);
        }
        let end = span.to.unwrap_or_else(|| ceil(now) + SignedDuration::from_secs(1));
        let closed = Span { from: span.from, to: Some(end) };
        trouble.add(span);
        trouble.bad = Some(closed);
        trouble.in_a_row += 1;
        if trouble.in_vain().is_some() {
            return Ok(Descent::GiveUp(trouble.cut().or(Some(1))));
        }
        let first = trouble.asked == 2;
        if first || trouble.in_a_row >= DOUBTFUL {
            trouble.asked += 1;
            if self.alive().await.is_err() {
                return Ok(Descent::GiveUp(span.seconds()));
            }
            trouble.in_a_row = 0;
        }
        if first {
            trouble.rows = self.seconds_of_new_rows(span).await?;
            trouble.asked += 1;
        }
        let Some(cut) = trouble.cut() else {
            if !trouble.anything_read && self.lease.feed.failures < PATIENCE {
                let other = Span { from: end, to: None };
                if !self.read_other(other, trouble).await? {
                    // Nothing else can be read, either. If that goes on for polls and polls, it is no outage.
                    return Ok(Descent::GiveUp(Some(1)));
                }
            }
            self.one_by_one(closed, trouble.rows.is_some()).await?;
            trouble.bad = None;
            return Ok(Descent::Past(end));
        };
        if !trouble.anything_read {
            // The other part tells one bad record from an outage.
            self.read_other(Span { from: span.from + SignedDuration::from_secs(cut), to: span.to }, trouble).await?;
            if trouble.is_outage() || trouble.in_vain().is_some() {
                return Ok(Descent::GiveUp(Some(cut)));
            }
        }
        Ok(Descent::Narrower(cut))
    }

    /// Reads another window, to see whether anything can be read. `false`: it fails, too.
    async fn read_other(&mut self, other: Span, trouble: &mut Trouble) -> Result<bool> {
        trouble.asked += 1;
        let mut reading = Reading::default();
        let outcome = self.read(&IncidentQuery::of(other, self.api), &mut reading).await;
        self.flush().await?;
        trouble.anything_read |= reading.rows > 0;
        match outcome {
            Ok(()) => {
                trouble.in_a_row = 0;
                Ok(true)
            }
            Err(failure) if is_transient(&failure) => {
                trouble.in_a_row += 1;
                trouble.add(other);
                Ok(false)
            }
            Err(failure) => Err(failure),
        }
    }

    /// The seconds of last update of what is not delivered yet, where the surface lists without alerts and does so now.
    async fn seconds_of_new_rows(&mut self, span: Span) -> Result<Option<BTreeSet<Timestamp>>> {
        if self.api != IncidentApi::Graph {
            return Ok(None);
        }
        let question = IncidentQuery { alerts: Alerts::Omitted, ..IncidentQuery::of(span, self.api) };
        let tenant = self.tenant.tenant_id;
        let mut listing = match self.client().list(&question, TokenFreshness::Confirmed).await {
            Ok(listing) => listing,
            Err(error) if is_transient(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut seconds = BTreeSet::new();
        while let Ok(Some(row)) = listing.next().await {
            let Ok(record) = Record::parse(&row, &tenant, Alerts::Omitted) else { continue };
            let api = self.api;
            let known = self.known(&record.incident_id).await?;
            if let VersionComparison::New { .. } = compare(known, &record, api) {
                seconds.insert(floor(record.last_updated));
            }
        }
        Ok(listing.end().ok().filter(|end| !end.more).map(|_| seconds))
    }

    /// A small question whose answer is empty: whether the tenant can be asked at all.
    pub(super) async fn alive(&mut self) -> Result<()> {
        let tomorrow = ceil(self.sync.clock.now() + SignedDuration::from_hours(24));
        let question = IncidentQuery {
            top: 1,
            alerts: Alerts::Omitted,
            ..IncidentQuery::of(Span { from: tomorrow, to: None }, self.api)
        };
        self.read(&question, &mut Reading::default()).await
    }

    /// Reads a second that one answer does not hold, from where the last run stopped if it `goes_on`; sets it aside where
    /// a part of it fails. `false`: time ran out before its end.
    async fn read_crowded(&mut self, second: Span, first: &Reading, goes_on: bool) -> Result<bool> {
        let begin = self.lease.feed.resume_created.filter(|_| goes_on);
        match self.read_second(second, first, begin).await? {
            Second::Whole => Ok(true),
            Second::OutOfTime => Ok(false),
            Second::Failing(error) => {
                self.alive().await.map_err(|_| error)?;
                self.quarantine_span(second, "unreadable").await?;
                Ok(true)
            }
        }
    }

    /// Reads a second of last update that one answer does not hold: cut in time of creation, and paged only where even
    /// that is shared. Begins with the time of creation `begin`, where all before was read already.
    pub(super) async fn read_second(
        &mut self,
        second: Span,
        first: &Reading,
        begin: Option<Timestamp>,
    ) -> Result<Second> {
        let mut parts = match begin {
            Some(begin) => vec![Part::Created(Span { from: begin, to: None })],
            None => cut_by_creation(None, &first.shown),
        };
        while let Some(part) = parts.pop() {
            if self.out_of_time() {
                return Ok(Second::OutOfTime);
            }
            let outcome = match part {
                Part::Created(created) => {
                    let question = IncidentQuery { created: Some(created), ..IncidentQuery::of(second, self.api) };
                    let mut reading = Reading::default();
                    let mut outcome = self.read(&question, &mut reading).await;
                    if outcome.as_ref().is_err_and(is_transient) {
                        reading = Reading::default();
                        outcome = self.read(&question, &mut reading).await;
                    }
                    self.flush().await?;
                    if outcome.is_ok() && !self.is_whole(&reading, &question) {
                        parts.extend(cut_by_creation(Some(created), &reading.shown));
                        continue;
                    }
                    outcome.map(|()| created.to)
                }
                Part::Shared(created) => match self.read_shared(second, created).await {
                    Ok(true) => Ok(created.and_then(|created| created.to)),
                    Ok(false) => return Ok(Second::OutOfTime),
                    Err(error) => Err(error),
                },
            };
            match outcome {
                Ok(until) if self.kind == SyncKind::Poll => self.lease.feed.resume_created = until,
                Ok(_) => {}
                // Too much for what was left.
                Err(error) if is_transient(&error) && self.little_time_left() => return Ok(Second::OutOfTime),
                Err(error) if is_transient(&error) => return Ok(Second::Failing(error)),
                Err(error) => return Err(error),
            }
        }
        Ok(Second::Whole)
    }

    /// Pages through rows that share their second of last update and of creation, until two readings agree. `false`: time
    /// ran out before.
    async fn read_shared(&mut self, second: Span, created: Option<Span>) -> Result<bool> {
        let mut before: Option<BTreeSet<Shown>> = None;
        for _ in 0..READINGS {
            let mut seen = BTreeSet::new();
            let mut skip = 0;
            loop {
                let question = IncidentQuery { created, skip, ..IncidentQuery::of(second, self.api) };
                if skip > MAX_SKIP {
                    return self.quarantine_span(second, "inseparable").await.map(|()| true);
                }
                if self.out_of_time() {
                    return Ok(false);
                }
                let mut reading = Reading::default();
                self.read(&question, &mut reading).await?;
                self.flush().await?;
                seen.extend(reading.shown.iter().cloned());
                if self.is_whole(&reading, &question) || reading.rows == 0 {
                    break;
                }
                skip += reading.rows;
            }
            if before.as_ref() == Some(&seen) {
                return Ok(true);
            }
            before = Some(seen);
        }
        Ok(true)
    }
}

/// What to do next about a window that cannot be read.
enum Descent {
    /// Ask for it once more.
    Again,
    /// Ask for less of it, this many seconds.
    Narrower(i64),
    /// It was read as far as it can be: go on from here.
    Past(Timestamp),
    /// Nothing can be read now; the next pass begins with this width.
    GiveUp(Option<i64>),
}

/// What came of reading a second that is too full for one answer.
pub(super) enum Second {
    /// All of it was read.
    Whole,
    /// The invocation's time was used up before.
    OutOfTime,
    /// A part of it fails.
    Failing(Error),
}

/// A part of a second that is too full for one answer.
enum Part {
    /// What was created in a span.
    Created(Span),
    /// What shares its second of creation, too: no cut tells it apart.
    Shared(Option<Span>),
}

/// Cuts a second, or what was created in it within a span, in time of creation; the earliest part comes last.
fn cut_by_creation(within: Option<Span>, shown: &[Shown]) -> Vec<Part> {
    let mut seconds: Vec<Timestamp> = shown.iter().filter_map(|shown| shown.created).map(floor).collect();
    seconds.sort_unstable();
    let lowest = within.map_or(Timestamp::UNIX_EPOCH, |within| within.from);
    let highest = within.and_then(|within| within.to);
    let (Some(first), Some(last)) = (seconds.first(), seconds.last()) else { return vec![Part::Shared(within)] };
    if within.and_then(|within| within.seconds()) == Some(1) {
        return vec![Part::Shared(within)];
    }
    let mut cuts = vec![lowest];
    if first < last {
        let middle = seconds[seconds.len() / 2];
        cuts.push(if middle == *first { *last } else { middle });
    } else {
        // All that was shown shares one second, but others may not: that second for itself, and what lies around it.
        cuts.extend([*first, *first + SignedDuration::from_secs(1)]);
        cuts.dedup();
    }
    let ends = cuts.iter().skip(1).copied().map(Some).chain([highest]);
    let parts = cuts.iter().zip(ends).filter(|(from, to)| to.is_none_or(|to| **from < to));
    let mut parts: Vec<Part> = parts.map(|(from, to)| Part::Created(Span { from: *from, to })).collect();
    parts.reverse();
    parts
}
