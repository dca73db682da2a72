"""Fragments only for htmx itself, never for a boosted link or a history that is restored."""

import pytest
from flask import Flask

from app.kernel.htmx import fragment_of, wants_fragment

HTMX = {"HX-Request": "true"}


@pytest.mark.parametrize(
    ("headers", "is_fragment"),
    [
        ({}, False),
        (HTMX, True),
        ({"HX-Request": "false"}, False),
        (HTMX | {"HX-Boosted": "true"}, False),
        (HTMX | {"HX-History-Restore-Request": "true"}, False),
    ],
)
def test_who_gets_a_fragment(sqlite_app: Flask, headers: dict[str, str], is_fragment: bool) -> None:
    with sqlite_app.test_request_context("/", headers=headers):
        assert wants_fragment() is is_fragment


def test_a_fragment_is_given_only_for_the_part_that_was_asked_for(sqlite_app: Flask) -> None:
    with sqlite_app.test_request_context("/", headers=HTMX | {"HX-Target": "users-table"}):
        assert fragment_of("users-table")
        assert not fragment_of("audit-table")
