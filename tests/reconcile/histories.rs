//! Generated histories: what happens to containers, runtimes, the bus, the host and the collector itself, in any
//! order; after each step the invariants of `check.rs`, and at the end, when the faults have stopped, the truth.
//!
//! A history that fails is printed with all that was said, and its seed is kept in `regressions.txt` beside this
//! file, from where it is run first ever after.

use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};
use quaymaster::model::{ContainerId, ContainerKind, Pod};
use quaymaster::reconcile::Observation;

use crate::check::{Check, ensure};
use crate::shell::{LINGER_MS, Shell};
use crate::world::{PidMode, Runtime};

/// How many histories are tried; `PROPTEST_CASES` says otherwise.
const HISTORIES: u32 = 3_000;

/// One thing that happens. A `u8` picks one of the containers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Wait(u16),
    Create(Runtime, Place),
    /// `docker run`: create and start.
    Run(Runtime, Place),
    /// `docker run --rm` of something that ends at once.
    RunRemove(u8),
    Start(u8),
    StartAndDie(u8),
    Die(u8),
    Restart(u8),
    Remove(u8),
    Rename(u8),
    Pause(u8),
    Unpause(u8),
    /// A container's process makes a PID namespace, or one below that which it made.
    Nest(u8, bool),
    EndNest(u8),
    LoseEvents(Runtime, u8),
    DoubleEvents(Runtime, u8),
    FailLists(Runtime),
    PartialLists(Runtime),
    FailInspects(Runtime, u8),
    DenyReads(u8),
    Down(Runtime),
    Up(Runtime),
    BusAway,
    BusBack,
    Resync,
    List(Runtime),
    Snapshot,
    Kill,
    Begin,
    Reboot,
    ClockBack(u16),
}

/// Where a container's process runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Own,
    Host,
    /// In the namespace of another container.
    With(u8),
    /// In a namespace of its own below that of another container.
    Below(u8),
    /// A pod's sandbox.
    Sandbox,
    /// Made by cri-dockerd.
    Kubernetes,
}

fn runtime() -> impl Strategy<Value = Runtime> {
    prop_oneof![3 => Just(Runtime::Docker), 2 => Just(Runtime::Cri)]
}

fn any_runtime() -> impl Strategy<Value = Runtime> {
    prop_oneof![
        3 => Just(Runtime::Docker),
        2 => Just(Runtime::Cri),
        1 => Just(Runtime::Overlay)
    ]
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        6 => Just(Place::Own),
        1 => Just(Place::Host),
        2 => any::<u8>().prop_map(Place::With),
        2 => any::<u8>().prop_map(Place::Below),
        1 => Just(Place::Sandbox),
        2 => Just(Place::Kubernetes)
    ]
}

fn ordinary_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0u16..300).prop_map(Step::Wait),
        2 => (300u16..9_000).prop_map(Step::Wait),
        2 => (runtime(), place()).prop_map(|(runtime, place)| Step::Create(runtime, place)),
        6 => (runtime(), place()).prop_map(|(runtime, place)| Step::Run(runtime, place)),
        2 => any::<u8>().prop_map(Step::RunRemove),
        4 => any::<u8>().prop_map(Step::Start),
        2 => any::<u8>().prop_map(Step::StartAndDie),
        5 => any::<u8>().prop_map(Step::Die),
        4 => any::<u8>().prop_map(Step::Restart),
        4 => any::<u8>().prop_map(Step::Remove),
        2 => any::<u8>().prop_map(Step::Rename),
        2 => any::<u8>().prop_map(Step::Pause),
        2 => any::<u8>().prop_map(Step::Unpause),
        5 => any::<(u8, bool)>().prop_map(|(index, is_deep)| Step::Nest(index, is_deep)),
        2 => any::<u8>().prop_map(Step::EndNest),
        2 => Just(Step::Resync),
        1 => any_runtime().prop_map(Step::List),
    ]
}

fn fault_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (runtime(), 1u8..5).prop_map(|(runtime, count)| Step::LoseEvents(runtime, count)),
        2 => (runtime(), 1u8..4).prop_map(|(runtime, count)| Step::DoubleEvents(runtime, count)),
        1 => any_runtime().prop_map(Step::FailLists),
        1 => any_runtime().prop_map(Step::PartialLists),
        2 => (any_runtime(), 1u8..4).prop_map(|(runtime, count)| Step::FailInspects(runtime, count)),
        1 => (1u8..3).prop_map(Step::DenyReads),
        2 => any_runtime().prop_map(Step::Down),
        3 => any_runtime().prop_map(Step::Up),
        1 => Just(Step::BusAway),
        1 => Just(Step::BusBack),
        1 => Just(Step::Snapshot),
        2 => Just(Step::Kill),
        3 => Just(Step::Begin),
        1 => Just(Step::Reboot),
        1 => (1u16..20_000).prop_map(Step::ClockBack),
    ]
}

