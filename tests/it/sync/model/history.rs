//! The steps of one history. All of them are made from a seed before the history starts, so that a part of it can run
//! alone.
//!
//! Long, because all kinds of steps and their chances stand side by side.

use std::time::Duration;

use shared::{microsoft::IncidentApi, registry::jobs::JobKind};
use sim::{Fault, FaultKind, RetryAfter};

use aws_double::{AwsFault, FaultPosition};

/// The failures that a history may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Profile {
    /// Nothing fails.
    Calm,
    /// AWS fails, and workers are killed.
    Workers,
    /// Microsoft fails, too.
    Wild,
}

#[derive(Clone, Debug)]
pub(super) struct History {
    pub(super) seed: u64,
    pub(super) profile: Profile,
    pub(super) api: IncidentApi,
    /// The number of attempts that the AWS SDK makes for a request.
    pub(super) tries: u32,
    pub(super) world: World,
    pub(super) steps: Vec<Step>,
}

/// The traits of Microsoft's side, and of our clock, that last for a whole history.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    /// Which rows come first, and whether ties come in another order each time.
    pub(super) order: sim::Order,
    pub(super) shuffle_ties: bool,
    /// The most rows of a page, with this kind of link to the next one.
    pub(super) pages: Option<(usize, sim::NextLink)>,
    /// The number of pages without rows before each page with rows.
    pub(super) empty_pages: usize,
    /// Microsoft allows so many calls in a minute.
    pub(super) calls_per_minute: Option<usize>,
    /// Responses have no readable `Date`.
    pub(super) has_no_date: bool,
    /// Our clock is ahead of Microsoft's by so many seconds.
    pub(super) clock_ahead: i64,
    /// Graph fails whenever it is asked for alerts, until the history ends.
    pub(super) alerts_fail: bool,
}

/// Incidents are picked by a number, modulo how many there are.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Incidents appear, all last updated so long ago, or in steps of `apart` seconds before that.
    Create {
        count: usize,
        ago: i64,
        nanos: i64,
        apart: i64,
        created_apart: i64,
        alerts: usize,
        alerts_in: Option<i64>,
    },
    /// An incident that was last updated in the feed's first instant.
    CreateFirst,
    Update {
        pick: usize,
        change: IncidentChange,
    },
    /// The time of last update stays.
    Silent {
        pick: usize,
        change: IncidentChange,
    },
    Merge {
        pick: usize,
        into: usize,
    },
    /// The alerts of one incident move to another. Both change at once.
    Move {
        pick: usize,
        into: usize,
    },
    Hide {
        pick: usize,
    },
    /// More than a page, or a few, of incidents that were last updated a year ahead.
    CreateInFuture {
        count: usize,
    },
    /// The schedule ticks so often while no worker takes a message.
    Backlog {
        ticks: usize,
    },
    Microsoft(Box<Fault>),
    Poison {
        pick: usize,
        expand: Option<bool>,
    },
    Heal,
    /// The operator moves the tenant to the other API.
    Switch,
    Tick {
        millis: i64,
        workers: TickWorkers,
        aws: Vec<(FaultPosition, AwsFault)>,
        dispatch: Option<Vec<(FaultPosition, AwsFault)>>,
    },
    /// A scheduled sweep, or the operator's backfill of the days before.
    Job {
        kind: JobKind,
        workers: TickWorkers,
    },
}

/// What the operator does between two requests of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OperatorAction {
    Pause,
    CancelJobs,
    SwitchApi,
    Offboard,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum IncidentChange {
    Status(&'static str),
    Severity(&'static str),
    Alert,
    Assign,
}

/// The workers that take the messages of a tick.
#[derive(Clone, Copy, Debug)]
pub(super) enum TickWorkers {
    One,
    /// Two workers get the same message at the same time.
    Two,
    /// One worker sleeps at this request until its lease has passed to the other.
    Overtaken(u32, AwsFault),
    /// The operator acts while the worker's request waits.
    Operated(u32, OperatorAction),
}

/// A generator of pseudo-random numbers (splitmix64).
pub(super) struct SeededRandom(u64);

impl SeededRandom {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x9e37_79b9_7f4a_7c15)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn index(&mut self, end: usize) -> usize {
        usize::try_from(self.below(end as u64)).unwrap()
    }

    fn count(&mut self, from: u64, end: u64) -> u32 {
        u32::try_from(from + self.below(end - from)).unwrap()
    }

    fn seconds(&mut self, from: i64, end: i64) -> i64 {
        from + i64::try_from(self.below(u64::try_from(end - from).unwrap())).unwrap()
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.index(choices.len())].clone()
    }
}

