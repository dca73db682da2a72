"""Column types that mean the same on SQLite and on MySQL/MariaDB. Plain ones lose fractions, zones or case there."""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Dialect, Integer, String, Text
from sqlalchemy.dialects.mysql import DATETIME, LONGTEXT
from sqlalchemy.types import TypeDecorator, TypeEngine

BigId = BigInteger().with_variant(Integer(), "sqlite")
"""Primary keys: 64 bits; SQLite numbers rows by itself only for a column that is called INTEGER."""

LongText = Text().with_variant(LONGTEXT(), "mysql")
"""Text of any length; MySQL's TEXT ends at 64 KiB."""


def Name(length: int) -> String:  # noqa: N802  stands among types and is used as one
    """A short string. The tables' collation is utf8mb4_bin, so 'prod', 'PROD' and 'prod ' are three names."""
    return String(length)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC to the microsecond. Naive times are refused: nobody knows what they mean."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(DATETIME(fsp=6) if dialect.name == "mysql" else DateTime())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without a zone: {value!r}")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class Json(TypeDecorator[Any]):
    """A JSON value as text, the same bytes on every database."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(LONGTEXT() if dialect.name == "mysql" else Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)
