"""What becomes of an agent: state and event in, next state and effects out. Pure; whoever calls it acts and keeps time.

All times are seconds of the boot clock.
"""

from __future__ import annotations

from typing import NamedTuple, Union

STOPPED = "stopped"
STARTING = "starting"
RUNNING = "running"
STOPPING = "stopping"
BACKOFF = "backoff"
PHASES = (STOPPED, STARTING, RUNNING, STOPPING, BACKOFF)

RESTART_STEPS_S = (0.0, 10.0, 10.0, 30.0, 30.0)
LAST_STEP_S = 60.0
QUIET_S = 600.0
PROVEN_S = 60.0
START_S = 30.0
KILL_AGAIN_S = 5.0


class State(NamedTuple):
    """Where an agent stands. `due`: when a `Tick` has something to do; `restarts` counts since the last quiet time."""

    phase: str = STOPPED
    desired: str = STOPPED
    since: float = 0.0
    due: float | None = None
    restarts: int = 0
    is_exhausted: bool = False
    """Tried beyond the steps, and not lasted for long since."""
    is_unhealthy: bool = False
    will_start: bool = False
    """Once it has stopped."""
    is_penalty: bool = False
    """It was stopped for misbehaving: the next start counts as a restart and waits like one."""


# ---- events


class Want(NamedTuple):
    """Somebody says what should be: `running` or `stopped`."""

    desired: str


class Restart(NamedTuple):
    """Stop and start again. A penalty counts like a crash, so that a leak does not make it spin."""

    reason: str
    is_penalty: bool


class Up(NamedTuple):
    """The process is there: started by us, or found."""

    is_found: bool


class Down(NamedTuple):
    """The process is gone, or could not be started. `how` says it in words; `is_failure`: not an exit with code 0."""

    how: str
    is_failure: bool


class Judged(NamedTuple):
    """All health checks together have changed their mind."""

    is_healthy: bool
    detail: str


class Tick(NamedTuple):
    """Time has passed."""


Event = Union[Want, Restart, Up, Down, Judged, Tick]


# ---- effects


class Spawn(NamedTuple):
    """Start the process."""


class Ask(NamedTuple):
    """Ask the process to end, the way its manifest says."""


class Kill(NamedTuple):
    """End the whole process group at once."""


class Tell(NamedTuple):
    """An event for the Manager."""

    kind: str
    severity: str
    message: str


Effect = Union[Spawn, Ask, Kill, Tell]
Step = tuple[State, tuple[Effect, ...]]


def status(state: State) -> str:
    """The word of the contract."""
    if state.phase in (STOPPED, STOPPING):
        return state.phase
    if state.is_exhausted or (state.is_unhealthy and state.phase == RUNNING):
        return "error"
    return state.phase


def step(state: State, event: Event, now: float, stop_s: float) -> Step:
    """The next state, and what is to be done. `stop_s`: how long a graceful stop may take."""
    if isinstance(event, Want):
        return _want_running(state, now) if event.desired == RUNNING else _want_stopped(state, now, stop_s)
    if isinstance(event, Restart):
        return _restart(state, event, now, stop_s)
    if isinstance(event, Up):
        return _up(state, event, now, stop_s)
    if isinstance(event, Down):
        return _down(state, event, now)
    if isinstance(event, Judged):
        return _judged(state, event)
    return _tick(state, now)


def delay_s(restarts: int) -> float:
    """How long the n-th restart waits: the first not at all."""
    return RESTART_STEPS_S[restarts - 1] if restarts <= len(RESTART_STEPS_S) else LAST_STEP_S


def _want_running(state: State, now: float) -> Step:
    state = state._replace(desired=RUNNING)
    if state.phase in (STOPPED, BACKOFF):
        fresh = state._replace(restarts=0, is_exhausted=False, is_penalty=False)
        return _start(fresh, now)
    if state.phase == STOPPING:
        return state._replace(will_start=True), ()
    return state, ()


def _want_stopped(state: State, now: float, stop_s: float) -> Step:
    state = state._replace(desired=STOPPED, will_start=False, is_penalty=False, restarts=0, is_exhausted=False)
    if state.phase in (STARTING, RUNNING):
        return _ask(state, now, stop_s)
    if state.phase == BACKOFF:
        return _rest(state, now), (Tell("agent.stopped", "info", "stopped while it waited for its next start"),)
    return state, ()


