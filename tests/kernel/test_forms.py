"""HTML forms over the schemas of the API: lenient about how it was typed, exact about what it means."""

from collections.abc import Iterator
from typing import Annotated, Literal

import pytest
from flask import Flask
from pydantic import AfterValidator, Field, model_validator
from werkzeug.datastructures import MultiDict

from app.kernel.api import In
from app.kernel.db import db
from app.kernel.errors import BadParameter, Conflict, FieldError, NotFound
from app.kernel.forms import OVERALL, Form, row_numbers
from app.kernel.live_settings import ChangedSetting, changed_settings


def not_seven(value: int) -> int:
    if value == 7:
        raise ValueError("Seven is taken.")
    return value


class Trip(In):
    name: str = Field(min_length=1, max_length=8)
    days: Annotated[int, AfterValidator(not_seven)] = 3
    note: str | None = None
    is_fun: bool = False
    kind: Literal["long", "short"] = "short"
    stops: list[str] = Field(default_factory=list, max_length=2)
    marks: list[int] = Field(default_factory=list)

    @model_validator(mode="after")
    def check_together(self) -> "Trip":
        if self.kind == "long" and self.days < 3:
            raise ValueError("A long trip takes three days.")
        return self


@pytest.fixture(autouse=True)
def request_context(sqlite_app: Flask) -> Iterator[None]:
    with sqlite_app.test_request_context("/"):
        yield


def received(*pairs: tuple[str, str]) -> Form[Trip]:
    return Form.received(Trip, MultiDict(pairs))


def test_what_was_typed_becomes_the_checked_value() -> None:
    form = received(("name", " Rome "), ("days", "5"), ("is_fun", "on"), ("stops", "a"), ("stops", "b"), ("note", "x"))
    assert form.errors == {}
    assert form.value == Trip(name="Rome", days=5, is_fun=True, stops=["a", "b"], note="x")


def test_an_empty_field_counts_as_left_out_and_an_unticked_box_as_no() -> None:
    form = received(("name", "Rome"), ("days", ""), ("note", ""), ("stops", ""), ("stops", "  "))
    assert form.value == Trip(name="Rome")


@pytest.mark.parametrize(("word", "is_ticked"), [("on", True), ("1", True), ("x", True), ("", False), ("0", False)])
def test_a_box_is_ticked_unless_it_says_otherwise(word: str, is_ticked: bool) -> None:
    form = received(("name", "Rome"), ("is_fun", word))
    assert form.value is not None
    assert form.value.is_fun is is_ticked


def test_fields_that_nobody_asked_for_are_dropped() -> None:
    form = received(("name", "Rome"), ("csrf_token", "x"), ("is_admin", "1"))
    assert form.value == Trip(name="Rome")
    assert "csrf_token" not in form.values


def test_wrong_fields_are_named_and_what_was_typed_is_kept() -> None:
    form = received(("name", "much too long"), ("days", "many"), ("kind", "odd"), ("marks", "1"), ("marks", "x"))
    assert form.value is None
    assert form.errors == {
        "name": ["At most 8 characters are allowed."],
        "days": ["A whole number is expected here."],
        "kind": ["One of these is expected: 'long' or 'short'."],
        "marks": ["A whole number is expected here."],
    }
    assert (form.values["name"], form.values["days"]) == ("much too long", "many")


def test_a_missing_field_is_needed() -> None:
    assert received().errors == {"name": ["This is needed."]}


def test_a_rule_of_our_own_speaks_for_itself() -> None:
    assert received(("name", "Rome"), ("days", "7")).errors == {"days": ["Seven is taken."]}


def test_what_is_wrong_with_no_field_in_particular_stands_above_the_form() -> None:
    form = received(("name", "Rome"), ("kind", "long"), ("days", "1"))
    assert form.errors == {OVERALL: ["A long trip takes three days."]}


def test_a_form_without_a_value_does_nothing() -> None:
    done = []
    assert received().submit(done.append) is None
    assert done == []


def test_what_the_action_refuses_is_shown_at_the_form_and_undone() -> None:
    form = received(("name", "Rome"))

    def refuse(_trip: Trip) -> None:
        db.session.add(ChangedSetting(key="half", value=1))
        db.session.flush()
        raise BadParameter(errors=[FieldError("name", "taken"), FieldError("name", "taken"), FieldError("", "all")])

    assert form.submit(refuse) is None
    assert form.errors == {"name": ["taken"], OVERALL: ["all"]}
    assert changed_settings(db.session()) == {}


def test_a_conflict_without_fields_stands_above_the_form() -> None:
    form = received(("name", "Rome"))

    def refuse(_trip: Trip) -> None:
        raise Conflict("That is there already.")

    form.submit(refuse)
    assert form.errors == {OVERALL: ["That is there already."]}


def test_a_refusal_that_is_not_about_the_form_goes_on_upwards() -> None:
    def refuse(_trip: Trip) -> None:
        raise NotFound

    with pytest.raises(NotFound):
        received(("name", "Rome")).submit(refuse)


def test_odd_characters_are_no_trouble() -> None:
    form = received(("name", "\x00\ufffd🚀"), ("note", "\u2028"))
    assert form.value is not None
    assert form.value.name == "\x00\ufffd🚀"
    assert received(("name", "a"), ("days", "9" * 5000)).errors.keys() == {"days"}


def test_ticked_rows_are_numbers_that_a_database_holds() -> None:
    sent = ["7", "12", "", "0", "-1", "²", "１", "x", "1.0", " 3", "9" * 19, "9" * 5000, "999999999999999999"]
    assert row_numbers(sent) == [7, 12, 999999999999999999]
    assert row_numbers(["1", "2", "3"], most=2) == [1, 2]
