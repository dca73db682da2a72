"""Why a record has not run yet, and what became of it, in words that somebody understands at night."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from signal import Signals

from flask_babel import format_decimal
from flask_babel import gettext as _

from app.commands.queries import TargetView
from app.kernel.clock import now
from app.tasks.words_runs import ENGINE_REASONS, ERROR_REASONS, WAITING_REASONS

NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Reason:
    text: str = ""
    label: str = ""
    """What happens at `until`."""
    until: datetime | None = None
    detail: str | None = None
    """The host's own words."""


def explain(view: TargetView, *, is_paused: bool, maintenance: Mapping[int, datetime]) -> Reason:
    """`maintenance`: node id → when it ends."""
    match view.status:
        case "pending":
            return _waiting(view, is_paused, maintenance.get(view.node_id))
        case "running" | "success":
            return Reason()
        case "cancelled":
            return _cancelled(view)
        case _:
            return _ended(view)


def _waiting(view: TargetView, is_paused: bool, maintenance_until: datetime | None) -> Reason:
    key = view.waiting_for or ("paused" if is_paused else "delivery")
    text = str(WAITING_REASONS[key])
    if key == "retry_interval":
        return Reason(text, _("next attempt"), view.due_at, view.error or None)
    given_up = view.not_after or NEVER
    if key == "node_maintenance" and maintenance_until is not None and now() < maintenance_until < given_up:
        return Reason(text, _("maintenance ends"), maintenance_until)
    return Reason(text, _("given up") if view.not_after else "", view.not_after)


def _cancelled(view: TargetView) -> Reason:
    known = ENGINE_REASONS.get(view.error) if view.error else None
    if known is not None:
        return Reason(str(known))
    if view.started_at is not None:
        return Reason(_("Cancelled while it ran."), detail=view.error)
    return Reason(_("Cancelled before it began."), detail=view.error)


def _ended(view: TargetView) -> Reason:
    known = ENGINE_REASONS.get(view.error) if view.error else None
    if known is not None:
        return Reason(str(known))
    if view.error_code in (None, "task_failed") and view.signal:
        return Reason(_("A signal ended it: %(name)s.", name=signal_name(view.signal)), detail=view.error)
    if view.error_code in (None, "task_failed") and view.exit_code:
        return Reason(_("It ended with exit code %(code)s.", code=view.exit_code), detail=view.error)
    return Reason(str(ERROR_REASONS.get(view.error_code or "task_failed", view.error_code)), detail=view.error)


def signal_name(number: int) -> str:
    try:
        return f"{number} ({Signals(number).name})"
    except ValueError:
        return str(number)


def duration(ms: float | None) -> str:
    """As short as it can be said: 43 ms, 1.2 s, 3 min 20 s, 2 h 5 min."""
    if ms is None:
        return "–"
    if ms < 1000:
        return str(_("%(n)s ms", n=round(ms)))
    if ms < 59_950:
        return str(_("%(n)s s", n=format_decimal(round(ms / 1000, 1))))
    minutes, seconds = divmod(round(ms / 1000), 60)
    if minutes < 60:
        return str(_("%(m)s min %(s)s s", m=minutes, s=seconds))
    return str(_("%(h)s h %(m)s min", h=minutes // 60, m=minutes % 60))
