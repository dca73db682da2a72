"""What sources, versions and health checks of agents are called, for lists, badges and filters alike."""

from collections.abc import Mapping

from flask_babel import lazy_gettext as _l
from flask_babel.speaklater import LazyString

SOURCE_NAMES: Mapping[str, LazyString] = {
    "manager": _l("the Manager"),
    "builtin": _l("comes with the Daemon"),
    "host": _l("the host itself"),
    "service": _l("a service"),
    "adopted": _l("adopted"),
}
CONFIG_STATE_NAMES: Mapping[str, LazyString] = {
    "saved": _l("only saved"),
    "pushing": _l("on its way"),
    "kept": _l("kept"),
    "reverted": _l("taken back"),
    "refused": _l("refused"),
    "failed": _l("failed"),
}
CONFIG_STATE_STATES = {"pushing": "run", "kept": "ok", "reverted": "bad", "refused": "bad", "failed": "bad"}
CHECK_NAMES: Mapping[str, LazyString] = {
    "process": _l("process"),
    "http": _l("HTTP"),
    "tcp": _l("TCP port"),
    "heartbeat": _l("heartbeat"),
    "command": _l("command"),
}
VERB_NAMES: Mapping[str, LazyString] = {
    "start": _l("Start"),
    "stop": _l("Stop"),
    "restart": _l("Restart"),
    "reload": _l("Reload"),
}
VERB_ICONS = {"start": "play", "stop": "stop", "restart": "refresh", "reload": "undo"}
KIND_NAMES: Mapping[str, LazyString] = {f"agent.{verb}": name for verb, name in VERB_NAMES.items()} | {
    "agent.configure": _l("Configuration"),
}
APPLY_NAMES: Mapping[str, LazyString] = {
    "reload": _l("have it read its configuration again"),
    "restart": _l("restart it"),
    "none": _l("leave it as it is"),
}
DESIRED_NAMES: Mapping[str, LazyString] = {"running": _l("running"), "stopped": _l("stopped")}
BATCH_STATE_NAMES: Mapping[str, LazyString] = {
    "pending": _l("waiting"),
    "running": _l("in progress"),
    "paused": _l("paused"),
    "success": _l("done"),
    "failed": _l("failed"),
    "partial": _l("partly done"),
    "cancelled": _l("cancelled"),
    "timeout": _l("too slow"),
    "interrupted": _l("interrupted"),
    "expired": _l("not delivered"),
}
BATCH_STATE_STATES = {
    "running": "run",
    "paused": "warn",
    "success": "ok",
    "failed": "bad",
    "partial": "warn",
    "timeout": "bad",
    "interrupted": "bad",
    "expired": "bad",
}
WAITING_NAMES: Mapping[str, LazyString] = {
    "node_offline": _l("the host is offline"),
    "node_maintenance": _l("the host is in maintenance"),
    "parallel_limit": _l("others come first"),
    "delivery": _l("the host is about to fetch it"),
    "agent_queue": _l("the host has it and is busy"),
    "retry_interval": _l("it will be tried again"),
}
STOPPED_BY_NAMES: Mapping[str, LazyString] = {
    "cancel": _l("Somebody cancelled it."),
    "errors": _l("Too many failed, so it stopped by itself."),
    "deadline": _l("Its time was up."),
}
FOR_TEMPLATES = {
    "AGENT_SOURCE_NAMES": SOURCE_NAMES,
    "CONFIG_STATE_NAMES": CONFIG_STATE_NAMES,
    "CONFIG_STATE_STATES": CONFIG_STATE_STATES,
    "CHECK_NAMES": CHECK_NAMES,
    "VERB_NAMES": VERB_NAMES,
    "KIND_NAMES": KIND_NAMES,
    "VERB_ICONS": VERB_ICONS,
    "APPLY_NAMES": APPLY_NAMES,
    "DESIRED_NAMES": DESIRED_NAMES,
    "BATCH_STATE_NAMES": BATCH_STATE_NAMES,
    "BATCH_STATE_STATES": BATCH_STATE_STATES,
    "WAITING_NAMES": WAITING_NAMES,
    "STOPPED_BY_NAMES": STOPPED_BY_NAMES,
}
