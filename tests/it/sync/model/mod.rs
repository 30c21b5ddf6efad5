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
use history::{History, IncidentChange, OperatorAction, Profile, Step, TickWorkers, World};
use run::{ModelHarness, PlantedDefect};
use shared::{microsoft::IncidentApi, registry::jobs::JobKind};

/// Histories of each profile in every run of the tests: two hundred and ten in all; and in the long round: 2,100 in all.
const FEW: u64 = 70;
const MANY: u64 = 700;

/// The most runs of a history to make it smaller.
const TRIES: usize = 60;

/// Runs on a thread of its own, without the log that the other tests keep.
fn apart<T: Send + 'static>(work: impl AsyncFnOnce(ModelHarness) -> T + Send + 'static) -> std::thread::JoinHandle<T> {
    std::thread::spawn(|| {
        let _quiet = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { work(ModelHarness::start().await).await })
    })
}

/// The first history, if any, that goes wrong, made smaller, and what is wrong with it.
async fn first_failure(
    harness: &mut ModelHarness,
    seeds: std::ops::Range<u64>,
    profile: Profile,
    planted: Option<PlantedDefect>,
) -> Option<(History, Vec<String>)> {
    for seed in seeds {
        let history = History::of(seed, profile);
        let wrong = harness.judge(&history, planted).await;
        if !wrong.is_empty() {
            return Some((history, wrong));
        }
    }
    None
}