def _restart(state: State, event: Restart, now: float, stop_s: float) -> Step:
    if event.is_penalty and (state.phase != RUNNING or state.desired != RUNNING):
        return state, ()
    told = Tell("agent.restarting", "warning" if event.is_penalty else "info", event.reason)
    if not event.is_penalty:
        state = state._replace(desired=RUNNING, restarts=0, is_exhausted=False)
    if state.phase in (STOPPED, BACKOFF):
        state, effects = _start(state, now)
        return state, (told, *effects)
    state = state._replace(will_start=True, is_penalty=event.is_penalty)
    if state.phase == STOPPING:
        return state, (told,)
    state, effects = _ask(state, now, stop_s)
    return state, (told, *effects)


def _up(state: State, event: Up, now: float, stop_s: float) -> Step:
    if state.phase == STOPPING:
        # It was told to stop before it could hear it.
        return state, (Ask(),)
    if state.phase == RUNNING:
        return state, ()
    due = now + PROVEN_S if state.is_exhausted else now + QUIET_S if state.restarts else None
    running = state._replace(phase=RUNNING, since=now, due=due, is_unhealthy=False, will_start=False, is_penalty=False)
    if state.desired != RUNNING:
        return _ask(running, now, stop_s)
    return running, () if event.is_found else (Tell("agent.started", "info", "started"),)


def _down(state: State, event: Down, now: float) -> Step:
    if state.phase in (STOPPED, BACKOFF):
        return state, ()
    if state.phase == STOPPING and not state.will_start:
        return _rest(state, now), (Tell("agent.stopped", "info", f"stopped: {event.how}"),)
    if state.phase == STOPPING and not state.is_penalty:
        return _start(state, now)
    effects: list[Effect] = []
    if state.phase != STOPPING and not _is_old_news(state.restarts):
        kind = "agent.crashed" if event.is_failure else "agent.exited"
        effects.append(Tell(kind, "warning", event.how))
    if state.desired != RUNNING:
        return _rest(state, now), tuple(effects)
    return _again(state, now, effects)


def _is_old_news(restarts: int) -> bool:
    """Beyond the steps it is known that it does not stay up; every tenth end is told, in case it ends otherwise now."""
    return restarts > len(RESTART_STEPS_S) and restarts % 10 != 0


def _again(state: State, now: float, effects: list[Effect]) -> Step:
    """Start it again after the delay of its step; the first one beyond the steps raises the alarm."""
    restarts = state.restarts + 1
    wait = delay_s(restarts)
    if restarts == len(RESTART_STEPS_S) + 1:
        words = f"it does not stay up: {restarts - 1} restarts were in vain; from now on one every {LAST_STEP_S:.0f} s"
        effects.append(Tell("agent.error", "critical", words))
    if (restarts > 1 or state.phase != STOPPING) and restarts <= len(RESTART_STEPS_S) + 1:
        when = "at once" if wait == 0 else f"in {wait:.0f} s"
        effects.append(Tell("agent.restarting", "info", f"restart {restarts} {when}"))
    is_exhausted = state.is_exhausted or restarts > len(RESTART_STEPS_S)
    state = state._replace(restarts=restarts, is_exhausted=is_exhausted)
    if wait == 0:
        state, more = _start(state, now)
        return state, (*effects, *more)
    waiting = state._replace(
        phase=BACKOFF, since=now, due=now + wait, will_start=False, is_penalty=False, is_unhealthy=False
    )
    return waiting, tuple(effects)


def _judged(state: State, event: Judged) -> Step:
    if state.phase != RUNNING or event.is_healthy != state.is_unhealthy:
        return state, ()
    if event.is_healthy:
        return state._replace(is_unhealthy=False), (Tell("agent.healthy", "info", "its health checks pass again"),)
    return state._replace(is_unhealthy=True), (Tell("agent.unhealthy", "warning", event.detail),)


def _tick(state: State, now: float) -> Step:
    if state.due is None or now < state.due:
        return state, ()
    if state.phase == BACKOFF:
        return _start(state, now)
    if state.phase == STOPPING:
        return state._replace(due=now + KILL_AGAIN_S), (Kill(),)
    if state.phase == STARTING:
        return state._replace(due=now + START_S), (Kill(),)
    if state.phase == RUNNING:
        if now >= state.since + QUIET_S:
            return state._replace(due=None, restarts=0, is_exhausted=False), ()
        return state._replace(due=state.since + QUIET_S, is_exhausted=False), ()
    return state._replace(due=None), ()


def _start(state: State, now: float) -> Step:
    fresh = state._replace(
        phase=STARTING, since=now, due=now + START_S, will_start=False, is_penalty=False, is_unhealthy=False
    )
    return fresh, (Spawn(),)


def _ask(state: State, now: float, stop_s: float) -> Step:
    return state._replace(phase=STOPPING, since=now, due=now + stop_s, is_unhealthy=False), (Ask(),)


def _rest(state: State, now: float) -> State:
    return State(phase=STOPPED, desired=state.desired, since=now)
