"""Signing in and out, as somebody in front of a browser does it."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser import axe
from tests.factories import PASSWORD
from tests.web.conftest import Arrive, Manager

pytestmark = pytest.mark.browser


def fill_in(page: Page, username: str, password: str) -> None:
    page.get_by_label("User name").fill(username)
    page.get_by_label("Password", exact=True).fill(password)
    page.get_by_role("button", name="Sign in").click()


def test_it_signs_in_and_out(arrive: Arrive, javascript: bool) -> None:
    visit = arrive(javascript=javascript)
    page = visit.page
    page.goto("/")
    expect(page).to_have_url(re.compile("/login$"))
    expect(page.get_by_label("User name")).to_be_focused()
    fill_in(page, "alice", PASSWORD)
    expect(page.get_by_text("Your account")).to_be_attached()
    stolen = visit.context.cookies()
    page.get_by_text("Your account").locator("..").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.goto("/users")
    expect(page).to_have_url(re.compile("/login"))
    visit.context.add_cookies(stolen)
    page.goto("/users")
    expect(page).to_have_url(re.compile("/login"))


def test_signing_out_forgets_what_was_shown(arrive: Arrive, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/users")
    page.get_by_text("Your account").locator("..").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_a_wrong_password_gives_the_form_back(arrive: Arrive, javascript: bool) -> None:
    visit = arrive(javascript=javascript)
    visit.witness.expect("status of 422")
    page = visit.page
    page.goto("/login")
    fill_in(page, "alice", "not-my-password")
    expect(page.get_by_role("alert")).to_have_text("User name or password is wrong.")
    expect(page.get_by_label("User name")).to_have_value("alice")
    expect(page.get_by_label("Password", exact=True)).to_have_value("")
    axe(page)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("Your account")).to_be_attached()


def test_an_empty_form_names_both_fields(arrive: Arrive, javascript: bool) -> None:
    visit = arrive(javascript=javascript)
    visit.witness.expect("status of 422")
    page = visit.page
    page.goto("/login")
    page.get_by_role("button", name="Sign in").click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("User name: This is needed.")
    expect(alert).to_contain_text("Password: This is needed.")
    expect(page.get_by_label("User name")).to_have_attribute("aria-invalid", "true")
    if javascript:
        expect(alert).to_be_focused()
    alert.get_by_role("link").last.click()
    expect(page.get_by_label("Password", exact=True)).to_be_focused()


def test_it_throttles_guessing(arrive: Arrive, javascript: bool) -> None:
    visit = arrive(javascript=javascript)
    visit.witness.expect("status of (422|429)")
    page = visit.page
    page.goto("/login")
    for _attempt in range(5):
        fill_in(page, "alice", "a-guess")
        expect(page.get_by_role("alert")).to_have_text("User name or password is wrong.")
    fill_in(page, "alice", PASSWORD)
    expect(page.get_by_role("alert")).to_contain_text("Too many failed sign-ins")


def test_it_leads_back_to_where_one_wanted_to_go(arrive: Arrive, javascript: bool) -> None:
    page = arrive(javascript=javascript).page
    page.goto("/audit?status=failed&keyword=x")
    expect(page).to_have_url(re.compile(r"/login\?next="))
    fill_in(page, "alice", PASSWORD)
    expect(page).to_have_url(re.compile(r"/audit\?status=failed&keyword=x$"))


@pytest.mark.parametrize("target", ["https://example.org/", "//example.org/", "/\\example.org", "javascript:alert(1)"])
def test_it_leads_nowhere_else(arrive: Arrive, manager: Manager, target: str) -> None:
    page = arrive().page
    page.goto("/login")
    page.goto(f"/login?next={target}")
    fill_in(page, "alice", PASSWORD)
    expect(page.get_by_text("Your account")).to_be_attached()
    assert page.url.startswith(manager.url)


def test_a_disabled_user_stays_outside(arrive: Arrive, manager: Manager) -> None:
    manager.user("oscar", "operator", status="disabled")
    visit = arrive()
    visit.witness.expect("status of 422")
    visit.page.goto("/login")
    fill_in(visit.page, "oscar", PASSWORD)
    expect(visit.page.get_by_role("alert")).to_have_text("User name or password is wrong.")


def test_who_was_given_a_password_has_to_choose_one_first(arrive: Arrive, manager: Manager, javascript: bool) -> None:
    manager.user("vera", "admin", must_change_password=True)
    page = arrive(javascript=javascript).page
    page.goto("/login")
    fill_in(page, "vera", PASSWORD)
    expect(page.get_by_role("heading", level=1)).to_have_text("Change your password")
    page.goto("/users")
    expect(page.get_by_role("heading", level=1)).to_have_text("Change your password")
    page.get_by_label("Present password").fill(PASSWORD)
    page.get_by_label("New password", exact=True).fill("my-own-choice-1")
    page.get_by_label("New password again").fill("my-own-choice-1")
    page.get_by_role("button", name="Change password").click()
    expect(page.locator("#toasts")).to_contain_text("Your password was changed.")
    page.goto("/users")
    expect(page.get_by_role("heading", level=1)).to_have_text("Users")


def test_what_is_typed_can_be_shown(arrive: Arrive) -> None:
    page = arrive().page
    page.goto("/login")
    field, button = page.get_by_label("Password", exact=True), page.get_by_role("button", name="Show what is typed")
    expect(field).to_have_attribute("type", "password")
    button.click()
    expect(field).to_have_attribute("type", "text")
    expect(button).to_have_attribute("aria-pressed", "true")


def test_without_scripts_there_is_no_button_that_does_nothing(arrive: Arrive) -> None:
    page = arrive(javascript=False).page
    page.goto("/login")
    expect(page.get_by_role("button", name="Show what is typed")).to_be_hidden()
