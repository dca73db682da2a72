"""Administering users in front of a browser: finding, adding, changing, deleting, many at once, taking them along."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Download, Page, expect

from tests.browser import axe
from tests.factories import PASSWORD
from tests.web.conftest import Arrive, Manager

pytestmark = pytest.mark.browser


@pytest.fixture
def people(manager: Manager) -> Manager:
    manager.user("oscar", "operator", email="oscar@example.org")
    manager.user("vera", "viewer")
    manager.user("otto", "viewer", status="disabled")
    return manager


def names(page: Page) -> list[str]:
    return page.locator("tbody td.main b").all_inner_texts()


def test_it_lists_everybody(arrive: Arrive, people: Manager, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/users")
    assert names(page) == ["alice", "oscar", "vera", "otto"]
    row = page.get_by_role("row").filter(has_text="oscar")
    expect(row).to_contain_text("oscar@example.org")
    expect(row).to_contain_text("Operator")
    expect(row).to_contain_text("enabled")
    expect(row).to_contain_text("never")
    expect(page.locator(".head")).to_contain_text("4 users")


def test_it_finds_while_one_types(arrive: Arrive, people: Manager) -> None:
    page = arrive("alice").page
    page.goto("/users")
    field = page.get_by_role("searchbox", name="Search", exact=True)
    expect(page.get_by_role("button", name="Apply")).to_be_hidden()
    field.press_sequentially("osc")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert names(page) == ["oscar"]
    expect(field).to_be_focused()
    expect(page).to_have_url(re.compile(r"/users\?keyword=osc$"))
    page.get_by_role("link", name="remove this filter").click()
    expect(page.locator("tbody tr")).to_have_count(4)


def test_it_finds_when_asked_to(arrive: Arrive, people: Manager) -> None:
    page = arrive("alice", javascript=False).page
    page.goto("/users")
    page.get_by_role("searchbox", name="Search", exact=True).fill("osc")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.get_by_role("searchbox", name="Search", exact=True)).to_have_value("osc")
    page.get_by_role("link", name="Clear all").click()
    expect(page.locator("tbody tr")).to_have_count(4)


def test_filters_narrow_each_other(arrive: Arrive, people: Manager, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/users")
    page.get_by_label("Role").select_option("Viewer")
    if not javascript:
        page.get_by_role("button", name="Apply").click()
    expect(page.locator("tbody tr")).to_have_count(2)
    page.get_by_label("Status").select_option("disabled")
    if not javascript:
        page.get_by_role("button", name="Apply").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    assert names(page) == ["otto"]
    expect(page.locator(".chips")).to_contain_text("Role: Viewer")
    expect(page.locator(".chips")).to_contain_text("Status: disabled")
    page.reload()
    assert names(page) == ["otto"]


def test_nothing_found_says_so_and_offers_a_way_back(arrive: Arrive) -> None:
    page = arrive("alice").page
    page.goto("/users?keyword=nobody-like-that")
    expect(page.locator(".empty")).to_contain_text("Nothing matches")
    page.get_by_role("link", name="Clear the filters").click()
    expect(page.locator("tbody tr")).to_have_count(1)


def test_a_click_on_a_heading_sorts(arrive: Arrive, people: Manager, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/users")
    heading = page.get_by_role("columnheader", name="User")
    heading.get_by_role("link").click()
    expect(heading).to_have_attribute("aria-sort", "ascending")
    heading.get_by_role("link").click()
    expect(heading).to_have_attribute("aria-sort", "descending")
    assert names(page) == ["vera", "otto", "oscar", "alice"]
    page.get_by_role("columnheader", name="Role").get_by_role("link").click()
    expect(page.get_by_role("columnheader", name="Role")).to_have_attribute("aria-sort", "ascending")
    assert names(page)[0] == "alice"


def test_it_turns_pages(arrive: Arrive, manager: Manager, javascript: bool) -> None:
    manager.many_users(24)
    page = arrive("alice", javascript=javascript).page
    page.goto("/users?sort=username")
    expect(page.locator("tbody tr")).to_have_count(20)
    expect(page.locator(".pager")).to_contain_text("1–20 of 25")
    page.get_by_role("link", name="Next").click()
    expect(page.locator(".pager")).to_contain_text("21–25 of 25")
    assert names(page)[-1] == "user-23"
    expect(page.get_by_role("link", name="Page 2")).to_have_attribute("aria-current", "page")
    page.get_by_role("navigation", name="Entries per page").get_by_role("link", name="50").click()
    expect(page.locator("tbody tr")).to_have_count(25)


def test_several_are_disabled_at_once(arrive: Arrive, people: Manager, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/users")
    for name in ("oscar", "vera"):
        page.get_by_role("checkbox", name=f"Select {name}").check()
    if javascript:
        expect(page.locator("[data-count]")).to_have_text("2 selected")
    page.get_by_role("button", name="Disable").click()
    expect(page.locator("#toasts")).to_contain_text("2 users were changed.")
    expect(page.get_by_role("row").filter(has_text="disabled")).to_have_count(3)
    oscar = people.find("oscar")
    assert oscar is not None
    assert oscar.status == "disabled"


def test_all_on_the_page_are_ticked_with_one_click(arrive: Arrive, people: Manager) -> None:
    page = arrive("alice").page
    page.goto("/users")
    expect(page.locator("[data-bulk]")).to_be_hidden()
    page.get_by_role("checkbox", name="Select all on this page").check()
    expect(page.locator("[data-count]")).to_have_text("4 selected")
    page.get_by_role("checkbox", name="Select vera").uncheck()
    expect(page.locator("[data-count]")).to_have_text("3 selected")
    assert page.locator("[data-all]").evaluate("box => box.indeterminate") is True


def test_the_last_administrator_stays(arrive: Arrive, people: Manager, javascript: bool) -> None:
    visit = arrive("alice", javascript=javascript)
    visit.witness.expect("status of 409")
    page = visit.page
    page.goto("/users")
    for name in ("vera", "alice"):
        page.get_by_role("checkbox", name=f"Select {name}").check()
    page.get_by_role("button", name="Disable").click()
    expect(page.locator("main")).to_contain_text("This is the last administrator who can sign in.")
    vera = people.find("vera")
    assert vera is not None
    assert vera.status == "enabled"


def test_it_adds_somebody(arrive: Arrive, manager: Manager, javascript: bool) -> None:
    visit = arrive("alice", javascript=javascript)
    visit.witness.expect("status of 422")
    page = visit.page
    page.goto("/users")
    page.get_by_role("link", name="Add user").click()
    if javascript:
        expect(page.get_by_role("dialog", name="Add user").get_by_label("User name")).to_be_focused()
    else:
        expect(page).to_have_url(re.compile("/users/new$"))
    submit = page.locator(".buttons").get_by_role("button", name="Add user")

    page.get_by_label("User name").fill("new one")
    page.get_by_label("E-mail").fill("nowhere")
    submit.click()
    alert = page.get_by_role("alert")
    for label in ("User name", "Password", "E-mail"):
        expect(alert).to_contain_text(f"{label}: ")
    expect(page.get_by_label("User name")).to_have_value("new one")
    expect(page.get_by_label("User name")).to_have_attribute("aria-invalid", "true")
    axe(page)
    assert not manager.is_there("new one")

    page.get_by_label("User name").fill("new.one")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("E-mail").fill("new.one@example.org")
    page.locator("form.form").get_by_label("Role").select_option("Operator")
    submit.click()
    expect(page.locator("#toasts")).to_contain_text("User new.one was created.")
    expect(page).to_have_url(re.compile("/users$"))
    expect(page.get_by_role("row").filter(has_text="new.one")).to_contain_text("Operator")


def test_a_taken_name_is_said_at_the_field(arrive: Arrive, people: Manager) -> None:
    visit = arrive("alice")
    visit.witness.expect("status of 422")
    page = visit.page
    page.goto("/users/new")
    page.get_by_label("User name").fill("oscar")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.locator(".buttons").get_by_role("button", name="Add user").click()
    expect(page.locator("#f-username-error")).to_have_text("This user name is taken.")


def test_it_changes_somebody(arrive: Arrive, people: Manager, javascript: bool) -> None:
    visit = arrive("alice", javascript=javascript)
    visit.witness.expect("status of 422")
    page = visit.page
    page.goto("/users")
    page.get_by_role("link", name="oscar").click()
    page.get_by_label("E-mail").fill("alice@example.org")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#f-email-error")).to_have_text("This address belongs to another user.")
    page.get_by_label("E-mail").fill("")
    page.get_by_label("Role").select_option("Viewer")
    page.get_by_label("Status").select_option("disabled")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#toasts")).to_contain_text("User oscar was saved.")
    expect(page.locator(".head .badge")).to_have_text("disabled")
    oscar = people.find("oscar")
    assert oscar is not None
    assert (oscar.role, oscar.status, oscar.email) == ("viewer", "disabled", None)


def test_a_new_password_is_shown_once(arrive: Arrive, people: Manager, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto("/users")
    page.get_by_role("link", name="oscar").click()
    page.get_by_role("button", name="Reset password").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("New password for oscar")
    password = page.get_by_label("Password", exact=True).input_value()
    page.get_by_role("link", name="Done").click()
    assert password not in page.content()
    assert password not in str([row.canonical for row in people.audited("user.update")])

    oscar = arrive(javascript=javascript).page
    oscar.goto("/login")
    oscar.get_by_label("User name").fill("oscar")
    oscar.get_by_label("Password", exact=True).fill(password)
    oscar.get_by_role("button", name="Sign in").click()
    expect(oscar.get_by_role("heading", level=1)).to_have_text("Change your password")


def test_a_reset_can_be_thought_better_of(arrive: Arrive, people: Manager) -> None:
    page = arrive("alice").page
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    page.goto("/users")
    page.get_by_role("link", name="oscar").click()
    page.get_by_role("button", name="Reset password").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("oscar")
    assert asked == ["oscar gets a new password and is signed out everywhere."]
    assert people.audited("user.update") == []


def test_deleting_asks_for_the_name(arrive: Arrive, people: Manager, javascript: bool) -> None:
    visit = arrive("alice", javascript=javascript)
    visit.witness.expect("status of 422")
    page = visit.page
    page.goto("/users")
    page.get_by_role("link", name="oscar").click()
    page.get_by_role("link", name="Delete").click()
    if javascript:
        expect(page.get_by_role("dialog", name="Delete user oscar")).to_be_visible()
    field, button = page.get_by_label("Type oscar to go on"), page.get_by_role("button", name="Delete")
    field.fill("vera")
    if javascript:
        expect(button).to_be_disabled()
    else:
        button.click()
        expect(page.locator("#f-confirm-error")).to_have_text("Please type oscar.")
    assert people.is_there("oscar")
    field.fill("oscar")
    button.click()
    expect(page.locator("#toasts")).to_contain_text("User oscar was deleted.")
    assert names(page) == ["alice", "vera", "otto"]


def test_nobody_deletes_himself(arrive: Arrive, manager: Manager, javascript: bool) -> None:
    visit = arrive("alice", javascript=javascript)
    visit.witness.expect("status of 422")
    page = visit.page
    page.goto("/users")
    page.get_by_role("link", name="alice").click()
    page.get_by_role("link", name="Delete").click()
    page.get_by_label("Type alice to go on").fill("alice")
    page.get_by_role("button", name="Delete").click()
    expect(page.locator("body")).to_contain_text("You cannot delete yourself.")
    assert manager.is_there("alice")


def text_of(download: Download) -> str:
    return Path(download.path()).read_text(encoding="utf-8-sig")


def test_it_takes_along_what_is_shown(arrive: Arrive, people: Manager, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/users?role=viewer&sort=-username")
    with page.expect_download() as caught:
        page.get_by_role("link", name="CSV").click()
    assert caught.value.suggested_filename == "users.csv"
    rows = list(csv.DictReader(io.StringIO(text_of(caught.value))))
    assert [row["username"] for row in rows] == ["vera", "otto"]
    with page.expect_download() as caught:
        page.get_by_role("link", name="JSON", exact=True).click()
    assert [user["username"] for user in json.loads(text_of(caught.value))] == ["vera", "otto"]


@pytest.mark.parametrize("username", ["oscar", "vera"])
def test_others_do_not_see_users(arrive: Arrive, people: Manager, username: str) -> None:
    visit = arrive(username)
    visit.witness.expect("status of 403")
    page = visit.page
    page.goto("/")
    expect(page.get_by_role("navigation", name="Main").get_by_role("link", name="Users")).to_have_count(0)
    page.goto("/users")
    expect(page.get_by_role("heading", level=1)).to_have_text("Not allowed")