/// How the host is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    pub(crate) seed: u64,
    pub(crate) has_ns_ids: bool,
    pub(crate) holds_fds: bool,
    pub(crate) gives_hints: bool,
    pub(crate) cri_streams: bool,
    pub(crate) held_max: usize,
}

fn host() -> impl Strategy<Value = Host> {
    (
        any::<u64>(),
        any::<bool>(),
        prop::bool::weighted(0.8),
        any::<bool>(),
        prop::bool::weighted(0.8),
        prop_oneof![4 => Just(4_096usize), 1 => Just(2usize)],
    )
        .prop_map(
            |(seed, has_ns_ids, holds_fds, gives_hints, cri_streams, held_max)| Host {
                seed,
                has_ns_ids,
                // A namespace whose link can be read can be opened; one of the two always tells it apart.
                holds_fds: holds_fds || !has_ns_ids,
                gives_hints,
                cri_streams,
                held_max,
            },
        )
}

impl Shell {
    pub(crate) fn on(host: Host) -> Self {
        let mut shell = Self::new(host.seed, host.has_ns_ids);
        shell.holds_fds = host.holds_fds;
        shell.check.numbers_pass = !host.holds_fds;
        shell.gives_hints = host.gives_hints;
        shell.settings.held_max = host.held_max;
        if let Some(link) = shell.links.get_mut(&Runtime::Cri) {
            link.is_streaming = host.cri_streams;
        }
        shell
    }

    fn pick(&self, index: u8) -> Option<ContainerId> {
        let there: Vec<_> = self
            .world
            .order
            .iter()
            .filter(|id| !self.world.containers[*id].is_removed)
            .collect();
        let index = usize::from(index).checked_rem(there.len())?;
        Some(there[index].clone())
    }

    fn create(&mut self, runtime: Runtime, place: Place) -> ContainerId {
        let other = |index| self.pick(index).map(PidMode::Shared);
        let outer = |index| self.pick(index).map(PidMode::Below);
        let (kind, mode, pod) = match place {
            Place::Own => (ContainerKind::Container, PidMode::Own, None),
            Place::Host => (ContainerKind::Container, PidMode::Host, None),
            Place::With(index) => (
                ContainerKind::Container,
                other(index).unwrap_or(PidMode::Own),
                None,
            ),
            Place::Below(index) => (
                ContainerKind::Container,
                outer(index).unwrap_or(PidMode::Own),
                None,
            ),
            Place::Sandbox if runtime == Runtime::Cri => {
                (ContainerKind::Sandbox, PidMode::Own, None)
            }
            Place::Sandbox | Place::Kubernetes => {
                let pod = Pod::default();
                (ContainerKind::Container, PidMode::Own, Some(pod))
            }
        };
        let id = self.world.create(runtime, kind, mode, pod);
        let streams = self
            .links
            .get(&runtime)
            .is_some_and(|link| link.is_streaming);
        if !streams && let Some(container) = self.world.containers.get_mut(&id) {
            container.is_clean = false;
        }
        id
    }

    fn start(&mut self, id: &ContainerId) {
        self.world.start(id);
        self.hint(id);
    }

