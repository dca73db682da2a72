"""The policy as a table, and properties over any order of events."""

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.supervisor.policy import (
    BACKOFF,
    KILL_AGAIN_S,
    PHASES,
    PROVEN_S,
    QUIET_S,
    RUNNING,
    START_S,
    STARTING,
    STOPPED,
    STOPPING,
    Ask,
    Down,
    Effect,
    Event,
    Judged,
    Kill,
    Restart,
    Spawn,
    State,
    Tell,
    Tick,
    Up,
    Want,
    delay_s,
    status,
    step,
)

NOW = 1000.0
STOP_S = 10.0

ORDERED = Restart("ordered", is_penalty=False)
PENALTY = Restart("too much memory", is_penalty=True)
CRASH = Down("ended by signal 9", True)
EXIT = Down("exited with code 0", False)


def at(phase: str, desired: str = RUNNING, **more: object) -> State:
    return State(phase=phase, desired=desired, since=NOW - 5, **more)  # type: ignore[arg-type]


def names(effects: tuple[Effect, ...]) -> list[str]:
    return [effect.kind if isinstance(effect, Tell) else type(effect).__name__ for effect in effects]


class Row(NamedTuple):
    state: State
    event: Event
    phase: str
    effects: list[str]
    due_in: float | None = None


ROWS = [
    # Nothing runs and nothing should.
    Row(at(STOPPED, STOPPED), Want(RUNNING), STARTING, ["Spawn"], START_S),
    Row(at(STOPPED, STOPPED), Want(STOPPED), STOPPED, []),
    Row(at(STOPPED, STOPPED), ORDERED, STARTING, ["agent.restarting", "Spawn"], START_S),
    Row(at(STOPPED, STOPPED), PENALTY, STOPPED, []),
    Row(at(STOPPED, STOPPED), CRASH, STOPPED, []),
    Row(at(STOPPED, STOPPED), Tick(), STOPPED, []),
    Row(at(STOPPED, RUNNING), Up(True), RUNNING, []),
    Row(at(STOPPED, STOPPED), Up(True), STOPPING, ["Ask"], STOP_S),
    # On its way up.
    Row(at(STARTING), Up(False), RUNNING, ["agent.started"]),
    Row(at(STARTING, STOPPED), Up(False), STOPPING, ["Ask"], STOP_S),
    Row(at(STARTING), Want(STOPPED), STOPPING, ["Ask"], STOP_S),
    Row(at(STARTING), CRASH, STARTING, ["agent.crashed", "agent.restarting", "Spawn"], START_S),
    Row(at(STARTING, due=NOW), Tick(), STARTING, ["Kill"], START_S),
    Row(at(STARTING), Want(RUNNING), STARTING, []),
    # Running.
    Row(at(RUNNING), Want(RUNNING), RUNNING, []),
    Row(at(RUNNING), Want(STOPPED), STOPPING, ["Ask"], STOP_S),
    Row(at(RUNNING), ORDERED, STOPPING, ["agent.restarting", "Ask"], STOP_S),
    Row(at(RUNNING), PENALTY, STOPPING, ["agent.restarting", "Ask"], STOP_S),
    Row(at(RUNNING), CRASH, STARTING, ["agent.crashed", "agent.restarting", "Spawn"], START_S),
    Row(at(RUNNING), EXIT, STARTING, ["agent.exited", "agent.restarting", "Spawn"], START_S),
    Row(at(RUNNING, restarts=1), CRASH, BACKOFF, ["agent.crashed", "agent.restarting"], 10.0),
    Row(at(RUNNING, restarts=2), CRASH, BACKOFF, ["agent.crashed", "agent.restarting"], 10.0),
    Row(at(RUNNING, restarts=3), CRASH, BACKOFF, ["agent.crashed", "agent.restarting"], 30.0),
    Row(at(RUNNING, restarts=4), CRASH, BACKOFF, ["agent.crashed", "agent.restarting"], 30.0),
    Row(at(RUNNING, restarts=5), CRASH, BACKOFF, ["agent.crashed", "agent.error", "agent.restarting"], 60.0),
    Row(at(RUNNING, restarts=6), CRASH, BACKOFF, [], 60.0),
    Row(at(RUNNING, restarts=99), CRASH, BACKOFF, [], 60.0),
    Row(at(RUNNING, restarts=100), CRASH, BACKOFF, ["agent.crashed"], 60.0),
    Row(at(RUNNING), Judged(False, "no answer"), RUNNING, ["agent.unhealthy"]),
    Row(at(RUNNING, is_unhealthy=True), Judged(False, "no answer"), RUNNING, []),
    Row(at(RUNNING, is_unhealthy=True), Judged(True, ""), RUNNING, ["agent.healthy"]),
    Row(at(RUNNING), Judged(True, ""), RUNNING, []),
    # On its way down.
    Row(at(STOPPING, STOPPED), EXIT, STOPPED, ["agent.stopped"]),
    Row(at(STOPPING, STOPPED), CRASH, STOPPED, ["agent.stopped"]),
    Row(at(STOPPING, STOPPED), Want(RUNNING), STOPPING, []),
    Row(at(STOPPING, STOPPED), ORDERED, STOPPING, ["agent.restarting"]),
    Row(at(STOPPING, will_start=True), EXIT, STARTING, ["Spawn"], START_S),
    Row(at(STOPPING, will_start=True, is_penalty=True), EXIT, STARTING, ["Spawn"], START_S),
    Row(at(STOPPING, will_start=True, is_penalty=True, restarts=1), EXIT, BACKOFF, ["agent.restarting"], 10.0),
    Row(at(STOPPING, STOPPED, due=NOW), Tick(), STOPPING, ["Kill"], KILL_AGAIN_S),
    Row(at(STOPPING, STOPPED, due=NOW + 1), Tick(), STOPPING, [], 1.0),
    Row(at(STOPPING, STOPPED), Up(False), STOPPING, ["Ask"]),
    Row(at(STOPPING, STOPPED), Judged(False, "x"), STOPPING, []),
    # Waiting for the next try.
    Row(at(BACKOFF, due=NOW), Tick(), STARTING, ["Spawn"], START_S),
    Row(at(BACKOFF, due=NOW + 3), Tick(), BACKOFF, [], 3.0),
    Row(at(BACKOFF, due=NOW + 3), Want(RUNNING), STARTING, ["Spawn"], START_S),
    Row(at(BACKOFF, due=NOW + 3), Want(STOPPED), STOPPED, ["agent.stopped"]),
    Row(at(BACKOFF, due=NOW + 3), ORDERED, STARTING, ["agent.restarting", "Spawn"], START_S),
    Row(at(BACKOFF, due=NOW + 3), PENALTY, BACKOFF, [], 3.0),
    Row(at(BACKOFF, due=NOW + 3), Up(True), RUNNING, []),
]


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: f"{row.state.phase}-{type(row.event).__name__}-{row.state.restarts}"
)
def test_the_table(row: Row) -> None:
    state, effects = step(row.state, row.event, NOW, STOP_S)
    assert (state.phase, names(effects)) == (row.phase, row.effects)
    assert state.due == (None if row.due_in is None else NOW + row.due_in)


