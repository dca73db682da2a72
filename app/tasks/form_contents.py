"""What a task does, as flat fields of a form: read from what was typed, and written back for editing.

Fields of all types stand side by side in one form; only those of the chosen type are read.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flask_babel import gettext as _

from app.kernel.errors import BadParameter, FieldError
from app.tasks.contents import KNOWN_INTERPRETERS, Value, check_content

PREFIXES = {"script": "", "file": "file_", "config": "config_", "service": "service_", "custom": "custom_"}
OTHER = "other"
"""The interpreter whose path stands in a field of its own."""
WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")
NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")
AS_IT_IS = ("script", "args", "env", "value")
"""Where blanks at the ends mean something."""
TYPED_FORMATS = ("json", "yaml")
"""Formats in which `5` and `"5"` are two things."""
FILE_FIELDS: Mapping[str, Sequence[str]] = {
    "copy": ("dest", "mode", "owner", "recursive"),
    "delete": ("recursive",),
    "upload": ("file_id", "mode", "owner", "sha256"),
    "download": (),
}
CONFIG_FIELDS: Mapping[str, Sequence[str]] = {
    "read": ("key",),
    "set": ("key", "value"),
    "unset": ("key",),
    "replace_line": ("key", "value"),
}
"""What an operation reads beside its path."""
DEFAULTS = {
    "type": "script",
    "interpreter": "shell",
    "file_op": "copy",
    "config_op": "read",
    "config_format": "lines",
    "service_op": "restart",
}
Typed = Mapping[str, Any]


def content_field(type_: str, name: str) -> str:
    """Where a problem of the content's `name` is shown."""
    return f"{PREFIXES.get(type_, '')}{name.partition('.')[0]}"


class _Fields:
    """The fields of one type, and what is wrong with them."""

    def __init__(self, type_: str, typed: Typed) -> None:
        self._prefix, self._typed = PREFIXES[type_], typed
        self.errors: list[FieldError] = []

    def text(self, name: str) -> str | None:
        given = plain(self._typed.get(self._prefix + name))
        return (given if name in AS_IT_IS else given.strip()) or None

    def texts(self, *names: str) -> dict[str, Any]:
        return {name: self.text(name) for name in names}

    def parsed(self, name: str, read: Callable[[str], Any]) -> Any:
        """None also where it cannot be read."""
        given = self.text(name)
        try:
            return None if given is None else read(given)
        except ValueError as error:
            self.errors.append(FieldError(f"content.{name}", str(error)))
            return None


def read_content(type_: str, typed: Typed) -> tuple[dict[str, Any], list[FieldError]]:
    """The checked content, and what is wrong, by the content's own names (`content.script`)."""
    if type_ not in PREFIXES:
        return {}, [FieldError("type", _("This is needed."))]
    fields = _Fields(type_, typed)
    content = READERS[type_](fields)
    try:
        checked = check_content(type_, {name: value for name, value in content.items() if value is not None})
    except BadParameter as error:
        known = {one["field"] for one in fields.errors}
        return {}, fields.errors + [one for one in error.errors if one["field"] not in known]
    return ({} if fields.errors else checked), fields.errors


def _script(fields: _Fields) -> dict[str, Any]:
    interpreter = fields.text("interpreter") or "shell"
    return fields.texts("script", "user", "cwd") | {
        "interpreter": (fields.text("interpreter_path") or "") if interpreter == OTHER else interpreter,
        "args": fields.parsed("args", read_lines),
        "env": fields.parsed("env", read_pairs),
    }


def _file(fields: _Fields) -> dict[str, Any]:
    content = fields.texts("op", "path")
    content |= fields.texts(*FILE_FIELDS.get(content["op"] or "", ()))
    if "recursive" in content:
        content["recursive"] = content["recursive"] is not None
    if WHOLE_NUMBER.fullmatch(content.get("file_id") or ""):
        content["file_id"] = int(content["file_id"])
    return content


def _config(fields: _Fields) -> dict[str, Any]:
    content = fields.texts("op", "path", "format")
    content |= fields.texts(*CONFIG_FIELDS.get(content["op"] or "", ()))
    if "value" in content:
        is_typed = content["format"] in TYPED_FORMATS and content["op"] == "set"
        content["value"] = _typed_value(content["value"] or "") if is_typed else content["value"] or ""
    return content


