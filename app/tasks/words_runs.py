"""What statuses, triggers and endings of runs and their records are called, for lists, badges and filters alike."""

from collections.abc import Mapping

from flask_babel import lazy_gettext as _l
from flask_babel.speaklater import LazyString

from app.commands import dispatch
from app.commands.models import BY_DEADLINE, BY_ERRORS

RUN_STATUS_NAMES: Mapping[str, LazyString] = {
    "pending": _l("waiting"),
    "running": _l("running"),
    "success": _l("succeeded"),
    "failed": _l("failed"),
    "partial": _l("partly failed"),
    "cancelled": _l("cancelled"),
}
RUN_STATUS_STATES = {"running": "run", "success": "ok", "failed": "bad", "partial": "warn"}
RECORD_STATUS_NAMES: Mapping[str, LazyString] = {
    "pending": _l("waiting"),
    "running": _l("running"),
    "success": _l("succeeded"),
    "failed": _l("failed"),
    "timeout": _l("ran too long"),
    "cancelled": _l("cancelled"),
    "interrupted": _l("interrupted"),
    "expired": _l("not delivered"),
}
RECORD_STATUS_STATES = {
    "running": "run",
    "success": "ok",
    "failed": "bad",
    "timeout": "bad",
    "interrupted": "bad",
    "expired": "warn",
}
TRIGGER_NAMES: Mapping[str, LazyString] = {
    "manual": _l("by hand"),
    "schedule": _l("schedule"),
    "api": _l("API"),
    "alert": _l("alert"),
}
WAITING_REASONS: Mapping[str, LazyString] = {
    "node_offline": _l("The host is offline. It begins when the host is back."),
    "node_maintenance": _l("The host is in maintenance. It begins when that ends."),
    "parallel_limit": _l("Others come first: only so many hosts run at once."),
    "delivery": _l("The order is on its way to the host."),
    "agent_queue": _l("The host has it. Its task agent is busy with others."),
    "retry_interval": _l("It failed and will be tried again."),
    "paused": _l("The run is paused."),
}
ERROR_REASONS: Mapping[str, LazyString] = {
    "task_failed": _l("It could not be done."),
    "task_timeout": _l("It ran too long and was stopped."),
    "not_delivered": _l("Delivery timed out: the host did not begin in time."),
    "agent_busy": _l("The host's task agent had no place left for it."),
    "interrupted": _l("The host or its agent went down in the middle. Nobody knows how far it came."),
    "forbidden_by_host": _l("The host's own rules forbid this."),
    "unsupported_kind": _l("The Daemon on this host is too old for this."),
    "bad_payload": _l("The host could not read the order."),
}
ENGINE_REASONS: Mapping[str | None, LazyString] = {
    dispatch.ENDINGS[BY_ERRORS].error: _l("Not begun: too many other hosts failed."),
    dispatch.ENDINGS[BY_DEADLINE].error: _l("Not begun by the deadline of the run."),
    dispatch.AWAY.error: _l("Delivery timed out: the host was offline or in maintenance all the time."),
    dispatch.UNDELIVERED.error: _l("Delivery timed out: the host did not fetch it in time."),
    dispatch.NOT_STARTED.error: _l("Delivery timed out: the host has it, but did not say in time that it began."),
    dispatch.SILENT.error: _l("The host has not said how it ended. It may have run too long, or lost its connection."),
    dispatch.NODE_GONE.error: _l("The node was deleted or turned away."),
    dispatch.NODE_GONE_MEANWHILE.error: _l("The node was deleted while it ran."),
}
"""By the engine's own words: what it decided without hearing of the host."""
STOPPED_BY_REASONS: Mapping[str, LazyString] = {
    "cancel": _l("Somebody cancelled this run."),
    "errors": _l("Too many hosts failed, so the run stopped by itself. What had not begun was cancelled."),
    "deadline": _l("The time of this run was up."),
}
STREAM_NAMES: Mapping[str, LazyString] = {"stdout": _l("Standard output"), "stderr": _l("Standard error")}
FOR_TEMPLATES = {
    "RUN_STATUS_NAMES": RUN_STATUS_NAMES,
    "RUN_STATUS_STATES": RUN_STATUS_STATES,
    "RECORD_STATUS_NAMES": RECORD_STATUS_NAMES,
    "RECORD_STATUS_STATES": RECORD_STATUS_STATES,
    "TRIGGER_NAMES": TRIGGER_NAMES,
    "RUN_STOPPED_BY": STOPPED_BY_REASONS,
    "STREAM_NAMES": STREAM_NAMES,
}
