"""Reads one JSON object field by field and refuses by dotted name. Unknown fields are ignored."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Collection
from re import Pattern
from typing import Any, Callable, TypeVar

from protocol.errors import ProtocolError
from protocol.limits import BIG
from protocol.times import to_datetime

T = TypeVar("T")

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
HEX_64 = re.compile(r"[0-9a-f]{64}")
HEX_32 = re.compile(r"[0-9a-f]{32}")
WORD = re.compile(r"[A-Za-z0-9._:-]+")

_MISSING = object()


class Fields:
    """A JSON object under a name. Absent and null are the same to every `…_or_none` getter."""

    __slots__ = ("_path", "_values")

    def __init__(self, values: object, path: str = "") -> None:
        if not isinstance(values, dict):
            raise ProtocolError(path or "body", "must be an object")
        self._values: dict[str, Any] = values
        self._path = path

    def refuse(self, name: str, message: str) -> ProtocolError:
        """The error for a field of this object, to be raised by the caller."""
        return ProtocolError(self._name(name), message)

    def has(self, name: str) -> bool:
        """Whether a field is there and not null."""
        return self._values.get(name) is not None

    def plain(self) -> dict[str, Any]:
        """The object itself, for those who keep it whole."""
        return self._values

    def without(self, name: str) -> Fields:
        """The same object as if this field were absent."""
        return Fields({key: value for key, value in self._values.items() if key != name}, self._path)

    def text(self, name: str, high: int = 255, low: int = 1, pattern: Pattern[str] | None = None) -> str:
        """A string of `low` to `high` characters that matches `pattern` in full."""
        value = self._get(name)
        if not isinstance(value, str):
            raise self.refuse(name, "must be a string")
        if not low <= len(value) <= high:
            raise self.refuse(name, f"must have {low} to {high} characters")
        if pattern is not None and pattern.fullmatch(value) is None:
            raise self.refuse(name, f"must match {pattern.pattern}")
        return value

    def text_or_none(self, name: str, high: int = 255, low: int = 1, pattern: Pattern[str] | None = None) -> str | None:
        """As `text`, or None."""
        return None if self._values.get(name) is None else self.text(name, high, low, pattern)

    def choice(self, name: str, options: Collection[str]) -> str:
        """One of a few words."""
        value = self._get(name)
        if not isinstance(value, str) or value not in options:
            raise self.refuse(name, "must be one of " + ", ".join(sorted(options)))
        return value

    def uuid(self, name: str) -> str:
        """A UUID in lower case with hyphens."""
        return self.text(name, 36, 36, UUID)

    def time(self, name: str) -> str:
        """An RFC 3339 time, kept as it was written because signatures cover the very text."""
        value = self.text(name, 27, 20)
        try:
            to_datetime(value)
        except ValueError as error:
            raise self.refuse(name, str(error)) from None
        return value

    def time_or_none(self, name: str) -> str | None:
        """As `time`, or None."""
        return None if self._values.get(name) is None else self.time(name)

    def integer(self, name: str, low: int = 0, high: int = BIG) -> int:
        """A whole number without a decimal point; true and false are not numbers."""
        value = self._get(name)
        if type(value) is not int:
            raise self.refuse(name, "must be an integer")
        if not low <= value <= high:
            raise self.refuse(name, f"must lie between {low} and {high}")
        return value

    def integer_or_none(self, name: str, low: int = 0, high: int = BIG) -> int | None:
        """As `integer`, or None."""
        return None if self._values.get(name) is None else self.integer(name, low, high)

    def number(self, name: str, low: float = 0.0, high: float = 1e18) -> float:
        """Any finite number."""
        value = self._get(name)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.refuse(name, "must be a number")
        if not low <= value <= high:
            raise self.refuse(name, f"must lie between {low:g} and {high:g}")
        return float(value)

    def number_or_none(self, name: str, low: float = 0.0, high: float = 1e18) -> float | None:
        """As `number`, or None."""
        return None if self._values.get(name) is None else self.number(name, low, high)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """true or false; `default` stands for an absent or null one, without it the field is required."""
        value = self._values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(name, "must be true or false")
        return value

    def flag_or_none(self, name: str) -> bool | None:
        """true, false or null."""
        return None if self._values.get(name) is None else self.flag(name)

    def blob(self, name: str, high: int, low: int = 0) -> bytes:
        """Bytes in standard base64 with padding."""
        value = self.text(name, (high + 2) // 3 * 4, 0)
        try:
            raw = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise self.refuse(name, "must be base64") from None
        if not low <= len(raw) <= high:
            raise self.refuse(name, f"must have {low} to {high} bytes")
        return raw

    def texts(self, name: str, items: int, high: int = 255, pattern: Pattern[str] | None = None) -> tuple[str, ...]:
        """At most `items` strings of 1 to `high` characters; absent is empty."""
        found = self._list(name, items)
        for index, value in enumerate(found):
            place = f"{name}.{index}"
            if not isinstance(value, str):
                raise self.refuse(place, "must be a string")
            if not 1 <= len(value) <= high:
                raise self.refuse(place, f"must have 1 to {high} characters")
            if pattern is not None and pattern.fullmatch(value) is None:
                raise self.refuse(place, f"must match {pattern.pattern}")
        return tuple(found)

    def numbers_or_none(self, name: str, items: int, low: float, high: float) -> tuple[float, ...] | None:
        """At most `items` finite numbers, or None."""
        if self._values.get(name) is None:
            return None
        found = self._list(name, items)
        for index, value in enumerate(found):
            if type(value) not in (int, float) or not low <= value <= high:
                raise self.refuse(f"{name}.{index}", f"must be a number between {low:g} and {high:g}")
        return tuple(float(value) for value in found)

    def each(self, name: str, items: int, parse: Callable[[Fields], T]) -> tuple[T, ...]:
        """At most `items` objects, each read by `parse`; absent is empty."""
        found = self._list(name, items)
        place = self._name(name)
        return tuple([parse(Fields(value, f"{place}.{index}")) for index, value in enumerate(found)])

    def each_or_none(self, name: str, items: int, parse: Callable[[Fields], T]) -> tuple[T, ...] | None:
        """As `each`, but null and absent mean None."""
        return None if self._values.get(name) is None else self.each(name, items, parse)

    def inner(self, name: str) -> Fields:
        """A required object."""
        return Fields(self._get(name), self._name(name))

    def inner_or_none(self, name: str, parse: Callable[[Fields], T]) -> T | None:
        """An object read by `parse`, or None."""
        value = self._values.get(name)
        return None if value is None else parse(Fields(value, self._name(name)))

    def free(self, name: str, keys: int) -> dict[str, Any] | None:
        """An object that the wire does not look into, with at most `keys` keys of at most 100 characters; or None."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(name, "must be an object")
        if len(value) > keys or any(len(key) > 100 for key in value):
            raise self.refuse(name, f"must have at most {keys} keys of at most 100 characters")
        return value

    def _list(self, name: str, items: int) -> list[Any]:
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.refuse(name, "must be a list")
        if len(value) > items:
            raise self.refuse(name, f"must have at most {items} items")
        return value

    def _get(self, name: str) -> Any:
        value = self._values.get(name, _MISSING)
        if value is _MISSING:
            raise self.refuse(name, "is required")
        return value

    def _name(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name
