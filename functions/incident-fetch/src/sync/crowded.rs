//! Seconds with more rows than one list shows, in no order. A sample of the rows says where to split them, so that nearly
//! each list that is begun is read to its end. Pure rules.

use jiff::Timestamp;

use shared::{
    incident::span::Span,
    incident_api::query::MAX_SKIP,
    registry::position::{CrowdedSecond, RowTimes},
};

use super::window::floor;

/// The fewest rows of a sample. Fewer say little about a part.
const MIN_SAMPLE: usize = 80;

/// The share of the longest list that a part should have, by its estimate.
const TARGET_FULLNESS: f64 = 0.6;

/// The standard errors of its estimate by which a part has to be shorter than the longest list.
const MARGIN: f64 = 2.0;

/// The share of the rows in the next part where their number is not known. Less than a half, because a part that is too
/// long is split again.
const SHARE_OF_UNKNOWN: f64 = 0.45;

/// The next step before a part of a crowded second is read.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum PartStep {
    /// One list holds it.
    Read,
    /// The rows behind so many show whether one list holds it, or add to the sample.
    Look {
        /// The number of rows.
        skip: u32,
    },
    /// It is too long, and is split.
    Split(Split),
}

/// A split of a part by times of creation.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Split {
    /// Times of creation within the part, the earliest first.
    pub(super) shown: Vec<Timestamp>,
    /// The best place.
    pub(super) at: Timestamp,
}

/// A page from within a list.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// The number of rows.
    pub(super) rows: u32,
    /// The list goes on behind it.
    pub(super) has_more: bool,
    /// The times of those rows that are from the second.
    pub(super) of_second: Vec<RowTimes>,
}

/// The most rows of a list with pages of `page` rows: `$skip` reaches the page after them. Where each end is confirmed, it
/// reaches the last row.
pub(super) fn longest_list(page: u32, confirms_end: bool) -> u32 {
    let step = page.saturating_sub(1).max(1);
    if confirms_end { MAX_SKIP + 1 } else { MAX_SKIP / step * step + step }
}

/// Returns true if a list is too long where `look` shows what lies behind [`MAX_SKIP`] rows.
pub(super) fn is_too_long(look: &Look, longest: u32) -> bool {
    look.has_more || MAX_SKIP + look.rows > longest
}

/// What a page of a list, with `page` rows, and the rows behind [`MAX_SKIP`] of it show of the second at `at`: `of_second`
/// are the page's rows from it.
pub(super) fn first_sample(
    at: Timestamp,
    page: u32,
    of_second: &[RowTimes],
    look: &Look,
    longest: u32,
) -> CrowdedSecond {
    let sample = sorted(&[], of_second.iter().chain(&look.of_second));
    let shown = page + look.rows;
    let known = as_f64(sample.len()) / f64::from(shown) * f64::from(MAX_SKIP + look.rows);
    let fits = (known > f64::from(longest)).then_some(false);
    let (rows, sampled) = if look.has_more { (0, 0) } else { (MAX_SKIP + look.rows, shown) };
    CrowdedSecond { at, page, sample, looks: 2, rows, sampled, fits }
}

/// The next step before `part` of a second is read; `None`: it is not split yet.
pub(super) fn next_step(crowded: &CrowdedSecond, part: Option<Span>, longest: u32) -> PartStep {
    let sample = sample_of(crowded, part);
    let estimate = estimated_rows(crowded, sample);
    if crowded.fits == Some(true) || sample.is_empty() {
        return PartStep::Read;
    }
    if crowded.fits == Some(false) {
        return match next_look_for_sample(crowded) {
            Some(skip) => PartStep::Look { skip },
            None => PartStep::Split(split(sample.to_vec(), share_of_next(estimate, longest))),
        };
    }
    let Some(estimate) = estimate else { return PartStep::Look { skip: MAX_SKIP } };
    if estimate > f64::from(longest) * TARGET_FULLNESS * 1.1 && sample.len() > 1 && part.is_some() {
        return PartStep::Split(split(sample.to_vec(), share_of_next(Some(estimate), longest)));
    }
    if estimate * (1.0 + MARGIN / as_f64(sample.len()).sqrt()) <= f64::from(longest) {
        return PartStep::Read;
    }
    PartStep::Look { skip: MAX_SKIP }
}