    /// Does one step.
    pub(crate) fn step(&mut self, step: Step) -> Check {
        self.log.push(format!("{} {step:?}", self.world.mono_ms));
        let at = |shell: &Self, index: u8| shell.pick(index);
        match step {
            Step::Wait(ms) => self.advance(u64::from(ms))?,
            Step::Create(runtime, place) => {
                self.create(runtime, place);
            }
            Step::Run(runtime, place) => {
                let id = self.create(runtime, place);
                self.start(&id);
            }
            Step::RunRemove(code) => {
                let id = self.create(Runtime::Docker, Place::Own);
                self.start(&id);
                self.send_events();
                self.advance(u64::from(code % 30))?;
                self.world.die(&id, i32::from(code));
                self.world.remove(&id);
            }
            Step::Start(_)
            | Step::StartAndDie(_)
            | Step::Die(_)
            | Step::Restart(_)
            | Step::Remove(_)
            | Step::Rename(_)
            | Step::Pause(_)
            | Step::Unpause(_) => self.touch(step, at),
            Step::LoseEvents(..)
            | Step::DoubleEvents(..)
            | Step::FailLists(_)
            | Step::PartialLists(_)
            | Step::FailInspects(..)
            | Step::DenyReads(_) => self.fail(step),
            Step::Nest(index, is_deep) => {
                if let Some(id) = self.pick(index) {
                    self.world.nest(&id, is_deep);
                }
            }
            Step::EndNest(index) => self.world.end_nest(index),
            Step::Down(runtime) => self.down(runtime)?,
            Step::Up(runtime) => self.up(runtime)?,
            Step::BusAway => self.is_bus_away = true,
            Step::BusBack => self.is_bus_away = false,
            Step::Resync => self.observe(Observation::ResyncDue)?,
            Step::List(runtime) => self.observe(Observation::ListDue {
                source: Self::source_id(runtime),
            })?,
            Step::Snapshot => self.observe(Observation::SnapshotDue)?,
            Step::Kill => self.kill(),
            Step::Begin => self.begin()?,
            Step::Reboot => {
                self.kill();
                self.world.reboot();
            }
            Step::ClockBack(ms) => {
                self.world.step_back(u64::from(ms));
                self.check.clock_stepped = true;
                for runtime in Runtime::ALL {
                    self.taint(runtime);
                }
            }
        }
        self.send_events();
        Ok(())
    }

    fn touch(&mut self, step: Step, at: impl Fn(&Self, u8) -> Option<ContainerId>) {
        let pick = |index| at(self, index);
        match step {
            Step::Start(index) => {
                if let Some(id) = pick(index) {
                    self.start(&id);
                }
            }
            Step::StartAndDie(index) => {
                if let Some(id) = pick(index) {
                    self.world.start_and_die(&id, i32::from(index));
                }
            }
            Step::Die(index) => {
                if let Some(id) = pick(index) {
                    self.world.die(&id, i32::from(index));
                }
            }
            Step::Restart(index) => {
                if let Some(id) = pick(index) {
                    self.world.die(&id, i32::from(index));
                    self.start(&id);
                }
            }
            Step::Remove(index) => {
                if let Some(id) = pick(index) {
                    self.world.remove(&id);
                }
            }
            Step::Rename(index) => {
                if let Some(id) = pick(index) {
                    let name = format!("renamed-{}", self.world.mono_ms);
                    self.world.rename(&id, &name);
                }
            }
            Step::Pause(index) => {
                if let Some(id) = pick(index) {
                    self.world.pause(&id, true);
                }
            }
            Step::Unpause(index) => {
                if let Some(id) = pick(index) {
                    self.world.pause(&id, false);
                }
            }
            Step::Wait(_)
            | Step::Create(..)
            | Step::Run(..)
            | Step::RunRemove(_)
            | Step::LoseEvents(..)
            | Step::DoubleEvents(..)
            | Step::FailLists(_)
            | Step::PartialLists(_)
            | Step::FailInspects(..)
            | Step::DenyReads(_)
            | Step::Down(_)
            | Step::Up(_)
            | Step::BusAway
            | Step::BusBack
            | Step::Resync
            | Step::List(_)
            | Step::Snapshot
            | Step::Kill
            | Step::Begin
            | Step::Reboot
            | Step::Nest(..)
            | Step::EndNest(_)
            | Step::ClockBack(_) => {}
        }
    }

    fn fail(&mut self, step: Step) {
        let (runtime, count) = match step {
            Step::LoseEvents(runtime, count)
            | Step::DoubleEvents(runtime, count)
            | Step::FailInspects(runtime, count) => (runtime, usize::from(count)),
            Step::FailLists(runtime) | Step::PartialLists(runtime) => (runtime, 1),
            Step::DenyReads(count) => {
                self.deny_reads = usize::from(count);
                return;
            }
            Step::Wait(_)
            | Step::Create(..)
            | Step::Run(..)
            | Step::RunRemove(_)
            | Step::Start(_)
            | Step::StartAndDie(_)
            | Step::Die(_)
            | Step::Restart(_)
            | Step::Remove(_)
            | Step::Rename(_)
            | Step::Pause(_)
            | Step::Unpause(_)
            | Step::Nest(..)
            | Step::EndNest(_)
            | Step::Down(_)
            | Step::Up(_)
            | Step::BusAway
            | Step::BusBack
            | Step::Resync
            | Step::List(_)
            | Step::Snapshot
            | Step::Kill
            | Step::Begin
            | Step::Reboot
            | Step::ClockBack(_) => return,
        };
        let Some(link) = self.links.get_mut(&runtime) else {
            return;
        };
        if matches!(step, Step::LoseEvents(..)) {
            link.lose_events = count;
        } else if matches!(step, Step::DoubleEvents(..)) {
            link.double_events = count;
        } else if matches!(step, Step::FailInspects(..)) {
            link.fail_inspects = count;
        } else if matches!(step, Step::FailLists(_)) {
            link.fail_lists = count;
        } else {
            link.partial_lists = count;
        }
    }

