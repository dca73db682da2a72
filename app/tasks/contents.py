"""What the five types of tasks may say: one schema for each type, and the parameters that templates ask for.

Nothing passes that the task agent (`agent.contents`) would refuse; it looks at everything again.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from flask_babel import gettext as _
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from app.kernel.errors import BadParameter, FieldError
from app.kernel.validation import field_errors

TaskType = Literal["script", "file", "config", "service", "custom"]
PARAMETER_NAME = r"^[A-Za-z][A-Za-z0-9_]{0,63}$"
Value = str | int | float | bool
KNOWN_INTERPRETERS = ("shell", "python", "powershell")
USER = r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?"
MODE = r"^[0-7]{3,4}$"
MATCHED_CHARS = 256
"""Of a value that a pattern is tried on."""
MOST_REPEATS, MOST_CHOICES = 2, 8
# What makes a regular expression explode: repeated groups, look-around, back-references (`protocol.manifests`).
ESCAPED, CHOSEN = re.compile(r"\\.", re.DOTALL), re.compile(r"\[\^?\]?[^]]*\]")
EXPLOSIVE, REFERENCE = re.compile(r"\)[*+{]|\(\?[^:]"), re.compile(r"\\[1-9]")


def check_path(given: str) -> str:
    """Absolute, without steps upwards, in one line."""
    if not given.startswith("/") or "\0" in given or ".." in given.split("/"):
        raise ValueError(_("An absolute path without “..” is expected."))
    return given


def check_interpreter(given: str) -> str:
    if given not in KNOWN_INTERPRETERS and not given.startswith("/"):
        raise ValueError(_("shell, python, powershell or an absolute path is expected."))
    return given


def check_no_nul(given: str) -> str:
    if "\0" in given:
        raise ValueError(_("A NUL character cannot be handed over."))
    return given


Text = Annotated[str, AfterValidator(check_no_nul)]
FilePath = Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(check_path)]
UserName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=rf"^{USER}$")]
Owner = Annotated[str, StringConstraints(min_length=1, max_length=129, pattern=rf"^{USER}(:{USER})?$")]
EnvironmentName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
ServiceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@:\\-]{0,127}$")]


class Content(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ScriptContent(Content):
    interpreter: Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(check_interpreter)] = (
        "shell"
    )
    script: Annotated[Text, StringConstraints(min_length=1, max_length=200_000)]
    args: list[Annotated[Text, StringConstraints(max_length=8192)]] = Field(default_factory=list, max_length=200)
    env: dict[EnvironmentName, Annotated[Text, StringConstraints(max_length=32_768)]] = Field(
        default_factory=dict, max_length=200
    )
    user: UserName | None = None
    cwd: FilePath | None = None


class FileContent(Content):
    op: Literal["upload", "download", "copy", "delete"]
    path: FilePath
    dest: FilePath | None = None
    mode: Annotated[str, StringConstraints(pattern=MODE)] | None = None
    owner: Owner | None = None
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    file_id: int | None = Field(None, ge=1)
    recursive: bool = False


class ConfigContent(Content):
    op: Literal["read", "set", "unset", "replace_line", "backup", "restore"]
    path: FilePath
    format: Literal["ini", "properties", "json", "yaml", "xml", "lines"] = "lines"
    key: Annotated[Text, StringConstraints(min_length=1, max_length=1024)] | None = None
    value: Any = None


class ServiceContent(Content):
    op: Literal["start", "stop", "restart", "reload", "status", "enable", "disable"]
    name: ServiceName


class CustomContent(Content):
    plugin: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$")]
    arguments: dict[str, Any] = Field(default_factory=dict)


CONTENTS: Mapping[str, type[Content]] = {
    "script": ScriptContent,
    "file": FileContent,
    "config": ConfigContent,
    "service": ServiceContent,
    "custom": CustomContent,
}


def check_content(type_: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its defaults. Raises BadParameter that names fields as `content.script`."""
    try:
        checked = CONTENTS[type_].model_validate(dict(content), strict=True)
    except ValidationError as error:
        errors = [FieldError(f"content.{found['field']}", found["message"]) for found in field_errors(error)]
        raise BadParameter(errors=errors) from None
    missing = [name for name in _needed(checked) if getattr(checked, name) is None]
    if missing:
        raise BadParameter(errors=[FieldError(f"content.{name}", _("This is needed.")) for name in missing])
    if isinstance(checked, ConfigContent) and checked.op == "replace_line" and not isinstance(checked.value, str):
        raise BadParameter(errors=[FieldError("content.value", _("A line of text is expected."))])
    return checked.model_dump()


