"""One's own profile in front of a browser: address, password, sessions."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser import axe
from tests.factories import PASSWORD
from tests.web.conftest import Arrive, Manager

pytestmark = pytest.mark.browser


def test_it_is_changed(arrive: Arrive, manager: Manager, javascript: bool) -> None:
    visit = arrive("alice", javascript=javascript)
    visit.witness.expect("status of 422")
    page = visit.page
    page.goto("/profile")
    page.get_by_label("E-mail").fill("not an address")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_contain_text("E-mail: ")
    expect(page.get_by_label("E-mail")).to_have_value("not an address")
    axe(page)
    page.get_by_label("E-mail").fill("a@example.org")
    page.get_by_label("Phone").fill("+49 30 123")
    page.get_by_label("Time zone").select_option("Asia/Shanghai")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#toasts")).to_contain_text("Your profile was saved.")
    expect(page.get_by_label("Phone")).to_have_value("+49 30 123")
    expect(page.locator(".facts time").first).to_have_attribute("title", re.compile("GMT\\+8|\\+08|CST"))
    alice = manager.find("alice")
    assert alice is not None
    assert (alice.email, alice.timezone) == ("a@example.org", "Asia/Shanghai")


def test_the_language_chosen_here_wins_over_the_switch(arrive: Arrive, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/profile")
    page.get_by_role("button", name="中文").click()
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    page.locator("#f-locale").select_option("en")
    page.locator("main form [type=submit]").click()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")


def test_a_new_password_ends_the_other_sessions(arrive: Arrive, manager: Manager, javascript: bool) -> None:
    here, elsewhere = arrive("alice", javascript=javascript), arrive("alice", javascript=javascript)
    here.witness.expect("status of 422")
    elsewhere.page.goto("/profile")
    page = here.page
    page.goto("/profile/password")
    present, new, again = (
        page.get_by_label(label, exact=True) for label in ("Present password", "New password", "New password again")
    )
    button = page.get_by_role("button", name="Change password")

    present.fill("wrong-password")
    new.fill("another-horse-2")
    again.fill("another-horse-2")
    button.click()
    expect(page.locator("#f-current_password-error")).to_have_text("This is not your present password.")
    present.fill(PASSWORD)
    new.fill("another-horse-2")
    again.fill("another-horse-3")
    button.click()
    expect(page.locator("#f-repeat_password-error")).to_have_text("This is not the same password.")
    present.fill(PASSWORD)
    new.fill("another-horse-2")
    again.fill("another-horse-2")
    button.click()
    expect(page.locator("#toasts")).to_contain_text("Your password was changed.")
    elsewhere.page.goto("/profile")
    expect(elsewhere.page).to_have_url(re.compile("/login"))
    page.goto("/profile/sessions")
    expect(page.locator("tbody tr")).to_have_count(1)


def test_a_lost_session_is_ended(arrive: Arrive, manager: Manager) -> None:
    here, lost = arrive("alice"), arrive("alice")
    lost.page.goto("/profile")
    page = here.page
    page.goto("/profile/sessions")
    expect(page.locator("tbody tr")).to_have_count(2)
    own = page.get_by_role("row").filter(has_text="this session")
    expect(own).to_contain_text("Firefox on Linux")
    expect(own.get_by_role("button")).to_have_count(0)
    page.get_by_role("button", name="End").click()
    expect(page.locator("#toasts")).to_contain_text("The session was ended.")
    expect(page.locator("tbody tr")).to_have_count(1)
    lost.page.goto("/profile")
    expect(lost.page).to_have_url(re.compile("/login"))


def test_a_disabled_user_is_out_at_the_next_click(arrive: Arrive, manager: Manager) -> None:
    manager.user("vera", "viewer")
    page = arrive("vera").page
    page.goto("/profile")
    manager.change("vera", status="disabled")
    page.get_by_role("navigation", name="Sections").get_by_role("link", name="Sessions").click()
    expect(page).to_have_url(re.compile("/login"))