    /// The faults stop; then what holds at rest.
    pub(crate) fn come_to_rest(&mut self) -> Check {
        self.is_bus_away = false;
        self.deny_reads = 0;
        for link in self.links.values_mut() {
            link.fail_lists = 0;
            link.partial_lists = 0;
            link.fail_inspects = 0;
        }
        self.begin()?;
        for runtime in Runtime::ALL {
            self.up(runtime)?;
            self.tell_gap(runtime);
        }
        self.send_events();
        self.settle()?;
        if self.is_lossless {
            self.is_true()
                .map_err(|why| format!("without a resync: {why}"))?;
        }
        self.observe(Observation::ResyncDue)?;
        self.settle()?;
        self.is_true()?;
        // What a late event ended or told meanwhile is seen by the next look.
        let (deltas, inspects) = (self.check.deltas, self.check.inspects);
        self.observe(Observation::ResyncDue)?;
        self.settle()?;
        ensure!(
            self.check.deltas == deltas,
            "the_same_resync_twice_emits_no_delta",
            "{} deltas",
            self.check.deltas - deltas
        );
        ensure!(
            self.check.inspects == inspects,
            "an_unchanged_list_asks_for_no_inspect",
            "{} inspects",
            self.check.inspects - inspects
        );
        self.is_true()?;
        self.check.after_look(&self.world)?;
        self.check.stories_are_whole(&self.world)?;
        self.advance(2 * LINGER_MS)?;
        self.settle()?;
        self.check.after_linger()?;
        self.observe(Observation::ResyncDue)?;
        self.settle()?;
        self.check.after_look(&self.world)?;
        self.is_true()
    }

    pub(crate) fn is_true(&self) -> Check {
        let kubernetes = |id: &ContainerId| {
            self.world
                .containers
                .get(id)
                .is_some_and(|container| container.is_kubernetes)
        };
        let truth = self.world.truth(&kubernetes);
        self.check.after_resync(&self.world, &truth)
    }
}

fn run(host: Host, steps: &[Step], early: &[Step]) -> Result<(), TestCaseError> {
    let mut shell = Shell::on(host);
    let mut play = || -> Check {
        for step in early {
            shell.step(*step)?;
        }
        for runtime in Runtime::ALL {
            shell.up(runtime)?;
        }
        shell.begin()?;
        for step in steps {
            shell.step(*step)?;
        }
        shell.come_to_rest()
    };
    play().map_err(|why| {
        let log = shell.log.join("\n");
        TestCaseError::fail(format!("{log}\n\n{why}\n"))
    })
}

fn config(cases: u32) -> Config {
    Config {
        cases: std::env::var("PROPTEST_CASES")
            .ok()
            .and_then(|cases| cases.parse().ok())
            .unwrap_or(cases),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/reconcile/regressions.txt",
        ))),
        max_shrink_iters: 20_000,
        ..Config::default()
    }
}

proptest! {
    #![proptest_config(config(HISTORIES / 3))]

    #[test]
    fn a_history_without_faults_is_told_whole(
        host in host(),
        early in prop::collection::vec(ordinary_step(), 0..10),
        steps in prop::collection::vec(ordinary_step(), 1..60),
    ) {
        run(host, &steps, &early)?;
    }
}

proptest! {
    #![proptest_config(config(HISTORIES))]

    #[test]
    fn a_history_with_faults_comes_to_the_truth(
        host in host(),
        early in prop::collection::vec(ordinary_step(), 0..10),
        steps in prop::collection::vec(
            prop_oneof![3 => ordinary_step(), 1 => fault_step()],
            1..80,
        ),
    ) {
        run(host, &steps, &early)?;
    }
}