/// The smallest history found that still goes wrong: without its end, and without single steps and faults.
async fn shrunk(harness: &mut ModelHarness, mut history: History, mut wrong: Vec<String>) -> (History, Vec<String>) {
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
            let still = harness.judge(&smaller, None).await;
            if !still.is_empty() {
                (history, wrong) = (smaller, still);
            }
        }
        size /= 2;
    }
    for at in 0..history.steps.len() {
        let Step::Tick { aws, .. } = &history.steps[at] else { continue };
        for fault in (0..aws.len()).rev() {
            let mut smaller = history.clone();
            let Step::Tick { aws, .. } = &mut smaller.steps[at] else { continue };
            aws.remove(fault);
            let still = harness.judge(&smaller, None).await;
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
        apart(async move |mut harness| {
            let seeds = number * count..(number + 1) * count;
            let (history, wrong) = first_failure(&mut harness, seeds, profile, None).await?;
            Some((history.seed, shrunk(&mut harness, history, wrong).await))
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
fn histories_with_failing_aws_and_killed_workers_lose_nothing() {
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

#[test]
fn stretches_of_random_shape_are_read_in_few_calls() {
    let read = apart(async |mut harness| {
        let mut costly = Vec::new();
        for seed in 0..FEW {
            let mut history = History::of(seed, Profile::Calm);
            // Requests that were refused, and pages without rows, are no pages.
            (history.world.calls_per_minute, history.world.empty_pages) = (None, 0);
            // Rows that change places between two responses are read again.
            history.world.shuffle_ties = false;
            let (calls, pages) = harness.calls_and_pages(&history).await;
            if calls > pages * 14 / 10 + 4 {
                costly.push(format!("seed {seed}: {calls} calls for {pages} pages, {:?}", history.world));
            }
        }
        costly
    });
    let costly = read.join().unwrap();
    assert!(costly.is_empty(), "{}", costly.join("\n"));
}

/// That a defect is found within the short round.
fn assert_found(planted: PlantedDefect, profile: Profile) {
    let found = apart(async move |mut harness| first_failure(&mut harness, 0..FEW, profile, Some(planted)).await);
    assert!(found.join().unwrap().is_some(), "{planted:?} was not found");
}

/// That a history shows a defect by something that begins so, and nothing wrong without the defect.
fn assert_found_in(history: History, planted: PlantedDefect, wrong: &str) {
    let judge = async move |mut harness: ModelHarness| {
        let with_defect = harness.judge(&history, Some(planted)).await;
        (with_defect, harness.judge(&history, None).await)
    };
    let (with_defect, without) = apart(judge).join().unwrap();
    assert!(with_defect.iter().any(|found| found.starts_with(wrong)), "{with_defect:?}");
    assert_eq!(without, Vec::<String>::new());
}

#[test]
fn model_finds_a_strict_greater_than() {
    assert_found(PlantedDefect::StrictGt, Profile::Calm);
}

#[test]
fn model_finds_paging_by_skip() {
    assert_found(PlantedDefect::SkipPaging, Profile::Calm);
}

#[test]
fn model_finds_a_cursor_written_before_the_object() {
    // A delivery is a few calls long, so a random history of the short round rarely ends a worker in it.
    let killed = tick(60, &[(FaultPosition::Delivery(4), AwsFault::KilledAfter)]);
    let history = History { tries: 1, ..History::of(0, Profile::Workers).with(vec![create(2, 10, 7), killed]) };
    assert_found_in(history, PlantedDefect::CursorBeforeS3, "incident 1 was not delivered");
}

#[test]
fn model_finds_a_missing_overlap() {
    assert_found(PlantedDefect::NoOverlap, Profile::Calm);
}

#[test]
fn model_finds_a_missing_fence() {
    assert_found(PlantedDefect::NoFence, Profile::Workers);
}

#[test]
fn model_finds_completion_by_an_empty_page() {
    assert_found(PlantedDefect::EmptyPageEnds, Profile::Calm);
}

#[test]
fn model_finds_completion_by_a_short_page() {
    assert_found(PlantedDefect::ShortPageEnds, Profile::Calm);
}

#[test]
fn model_finds_a_forgotten_position() {
    assert_found(PlantedDefect::ForgottenPosition, Profile::Calm);
}

#[test]
fn model_finds_a_cursor_past_what_was_read() {
    assert_found(PlantedDefect::CursorPastReading, Profile::Calm);
}

#[test]
fn model_finds_forgotten_throttling() {
    assert_found(PlantedDefect::ForgottenThrottling, Profile::Calm);
}

#[test]
fn model_finds_forgotten_calls() {
    // Small pages make a minute's work more than its calls. Random histories rarely have that much.
    let world = World { pages: Some((5, sim::NextLink::Skip)), ..World::default() };
    let steps = [&[create(400, 4_000, 9)][..], &vec![tick(5, &[]); 6]].concat();
    let history = History { api: IncidentApi::Defender, world, ..History::of(0, Profile::Calm).with(steps) };
    assert_found_in(history, PlantedDefect::ForgottenCalls, "Defender was called more than 50 times");
}

#[test]
fn model_finds_ignored_refusals_of_events() {
    assert_found(PlantedDefect::IgnoredRefusedEvents, Profile::Workers);
}

#[test]
fn model_finds_skipped_incident_events() {
    // A random history rarely meets it: the refused event has to be that of a version that stays.
    let refused = tick(60, &[(FaultPosition::Delivery(2), AwsFault::Partial)]);
    let history = History { tries: 1, ..History::of(0, Profile::Workers).with(vec![create(2, 10, 7), refused]) };
    assert_found_in(history, PlantedDefect::SkippedIncidentEvents, "no event shows");
}

#[test]
fn model_finds_counts_apart_from_versions() {
    assert_found(PlantedDefect::CountsApart, Profile::Workers);
}

#[test]
fn model_finds_an_ignored_pause() {
    assert_found(PlantedDefect::IgnoredPause, Profile::Calm);
}

#[test]
fn model_finds_an_overwritten_cancellation() {
    assert_found(PlantedDefect::OverwrittenCancellation, Profile::Calm);
}

/// A history that the model has found, or that was thought of while it was made.
fn assert_holds(profile: Profile, apis: &[IncidentApi], steps: &[Step]) {
    for api in apis {
        let history = History { api: *api, tries: 1, ..History::of(0, profile).with(steps.to_vec()) };
        let wrong = apart(async move |mut harness| harness.judge(&history, None).await).join().unwrap();
        assert!(wrong.is_empty(), "on {api}: {}", wrong.join("\n"));
    }
}

const BOTH: [IncidentApi; 2] = IncidentApi::ALL;

fn create(count: usize, ago: i64, apart: i64) -> Step {
    Step::Create { count, ago, nanos: 0, apart, created_apart: 1, alerts: 1, alerts_in: None }
}

fn tick(seconds: i64, aws: &[(FaultPosition, AwsFault)]) -> Step {
    Step::Tick { millis: seconds * 1_000, workers: TickWorkers::One, aws: aws.to_vec(), dispatch: None }
}

#[test]
fn job_goes_on_after_a_turn_that_found_no_call() {
    let crowd =
        Step::Create { count: 369, ago: 2_000, nanos: 0, apart: 0, created_apart: 1, alerts: 0, alerts_in: None };
    let backfill = Step::Job { kind: JobKind::Backfill, workers: TickWorkers::Operated(13, OperatorAction::Pause) };
    let steps = vec![crowd, create(1, 229, 7), backfill, tick(60, &[]), Step::Backlog { ticks: 2 }, tick(103, &[])];
    // Each incident of the crowd is read once more, which leaves jobs no call for minutes.
    let history = History::of(632, Profile::Calm).with(steps);
    let wrong = apart(async move |mut harness| harness.judge(&history, None).await).join().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// One of 68 rows that nothing tells apart fails, and the others change places while it is searched for.
#[test]
fn rows_that_change_places_during_the_search_for_a_bad_one_are_read() {
    let create = |count, ago, nanos, apart, created_apart, alerts| Step::Create {
        count,
        ago,
        nanos,
        apart,
        created_apart,
        alerts,
        alerts_in: None,
    };
    let steps = vec![
        create(6, 4_003, 380_328_400, 0, 445, 1),
        create(68, 1_057, 0, 0, 0, 0),
        Step::Microsoft(Box::new(sim::Fault::new(sim::FaultKind::BadGateway).on(sim::Host::Entra).after(1).times(2))),
        Step::Switch,
        Step::Poison { pick: 461, expand: None },
        create(2, 5, 897_628_600, 38, 7, 2),
        Step::Silent { pick: 64, change: IncidentChange::Status("awaitingAction") },
        tick(295, &[]),
        tick(60, &[(FaultPosition::Delivery(1), AwsFault::FailedBefore)]),
        Step::Tick { millis: 60_607, workers: TickWorkers::Two, aws: vec![], dispatch: None },
    ];
    let history = History::of(280, Profile::Wild).with(steps);
    let wrong = apart(async move |mut harness| harness.judge(&history, None).await).join().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn object_without_an_event_does_not_hide_a_later_version() {
    for fault in [AwsFault::KilledBefore, AwsFault::FailedBefore] {
        let faulty = tick(60, &[(FaultPosition::Delivery(1), fault)]);
        let steps =
            vec![create(1, 10, 0), faulty, Step::Silent { pick: 0, change: IncidentChange::Alert }, tick(400, &[])];
        assert_holds(Profile::Workers, &BOTH, &steps);
    }
}

#[test]
fn quarantine_of_a_killed_worker_is_counted_and_retried() {
    for request in 14..40 {
        for fault in [AwsFault::KilledAfter, AwsFault::LostAfter] {
            let poison = Step::Poison { pick: 1, expand: None };
            let faulty = tick(60, &[(FaultPosition::Request(request), fault)]);
            let steps = vec![create(3, 10, 7), poison, tick(60, &[]), faulty, tick(400, &[]), tick(60, &[])];
            assert_holds(Profile::Wild, &BOTH[..1], &steps);
        }
    }
}

#[test]
fn silent_change_after_an_api_switch_has_its_own_key() {
    let silent = || Step::Silent { pick: 0, change: IncidentChange::Status("resolved") };
    let again = Step::Silent { pick: 0, change: IncidentChange::Status("inProgress") };
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
fn late_arrivals_are_found_in_an_overlap_of_many_pages() {
    let mut steps = vec![create(110, 0, 7), tick(60, &[]), tick(60, &[]), tick(60, &[]), create(1, 830, 0)];
    steps.extend((0..7).map(|_| tick(60, &[])));
    assert_holds(Profile::Calm, &BOTH, &steps);
}

#[test]
fn late_arrivals_are_found_after_an_interrupted_poll() {
    for (api, after) in [(BOTH[0], 1), (BOTH[0], 3), (BOTH[0], 4), (BOTH[1], 1), (BOTH[1], 2)] {
        let on = if api == IncidentApi::Graph { sim::Host::Graph } else { sim::Host::Defender };
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
        assert_holds(Profile::Wild, &[api], &steps);
    }
}
