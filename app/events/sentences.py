"""Events in words: for each known kind sentences with the event's data in them, and how good the news is.

Rooms that come later add their kinds here, where all stand side by side. What is not known is shown as it was written.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Protocol

from flask_babel import format_decimal, format_timedelta
from flask_babel import lazy_gettext as _l
from flask_babel.speaklater import LazyString

from app.kernel.i18n import exact

SENTENCES: Mapping[str, tuple[LazyString, ...]] = {
    "node.enrolled": (_l("enrolled with the token “%(token)s” from %(ip)s"), _l("enrolled from %(ip)s")),
    "node.waits_for_approval": (_l("asks to be let in, from %(ip)s"),),
    "node.approved": (_l("approved by %(by)s"),),
    "node.rejected": (_l("rejected by %(by)s"),),
    "node.revoked": (_l("revoked by %(by)s"),),
    "node.deleted": (_l("deleted by %(by)s"),),
    "node.first_seen": (_l("reported for the first time"),),
    "node.online": (_l("is online again after %(silent_s)s"), _l("is online again")),
    "node.offline": (_l("went offline: nothing heard since %(last_heartbeat)s"), _l("went offline")),
    "node.maintenance": (_l("in maintenance until %(until)s: %(reason)s"), _l("in maintenance until %(until)s")),
    "node.maintenance_ended": (_l("maintenance ended"),),
    "node.certificate_renewed": (_l("uses a renewed certificate"),),
    "node.recovered": (_l("got a new certificate from %(ip)s, since the old one had expired"),),
    "node.cloned": (_l("two machines use this identity; the one at %(ip)s has to enrol again"),),
    "node.points_lost": (_l("%(points)s measurements were lost on the host"),),
    "daemon.started": (_l("the Daemon started"),),
    "daemon.stopping": (_l("the Daemon stops"),),
    "clock.stepped": (_l("the host's clock was set by %(step_s)s seconds"),),
    "spool.damaged": (_l("the Daemon's spool was damaged; what could be read was kept"),),
    "state.damaged": (_l("the Daemon's state was damaged"),),
    "capabilities.changed": (_l("what the host allows has changed"),),
    "command.bad_signature": (_l("a command with a wrong signature was refused"),),
    "certificate.renewed": (_l("the Daemon has a new certificate"),),
    "agent.started": (_l("%(agent)s started"),),
    "agent.stopped": (_l("%(agent)s stopped, as wanted"),),
    "agent.exited": (_l("%(agent)s ended by itself"),),
    "agent.crashed": (
        _l("%(agent)s crashed: signal %(signal)s"),
        _l("%(agent)s crashed: exit code %(exit_code)s"),
        _l("%(agent)s crashed"),
    ),
    "agent.restarting": (_l("%(agent)s is started again"),),
    "agent.error": (_l("%(agent)s does not stay up; it is tried again every minute"),),
    "agent.unhealthy": (_l("%(agent)s fails its health check"),),
    "agent.limit": (_l("%(agent)s uses more than it may"),),
    "agent.configured": (_l("%(agent)s has a new configuration"),),
    "agent.config_reverted": (_l("%(agent)s went back to its last good configuration"),),
    "agent.drifted": (_l("the configuration of %(agent)s was changed on the host"),),
    "agent.adopted": (_l("%(agent)s was found running and is watched now"),),
    "task.run_missed": (_l("%(missed)s runs of the task “%(task)s” were missed, the last at %(scheduled_for)s"),),
    "task.run_skipped": (
        _l("the task “%(task)s” did not run at %(scheduled_for)s: no host fits (%(no_host)s)"),
        _l("the task “%(task)s” did not run at %(scheduled_for)s: the run before still goes on"),
    ),
    "audit.went_back": (_l("the Manager's audit log is shorter than the host knew it to be"),),
}
GOOD = frozenset({"node.enrolled", "node.approved", "node.first_seen", "node.online", "node.recovered"})
STATES = {"critical": "bad", "warning": "warn"}


class Told(Protocol):
    """As much of an event as its sentence needs."""

    kind: Any
    severity: Any
    message: Any
    data: Any
    source: Any


def _moment(value: object) -> str:
    return exact(datetime.fromisoformat(str(value)))


def _duration(value: object) -> str:
    return str(format_timedelta(timedelta(seconds=float(str(value))), granularity="second", threshold=1.2))


SHOWN: Mapping[str, Callable[[Any], str]] = {
    "until": _moment,
    "last_heartbeat": _moment,
    "scheduled_for": _moment,
    "missed": format_decimal,
    "silent_s": _duration,
    "points": format_decimal,
    "step_s": format_decimal,
}


def sentence_for(event: Told) -> str:
    """What happened, in the reader's language; as it was written where no sentence fits."""
    return _known_sentence(event) or str(event.message or event.kind)


def remark_for(event: Told) -> str:
    """The host's own words beside the sentence that stands for them."""
    return str(event.message) if event.source == "host" and _known_sentence(event) is not None else ""


def state_of(event: Told) -> str:
    return STATES.get(event.severity, "ok" if event.kind in GOOD and event.source == "manager" else "idle")


def _known_sentence(event: Told) -> str | None:
    """A host may call its event what it likes; what the Manager says of nodes is not for it to say."""
    if event.source == "host" and event.kind.startswith("node."):
        return None
    data = event.data if isinstance(event.data, dict) else {}
    for template in SENTENCES.get(event.kind, ()):
        try:
            return str(template) % _Values(data)
        except (KeyError, TypeError, ValueError, ArithmeticError):
            continue
    return None


class _Values(dict[str, Any]):
    """The data as sentences show it. What is not there, or empty, is missing: the next sentence does without it."""

    def __getitem__(self, name: str) -> str:
        value = super().__getitem__(name)
        if value is None or value == "":
            raise KeyError(name)
        return SHOWN.get(name, str)(value)
