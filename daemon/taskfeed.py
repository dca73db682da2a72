"""What executions say, as the task agent tells it in one held request for all of them, made into the wire's reports."""

from __future__ import annotations

from typing import NamedTuple

from daemon.clock import AGREE_S, Clock
from daemon.system import System
from daemon.taskline import ANSWER_S, AgentAway, TaskLine
from protocol.commands import Output, Report, Result, Start, parse_report
from protocol.errors import ProtocolError
from protocol.fields import Fields
from protocol.times import to_epoch, to_text

WAIT_S = 50
MOST_FOLLOWED = 64
QUICK_S = 0.05
FIRST_PAUSE_S = 0.02
MOST_PAUSE_S = 1.0

TYPES = ("start", "output", "result")


class Told(NamedTuple):
    """What is new of one execution. No reports and a problem: what came makes no sense."""

    id: str
    reports: list[Report]
    problem: str | None


class Heard(NamedTuple):
    """One answer."""

    told: list[Told]
    unknown: list[str]


class Feed:
    """Asks again only when what was asked for is answered or no longer enough."""

    def __init__(self, system: System, clock: Clock) -> None:
        self._system = system
        self._clock = clock
        self._line = TaskLine()
        self._asked: dict[str, int] | None = None
        self._asked_at = 0.0
        self._pause_s = 0.0
        self.not_before = 0.0

    @property
    def overdue_at(self) -> float:
        """When the answer should have come long ago; infinite while nothing is asked."""
        return float("inf") if self._asked is None else self._asked_at + WAIT_S + ANSWER_S

    def fileno(self) -> int:
        """For `select`; -1 while nothing is asked."""
        return -1 if self._asked is None else self._line.fileno()

    def ask(self, path: str | None, places: dict[str, int]) -> None:
        """Ask for what follows these places, unless that is asked already. AgentAway."""
        if self._asked is not None:
            if places.keys() <= self._asked.keys():
                return
            # An answer that is just coming is lost with it, and will be told again: the places have not moved.
            self.close()
        self._line.open(path)
        after = ",".join(f"{name}:{place}" for name, place in places.items())
        self._line.begin("GET", f"events?after={after}&wait_s={WAIT_S}")
        self._asked, self._asked_at = dict(places), self._system.boottime()

    def hear(self) -> Heard:
        """The answer. AgentAway."""
        asked, self._asked = self._asked or {}, None
        try:
            data = Fields(self._line.finish())
            told = data.each("tasks", MOST_FOLLOWED, lambda fields: self._told(fields, asked))
            unknown = data.texts("unknown", MOST_FOLLOWED, 64)
        except ProtocolError as error:
            self.close()
            raise AgentAway(f"the task agent makes no sense: {error}") from None
        heard = Heard([one for one in told if one.id in asked], [name for name in unknown if name in asked])
        self._mind_pace(any(one.reports for one in heard.told) or bool(heard.unknown))
        return heard

    def close(self) -> None:
        """Ask nothing any more."""
        self._asked = None
        self._line.close()

    def _mind_pace(self, is_news: bool) -> None:
        """An agent that answers at once and says nothing must not make us run in circles."""
        now = self._system.boottime()
        if is_news or now - self._asked_at > QUICK_S:
            self._pause_s, self.not_before = 0.0, 0.0
            return
        self._pause_s = min(MOST_PAUSE_S, max(FIRST_PAUSE_S, 2 * self._pause_s))
        self.not_before = now + self._pause_s

    def _told(self, fields: Fields, asked: dict[str, int]) -> Told:
        name = fields.text("id", 64)
        try:
            reports = list(fields.each("events", 1 << 16, lambda event: self._report(name, event)))
            numbers = fields.each("events", 1 << 16, lambda event: event.integer("n"))
            first = asked.get(name, 0)
            if numbers != tuple(range(first, first + len(numbers))):
                raise fields.refuse("events", "are not those that follow")
            if any(isinstance(report, Result) for report in reports[:-1]):
                raise fields.refuse("events", "go on after the result")
            if fields.flag("done") and not (reports and isinstance(reports[-1], Result)):
                raise fields.refuse("done", "must not be without a result")
        except ProtocolError as error:
            return Told(name, [], str(error))
        return Told(name, reports, None)

    def _report(self, name: str, event: Fields) -> Report:
        """As the agent told it, but in the Manager's time where the host's clock is wrong."""
        report = parse_report(event, name, event.choice("type", TYPES))
        offset_ms = self._clock.offset_ms() or 0
        if isinstance(report, Output) or abs(offset_ms) <= 1000 * AGREE_S:
            return report

        def shifted(stamp: str | None) -> str | None:
            return None if stamp is None else to_text(to_epoch(stamp) + offset_ms / 1000)

        if isinstance(report, Start):
            return report._replace(at=shifted(report.at) or report.at)
        if isinstance(report, Result):
            finished_at = shifted(report.finished_at) or report.finished_at
            return report._replace(started_at=shifted(report.started_at), finished_at=finished_at)
        return report
