"""Language and colours: what the browser asks for, what a switch says, and how long that lasts."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.web.conftest import Arrive, Manager

pytestmark = pytest.mark.browser

WHITE_PANEL, DARK_PANEL = "rgb(255, 255, 255)", "rgb(21, 24, 30)"


def panel(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.querySelector('.panel')).backgroundColor"))


def test_the_first_visit_is_in_the_language_of_the_browser(arrive: Arrive, javascript: bool) -> None:
    page = arrive(javascript=javascript, locale="zh-CN").page
    page.goto("/login")
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(page.get_by_role("heading", level=1)).to_have_text("登录")


def test_the_switch_changes_the_language_and_stays_on_the_page(arrive: Arrive, javascript: bool) -> None:
    visit = arrive("alice", javascript=javascript)
    page = visit.page
    page.goto("/users?role=admin")
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("用户")
    expect(page).to_have_url(re.compile(r"/users\?role=admin$"))
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("用户")
    page.get_by_role("button", name="English").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Users")


def test_the_language_goes_with_the_person_to_the_next_browser(arrive: Arrive, manager: Manager) -> None:
    page = arrive("alice").page
    page.goto("/profile")
    page.get_by_role("button", name="中文").click()
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    elsewhere = arrive("alice").page
    elsewhere.goto("/profile")
    expect(elsewhere.locator("html")).to_have_attribute("lang", "zh-CN")


def test_strangers_have_a_language_too(arrive: Arrive, javascript: bool) -> None:
    page = arrive(javascript=javascript).page
    page.goto("/login?next=/audit")
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("登录")
    expect(page).to_have_url(re.compile(r"/login\?next=/audit$"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_until_somebody_chooses(arrive: Arrive, javascript: bool, scheme: str) -> None:
    page = arrive("alice", javascript=javascript, colour_scheme=scheme).page
    page.goto("/users")
    assert panel(page) == (DARK_PANEL if scheme == "dark" else WHITE_PANEL)
    switch = page.get_by_role("button", name="Colours")
    seen = []
    for chosen in ("light", "dark"):
        switch.click()
        expect(page.locator("html")).to_have_attribute("data-theme", chosen)
        seen.append(panel(page))
    assert seen == [WHITE_PANEL, DARK_PANEL]
    page.reload()
    assert panel(page) == DARK_PANEL
    page.context.new_page().goto("/users")
    assert panel(page.context.pages[-1]) == DARK_PANEL
    switch.click()
    expect(page.locator("html")).not_to_have_attribute("data-theme", re.compile("."))
