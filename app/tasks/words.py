"""What types, targets, operations and states of tasks are called, for lists, forms and filters alike."""

from collections.abc import Mapping

from flask_babel import lazy_gettext as _l
from flask_babel.speaklater import LazyString

TYPE_NAMES: Mapping[str, LazyString] = {
    "script": _l("Script"),
    "file": _l("File"),
    "config": _l("Configuration file"),
    "service": _l("Service"),
    "custom": _l("Plugin"),
}
TYPE_ICONS = {"script": "terminal", "file": "file", "config": "settings", "service": "service", "custom": "package"}
TARGET_NAMES: Mapping[str, LazyString] = {
    "selector": _l("Selector"),
    "group": _l("Groups"),
    "tag": _l("Tags"),
    "label": _l("Labels"),
    "node": _l("Hosts"),
    "all": _l("All hosts"),
}
TASK_STATUS_NAMES: Mapping[str, LazyString] = {"enabled": _l("on"), "disabled": _l("off")}
TASK_STATUS_STATES = {"enabled": "ok"}
INTERPRETER_NAMES: Mapping[str, LazyString] = {
    "shell": _l("Shell"),
    "python": _l("Python"),
    "powershell": _l("PowerShell"),
    "other": _l("Another"),
}
FILE_OP_NAMES: Mapping[str, LazyString] = {
    "copy": _l("Copy on the host"),
    "delete": _l("Delete"),
    "upload": _l("Bring to the host"),
    "download": _l("Fetch from the host"),
}
CONFIG_OP_NAMES: Mapping[str, LazyString] = {
    "read": _l("Read"),
    "set": _l("Set a value"),
    "unset": _l("Take a value away"),
    "replace_line": _l("Replace a line"),
    "backup": _l("Keep a copy"),
    "restore": _l("Bring the copy back"),
}
FORMAT_NAMES: Mapping[str, LazyString | str] = {
    "lines": _l("Plain lines"),
    "ini": "INI",
    "properties": "Properties",
    "json": "JSON",
    "yaml": "YAML",
    "xml": "XML",
}
SERVICE_OP_NAMES: Mapping[str, LazyString] = {
    "restart": _l("Restart"),
    "start": _l("Start"),
    "stop": _l("Stop"),
    "reload": _l("Reload"),
    "status": _l("Show its state"),
    "enable": _l("Start with the system"),
    "disable": _l("Do not start with the system"),
}
PARAMETER_TYPE_NAMES: Mapping[str, LazyString] = {
    "string": _l("Text"),
    "integer": _l("Whole number"),
    "number": _l("Decimal number"),
    "boolean": _l("Yes or no"),
    "choice": _l("One of several"),
}
FOR_TEMPLATES = {
    "TYPE_NAMES": TYPE_NAMES,
    "TYPE_ICONS": TYPE_ICONS,
    "TARGET_NAMES": TARGET_NAMES,
    "TASK_STATUS_NAMES": TASK_STATUS_NAMES,
    "TASK_STATUS_STATES": TASK_STATUS_STATES,
    "INTERPRETER_NAMES": INTERPRETER_NAMES,
    "FILE_OP_NAMES": FILE_OP_NAMES,
    "CONFIG_OP_NAMES": CONFIG_OP_NAMES,
    "FORMAT_NAMES": FORMAT_NAMES,
    "SERVICE_OP_NAMES": SERVICE_OP_NAMES,
    "PARAMETER_TYPE_NAMES": PARAMETER_TYPE_NAMES,
}