impl History {
    /// The time of an invocation. In half of the histories it is so short that each page is delivered before the next one
    /// is asked for, and the lease of a worker that died ends soon.
    pub(super) fn invocation_time(&self) -> Duration {
        if self.seed.is_multiple_of(2) { Duration::from_secs(20) } else { Duration::from_mins(1) }
    }

    /// The history of a seed.
    pub(super) fn of(seed: u64, profile: Profile) -> Self {
        let mut random = SeededRandom::new(seed);
        let api = random.of(&IncidentApi::ALL);
        let page = usize::try_from(api.largest_page()).unwrap();
        let mut history =
            Self { seed, profile, api, tries: random.count(1, 3), world: random.world(profile), steps: Vec::new() };
        if random.one_in(4) {
            history.steps.push(Step::CreateFirst);
        }
        for _ in 0..random.count(1, 3) {
            let (ago, count) = (random.seconds(0, 80_000), random.index(14) + 1);
            history.steps.push(random.create(count, ago));
        }
        let busy = random.one_in(6);
        if busy {
            // More than one answer holds lies within the overlap.
            let (nanos, apart) = (random.nanos(), random.seconds(3, 9));
            let count = page + random.index(20);
            history.steps.push(Step::Create {
                count,
                ago: 0,
                nanos,
                apart,
                created_apart: 1,
                alerts: 1,
                alerts_in: None,
            });
        }
        if random.one_in(5) {
            let (nanos, count) = (random.nanos(), page + random.index(20));
            let (ago, created_apart) = (random.seconds(10, 2_000), random.seconds(0, 2));
            history.steps.push(Step::Create { count, ago, nanos, apart: 0, created_apart, alerts: 0, alerts_in: None });
        } else if random.one_in(24) {
            // More than the budget of a minute holds for a job lies in one second, where the feed begins or later, and in a
            // third of them more than one list shows.
            let (more, ago) = (random.index(20), random.of(&[86_400, 2_000]));
            let count = if seed.is_multiple_of(3) { 595 + 40 * more } else { page * 7 / 2 + more + 10 };
            history.steps.push(Step::Create {
                count,
                ago,
                nanos: 0,
                apart: 0,
                created_apart: 1,
                alerts: 0,
                alerts_in: None,
            });
        }
        for _ in 0..random.count(6, 14) {
            random.add_step(&mut history, busy);
        }
        history
    }

    /// Every second history has an event for each version.
    pub(super) fn has_incident_events(&self) -> bool {
        self.seed.is_multiple_of(2)
    }

    /// Without what lies behind these steps, or in them.
    pub(super) fn with(&self, steps: Vec<Step>) -> Self {
        Self { steps, ..self.clone() }
    }
}

impl SeededRandom {
    /// One trait beside the order, in most histories.
    fn world(&mut self, profile: Profile) -> World {
        let mut world = World {
            order: self.of(&[
                sim::Order::UpdatedDescending,
                sim::Order::UpdatedAscending,
                sim::Order::CreatedDescending,
                sim::Order::Shuffled,
            ]),
            shuffle_ties: self.one_in(2),
            ..World::default()
        };
        match self.below(9) {
            0..=1 => {
                let link = self.of(&[sim::NextLink::Skip, sim::NextLink::Skiptoken, sim::NextLink::None]);
                world.pages = Some((self.of(&[7, 25]), link));
            }
            2 => world.empty_pages = self.index(2) + 1,
            3 => world.calls_per_minute = Some(self.index(2) + 2),
            4 => world.has_no_date = true,
            5..=6 => world.clock_ahead = self.of(&[-300, 300]),
            7 => world.alerts_fail = profile == Profile::Wild,
            _ => {}
        }
        world
    }

