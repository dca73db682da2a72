"""Writes what is said about settings from the settings themselves: both configuration manuals and the example file.

Of a manual only the tables between the two marks are written; the words around them are edited by hand.
"""

import json
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from babel.messages.catalog import Catalog

from config import (
    SHORT_VARIABLES,
    Address,
    Duration,
    Known,
    Size,
    Strings,
    TimeZone,
    Url,
    known_settings,
)
from tools.check_catalogues import ROOT, read_catalogue

BEGIN, END = "<!-- settings: written by `make documents` -->", "<!-- end of settings -->"
EXAMPLE = ROOT / "configs" / "manager.example.yaml"
MANUALS = {"en": ROOT / "docs" / "configuration.md", "zh": ROOT / "docs" / "configuration.zh.md"}

SPECIAL_KINDS = {"duration": Duration, "size": Size, "list": Strings, "address": Address, "url": Url, "zone": TimeZone}
UNITS = {
    "duration": ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")),
    "size": ((10**9, "GB"), (10**6, "MB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")),
}
HEADER = """\
# Every setting of the Manager, with its default. Copy this file to configs/manager.yaml, take the # from a line to
# change it, and start the Manager with `--config configs/manager.yaml` or with OPS_CONFIG=configs/manager.yaml.
#
# The command line wins over the environment, the environment over this file. A setting that is marked "run time" can
# also be changed on the settings page; what stands there wins over all of them. A secret `name` may be given as
# `name_file` instead: the path of a file that holds it.
#
# Written by `make documents` from config.py; a test keeps it in step.
"""


class Words(NamedTuple):
    """What a manual says in one language."""

    columns: tuple[str, str, str, str]
    general: str
    kinds: dict[str, str]
    between: str
    at_least: str
    more_than: str
    either: str
    nothing: str
    run_time: str
    secret: str


LANGUAGES = {
    "en": Words(
        columns=("Setting and variable", "Default", "Allowed", "Meaning"),
        general="General",
        kinds={
            "duration": "duration",
            "size": "size",
            "list": "list",
            "address": "host:port or socket path",
            "url": "http(s)://host[:port]",
            "zone": "name of a time zone",
            "bool": "true or false",
            "int": "whole number",
            "str": "text",
        },
        between="{low} to {high}",
        at_least="at least {low}",
        more_than="more than {low}, up to {high}",
        either=" or ",
        nothing="empty",
        run_time="**Run time.**",
        secret="**Secret**, also as `{key}_file`.",  # noqa: S106  a sentence about secrets
    ),
    "zh": Words(
        columns=("设置项与环境变量", "默认值", "取值", "含义"),
        general="基本",
        kinds={
            "duration": "时长",
            "size": "大小",
            "list": "列表",
            "address": "主机:端口，或套接字路径",
            "url": "http(s)://主机[:端口]",
            "zone": "时区名",
            "bool": "true 或 false",
            "int": "整数",
            "str": "文本",
        },
        between="{low} 至 {high}",
        at_least="不小于 {low}",
        more_than="大于 {low}，不超过 {high}",
        either=" 或 ",
        nothing="空",
        run_time="**可在线修改。**",
        secret="**机密**，也可写作 `{key}_file`。",  # noqa: S106  a sentence about secrets
    ),
}


def kind_of(item: Known) -> str:
    for name, special in SPECIAL_KINDS.items():
        if special.__metadata__[0] in item.info.metadata:  # type: ignore[attr-defined]
            return name
    if get_origin(item.info.annotation) is Literal:
        return "choice"
    return str(getattr(item.info.annotation, "__name__", ""))


def bound(item: Known, *names: str) -> float | None:
    found = (getattr(rule, name) for rule in item.info.metadata for name in names if hasattr(rule, name))
    return next(found, None)


def with_unit(value: float, kind: str) -> str:
    """A bound as people write it: 2592000 seconds are 30d."""
    for factor, unit in UNITS.get(kind, ()):
        if value >= factor and value % factor == 0:
            return f"{value // factor:.0f}{unit}"
    return f"{value:,.0f}" + (UNITS[kind][-1][1] if kind in UNITS else "")