/// Notes a look at a part of a second, or at all of it, that [`next_step`] asked for. Returns the split of a part that is
/// too long.
pub(super) fn note_look(crowded: &mut CrowdedSecond, part: Option<Span>, look: &Look, longest: u32) -> Option<Split> {
    let adds_to_sample = crowded.fits.is_some();
    if !adds_to_sample {
        crowded.fits = Some(!is_too_long(look, longest));
        if look.rows > 0 && !look.has_more {
            note_rows(crowded, part, MAX_SKIP + look.rows);
        }
    }
    let sample = sample_of(crowded, part);
    let share = share_of_next(estimated_rows(crowded, sample), longest);
    let shown = sorted(sample, &look.of_second);
    if part.is_none() {
        // The sample stays one of the whole second. Rows of a part alone would make it look larger than it is.
        crowded.sample = shown;
        crowded.looks += u32::from(adds_to_sample);
        return None;
    }
    (crowded.fits == Some(false)).then(|| split(shown, share))
}

/// Notes that `part` has `rows` rows.
pub(super) fn note_rows(crowded: &mut CrowdedSecond, part: Option<Span>, rows: u32) {
    let sampled = u32::try_from(sample_of(crowded, part).len()).unwrap_or(u32::MAX);
    crowded.rows = crowded.rows.saturating_add(rows);
    crowded.sampled = crowded.sampled.saturating_add(sampled);
}

/// The number of rows before the next look at all of a second, if the sample needs more rows and the list has other pages.
fn next_look_for_sample(crowded: &CrowdedSecond) -> Option<u32> {
    let skip = MAX_SKIP.checked_sub((crowded.looks - 1) * crowded.page)?;
    (crowded.sample.len() < MIN_SAMPLE && skip >= crowded.page).then_some(skip)
}

/// These times and those of the creation of rows, the earliest first.
fn sorted<'a>(times: &[Timestamp], rows: impl IntoIterator<Item = &'a RowTimes>) -> Vec<Timestamp> {
    let mut times: Vec<_> = times.iter().copied().chain(rows.into_iter().filter_map(|row| row.created)).collect();
    times.sort_unstable();
    times
}

fn sample_of(crowded: &CrowdedSecond, part: Option<Span>) -> &[Timestamp] {
    let Some(part) = part else { return &crowded.sample };
    let before = |end: Timestamp| crowded.sample.partition_point(|time| *time < end);
    &crowded.sample[before(part.from)..part.to.map_or(crowded.sample.len(), before)]
}

/// The number of rows in the part that has these rows of the sample, by the parts whose rows are known.
fn estimated_rows(crowded: &CrowdedSecond, sample: &[Timestamp]) -> Option<f64> {
    let for_each = f64::from(crowded.rows) / f64::from(crowded.sampled);
    (crowded.sampled > 0).then_some(for_each * as_f64(sample.len()))
}

/// The share of a part's rows that its next part should have.
fn share_of_next(estimate: Option<f64>, longest: u32) -> f64 {
    let parts = estimate.map(|rows| (rows / f64::from(longest) / TARGET_FULLNESS).ceil().max(2.0));
    parts.map_or(SHARE_OF_UNKNOWN, |parts| 1.0 / parts)
}

fn split(shown: Vec<Timestamp>, share: f64) -> Split {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of the number of rows")]
    let at = (as_f64(shown.len()) * share) as usize;
    Split { at: floor(shown[at]), shown }
}

#[expect(clippy::cast_precision_loss, reason = "a few hundred rows")]
fn as_f64(rows: usize) -> f64 {
    rows as f64
}

#[cfg(test)]
mod tests {
    use shared::registry::position::Position;

    use super::*;
    use crate::sync::{
        second::split_second,
        window::{
            go_past, next_window,
            tests::{at, span},
        },
    };

