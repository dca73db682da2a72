"""Which feature takes the result of which kind of command: explicit, nothing registers itself by being imported."""

from collections.abc import Mapping

from app.commands.actions import TakeResult

TAKERS: Mapping[str, TakeResult] = {}