def _service(fields: _Fields) -> dict[str, Any]:
    return fields.texts("op", "name")


def _custom(fields: _Fields) -> dict[str, Any]:
    return {"plugin": fields.text("plugin"), "arguments": fields.parsed("arguments", _read_object)}


READERS = {"script": _script, "file": _file, "config": _config, "service": _service, "custom": _custom}


def content_values(type_: str, content: Typed) -> dict[str, Any]:
    """The fields that show this content."""
    values = {f"{PREFIXES[type_]}{name}": value for name, value in content.items() if value is not None}
    if type_ == "script":
        values |= {"args": show_lines(content.get("args") or []), "env": show_pairs(content.get("env") or {})}
        if content.get("interpreter", "shell") not in KNOWN_INTERPRETERS:
            values |= {"interpreter": OTHER, "interpreter_path": content["interpreter"]}
    elif type_ == "config" and "config_value" in values:
        values["config_value"] = show_value(content["value"], str(content.get("format")))
    elif type_ == "custom":
        arguments = content.get("arguments") or {}
        values["custom_arguments"] = json.dumps(arguments, ensure_ascii=False, indent=2) if arguments else ""
    return values


def plain(given: Any) -> str:
    """What browsers send has the line ends of another world; scripts must not."""
    return given.replace("\r\n", "\n").replace("\r", "\n") if isinstance(given, str) else ""


def read_lines(text: str) -> list[str]:
    """One on each line; or a JSON list, for what holds line ends itself."""
    found = _json(text) if text.startswith("[") else None
    if isinstance(found, list) and all(isinstance(one, str) for one in found):
        return found
    return [line for line in text.split("\n") if line.strip()]


def show_lines(items: Sequence[str]) -> str:
    text = "\n".join(items)
    return text if read_lines(text) == list(items) else json.dumps(list(items), ensure_ascii=False)


def read_pairs(text: str) -> dict[str, str]:
    """NAME=value on each line; or a JSON object. Raises ValueError."""
    found = _json(text) if text.startswith("{") else None
    if isinstance(found, dict) and all(isinstance(one, str) for one in found.values()):
        return found
    pairs: dict[str, str] = {}
    for line in filter(str.strip, text.split("\n")):
        name, equals, value = line.partition("=")
        if not equals or not name.strip():
            raise ValueError(_("%(line)s: NAME=value is expected, one on each line.", line=line[:60]))
        pairs[name.strip()] = value
    return pairs


def show_pairs(pairs: Mapping[str, Value]) -> str:
    shown = {name: show_scalar(value) for name, value in pairs.items()}
    text = "\n".join(f"{name}={value}" for name, value in shown.items())
    try:
        is_the_same = read_pairs(text) == shown
    except ValueError:
        is_the_same = False
    return text if is_the_same else json.dumps(shown, ensure_ascii=False)


def show_scalar(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def typed_scalar(type_: str, text: str) -> Value:
    """A parameter's value of its type; text that is none stays text, which the check then complains about."""
    if type_ == "integer" and WHOLE_NUMBER.fullmatch(text.strip()):
        return int(text)
    if type_ == "number" and NUMBER.fullmatch(text.strip()):
        return float(text) if "." in text else int(text)
    if type_ == "boolean" and text in ("true", "false"):
        return text == "true"
    return text


def _typed_value(text: str) -> Any:
    """`true`, `5` and `[1]` are what they look like in JSON; everything else is text."""
    found = _json(text, _MISSING)
    return text if found is _MISSING else found


def show_value(value: Any, format_: str) -> str:
    if isinstance(value, str) and (format_ not in TYPED_FORMATS or _typed_value(value) == value):
        return value
    return json.dumps(value, ensure_ascii=False)


_MISSING = object()


def _json(text: str, otherwise: Any = None) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return otherwise


def _no_constant(name: str) -> None:
    """NaN and Infinity, which are no JSON."""
    raise ValueError(name)


def _read_object(text: str) -> dict[str, Any]:
    found = _json(text)
    if not isinstance(found, dict):
        raise ValueError(_('A JSON object is expected, such as {"name": "value"}.'))
    return found
