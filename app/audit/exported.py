"""An export of the audit log that can be checked elsewhere: how its lines are made, and how they are checked.

Every line is a row with the text that was hashed and the hash before it. The last line is a statement about all lines
before it, signed by us. Checking needs the public key and nothing else: no database, no settings, no secret.
"""

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.audit import chain
from app.audit.verification import Finding
from app.kernel.clock import now, rfc3339


class ExportReport(NamedTuple):
    """`is_complete`: every row of the log from its first to the signed head is there, so nothing was left out."""

    rows: int
    is_complete: bool
    finding: Finding | None


class Source(NamedTuple):
    """What an export is made of: rows as shown, each with what the chain says of it, and the keys that vouch for it."""

    rows: Iterable[tuple[Mapping[str, Any], Mapping[str, Any], str]]
    """What is shown, the row itself, the hash before it."""
    head: chain.Link
    filters: Mapping[str, Any]


def export_lines(source: Source, seal_key: bytes, key: Ed25519PrivateKey) -> Iterator[dict[str, Any]]:
    """The rows, each looked at before it is vouched for, then the statement."""
    digest, count, finding = hashlib.sha256(), 0, None
    for shown, row, previous_hash in source.rows:
        problem = chain.problem_of(row, previous_hash, seal_key)
        if problem is not None and finding is None:
            finding = {"sequence": row["id"], "problem": problem}
        line = {**shown, "canonical": row["canonical"], "previous_hash": previous_hash}
        digest.update(chain.compact(line).encode())
        count += 1
        yield line
    statement = {
        "rows": count,
        "sha256": digest.hexdigest(),
        "head": source.head._asdict(),
        "filters": source.filters,
        "finding": finding,
        "exported_at": rfc3339(now()),
    }
    public_key = b64encode(key.public_key().public_bytes_raw()).decode()
    yield {"statement": statement, "signature": chain.sign_statement(key, statement), "public_key": public_key}


def verify_export(lines: Iterable[str], public_key: Ed25519PublicKey) -> ExportReport:
    """Check an export line by line, in whatever order its rows stand. Of several bad rows the first one is named."""
    reading = _Reading()
    for number, line in enumerate(lines, 1):
        try:
            reading.take(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            reading.findings.append(Finding(0, f"line {number} is none of an export"))
    return reading.report(public_key)


class _Reading:
    """An export as far as it has been read."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._digest, self._rows, self._is_gapless = hashlib.sha256(), 0, True
        self._first, self._last = chain.Link(0, ""), chain.Link(0, "")
        self._before: dict[str, Any] | None = None
        self._end: dict[str, Any] | None = None

    def take(self, line: dict[str, Any]) -> None:
        if self._end is not None:
            self.findings.append(Finding(0, "the export goes on behind its end"))
        if "statement" in line:
            self._end = line
            return
        self._digest.update(chain.compact(line).encode())
        sequence, before = line["sequence"], self._before
        if problem := _problem_of(line, before):
            self.findings.append(Finding(sequence, problem))
        if before is not None and abs(sequence - before["sequence"]) != 1:
            self._is_gapless = False
        if before is None or sequence < self._first.sequence:
            self._first = chain.Link(sequence, line["previous_hash"])
        self._last = max(self._last, chain.Link(sequence, line["hash"]))
        self._rows, self._before = self._rows + 1, line

    def report(self, public_key: Ed25519PublicKey) -> ExportReport:
        statement = self._statement(public_key)
        head = chain.Link(**statement["head"]) if statement else chain.Link(0, "")
        if self._last.sequence == head.sequence > 0 and self._last != head:
            self.findings.append(Finding(head.sequence, "is not the newest row that the Manager knew"))
        is_whole = self._is_gapless and self._rows == head.sequence and self._last == head
        is_complete = is_whole and self._first == chain.Link(1, chain.GENESIS_HASH)
        # A row says more than the statement that it breaks, so rows come first.
        first = min(self.findings, key=lambda found: (found.sequence == 0, found), default=None)
        return ExportReport(self._rows, is_complete and first is None, first)

    def _statement(self, public_key: Ed25519PublicKey) -> dict[str, Any] | None:
        """What was signed, if it was signed with this key and is about these rows."""
        if self._end is None:
            self.findings.append(Finding(0, "the export has no end: it was cut off"))
            return None
        statement: dict[str, Any] = self._end["statement"]
        if not chain.is_statement_signed(public_key, statement, str(self._end.get("signature"))):
            self.findings.append(Finding(0, "the export was not signed with this key"))
            return None
        if (statement["rows"], statement["sha256"]) != (self._rows, self._digest.hexdigest()):
            self.findings.append(Finding(0, "the export holds other rows than were signed"))
        if statement["finding"] is not None:
            self.findings.append(Finding(**statement["finding"]))
        return statement


def _problem_of(line: Mapping[str, Any], before: Mapping[str, Any] | None) -> str | None:
    if chain.next_hash(line["previous_hash"], line["canonical"]) != line["hash"]:
        return "was edited"
    if chain.canonical(line["sequence"], datetime.fromisoformat(line["created_at"]), line) != line["canonical"]:
        return "shows something else than what was hashed"
    step = 0 if before is None else line["sequence"] - before["sequence"]
    if before is not None and (
        step == 0
        or (step == 1 and line["previous_hash"] != before["hash"])
        or (step == -1 and before["previous_hash"] != line["hash"])
    ):
        return "does not fit the row beside it"
    return None