    fn nanos(&mut self) -> i64 {
        if self.one_in(3) { 0 } else { self.seconds(0, 10_000_000) * 100 }
    }

    fn create(&mut self, count: usize, ago: i64) -> Step {
        Step::Create {
            count,
            ago,
            nanos: self.nanos(),
            apart: if self.one_in(3) { 0 } else { self.seconds(0, 40) },
            created_apart: self.seconds(0, 500),
            alerts: self.index(3),
            alerts_in: self.one_in(6).then(|| self.seconds(30, 840)),
        }
    }

    fn change(&mut self) -> IncidentChange {
        self.of(&[
            IncidentChange::Status("resolved"),
            IncidentChange::Status("active"),
            IncidentChange::Status("inProgress"),
            IncidentChange::Status("awaitingAction"),
            IncidentChange::Alert,
            IncidentChange::Assign,
        ])
    }

    fn add_step(&mut self, history: &mut History, busy: bool) {
        let pick = self.index(1_000);
        let step = match self.below(30) {
            0..=2 => {
                let (count, ago) = (self.index(3) + 1, self.seconds(0, 50));
                self.create(count, ago)
            }
            // Indexed late.
            3..=4 => {
                let ago = if history.profile != Profile::Calm && self.one_in(4) { 5_000 } else { 830 };
                let (count, ago) = (self.index(2) + 1, self.seconds(60, ago));
                Step::Create { count, ago, nanos: self.nanos(), apart: 0, created_apart: 7, alerts: 1, alerts_in: None }
            }
            5..=7 => {
                let severity = IncidentChange::Severity(self.of(&["high", "low", "informational", "unknown"]));
                Step::Update { pick, change: if self.one_in(4) { severity } else { self.change() } }
            }
            8..=9 => Step::Silent { pick, change: self.change() },
            10 => Step::Merge { pick, into: self.index(1_000) },
            11 => Step::Hide { pick },
            12 if self.one_in(3) => Step::Switch,
            13 => {
                let (kind, workers) = (self.of(&[JobKind::Sweep, JobKind::Sweep, JobKind::Backfill]), TickWorkers::One);
                Step::Job { kind, workers }
            }
            26 => Step::Move { pick, into: self.index(1_000) },
            27 => Step::Backlog { ticks: self.index(5) + 2 },
            28 if self.one_in(3) => {
                let page = usize::try_from(history.api.largest_page()).unwrap();
                Step::CreateInFuture { count: if self.one_in(2) { page + 5 } else { self.index(3) + 1 } }
            }
            29 => {
                let kind = self.of(&[JobKind::Sweep, JobKind::Backfill]);
                Step::Job { kind, workers: self.operated() }
            }
            14..=16 if history.profile == Profile::Wild => Step::Microsoft(Box::new(self.fault())),
            17 if history.profile == Profile::Wild => Step::Poison { pick, expand: self.of(&[None, None, Some(true)]) },
            18 if history.profile == Profile::Wild => Step::Heal,
            _ => self.tick(history.profile, busy),
        };
        history.steps.push(step);
    }

    fn tick(&mut self, profile: Profile, busy: bool) -> Step {
        let longest = if busy { 70_000 } else { 400_000 };
        let millis = if self.one_in(3) { self.seconds(1_000, longest) } else { 60_000 + self.seconds(0, 900) };
        let (mut workers, mut aws) = (TickWorkers::One, Vec::new());
        let mut dispatch = self.one_in(6).then(Vec::new);
        if self.one_in(6) {
            workers = TickWorkers::Two;
        } else if self.one_in(10) {
            return Step::Tick { millis, workers: self.operated(), aws, dispatch };
        }
        if profile != Profile::Calm {
            if self.one_in(5) {
                workers =
                    TickWorkers::Overtaken(self.count(2, 16), self.of(&[AwsFault::HeldBefore, AwsFault::HeldAfter]));
            }
            while self.one_in(2) && aws.len() < 4 {
                aws.push((self.position(), self.aws_fault()));
            }
            if let Some(dispatch) = dispatch.as_mut().filter(|_| self.one_in(3)) {
                dispatch.push((FaultPosition::Request(self.count(1, 20)), self.aws_fault()));
            }
        }
        Step::Tick { millis, workers, aws, dispatch }
    }

