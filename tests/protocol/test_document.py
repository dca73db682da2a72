"""docs/protocol.md and the package say the same: names, bounds of bodies, reasons, states, settings."""

import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

from protocol import (
    checkin,
    commands,
    enrolment,
    errors,
    inventory,
    limits,
    manifests,
    metrics,
    settings,
    states,
    streams,
    version,
)

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text("utf-8")
UNFENCED = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
CODE_WORDS = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`\n]+)`", UNFENCED))))
MODULES: list[ModuleType] = [checkin, commands, enrolment, inventory, manifests, metrics, settings, streams]


def messages() -> list[type]:
    return [
        found
        for module in MODULES
        for _, found in inspect.getmembers(module, inspect.isclass)
        if hasattr(found, "_fields") and found.__module__ == module.__name__
    ]


@pytest.mark.parametrize("message", messages(), ids=lambda found: found.__name__)
def test_every_field_is_described(message: type) -> None:
    assert set(message._fields) <= CODE_WORDS | {"health"}, message  # type: ignore[attr-defined]


@pytest.mark.parametrize("word", sorted(errors.REASONS | errors.OUTCOME_CODES | states.STATES))
def test_every_reason_and_state_is_described(word: str) -> None:
    assert word in CODE_WORDS


@pytest.mark.parametrize(
    "name", [name for name in settings.DEFAULTS._fields if name not in ("version", "spool", "agents")]
)
def test_every_setting_has_its_default(name: str) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}`"))
    assert str(getattr(settings.DEFAULTS, name)) in row


def test_sizes_are_told() -> None:
    for path, size in [
        ("POST enroll", limits.ENROLL_BYTES),
        ("POST checkin", limits.CHECKIN_BYTES),
        ("POST poll", limits.POLL_BYTES),
        ("POST live", limits.LIVE_BYTES),
        ("POST commands/reports", limits.REPORTS_BYTES),
    ]:
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{path}`"))
        told = f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
        assert told in row


def test_the_version_is_told() -> None:
    assert f"Version **{version.CURRENT}**" in PAGE


def test_the_steps_of_a_command_are_the_table_s() -> None:
    for source in (states.QUEUED, states.DELIVERED, states.ACCEPTED, states.STARTED):
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{source}` | "))
        named = set(re.findall(r"`([a-z_]+)`", row)) - {source}
        if "any terminal state" in row:
            named = states.TERMINAL - named if "but" in row else named | states.TERMINAL
        assert named == states.TRANSITIONS[source]