    const PAGE: u32 = 50;

    fn crowded(sample: impl IntoIterator<Item = i64>, rows: u32, sampled: u32) -> CrowdedSecond {
        let sample = sample.into_iter().map(at).collect();
        CrowdedSecond { at: at(0), page: PAGE, sample, looks: 2, rows, sampled, fits: None }
    }

    fn look(rows: u32, has_more: bool, created: &[i64]) -> Look {
        let row = |created: &i64| RowTimes { updated: at(0), created: Some(at(*created)) };
        Look { rows, has_more, of_second: created.iter().map(row).collect() }
    }

    #[test]
    fn list_may_be_as_long_as_skip_reaches() {
        assert_eq!(longest_list(50, false), 539);
        assert_eq!(longest_list(100, false), 594);
        assert_eq!(longest_list(7, false), 504);
        assert_eq!(longest_list(1, false), 501);
        assert_eq!(longest_list(50, true), 501, "the last row is asked for again");
        assert!(is_too_long(&look(50, true, &[]), 539));
        assert!(is_too_long(&look(40, false, &[]), 539));
        assert!(!is_too_long(&look(39, false, &[]), 539));
    }

    #[test]
    fn part_is_read_where_its_estimate_leaves_room() {
        let part = |from, to| Some(span(from, Some(to)));
        // Five rows for each one of the sample.
        let known = crowded(0..200, 500, 100);
        assert_eq!(next_step(&known, part(0, 60), 539), PartStep::Read);
        assert_eq!(next_step(&known, part(-9, 0), 539), PartStep::Read, "no row of the sample is from there");
        let PartStep::Split(split) = next_step(&known, part(0, 150), 539) else { panic!("750 rows") };
        assert_eq!((split.at, split.shown.len()), (at(50), 150), "three parts");
        let few = crowded(0..10, 400, 10);
        assert_eq!(next_step(&few, part(0, 8), 539), PartStep::Look { skip: 500 }, "320 rows, by eight alone");
        let unknown = crowded(0..200, 0, 0);
        assert_eq!(next_step(&unknown, part(0, 20), 539), PartStep::Look { skip: 500 });
    }

    #[test]
    fn look_says_whether_a_part_fits_and_how_many_rows_it_has() {
        let part = Some(span(0, Some(100)));
        let mut fits = crowded(0..200, 0, 0);
        assert_eq!(note_look(&mut fits, part, &look(0, false, &[]), 539), None);
        assert_eq!(next_step(&fits, part, 539), PartStep::Read);
        let mut counted = crowded(0..200, 0, 0);
        let split = note_look(&mut counted, part, &look(45, false, &[3, 1]), 539).unwrap();
        assert_eq!((counted.rows, counted.sampled), (545, 100));
        assert_eq!((split.shown.len(), split.at), (102, at(49)), "two parts");
        let mut longer = crowded(0..200, 0, 0);
        let split = note_look(&mut longer, part, &look(50, true, &[]), 539).unwrap();
        assert_eq!((longer.rows, split.at), (0, at(45)), "nobody knows how much longer");
    }

    #[test]
    fn small_pages_add_to_the_sample_before_the_second_is_split() {
        let mut crowded = CrowdedSecond { page: 7, fits: Some(false), ..crowded(0..14, 0, 0) };
        let mut skips = Vec::new();
        while let PartStep::Look { skip } = next_step(&crowded, None, 504) {
            skips.push(skip);
            assert_eq!(note_look(&mut crowded, None, &look(7, true, &[1, 2, 3, 4, 5, 6, 7]), 504), None);
        }
        assert_eq!(skips, [493, 486, 479, 472, 465, 458, 451, 444, 437, 430]);
        assert!(matches!(next_step(&crowded, None, 504), PartStep::Split(_)));
        let mut failing = CrowdedSecond { page: 100, fits: Some(false), ..self::crowded(0..14, 0, 0) };
        for _ in 0..4 {
            assert!(matches!(next_step(&failing, None, 504), PartStep::Look { .. }));
            note_look(&mut failing, None, &look(0, false, &[]), 504);
        }
        assert!(matches!(next_step(&failing, None, 504), PartStep::Split(_)), "looks that fail come to an end");
    }