def allowed(item: Known, words: Words) -> str:
    """What a setting accepts: its kind and its bounds."""
    kind = kind_of(item)
    if kind == "choice":
        return words.either.join(f"`{choice}`" for choice in get_args(item.info.annotation))
    low, more_than, high = bound(item, "ge"), bound(item, "gt"), bound(item, "le")
    shown = {"low": with_unit(low or more_than or 0, kind), "high": "" if high is None else with_unit(high, kind)}
    if low is None and more_than is None:
        return words.kinds[kind]
    form = words.more_than if more_than is not None else words.at_least if high is None else words.between
    comma = ", " if words is LANGUAGES["en"] else "，"
    return words.kinds[kind] + comma + form.format(**shown)


def default_text(item: Known) -> str:
    """The default as it stands in a settings file; empty for nothing."""
    value: Any = item.info.default
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) if isinstance(value, list) else str(value)


def variables(item: Known) -> list[str]:
    """The environment variables that set it, the short one first."""
    short = [variable for variable, key in SHORT_VARIABLES.items() if key == item.key]
    return list(dict.fromkeys([*short, item.variable]))


def section_of(item: Known) -> str:
    return item.key.rpartition(".")[0]


def meaning(item: Known, words: Words, catalogue: Catalog | None) -> str:
    """The help text, in the catalogue's language where it has been translated, and what else is worth knowing."""
    source = item.info.description or ""
    translated = catalogue.get(source) if catalogue is not None else None
    text = str(translated.string) if translated is not None and translated.string else source
    parts = [text.replace("<", "&lt;").replace("|", "\\|")]
    parts += [words.run_time] * item.is_runtime
    parts += [words.secret.format(key=item.key)] * item.is_secret
    return ("" if words is LANGUAGES["zh"] else " ").join(parts)


def tables(words: Words, catalogue: Catalog | None = None) -> str:
    """One table for each section of the settings."""
    lines: list[str] = []
    for section, items in groupby(known_settings(), section_of):
        lines += [f"### {f'`{section}`' if section else words.general}", ""]
        lines += [f"| {' | '.join(words.columns)} |", "|---" * len(words.columns) + "|"]
        for item in items:
            names = "<br>".join(f"`{name}`" for name in (item.key, *variables(item)))
            default = f"`{text}`" if (text := default_text(item)) else words.nothing
            lines.append(f"| {names} | {default} | {allowed(item, words)} | {meaning(item, words, catalogue)} |")
        lines.append("")
    return "\n".join(lines)


def example() -> str:
    """The settings file with every key commented out: what nobody changes goes on following the defaults."""
    lines, opened = [HEADER], ""
    for item in known_settings():
        section = section_of(item)
        if section != opened:
            lines += _opened(opened, section)
            opened = section
        lines += [f"{'  ' * item.key.count('.')}{line}" for line in _example_lines(item)]
    return "\n".join(lines) + "\n"


def _opened(before: str, section: str) -> Iterator[str]:
    """The lines that lead from one section into another: only the levels that differ."""
    old, new = before.split("."), section.split(".")
    shared = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    yield ""
    for depth in range(shared, len(new)):
        yield f"{'  ' * depth}{new[depth]}:"


def _example_lines(item: Known) -> Iterator[str]:
    notes = [allowed(item, LANGUAGES["en"]).replace("`", "")]
    notes += [f"default {default_text(item) or 'empty'}"]
    notes += ["run time"] * item.is_runtime + ["secret"] * item.is_secret
    yield f"# {item.info.description}"
    yield f"# {'; '.join(notes)}; {' or '.join(variables(item))}"
    value = item.info.default
    yield f"#{item.key.rpartition('.')[2]}: {json.dumps(value)}"


def manual(language: str) -> str:
    """A manual with its tables written anew."""
    path = MANUALS[language]
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path.relative_to(ROOT)}: the marks around the tables are missing")
    catalogue = read_catalogue() if language == "zh" else None
    return f"{before}{BEGIN}\n\n{tables(LANGUAGES[language], catalogue)}\n{END}{after}"


def documents() -> dict[Path, str]:
    """Every file that is written, with what should stand in it."""
    return {MANUALS["en"]: manual("en"), MANUALS["zh"]: manual("zh"), EXAMPLE: example()}


def main() -> int:
    for path, text in documents().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