def _needed(content: Content) -> Sequence[str]:
    """What an operation cannot do without, beside what all of its type need."""
    if isinstance(content, FileContent):
        return {"copy": ("dest",), "upload": ("file_id",)}.get(content.op, ())
    if isinstance(content, ConfigContent):
        return {"set": ("key", "value"), "unset": ("key",), "replace_line": ("key", "value")}.get(content.op, ())
    return ()


class Parameter(BaseModel):
    """What a template asks for. A script finds it as `OPS_PARAM_NAME`; it never becomes part of the text."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, StringConstraints(pattern=PARAMETER_NAME)]
    type: Literal["string", "integer", "number", "boolean", "choice"] = "string"
    description: Annotated[str, StringConstraints(max_length=255)] = ""
    required: bool = False
    default: Value | None = None
    choices: list[Annotated[str, StringConstraints(max_length=255)]] = Field(default_factory=list, max_length=100)
    pattern: Annotated[str, StringConstraints(max_length=255)] | None = None
    minimum: float | None = None
    maximum: float | None = None


def check_parameters(asked: Sequence[Mapping[str, Any]], given: Mapping[str, Value]) -> dict[str, Value]:
    """Values for a template's parameters, defaults filled in. Raises BadParameter by `parameters.name`."""
    wanted = {str(one["name"]): Parameter.model_validate(one) for one in asked}
    errors = [FieldError(f"parameters.{name}", _("This is not known here.")) for name in given if name not in wanted]
    values: dict[str, Value] = {}
    for name, parameter in wanted.items():
        value = given.get(name, parameter.default)
        if value is None:
            if parameter.required:
                errors.append(FieldError(f"parameters.{name}", _("This is needed.")))
            continue
        if problem := _problem(parameter, value):
            errors.append(FieldError(f"parameters.{name}", problem))
        values[name] = value
    if errors:
        raise BadParameter(errors=errors)
    return values


def _problem(parameter: Parameter, value: Value) -> str | None:
    problem = _what_is_wrong(parameter, value)
    return None if problem is None else str(problem)


def _what_is_wrong(parameter: Parameter, value: Value) -> Any:
    kinds: Mapping[str, tuple[type, ...]] = {"integer": (int,), "number": (int, float), "boolean": (bool,)}
    allowed = kinds.get(parameter.type, (str,))
    if not isinstance(value, allowed) or (isinstance(value, bool) and parameter.type != "boolean"):
        return _("A value of type %(type)s is expected.", type=parameter.type)
    if parameter.type == "choice" and value not in parameter.choices:
        return _("One of: %(names)s", names=", ".join(parameter.choices))
    if isinstance(value, str):
        if "\0" in value or len(value) > 32_768:
            return _("This is too long, or holds a NUL character.")
        if parameter.pattern and len(value) > MATCHED_CHARS:
            return _("At most %(max)s characters are allowed.", max=MATCHED_CHARS)
        if parameter.pattern and not re.fullmatch(parameter.pattern, value):
            return _("This does not have the expected form.")
    elif not isinstance(value, bool):
        low, high = parameter.minimum, parameter.maximum
        if (low is not None and value < low) or (high is not None and value > high):
            return _("This is out of bounds.")
    return None


def is_costly(pattern: str) -> bool:
    """Whether a short text may keep this regular expression busy for long. What is escaped or in brackets is plain."""
    references = any(REFERENCE.match(found) for found in ESCAPED.findall(pattern))
    plain = CHOSEN.sub("a", ESCAPED.sub("a", pattern))
    repeats = sum(map(plain.count, "*+{"))
    choices = plain.count("|") + plain.count("?") - plain.count("(?:")
    return references or bool(EXPLOSIVE.search(plain)) or repeats > MOST_REPEATS or choices > MOST_CHOICES


def check_definitions(parameters: Sequence[Parameter]) -> None:
    """Names are unique without case, patterns can be read, defaults fit."""
    errors, seen = [], set[str]()
    for number, parameter in enumerate(parameters):
        if parameter.name.upper() in seen:
            errors.append(FieldError(f"parameters.{number}.name", _("The same name stands here twice.")))
        seen.add(parameter.name.upper())
        if is_costly(parameter.pattern or ""):
            problem = _("At most 2 repetitions, none of a group, and 8 choices: others may take for ever.")
            errors.append(FieldError(f"parameters.{number}.pattern", problem))
            continue
        try:
            re.compile(parameter.pattern or "")
        except (re.error, OverflowError, RecursionError):
            errors.append(FieldError(f"parameters.{number}.pattern", _("This is not a regular expression.")))
            continue
        if parameter.default is not None and (problem := _problem(parameter, parameter.default)):
            errors.append(FieldError(f"parameters.{number}.default", problem))
    if errors:
        raise BadParameter(errors=errors)
