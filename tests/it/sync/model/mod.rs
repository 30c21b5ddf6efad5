//! A model test: histories made from a seed, with everything that can go wrong, and what the interface promises held
//! against what was delivered at their end. A seed that fails is made smaller and printed.
//!
//! The product runs whole: `incident-dispatch` and two lives of `incident-fetch`, on clocks that are moved by hand. AWS is
//! the in-process double, which can fail at any request.

mod history;
mod oracle;
mod relay;
mod run;

use aws_double::{AwsFault, FaultPosition};
use history::{History, How, Profile, Step, What};
use run::{Bench, Planted};
use shared::microsoft::IncidentApi;

/// Histories of each profile in every run of the tests: two hundred and ten in all; and in the long round: 2,100 in all.
const FEW: u64 = 70;
const MANY: u64 = 700;

/// How often a history is run again to make it smaller.
const TRIES: usize = 60;

/// Runs on a thread of its own, without the log that the other tests keep.
fn apart<T: Send + 'static>(work: impl AsyncFnOnce(Bench) -> T + Send + 'static) -> std::thread::JoinHandle<T> {
    std::thread::spawn(|| {
        let _quiet = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { work(Bench::start().await).await })
    })
}

/// The first history, if any, that goes wrong, made smaller, and what is wrong with it.
async fn first_failure(
    bench: &mut Bench,
    seeds: std::ops::Range<u64>,
    profile: Profile,
    planted: Option<Planted>,
) -> Option<(History, Vec<String>)> {
    for seed in seeds {
        let history = History::of(seed, profile);
        let wrong = bench.judge(&history, planted).await;
        if !wrong.is_empty() {
            return Some((history, wrong));
        }
    }
    None
}

/// The smallest history found that still goes wrong: without its end, and without single steps and strikes.
async fn shrunk(bench: &mut Bench, mut history: History, mut wrong: Vec<String>) -> (History, Vec<String>) {
    let mut tries = TRIES;
    let mut size = history.steps.len();
    while size > 0 {
        let mut at = history.steps.len();
        while at > 0 && tries > 0 {
            at = at.saturating_sub(size);
            let mut steps = history.steps.clone();
            let end = (at + size).min(steps.len());
            steps.drain(at..end);
            tries -= 1;
            let smaller = history.with(steps);
            let still = bench.judge(&smaller, None).await;
            if !still.is_empty() {
                (history, wrong) = (smaller, still);
            }
        }
        size /= 2;
    }
    for at in 0..history.steps.len() {
        let Step::Tick { aws, .. } = &history.steps[at] else { continue };
        for strike in (0..aws.len()).rev() {
            let mut smaller = history.clone();
            let Step::Tick { aws, .. } = &mut smaller.steps[at] else { continue };
            aws.remove(strike);
            let still = bench.judge(&smaller, None).await;
            if !still.is_empty() {
                (history, wrong) = (smaller, still);
            }
        }
    }
    (history, wrong)
}

/// That histories hold, so many on each of some threads.
fn assert_all_hold(profile: Profile, threads: u64, count: u64) {
    let thread = |number: u64| {
        apart(async move |mut bench| {
            let seeds = number * count..(number + 1) * count;
            let (history, wrong) = first_failure(&mut bench, seeds, profile, None).await?;
            Some((history.seed, shrunk(&mut bench, history, wrong).await))
        })
    };
    let threads: Vec<_> = (0..threads).map(thread).collect();
    for thread in threads {
        if let Some((seed, (history, wrong))) = thread.join().unwrap() {
            panic!("seed {seed} goes wrong, at least so: {history:#?}\n{}", wrong.join("\n"));
        }
    }
}

#[test]
fn calm_histories_deliver_each_version_once() {
    assert_all_hold(Profile::Calm, 1, FEW);
}

#[test]
fn histories_with_failing_aws_and_dying_workers_lose_nothing() {
    assert_all_hold(Profile::Workers, 1, FEW);
}

#[test]
fn histories_with_every_fault_lose_nothing() {
    assert_all_hold(Profile::Wild, 1, FEW);
}

#[test]
#[ignore = "the long round: tests/run --all"]
fn thousands_of_histories_hold() {
    for profile in [Profile::Workers, Profile::Wild, Profile::Calm] {
        assert_all_hold(profile, 2, MANY / 2);
    }
}

/// That a defect is found within the short round.
fn assert_found(planted: Planted, profile: Profile) {
    let found = apart(async move |mut bench| first_failure(&mut bench, 0..FEW, profile, Some(planted)).await);
    assert!(found.join().unwrap().is_some(), "{planted:?} was not found");
}