    fn operated(&mut self) -> TickWorkers {
        let action = self.of(&[
            OperatorAction::Pause,
            OperatorAction::Pause,
            OperatorAction::CancelJobs,
            OperatorAction::CancelJobs,
            OperatorAction::SwitchApi,
            OperatorAction::Offboard,
        ]);
        TickWorkers::Operated(self.count(2, 24), action)
    }

    fn position(&mut self) -> FaultPosition {
        if self.one_in(2) {
            FaultPosition::Request(self.count(1, 18))
        } else {
            FaultPosition::Delivery(self.count(0, 5))
        }
    }

    fn aws_fault(&mut self) -> AwsFault {
        self.of(&[
            AwsFault::LostBefore,
            AwsFault::LostAfter,
            AwsFault::FailedBefore,
            AwsFault::FailedAfter,
            AwsFault::Throttled,
            AwsFault::Partial,
            AwsFault::KilledBefore,
            AwsFault::KilledBefore,
            AwsFault::KilledAfter,
            AwsFault::KilledAfter,
        ])
    }

    fn fault(&mut self) -> Fault {
        let api = self.of(&[
            FaultKind::status(500),
            FaultKind::status(503),
            FaultKind::status(504),
            FaultKind::status(400),
            FaultKind::status(401),
            FaultKind::status(403),
            FaultKind::status(404),
            FaultKind::BadGateway,
            FaultKind::Reset,
            FaultKind::Cut,
            FaultKind::Hang { millis: 40 },
            FaultKind::SlowBody { chunk: 4_000, millis: 1 },
            FaultKind::Truncate { at: None },
            FaultKind::Truncate { at: Some(40) },
            FaultKind::Rewrite { status: 206, headers: vec![("Warning".into(), "199 - \"partial\"".into())] },
            FaultKind::DateSkew { seconds: -3_000 },
            FaultKind::DateSkew { seconds: 3_000 },
            FaultKind::ForeignNextLink { url: "https://attacker.example/v1.0/security/incidents".into() },
            FaultKind::LoopingNextLink,
            FaultKind::ExpiredSkiptoken,
            FaultKind::SilentCap { rows: 2 },
            FaultKind::UnreadableDate,
            FaultKind::EmptyPage,
            FaultKind::IgnoredFilter,
            FaultKind::Stale { versions: 1 },
            FaultKind::Throttle { retry_after: RetryAfter::Seconds(PAUSE) },
            FaultKind::Throttle { retry_after: RetryAfter::Date(PAUSE) },
            FaultKind::Throttle { retry_after: RetryAfter::Body(PAUSE) },
            FaultKind::Throttle { retry_after: RetryAfter::Absent },
        ]);
        let entra = self.of(&[
            FaultKind::status(500),
            FaultKind::status(503),
            FaultKind::BadGateway,
            FaultKind::Reset,
            FaultKind::Throttle { retry_after: RetryAfter::Seconds(PAUSE) },
            FaultKind::OpaqueToken,
            FaultKind::ExpiresInString,
            FaultKind::ExpiresIn { seconds: 30 },
            FaultKind::MissingRoles,
            FaultKind::WrongTid { tid: "99999999-2222-4333-8444-000000000009".into() },
            FaultKind::Aadsts { code: 7_000_229 },
            FaultKind::Aadsts { code: 53_003 },
            FaultKind::Aadsts { code: 7_000_215 },
        ]);
        let fault = if self.one_in(4) {
            Fault::new(entra).on(sim::Host::Entra)
        } else {
            let host = self.of(&[sim::Host::Graph, sim::Host::Defender]);
            Fault::new(api).on(host)
        };
        fault.after(self.count(0, 3)).times(self.count(1, 5))
    }
}

/// The seconds that Microsoft sends as `Retry-After`.
pub(super) const PAUSE: u64 = 60;
