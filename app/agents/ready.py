"""The catalogue: ready manifests with a few parameters, a file for each in `catalogue/`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from flask_babel import gettext as _
from ruamel.yaml import YAML

from app.agents import manifests
from app.kernel.errors import BadParameter, FieldError, NotFound
from app.kernel.i18n import language
from protocol import manifests as wire

DIRECTORY = Path(__file__).parent / "catalogue"
ORDER = ("node_exporter", "telegraf", "filebeat", "task_agent", "nginx", "redis")
PLACE = re.compile(r"\$\{([a-z_]+)\}")
ENGLISH = "en"
KINDS = {
    "name": wire.NAME,
    "path": re.compile(r"/[^\0\n]{1,1023}"),
    "user": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?"),
    "text": re.compile(r"[^\0\n]{1,255}"),
    "port": re.compile(r"[0-9]{1,5}"),
}
Texts = Mapping[str, str]


@dataclass(frozen=True)
class Parameter:
    """One thing to be filled in. Without a value everything that mentions it is left out of the manifest."""

    name: str
    kind: str
    labels: Texts
    helps: Texts = field(default_factory=dict)
    default: Any = None
    required: bool = True

    @property
    def label(self) -> str:
        return _in_language(self.labels)

    @property
    def help(self) -> str:
        return _in_language(self.helps)


@dataclass(frozen=True)
class Entry:
    """A ready manifest, and how its configuration may begin."""

    key: str
    titles: Texts
    descriptions: Texts
    parameters: tuple[Parameter, ...]
    template: Mapping[str, Any]
    starters: Mapping[str, str]

    @property
    def title(self) -> str:
        return _in_language(self.titles)

    @property
    def description(self) -> str:
        return _in_language(self.descriptions)

    @property
    def type(self) -> str:
        return str(self.template["type"])

    @property
    def manifest(self) -> dict[str, Any]:
        """With the defaults of everything."""
        return self.filled({parameter.name: parameter.default for parameter in self.parameters})

    def filled(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest with these values. Raises BadParameter for values that cannot be."""
        return dict(_put_in(self.template, self._values(given)))

    def starter(self, given: Mapping[str, Any]) -> dict[str, str]:
        """Path → an example of its content. It is a template of its own, with its own braces: only ours are filled."""
        values = self._values(given)
        return {str(_put_in(path, values)): str(_put_in(text, values)) for path, text in self.starters.items()}

    def _values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        errors, values = [], {}
        for parameter in self.parameters:
            value = given.get(parameter.name)
            if value is None or value == "":
                if parameter.required:
                    errors.append(FieldError(parameter.name, _("This is needed.")))
                continue
            problem = _problem(parameter, str(value))
            if problem:
                errors.append(FieldError(parameter.name, problem))
            values[parameter.name] = int(value) if parameter.kind == "port" and not problem else str(value)
        if errors:
            raise BadParameter(errors=errors)
        return values


class _Nothing(Exception):
    """A value that was not given is mentioned here."""


def _put_in(template: Any, values: Mapping[str, Any], *, in_list: bool = False) -> Any:
    if isinstance(template, Mapping):
        return dict(_pairs(template, values))
    if isinstance(template, list):
        return [value for _number, value in _pairs(dict(enumerate(template)), values, in_list=True)]
    if not isinstance(template, str):
        return template
    names = PLACE.findall(template)
    if any(name not in values for name in names):
        raise _Nothing
    if not in_list and len(names) == 1 and PLACE.fullmatch(template):
        return values[names[0]]
    return PLACE.sub(lambda match: str(values[match.group(1)]), template)


def _pairs(template: Mapping[Any, Any], values: Mapping[str, Any], *, in_list: bool = False) -> list[tuple[Any, Any]]:
    found = []
    for name, inner in template.items():
        try:
            found.append((name, _put_in(inner, values, in_list=in_list)))
        except _Nothing:
            continue
    return found


def _problem(parameter: Parameter, text: str) -> str | None:
    if KINDS[parameter.kind].fullmatch(text) is None:
        problems = {
            "name": _("Small letters, digits and . _ - are allowed, beginning with a letter or digit."),
            "path": _("A path that begins with / is expected."),
            "user": _("This is no name of a user."),
            "port": _("A port between 1 and 65535 is expected."),
        }
        return str(problems.get(parameter.kind) or _("This has characters or a form that is not allowed."))
    if parameter.kind == "port" and not 0 < int(text) < 65536:
        return str(_("A port between 1 and 65535 is expected."))
    return None


def _in_language(texts: Texts) -> str:
    return texts.get(language()) or texts.get(ENGLISH, "")


@cache
def catalogue() -> Mapping[str, Entry]:
    """All entries by their keys."""
    return {key: _read(DIRECTORY / f"{key}.yaml") for key in ORDER}


def entry_by_key(key: str) -> Entry:
    found = catalogue().get(key)
    if found is None:
        raise NotFound
    return found


def starter_for(manifest: Mapping[str, Any]) -> dict[str, str]:
    """An example for each configuration file of an agent that was made from an entry like ours."""
    paths = manifests.config_paths(manifest)
    for entry in catalogue().values():
        like = (manifest.get("type"), _program(manifest)) == (entry.type, _program(entry.manifest))
        if like and paths:
            given = {parameter.name: parameter.default for parameter in entry.parameters}
            examples = list(entry.starter(given).values())
            return dict(zip(paths, examples, strict=False))
    return {}


def _program(manifest: Mapping[str, Any]) -> str:
    return str((manifest.get("start") or [""])[0]).rpartition("/")[2]


def _read(path: Path) -> Entry:
    raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    parameters = tuple(
        Parameter(
            one["name"],
            one["kind"],
            one["label"],
            one.get("help", {}),
            one.get("default"),
            one.get("required", True),
        )
        for one in raw["parameters"]
    )
    return Entry(path.stem, raw["title"], raw["description"], parameters, raw["manifest"], raw.get("starter", {}))