#[test]
fn a_planted_strict_gt_is_found() {
    assert_found(Planted::StrictGt, Profile::Calm);
}

#[test]
fn planted_paging_by_skip_is_found() {
    assert_found(Planted::SkipPaging, Profile::Calm);
}

#[test]
fn a_planted_cursor_before_s3_is_found() {
    assert_found(Planted::CursorBeforeS3, Profile::Workers);
}

#[test]
fn a_planted_want_of_overlap_is_found() {
    assert_found(Planted::NoOverlap, Profile::Calm);
}

#[test]
fn a_planted_want_of_a_fence_is_found() {
    assert_found(Planted::NoFence, Profile::Workers);
}

/// A history that the model has found, or that was thought of while it was made.
fn assert_holds(profile: Profile, surfaces: &[IncidentApi], steps: &[Step]) {
    for surface in surfaces {
        let history = History { surface: *surface, tries: 1, ..History::of(0, profile).with(steps.to_vec()) };
        let wrong = apart(async move |mut bench| bench.judge(&history, None).await).join().unwrap();
        assert!(wrong.is_empty(), "on {surface}: {}", wrong.join("\n"));
    }
}

const BOTH: [IncidentApi; 2] = IncidentApi::ALL;

fn create(count: usize, ago: i64, apart: i64) -> Step {
    Step::Create { count, ago, nanos: 0, apart, created_apart: 1, alerts: 1, alerts_in: None }
}

fn tick(seconds: i64, aws: &[(FaultPosition, AwsFault)]) -> Step {
    Step::Tick { millis: seconds * 1_000, how: How::One, aws: aws.to_vec(), dispatch: None }
}

#[test]
fn an_object_whose_event_was_not_told_does_not_stand_for_another_version() {
    for strike in [AwsFault::KilledBefore, AwsFault::FailedBefore] {
        let struck = tick(60, &[(FaultPosition::Delivery(1), strike)]);
        let steps = vec![create(1, 10, 0), struck, Step::Silent { pick: 0, what: What::Alert }, tick(400, &[])];
        assert_holds(Profile::Workers, &BOTH, &steps);
    }
}

#[test]
fn what_was_set_aside_by_a_worker_that_died_is_counted_and_retried() {
    for request in 14..40 {
        for strike in [AwsFault::KilledAfter, AwsFault::LostAfter] {
            let poison = Step::Poison { pick: 1, expand: None };
            let struck = tick(60, &[(FaultPosition::Request(request), strike)]);
            let steps = vec![create(3, 10, 7), poison, tick(60, &[]), struck, tick(400, &[]), tick(60, &[])];
            assert_holds(Profile::Wild, &BOTH[..1], &steps);
        }
    }
}

#[test]
fn what_changes_silently_after_a_change_of_surface_has_a_key_of_its_own() {
    let silent = || Step::Silent { pick: 0, what: What::Status("resolved") };
    let again = Step::Silent { pick: 0, what: What::Status("inProgress") };
    let steps = vec![
        create(1, 10, 0),
        tick(60, &[]),
        silent(),
        tick(60, &[]),
        Step::Switch,
        tick(60, &[]),
        again,
        tick(60, &[]),
    ];
    assert_holds(Profile::Calm, &BOTH, &steps);
}

#[test]
fn late_arrivals_are_found_where_one_answer_does_not_hold_the_overlap() {
    let mut steps = vec![create(110, 0, 7), tick(60, &[]), tick(60, &[]), tick(60, &[]), create(1, 830, 0)];
    steps.extend((0..7).map(|_| tick(60, &[])));
    assert_holds(Profile::Calm, &BOTH, &steps);
}

#[test]
fn late_arrivals_are_found_after_a_poll_that_was_interrupted() {
    for (surface, after) in [(BOTH[0], 1), (BOTH[0], 3), (BOTH[0], 4), (BOTH[1], 1), (BOTH[1], 2)] {
        let on = if surface == IncidentApi::Graph { sim::Host::Graph } else { sim::Host::Defender };
        let throttle = sim::FaultKind::Throttle { retry_after: sim::RetryAfter::Seconds(60) };
        let fault = sim::Fault::new(throttle).on(on).after(after).times(1);
        let steps = vec![
            create(110, 0, 7),
            tick(60, &[]),
            tick(60, &[]),
            tick(400, &[]),
            Step::Microsoft(Box::new(fault)),
            tick(400, &[]),
            create(1, 890, 0),
            tick(800, &[]),
            tick(60, &[]),
        ];
        assert_holds(Profile::Wild, &[surface], &steps);
    }
}