    #[test]
    fn second_of_which_only_a_part_was_shown_is_looked_at_before_it_is_split() {
        let row = |number: i64| RowTimes { updated: at(0), created: Some(at(number)) };
        let half: Vec<RowTimes> = (0..25).map(row).collect();
        let of_others = first_sample(at(0), PAGE, &half, &look(PAGE, true, &[]), 539);
        assert_eq!(next_step(&of_others, None, 539), PartStep::Look { skip: 500 });
        let all: Vec<RowTimes> = (0..50).map(row).collect();
        let created: Vec<i64> = (50..100).collect();
        let crowded = first_sample(at(0), PAGE, &all, &look(PAGE, true, &created), 539);
        assert!(matches!(next_step(&crowded, None, 539), PartStep::Split(_)));
    }

    /// Counts the calls that it takes to read `created`, the rows of a second in the list's order, after two calls that were
    /// its first sample.
    fn calls(created: &[i64], page: u32) -> u32 {
        let longest = longest_list(page, false);
        let rows_of = |part: Option<Span>| -> Vec<i64> {
            created.iter().copied().filter(|time| part.is_none_or(|part| part.contains(at(*time)))).collect()
        };
        let page_at = |rows: &[i64], skip: u32| -> Look {
            let shown: Vec<i64> = rows.iter().copied().skip(skip as usize).take(page as usize).collect();
            look(u32::try_from(shown.len()).unwrap(), shown.len() == page as usize, &shown)
        };
        let mut position = Position::at(at(0));
        let first = page_at(created, 0);
        position.crowded = Some(first_sample(at(0), page, &first.of_second, &page_at(created, MAX_SKIP), longest));
        position.ends.push(at(1));
        let mut calls = 0;
        while let Some(window) = next_window(&mut position, Some(at(1)), at(100), &[]) {
            let crowded = position.crowded.as_mut().unwrap();
            let (part, rows) = (window.created, rows_of(window.created));
            let split = match next_step(crowded, part, longest) {
                PartStep::Look { skip } => {
                    calls += 1;
                    note_look(crowded, part, &page_at(&rows, skip), longest)
                }
                PartStep::Split(split) => Some(split),
                PartStep::Read => {
                    let count = u32::try_from(rows.len()).unwrap();
                    let pages = 1 + (count.max(page) - page + 1).div_ceil(page - 1).min(MAX_SKIP.div_ceil(page - 1));
                    calls += if count < page { 1 } else { pages };
                    if count <= longest {
                        note_rows(crowded, part, count);
                        crowded.fits = None;
                        go_past(&mut position, window);
                        continue;
                    }
                    let shown: Vec<RowTimes> = look(0, true, &rows[..500]).of_second;
                    let times = sorted(&[], &shown);
                    Some(split(times, 0.5))
                }
            };
            if let Some(split) = split {
                let shown: Vec<_> = split.shown.into_iter().map(Some).collect();
                assert!(split_second(&mut position, &shown, Some(split.at)));
            }
        }
        calls
    }

    #[test]
    fn nearly_every_crowded_second_is_read_in_few_calls() {
        let mut state = 1_u64;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        for page in [50_u32, 100] {
            for count in [600, 800, 1_100, 1_500, 3_000, 6_000] {
                let too_many = (0..50).filter(|_| {
                    let mut created: Vec<i64> = (0..count).collect();
                    for place in (1..created.len()).rev() {
                        created.swap(place, random(place + 1));
                    }
                    // The sample takes two calls, and the windows before and after the second one each.
                    let pages = u32::try_from(count).unwrap().div_ceil(page);
                    calls(&created, page) + 4 > pages * 14 / 10 + 4
                });
                let too_many = too_many.count();
                assert!(too_many <= 2, "{too_many} of 50, for {count} rows and {page} a page");
            }
        }
    }
}
