//! How a container looks at one point of its story: the part of it that its runs change.
//!
//! An inspect speaks of one moment only. The deltas of one round show the container before, in and after each of
//! its runs: the same facts, with another [`RunView`] in them.

use std::sync::Arc;

use super::runs::End;
use crate::model::message::RuntimeSource;
use crate::model::{Container, ContainerId, ContainerKind, RuntimeType, State};

/// The part of a container that its runs change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RunView {
    state: State,
    pid: Option<u32>,
    started_at_ns: Option<u64>,
    finished_at_ns: Option<u64>,
    exit_code: Option<i32>,
    oom_killed: Option<bool>,
    reason: String,
}

impl RunView {
    /// As the container is.
    pub(super) fn of(container: &Container) -> Self {
        Self {
            state: container.state,
            pid: container.pid,
            started_at_ns: container.started_at_ns,
            finished_at_ns: container.finished_at_ns,
            exit_code: container.exit_code,
            oom_killed: container.oom_killed,
            reason: container.reason.clone(),
        }
    }

    /// Between the container's creation and its first run.
    pub(super) fn before_first_run(container: &Container) -> Self {
        Self {
            state: State::Created,
            pid: None,
            started_at_ns: None,
            finished_at_ns: None,
            exit_code: None,
            oom_killed: container.oom_killed.map(|_| false),
            reason: String::new(),
        }
    }

    /// In a run that began at this time, after one that ended at that.
    pub(super) fn running(
        container: &Container,
        started_at_ns: u64,
        finished_at_ns: Option<u64>,
    ) -> Self {
        Self {
            state: State::Running,
            pid: container.pid,
            started_at_ns: Some(started_at_ns),
            finished_at_ns,
            ..Self::before_first_run(container)
        }
    }

    /// After the end of a run that began at this time, of which the inspect does not speak.
    pub(super) fn exited(container: &Container, started_at_ns: Option<u64>, end: &End) -> Self {
        Self {
            state: State::Exited,
            started_at_ns,
            finished_at_ns: Some(end.at_ns).filter(|at_ns| *at_ns != 0),
            exit_code: end.exit_code,
            ..Self::before_first_run(container)
        }
    }

    /// After the end of the run of which the inspect speaks; `started_at_ns` is for what no inspect says it of.
    pub(super) fn inspected(container: &Container, started_at_ns: Option<u64>, end: &End) -> Self {
        let finished_at_ns = Some(end.at_ns).filter(|at_ns| *at_ns != 0);
        Self {
            started_at_ns: container.started_at_ns.or(started_at_ns),
            finished_at_ns: finished_at_ns.or(container.finished_at_ns),
            exit_code: end.exit_code,
            ..Self::of(container)
        }
    }

    /// Changes places with what the container holds.
    pub(super) fn swap(&mut self, container: &mut Container) {
        std::mem::swap(&mut self.state, &mut container.state);
        std::mem::swap(&mut self.pid, &mut container.pid);
        std::mem::swap(&mut self.started_at_ns, &mut container.started_at_ns);
        std::mem::swap(&mut self.finished_at_ns, &mut container.finished_at_ns);
        std::mem::swap(&mut self.exit_code, &mut container.exit_code);
        std::mem::swap(&mut self.oom_killed, &mut container.oom_killed);
        std::mem::swap(&mut self.reason, &mut container.reason);
    }
}

/// A container of which nothing but events was seen.
pub(super) fn barely_known(
    id: &ContainerId,
    kind: ContainerKind,
    runtime: Option<&RuntimeSource>,
    created_at_ns: u64,
) -> Container {
    let text = |pick: fn(&RuntimeSource) -> &Arc<str>| {
        runtime.map_or_else(|| "".into(), |runtime| Arc::clone(pick(runtime)))
    };
    Container {
        runtime_name: text(|runtime| &runtime.name),
        runtime_version: text(|runtime| &runtime.version),
        created_at_ns,
        ..Container::bare(
            id.clone(),
            kind,
            runtime.map_or(RuntimeType::Docker, |runtime| runtime.runtime),
        )
    }
}

/// A sandbox's status does not say when it started and ended (CRI v1), nor does containerd of a task when it started,
/// nor anything of one that was deleted after its end; what events said stays.
pub(super) fn keep_what_events_told(view: &mut Arc<Container>, told: Option<&Container>) {
    let is_own = view.runtime == RuntimeType::Containerd;
    let Some(told) = told.filter(|_| is_own || view.kind == ContainerKind::Sandbox) else {
        return;
    };
    let view = Arc::make_mut(view);
    if is_own && view.state == State::Created && told.state == State::Exited {
        view.state = State::Exited;
        view.exit_code = told.exit_code;
    }
    if view.state != State::Created {
        view.started_at_ns = view.started_at_ns.or(told.started_at_ns);
    }
    if !view.state.is_live() {
        view.finished_at_ns = view.finished_at_ns.or(told.finished_at_ns);
    }
}

/// Why a run ended, where the runtime or the exit code tells.
pub(super) fn stop_reason(container: &Container) -> &str {
    if container.oom_killed == Some(true) {
        return "oom";
    }
    if !container.reason.is_empty() {
        return &container.reason;
    }
    match container.exit_code {
        Some(129..=165) => "signal",
        Some(_) | None => "",
    }
}