def test_the_delays_are_the_specification_s() -> None:
    assert [delay_s(number) for number in range(1, 9)] == [0, 10, 10, 30, 30, 60, 60, 60]


def test_ten_quiet_minutes_forget_the_restarts() -> None:
    state, _ = step(at(STARTING, restarts=3), Up(False), NOW, STOP_S)
    assert state.due == NOW + QUIET_S
    early, _ = step(state, Tick(), NOW + QUIET_S - 1, STOP_S)
    assert early.restarts == 3
    late, _ = step(state, Tick(), NOW + QUIET_S, STOP_S)
    assert (late.restarts, late.due) == (0, None)


def test_beyond_the_steps_it_is_an_error_until_it_has_lasted() -> None:
    state, effects = step(at(RUNNING, restarts=5), CRASH, NOW, STOP_S)
    assert [effect.severity for effect in effects if isinstance(effect, Tell)] == ["warning", "critical", "info"]
    assert status(state) == "error"
    state, _ = step(state, Tick(), NOW + 60, STOP_S)
    state, _ = step(state, Up(False), NOW + 60, STOP_S)
    assert status(state) == "error"
    state, _ = step(state, Tick(), NOW + 60 + PROVEN_S, STOP_S)
    assert (status(state), state.restarts) == ("running", 6)
    state, _ = step(state, Tick(), NOW + 60 + QUIET_S, STOP_S)
    assert state.restarts == 0


