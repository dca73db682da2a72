"""The audit log in front of a browser: narrowed down, one entry opened, taken along."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser import axe
from tests.web.conftest import Arrive, Manager

pytestmark = pytest.mark.browser


@pytest.fixture
def happened(manager: Manager) -> Manager:
    """Two users made, one changed, one sign-in refused."""
    manager.user("oscar", "operator")
    manager.user("vera", "viewer")
    manager.change("oscar", email="oscar@example.org")
    manager.refuse("mallory")
    return manager


def entries(page: Page) -> list[str]:
    links = page.locator("tbody td.main a")
    return [str(text) for text in links.evaluate_all("links => links.map((link) => link.firstChild.data)")]


def test_it_shows_the_newest_first(arrive: Arrive, happened: Manager, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/audit")
    assert entries(page) == ["auth.sign_in", "auth.sign_in", "user.update", *["user.create"] * 3]
    expect(page.locator(".head")).to_contain_text("6 entries")
    refused = page.get_by_role("row").filter(has_text="mallory")
    expect(refused).to_contain_text("refused")
    expect(refused).to_contain_text("203.0.113.9")


def test_it_is_narrowed_down(arrive: Arrive, happened: Manager, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page

    def apply() -> None:
        if not javascript:
            page.get_by_role("button", name="Apply").click()

    rows = page.locator("tbody tr")
    page.goto("/audit")
    page.get_by_label("Action").select_option("auth.sign_in")
    apply()
    expect(rows).to_have_count(2)
    page.get_by_label("Outcome").select_option("refused")
    apply()
    expect(rows).to_have_count(1)
    expect(page.locator(".chips")).to_contain_text("Outcome: refused")
    page.get_by_role("link", name="Clear all").click()
    expect(rows).to_have_count(6)
    page.get_by_role("searchbox", name="Search", exact=True).fill("203.0.113")
    apply()
    expect(rows).to_have_count(1)


def test_a_name_shows_what_else_that_person_did(arrive: Arrive, happened: Manager) -> None:
    page = arrive("alice").page
    page.goto("/audit")
    page.locator("tbody").get_by_role("link", name="alice").click()
    expect(page).to_have_url(re.compile(r"\?username=alice$"))
    assert entries(page) == ["auth.sign_in"]


def test_an_entry_opens(arrive: Arrive, happened: Manager, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/audit")
    page.get_by_role("link", name="user.update").click()
    if javascript:
        where = page.get_by_role("dialog", name=re.compile("^Entry"))
        expect(where).to_be_visible()
    else:
        where = page.locator("main")
        expect(page.get_by_role("heading", level=1)).to_contain_text("Entry")
    change = where.get_by_role("row").filter(has_text="email")
    expect(change.get_by_role("cell")).to_have_text(["email", "null", '"oscar@example.org"'])
    expect(where).to_contain_text(happened.audited("user.update")[0].hash)
    axe(page)


def test_an_entry_has_an_address(arrive: Arrive, happened: Manager) -> None:
    page = arrive("alice").page
    page.goto(f"/audit/{happened.audited('auth.sign_in')[0].id}")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Entry")
    expect(page.locator("main")).to_contain_text("wrong user name or password")
    page.get_by_role("navigation", name="Breadcrumb").get_by_role("link", name="Audit log").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Audit log")


def read_lines(text: str) -> list[dict[str, Any]]:
    """The rows of a signed export, without the statement about them at its end."""
    *rows, statement = [json.loads(line) for line in text.splitlines()]
    assert statement["signature"]
    return rows


READERS: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    "CSV": lambda text: list(csv.DictReader(io.StringIO(text))),
    "JSON": json.loads,
    "JSONL": read_lines,
}


def test_it_is_taken_along_as_it_is_shown(arrive: Arrive, happened: Manager, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/audit?action=user.create")
    for name, read in READERS.items():
        with page.expect_download() as caught:
            page.get_by_role("link", name=name, exact=True).click()
        assert caught.value.suggested_filename == f"audit.{name.lower()}"
        rows = read(Path(caught.value.path()).read_text(encoding="utf-8-sig"))
        known = [(str(row.id), row.hash) for row in happened.audited("user.create")]
        assert sorted((str(row["id"]), row["hash"]) for row in rows) == known, name


def test_taking_it_along_keeps_nobody_from_working(arrive: Arrive, happened: Manager) -> None:
    """A download that held on to the database would stop everybody else."""
    page = arrive("alice").page
    page.goto("/audit")
    for name in READERS:
        with page.expect_download():
            page.get_by_role("link", name=name, exact=True).click()
    happened.change("oscar", role="viewer")


def test_only_administrators_read_it(arrive: Arrive, happened: Manager) -> None:
    visit = arrive("oscar")
    visit.witness.expect("status of 403")
    visit.page.goto("/audit")
    expect(visit.page.get_by_role("heading", level=1)).to_have_text("Not allowed")
    assert happened.audited("access.refused")[-1].username == "oscar"
