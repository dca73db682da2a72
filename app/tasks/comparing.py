"""What hosts said, side by side: in groups of equal outputs within one run, and host by host between two runs."""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from sqlalchemy import LargeBinary, func, select
from sqlalchemy.orm import Session

from app.agents.configuring import difference
from app.commands import dispatch
from app.commands.models import Command, Target
from app.commands.queries import STATUS_OF, TargetView
from app.tasks.harmless import harmless
from app.tasks.models import TaskOutput, TaskRun
from app.tasks.record_queries import stream_pieces

COMPARED_BYTES = 64 * 1024
"""Of each stream. What is longer differs if its length does."""
SAMPLE_CHARS = 1500
AT_ONCE = 100
DIFF_LINES, DIFF_CHARS = 2000, 400
DIGITS = re.compile(rb"[0-9]+")


@dataclass(frozen=True)
class Outcome:
    """How it went on one host. `digest` stands for all that it wrote."""

    id: int
    node_id: int
    hostname: str
    status: str
    exit_code: int | None
    signal: int | None
    error_code: str | None
    duration_ms: int | None
    digest: str
    written: int
    """Bytes, as far as they are known."""
    sample: str

    @property
    def is_over(self) -> bool:
        return self.status not in ("pending", "running")

    @property
    def kind(self) -> tuple[str, int | None, int | None, str | None, str]:
        """What is the same for hosts that went alike."""
        return (self.status, self.exit_code, self.signal, self.error_code, self.digest)


def outcomes(session: Session, run: TaskRun, *, is_loose: bool = False) -> list[Outcome]:
    """Of all hosts of a run, by name. Loosely, numbers and the host's own name count as the same everywhere."""
    is_its = (Command.target_id == Target.id) & (Command.attempt == Target.attempt)
    told = (Command.id, Command.exit_code, Command.signal, Command.duration_ms)
    sizes = (Command.stdout_bytes, Command.stderr_bytes)
    mine = (Target.id, Target.node_id, Target.hostname, Target.state, Target.error_code)
    asked = select(*mine, *told, *sizes).outerjoin(Command, is_its).where(Target.fanout_id == run.fanout_id)
    rows = session.execute(asked.order_by(Target.hostname, Target.id)).all()
    found, samples = [], dict[str, str]()
    for some in dispatch.slices(rows, AT_ONCE):
        wrote = _beginnings(session, [row[5] for row in some])
        for id_, node_id, hostname, state, error_code, command_id, exit_code, signal, duration_ms, out, err in some:
            streams = [wrote.get((command_id, name), b"") for name in ("stdout", "stderr")]
            lengths = [max(size or 0, len(data)) for size, data in zip((out, err), streams, strict=True)]
            status = STATUS_OF[state]
            digest = _digest(streams, lengths, hostname if is_loose else None)
            if digest not in samples:
                samples[digest] = b"\n".join(data[: SAMPLE_CHARS * 2] for data in streams).decode(errors="replace")
            shown = (exit_code, signal, error_code, duration_ms, digest, sum(lengths), samples[digest])
            found.append(Outcome(id_, node_id, hostname, status, *shown))
        time.sleep(0)  # others have their turn
    return found


def _beginnings(session: Session, command_ids: Sequence[int]) -> dict[tuple[int, str], bytes]:
    data = func.substr(TaskOutput.data, 1, COMPARED_BYTES - TaskOutput.offset, type_=LargeBinary)
    early = (TaskOutput.command_id.in_(command_ids), TaskOutput.offset < COMPARED_BYTES)
    of_stream = (TaskOutput.command_id, TaskOutput.stream)
    pieces: dict[tuple[int, str], list[bytes]] = {}
    for command_id, stream, piece in session.execute(
        select(*of_stream, data).where(*early).order_by(*of_stream, TaskOutput.offset)
    ):
        pieces.setdefault((command_id, stream), []).append(piece)
    return {key: b"".join(parts) for key, parts in pieces.items()}