def test_an_order_to_start_forgives_everything() -> None:
    state = at(BACKOFF, restarts=9, is_exhausted=True, due=NOW + 50)
    state, _ = step(state, Want(RUNNING), NOW, STOP_S)
    assert (state.restarts, state.is_exhausted) == (0, False)


def test_words_of_the_contract() -> None:
    assert status(at(RUNNING, is_unhealthy=True)) == "error"
    assert status(at(STOPPING, is_exhausted=True)) == STOPPING
    assert [status(at(phase)) for phase in PHASES] == list(PHASES)


EVENTS = st.one_of(
    st.sampled_from([Want(RUNNING), Want(STOPPED), ORDERED, PENALTY, Tick(), Judged(False, "x"), Judged(True, "")]),
    st.sampled_from(["process starts", "process ends", "process crashes"]),
)


class World:
    """Starts a process only when told, and never two; remembers what was wanted last."""

    def __init__(self) -> None:
        self.now = 0.0
        self.state = State()
        self.desired = STOPPED
        self.processes = 0
        self.is_coming = False

    def take(self, event: Event) -> None:
        if isinstance(event, Want):
            self.desired = event.desired
        elif event == ORDERED:
            self.desired = RUNNING
        self.state, effects = step(self.state, event, self.now, STOP_S)
        for effect in effects:
            self._act(effect)
        assert self.state.desired == self.desired
        assert self.state.phase in PHASES
        if self.state.phase in (BACKOFF, STOPPING):
            assert self.state.due is not None
        if self.processes or self.is_coming:
            assert self.state.phase in (STARTING, RUNNING, STOPPING)

    def starts(self) -> None:
        if self.is_coming:
            self.processes, self.is_coming = 1, False
            self.take(Up(False))

    def ends(self, event: Down) -> None:
        if self.processes or self.is_coming:
            self.processes, self.is_coming = 0, False
            self.take(event)

    def _act(self, effect: Effect) -> None:
        if isinstance(effect, Spawn):
            assert self.processes == 0
            assert not self.is_coming
            self.is_coming = True
        elif isinstance(effect, (Ask, Kill)):
            assert self.state.phase in (STOPPING, STARTING)


@settings(max_examples=500)
@given(st.lists(st.tuples(EVENTS, st.floats(0, 700)), max_size=60))
def test_whatever_happens_there_is_one_process_and_in_the_end_what_is_desired(
    happenings: list[tuple[Event | str, float]],
) -> None:
    world = World()
    own = {
        "process starts": world.starts,
        "process ends": lambda: world.ends(EXIT),
        "process crashes": lambda: world.ends(CRASH),
    }
    for happening, pause in happenings:
        world.now += pause
        if isinstance(happening, str):
            own[happening]()
        else:
            world.take(happening)
    # From here on nothing crashes: it settles.
    for _ in range(20):
        world.now += 61
        world.starts()
        if world.state.phase == STOPPING:
            world.ends(EXIT)
        world.take(Tick())
    assert world.state.phase == world.desired
    assert world.processes == (world.desired == RUNNING)
