"""Where a task runs, as fields of a form: host names, ticked groups and tags, lines of labels, a selector."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flask_babel import gettext as _
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.kernel.errors import BadParameter, FieldError
from app.kernel.forms import row_numbers
from app.nodes.models import Node
from app.nodes.selecting import members
from app.tasks.form_contents import plain
from app.tasks.targeting import condition_of

FIELDS = {"node": "nodes", "group": "groups", "tag": "tags", "label": "labels", "selector": "selector", "all": "all"}
"""Target type → the field that holds its value."""
NUMBERED = re.compile(r"#([1-9][0-9]{0,17})")
AT_ONCE = 900
MOST = 10_000


def read_target(session: Session, typed: Mapping[str, Any]) -> tuple[str, list[Any], list[FieldError]]:
    """Target type and value, and what is wrong with them."""
    type_ = typed.get("target_type")
    if type_ not in FIELDS:
        return "all", [], [FieldError("target_type", _("This is needed."))]
    try:
        value = _value(session, type_, typed)
        condition_of(session, type_, value)
    except BadParameter as error:
        return type_, [], list(error.errors)
    return type_, value, []


def _value(session: Session, type_: str, typed: Mapping[str, Any]) -> list[Any]:
    text = plain(typed.get(FIELDS[type_]))
    match type_:
        case "node":
            return _numbers_of(session, re.split(r"[\s,;]+", text))
        case "group":
            return row_numbers(typed.get("groups") or [], MOST)
        case "tag":
            return list(typed.get("tags") or [])
        case "label":
            return [line.strip() for line in text.split("\n") if line.strip()]
        case "selector":
            return [text.strip()] if text.strip() else []
        case _:
            return []


def _numbers_of(session: Session, words: Sequence[str]) -> list[int]:
    """Of hosts by name, or by number as `#12`. Raises BadParameter for names that no host or more than one has."""
    wanted = list(dict.fromkeys(word for word in words if word))
    if len(wanted) > MOST:
        raise _refusal(_("At most %(count)s hosts can be named.", count=MOST))
    numbers = [int(found.group(1)) for word in wanted if (found := NUMBERED.fullmatch(word))]
    names = [word for word in wanted if not NUMBERED.fullmatch(word)]
    known: dict[str, list[int]] = {}
    for some in _slices(names):
        for id_, hostname in session.execute(select(Node.id, Node.hostname).where(members(), Node.hostname.in_(some))):
            known.setdefault(hostname, []).append(id_)
    if unknown := [name for name in names if name not in known]:
        raise _refusal(_("There is no host called %(names)s.", names=", ".join(unknown[:10])[:300]))
    if several := next((name for name in names if len(known[name]) > 1), None):
        choices = ", ".join(f"#{number}" for number in sorted(known[several]))
        text = _(
            "Several hosts are called %(name)s. Say which by its number: %(choices)s.", name=several, choices=choices
        )
        raise _refusal(text)
    return numbers + [known[name][0] for name in names]


def _slices(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """As many as a database takes in one question."""
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]


def _refusal(message: str) -> BadParameter:
    return BadParameter(errors=[FieldError("target_value", message)])


def target_values(session: Session, type_: str, value: Sequence[Any]) -> dict[str, Any]:
    """The fields that show this target."""
    shown: Any
    match type_:
        case "node":
            shown = "\n".join(host_names(session, value))
        case "group" | "tag":
            shown = list(map(str, value))
        case "label":
            shown = "\n".join(map(str, value))
        case _:
            shown = value[0] if value else ""
    return {"target_type": type_, FIELDS.get(type_, ""): shown}


def host_names(session: Session, numbers: Sequence[Any]) -> list[str]:
    """What to call these hosts so that `read_target` finds them again: by name where that is enough."""
    ids = [number for number in numbers if isinstance(number, int)]
    names: dict[int, str] = {}
    for some in _slices(ids):
        names |= dict(session.execute(select(Node.id, Node.hostname).where(members(), Node.id.in_(some))).all())
    taken: dict[str, int] = {}
    for some in _slices(sorted(set(names.values()))):
        for hostname in session.scalars(select(Node.hostname).where(members(), Node.hostname.in_(some))):
            taken[hostname] = taken.get(hostname, 0) + 1
    return [names[id_] if taken.get(names.get(id_, "")) == 1 else f"#{id_}" for id_ in ids]