def _digest(streams: Sequence[bytes], lengths: Sequence[int], hostname: str | None) -> str:
    made = sha256()
    for data, length in zip(streams, lengths, strict=True):
        text, size = data, str(length)
        if hostname is not None:
            text, size = DIGITS.sub(b"0", data.replace(hostname.encode(), b"?")), str(length > COMPARED_BYTES)
        made.update(b"%d:%s:" % (len(text), size.encode()) + text)
    return made.hexdigest()[:16]


@dataclass
class Group:
    """Hosts that went alike. The first of them stands for all."""

    first: Outcome
    members: list[Outcome] = field(default_factory=list)

    @property
    def key(self) -> str:
        return sha256(repr(self.first.kind).encode()).hexdigest()[:12]

    @property
    def sample(self) -> str:
        return harmless(self.first.sample).strip("\n")[:SAMPLE_CHARS]

    @property
    def is_cut(self) -> bool:
        return self.first.written > len(self.sample.encode()) + 1


def groups(found: Iterable[Outcome]) -> list[Group]:
    """Of what has ended; the largest first."""
    made: dict[object, Group] = {}
    for outcome in found:
        if outcome.is_over:
            made.setdefault(outcome.kind, Group(outcome)).members.append(outcome)
    return sorted(made.values(), key=lambda group: -len(group.members))


@dataclass(frozen=True)
class Pair:
    """One host in two runs."""

    node_id: int
    hostname: str
    before: Outcome | None
    after: Outcome | None

    @property
    def verdict(self) -> str:
        if self.before is None or self.after is None:
            return "only_after" if self.before is None else "only_before"
        if not (self.before.is_over and self.after.is_over):
            return "open"
        if self.before.kind == self.after.kind:
            return "same"
        return "output" if self.before.status == self.after.status else "status"

    @property
    def is_worse(self) -> bool:
        return self.verdict == "status" and self.before is not None and self.before.status == "success"


VERDICTS = ("status", "output", "open", "only_before", "only_after", "same")
"""In the order in which somebody wants to see them."""


def pairs(before: Iterable[Outcome], after: Iterable[Outcome]) -> list[Pair]:
    """What became worse first, then what differs otherwise."""
    old, new = _by_node(before), _by_node(after)
    names = {node_id: outcome.hostname for node_id, outcome in {**old, **new}.items()}
    made = [Pair(node_id, name, old.get(node_id), new.get(node_id)) for node_id, name in names.items()]
    return sorted(made, key=lambda pair: (not pair.is_worse, VERDICTS.index(pair.verdict), pair.hostname))


def _by_node(found: Iterable[Outcome]) -> Mapping[int, Outcome]:
    return {outcome.node_id: outcome for outcome in found}


@dataclass(frozen=True)
class Difference:
    stream: str
    text: str
    is_cut: bool
    has_any: bool
    """Whether either of them wrote anything there."""


def differences(session: Session, before: TargetView, after: TargetView) -> list[Difference]:
    """Stream by stream. Very long outputs are compared as far as somebody would read."""
    found = []
    for stream in ("stdout", "stderr"):
        (old, old_cut), (new, new_cut) = _lines(session, before, stream), _lines(session, after, stream)
        text = difference("\n".join(old), "\n".join(new), stream)
        found.append(Difference(stream, text, old_cut or new_cut, bool(old or new)))
    return found


def _lines(session: Session, view: TargetView, stream: str) -> tuple[list[str], bool]:
    data, is_cut = b"", False
    for piece in stream_pieces(session, view.command_id, stream):
        data += (b"\n[...]\n" if piece.left_out else b"") + piece.data
        if is_cut := len(data) > COMPARED_BYTES:
            break
    lines = harmless(data[:COMPARED_BYTES].decode(errors="replace")).split("\n")
    is_cut = is_cut or len(lines) > DIFF_LINES or any(len(line) > DIFF_CHARS for line in lines)
    return [line[:DIFF_CHARS] for line in lines[:DIFF_LINES]] if data else [], is_cut
