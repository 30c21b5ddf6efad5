//! A second of last update that one response does not hold. It is split by time of creation, and paged with `$skip` only
//! where even that is shared.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::{
    Progress, Worker,
    ingest::{PageRead, RowTimes},
    is_transient,
    window::floor,
};
use shared::{
    error::{Error, Result},
    incident::span::Span,
    incident_api::query::{IncidentQuery, MAX_SKIP},
    queue::SyncKind,
};

/// The maximum number of readings of rows that share all times, until two of them agree.
const MAX_PAGED_READINGS: usize = 3;

/// The result of reading a crowded second.
pub(super) enum SecondResult {
    Complete,
    /// The invocation's time ran out first.
    OutOfTime,
    /// A part of the second cannot be read.
    Failing(Error),
}

/// A part of a crowded second, by time of creation.
enum CreationRange {
    /// Incidents created within a span.
    Span(Span),
    /// Incidents created within one second, or all where no row has a time of creation. No split tells them apart.
    Inseparable(Option<Span>),
}

impl Worker<'_> {
    /// Reads a crowded second and quarantines it where a part of it fails. The incidents created before `read_before` were
    /// read by an earlier invocation.
    pub(super) async fn read_crowded_second(
        &mut self,
        second: Span,
        first: &PageRead,
        read_before: Option<Timestamp>,
    ) -> Result<Progress> {
        match self.read_second(second, first, read_before).await? {
            SecondResult::Complete => Ok(Progress::Complete),
            SecondResult::OutOfTime => Ok(Progress::OutOfTime),
            SecondResult::Failing(error) => {
                self.probe_tenant().await.map_err(|_| error)?;
                self.quarantine_span(second, "unreadable").await?;
                Ok(Progress::Complete)
            }
        }
    }

    /// Reads a crowded second. `first` is the incomplete response that showed it.
    pub(super) async fn read_second(
        &mut self,
        second: Span,
        first: &PageRead,
        read_before: Option<Timestamp>,
    ) -> Result<SecondResult> {
        let mut ranges = match read_before {
            Some(read_before) => vec![CreationRange::Span(Span { from: read_before, to: None })],
            None => split_by_creation(None, &first.rows_shown),
        };
        while let Some(range) = ranges.pop() {
            if self.out_of_time() {
                return Ok(SecondResult::OutOfTime);
            }
            let outcome = match range {
                CreationRange::Span(created) => {
                    let query = IncidentQuery { created: Some(created), ..IncidentQuery::of(second, self.api) };
                    let mut page = PageRead::default();
                    let mut outcome = self.read(&query, &mut page).await;
                    if outcome.as_ref().is_err_and(is_transient) {
                        page = PageRead::default();
                        outcome = self.read(&query, &mut page).await;
                    }
                    self.flush().await?;
                    if outcome.is_ok() && !self.is_complete(&page, &query) {
                        ranges.extend(split_by_creation(Some(created), &page.rows_shown));
                        continue;
                    }
                    outcome.map(|()| created.to)
                }
                CreationRange::Inseparable(created) => match self.read_paged(second, created).await {
                    Ok(Progress::Complete) => Ok(created.and_then(|created| created.to)),
                    Ok(Progress::OutOfTime) => return Ok(SecondResult::OutOfTime),
                    Err(error) => Err(error),
                },
            };
            match outcome {
                Ok(read_before) if self.kind == SyncKind::Poll => self.lease.feed.resume_created = read_before,
                Ok(_) => {}
                // The range was too much for the time that was left.
                Err(error) if is_transient(&error) && self.deadline_may_have_caused_failure() => {
                    return Ok(SecondResult::OutOfTime);
                }
                Err(error) if is_transient(&error) => return Ok(SecondResult::Failing(error)),
                Err(error) => return Err(error),
            }
        }
        Ok(SecondResult::Complete)
    }

    /// Pages through rows that share their seconds of last update and of creation, until two readings agree.
    async fn read_paged(&mut self, second: Span, created: Option<Span>) -> Result<Progress> {
        let mut previous: Option<BTreeSet<RowTimes>> = None;
        for _ in 0..MAX_PAGED_READINGS {
            let mut seen = BTreeSet::new();
            let mut skip = 0;
            loop {
                let query = IncidentQuery { created, skip, ..IncidentQuery::of(second, self.api) };
                if skip > MAX_SKIP {
                    return self.quarantine_span(second, "inseparable").await.map(|()| Progress::Complete);
                }
                if self.out_of_time() {
                    return Ok(Progress::OutOfTime);
                }
                let mut page = PageRead::default();
                self.read(&query, &mut page).await?;
                self.flush().await?;
                seen.extend(page.rows_shown.iter().cloned());
                if self.is_complete(&page, &query) || page.rows == 0 {
                    break;
                }
                skip += page.rows;
            }
            if previous.as_ref() == Some(&seen) {
                return Ok(Progress::Complete);
            }
            previous = Some(seen);
        }
        Ok(Progress::Complete)
    }
}

/// Splits a second, or the incidents in it created within a span, by time of creation. The earliest range comes last.
fn split_by_creation(within: Option<Span>, shown: &[RowTimes]) -> Vec<CreationRange> {
    let mut seconds: Vec<Timestamp> = shown.iter().filter_map(|row| row.created).map(floor).collect();
    seconds.sort_unstable();
    let lowest = within.map_or(Timestamp::UNIX_EPOCH, |within| within.from);
    let highest = within.and_then(|within| within.to);
    let (Some(first), Some(last)) = (seconds.first(), seconds.last()) else {
        return vec![CreationRange::Inseparable(within)];
    };
    if within.and_then(|within| within.seconds()) == Some(1) {
        return vec![CreationRange::Inseparable(within)];
    }
    let mut bounds = vec![lowest];
    if first < last {
        let middle = seconds[seconds.len() / 2];
        bounds.push(if middle == *first { *last } else { middle });
    } else {
        // All rows of the response share one second. Others may not: that second alone, and the time around it.
        bounds.extend([*first, *first + SignedDuration::from_secs(1)]);
        bounds.dedup();
    }
    let ends = bounds.iter().skip(1).copied().map(Some).chain([highest]);
    let ranges = bounds.iter().zip(ends).filter(|(from, to)| to.is_none_or(|to| **from < to));
    let mut ranges: Vec<CreationRange> =
        ranges.map(|(from, to)| CreationRange::Span(Span { from: *from, to })).collect();
    ranges.reverse();
    ranges
}
