"""A target in a few words, as lists and pages show it."""

from collections.abc import Sequence
from typing import Any

from flask_babel import gettext as _
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.nodes.models import NodeGroup
from app.tasks.form_targets import host_names


def target_words(session: Session, type_: str, value: Sequence[Any], most: int = 3) -> list[str]:
    """What the target names, the first few of it; the last entry says how many are left out."""
    shown = list(value[:most])
    match type_:
        case "node":
            words = host_names(session, shown)
        case "group":
            found = select(NodeGroup.id, NodeGroup.path).where(NodeGroup.id.in_(shown))
            paths: dict[int, str] = dict(session.execute(found).all())
            words = [paths.get(number, f"#{number}") for number in shown]
        case _:
            words = [str(one) for one in shown]
    return [*words, _("and %(count)s more", count=len(value) - most)] if len(value) > most else words
