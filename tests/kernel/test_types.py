"""Column types: what each of them prevents, beside a plain column that shows the harm."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Engine,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import DataError, IntegrityError, StatementError
from sqlalchemy.schema import CreateTable

from app.kernel.db import TABLE_OPTIONS, Base, db
from app.kernel.types import BigId, Json, LongText, Name, UtcDateTime, in_utc

TOKYO = timezone(timedelta(hours=9))
MOMENT = datetime(2026, 3, 29, 1, 59, 59, 123456, tzinfo=UTC)


class Scratch:
    """A table of one column for each type under test, beside plain ones; made and dropped by the test."""

    def __init__(self, engine: Engine, *columns: Column[Any], **options: Any) -> None:
        self.engine = engine
        unique = [UniqueConstraint(column.name) for column in columns if column.info.get("unique")]
        self.table = Table("scratch", MetaData(), Column("id", BigId, primary_key=True), *columns, *unique, **options)
        self.table.create(engine)

    def put(self, **values: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(insert(self.table).values(**values))

    def get(self, name: str) -> Any:
        with self.engine.begin() as connection:
            return connection.scalar(select(self.table.c[name]).order_by(self.table.c.id.desc()).limit(1))

    def stored(self, name: str) -> Any:
        """As the database has it, past our types."""
        with self.engine.begin() as connection:
            return connection.scalar(text(f"SELECT {name} FROM scratch ORDER BY id DESC LIMIT 1"))


@pytest.fixture
def engine(context: Flask) -> Iterator[Engine]:
    yield db.engine
    with db.engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS scratch"))


def is_mariadb(engine: Engine) -> bool:
    return engine.dialect.name == "mysql"


def test_a_moment_keeps_its_fraction_and_its_zone_where_a_plain_column_loses_both(engine: Engine) -> None:
    scratch = Scratch(engine, Column("ours", UtcDateTime), Column("plain", DateTime), **TABLE_OPTIONS)
    scratch.put(ours=MOMENT.astimezone(TOKYO), plain=MOMENT.astimezone(TOKYO))
    assert scratch.get("ours") == MOMENT
    assert scratch.get("ours").tzinfo is UTC
    lost = scratch.get("plain")
    assert lost.tzinfo is None
    assert lost.hour == 10, "a plain column keeps the wall clock of Tokyo and forgets that it was Tokyo's"
    assert lost.microsecond == (0 if is_mariadb(engine) else 123456)


def test_moments_sort_as_they_happened_whatever_their_zone(engine: Engine) -> None:
    scratch = Scratch(engine, Column("ours", UtcDateTime), **TABLE_OPTIONS)
    for microsecond in (2, 0, 1):
        scratch.put(ours=MOMENT.replace(microsecond=microsecond).astimezone(TOKYO if microsecond % 2 else UTC))
    with engine.begin() as connection:
        column = scratch.table.c.ours
        found = [moment.microsecond for moment in connection.scalars(select(column).order_by(column))]
        later = connection.scalar(select(func.count()).where(column > MOMENT.replace(microsecond=1).astimezone(TOKYO)))
    assert found == [0, 1, 2]
    assert later == 1


def test_a_moment_without_a_zone_is_refused(engine: Engine) -> None:
    scratch = Scratch(engine, Column("ours", UtcDateTime), **TABLE_OPTIONS)
    with pytest.raises(StatementError, match="a time without a zone"):
        scratch.put(ours=MOMENT.replace(tzinfo=None))


def test_moments_at_the_very_ends_of_time_are_kept_and_never_a_trace(engine: Engine) -> None:
    first = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))
    last = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=timezone(timedelta(hours=-12)))
    scratch = Scratch(engine, Column("ours", UtcDateTime), **TABLE_OPTIONS)
    for moment in (first, last):
        scratch.put(ours=moment)
        assert scratch.get("ours") == in_utc(moment)
    with pytest.raises(OverflowError):
        first.astimezone(UTC)


def test_a_long_text_is_longer_than_64_kib_where_a_plain_one_ends(engine: Engine) -> None:
    scratch = Scratch(engine, Column("ours", LongText), Column("plain", Text), **TABLE_OPTIONS)
    long = "字" * 500_000
    scratch.put(ours=long)
    assert scratch.get("ours") == long
    if is_mariadb(engine):
        with pytest.raises(DataError, match="Data too long"):
            scratch.put(plain=long)


def test_text_may_hold_every_character(engine: Engine) -> None:
    scratch = Scratch(engine, Column("name", Name(64)), Column("long", LongText), **TABLE_OPTIONS)
    for value in ("名前", "🚀 a\u0301", "a\x00b", "\u2028\ufeff", "'; DROP TABLE scratch; --", "\\", "%_"):
        scratch.put(name=value, long=value)
        assert scratch.get("name") == scratch.get("long") == value


@pytest.mark.parametrize("other", ["PROD", "prod ", "prod  ", "pröd", "ｐｒｏｄ"])
def test_names_that_look_alike_are_different_names(engine: Engine, other: str) -> None:
    unique = {"unique": True}
    scratch = Scratch(engine, Column("name", Name(64), info=unique), **TABLE_OPTIONS)
    scratch.put(name="prod")
    scratch.put(name=other)
    with engine.begin() as connection:
        assert connection.scalars(select(scratch.table.c.name).filter_by(name="prod")).all() == ["prod"]
        assert connection.scalars(select(scratch.table.c.name).filter_by(name=other)).all() == [other]


@pytest.mark.parametrize("other", ["PROD", "prod ", "pröd"])
def test_a_plain_column_takes_names_that_look_alike_for_the_same_name(engine: Engine, other: str) -> None:
    scratch = Scratch(engine, Column("plain", String(64), info={"unique": True}))
    scratch.put(plain="prod")
    if is_mariadb(engine):
        with pytest.raises(IntegrityError, match="Duplicate entry"):
            scratch.put(plain=other)
    else:
        scratch.put(plain=other)


def test_the_tables_collation_alone_does_not_tell_blanks_at_the_end_apart(engine: Engine) -> None:
    scratch = Scratch(engine, Column("plain", String(64), info={"unique": True}), **TABLE_OPTIONS)
    scratch.put(plain="prod")
    scratch.put(plain="PROD")
    if is_mariadb(engine):
        with pytest.raises(IntegrityError, match="Duplicate entry"):
            scratch.put(plain="prod ")


def test_names_can_be_searched_without_regard_to_case(engine: Engine) -> None:
    scratch = Scratch(engine, Column("name", Name(64)), **TABLE_OPTIONS)
    scratch.put(name="Prod-1_x")
    for words, found in (("prod", 1), ("PROD-1_", 1), ("1%x", 0), ("prod_1", 0)):
        with engine.begin() as connection:
            matches = scratch.table.c.name.icontains(words, autoescape=True)
            assert connection.scalar(select(func.count()).select_from(scratch.table).where(matches)) == found


def test_a_name_that_is_too_long_is_refused_and_not_cut_on_mariadb(engine: Engine) -> None:
    scratch = Scratch(engine, Column("name", Name(4)), **TABLE_OPTIONS)
    scratch.put(name="字字字字")
    if is_mariadb(engine):
        with pytest.raises(DataError, match="Data too long"):
            scratch.put(name="字字字字字")


def test_json_is_the_same_bytes_on_every_database_where_a_plain_column_is_not(engine: Engine) -> None:
    scratch = Scratch(engine, Column("ours", Json), Column("plain", JSON), **TABLE_OPTIONS)
    value = {"b": [1, 2.5, None, True], "a": {"ü": "字\u2028"}, "": "'\\\""}
    scratch.put(ours=value, plain=value)
    assert scratch.stored("ours") == '{"":"\'\\\\\\"","a":{"ü":"字\u2028"},"b":[1,2.5,null,true]}'
    assert scratch.get("ours") == value
    assert scratch.stored("plain") != scratch.stored("ours")


def test_json_of_the_same_value_is_the_same_text_whatever_the_order_it_was_built_in(engine: Engine) -> None:
    scratch = Scratch(engine, Column("ours", Json), **TABLE_OPTIONS)
    scratch.put(ours={"a": 1, "b": 2})
    first = scratch.stored("ours")
    scratch.put(ours={"b": 2, "a": 1})
    assert scratch.stored("ours") == first == '{"a":1,"b":2}'


def test_json_is_longer_than_64_kib_and_none_is_null(engine: Engine) -> None:
    scratch = Scratch(engine, Column("ours", Json), **TABLE_OPTIONS)
    scratch.put(ours=["x" * 100_000])
    assert len(scratch.get("ours")[0]) == 100_000
    scratch.put(ours=None)
    assert scratch.stored("ours") is None


def test_json_refuses_what_no_other_program_could_read(engine: Engine) -> None:
    scratch = Scratch(engine, Column("ours", Json), **TABLE_OPTIONS)
    with pytest.raises(StatementError, match="not JSON compliant"):
        scratch.put(ours=[float("nan")])


def test_row_numbers_have_64_bits_and_are_never_given_twice(engine: Engine) -> None:
    scratch = Scratch(engine, Column("name", Name(8)), **TABLE_OPTIONS)
    scratch.put(id=2**62, name="a")
    scratch.put(name="b")
    assert scratch.get("id") == 2**62 + 1
    with engine.begin() as connection:
        connection.execute(scratch.table.delete())
    scratch.put(name="c")
    assert scratch.get("id") == 2**62 + 2


def test_every_column_of_ours_has_a_type_of_ours(engine: Engine) -> None:
    """Plain DateTime, Text, String and JSON columns lose something on one of the databases."""
    plain = {DateTime, Text, String, JSON}
    wrong = [
        f"{table.name}.{column.name}"
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if type(column.type) in plain and column.type is not LongText
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("is_mariadb", "collation"), [(True, "utf8mb4_nopad_bin"), (False, "utf8mb4_0900_bin")], ids=["mariadb", "mysql"]
)
def test_mariadb_and_mysql_call_the_collation_of_names_differently(is_mariadb: bool, collation: str) -> None:
    dialect = mysql.dialect()
    dialect.is_mariadb = is_mariadb
    table = Table("t", MetaData(), Column("n", Name(8)))
    assert f"n VARCHAR(8) COLLATE {collation}" in str(CreateTable(table).compile(dialect=dialect))
