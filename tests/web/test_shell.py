"""What every page has in common: keys, menus, dialogs, messages, the way back, errors, and a server that is away."""

import re

import pytest
from playwright.sync_api import Page, Request, expect

from tests.browser import PHONE
from tests.factories import PASSWORD
from tests.web.conftest import Arrive, Manager
from tests.web.server import WebServer

pytestmark = pytest.mark.browser


def heading(page: Page, text: str | re.Pattern[str]) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_text(text)


def search(page: Page) -> None:
    page.get_by_role("searchbox", name="Search", exact=True).press_sequentially("ali")
    expect(page).to_have_url(re.compile("keyword=ali$"))


# Keys


def test_letters_go_places(arrive: Arrive) -> None:
    page = arrive("alice").page
    # However slow this machine is, the two keys are pressed at the same moment, and right after the page has come.
    page.clock.install(time=0)
    page.clock.pause_at(500)
    page.goto("/users")
    for keys, text in (("gu", "Audit log"), ("gs", "Settings"), ("gp", "Users")):
        page.wait_for_load_state()
        for key in keys:
            page.keyboard.press(key)
        heading(page, text)


def test_letters_that_are_typed_go_nowhere(arrive: Arrive) -> None:
    page = arrive("alice").page
    page.goto("/users")
    field = page.get_by_role("searchbox", name="Search", exact=True)
    field.press_sequentially("gu/")
    expect(field).to_have_value("gu/")
    heading(page, "Users")


def test_a_slash_leads_to_the_search(arrive: Arrive) -> None:
    page = arrive("alice").page
    page.goto("/users")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.type") == "search"
    assert page.evaluate("document.activeElement.value") == ""


def test_the_first_tab_stop_skips_the_navigation(arrive: Arrive, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/users")
    page.keyboard.press("Tab")
    link = page.get_by_role("link", name="Skip to the content")
    expect(link).to_be_focused()
    expect(link).to_be_in_viewport()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")


# Dialogs


def test_a_dialog_keeps_the_keyboard_and_gives_it_back(arrive: Arrive) -> None:
    page = arrive("alice").page
    page.goto("/users")
    opener = page.get_by_role("link", name="Add user")
    opener.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Add user")
    expect(dialog).to_be_visible()
    inside = "document.activeElement.closest('[role=dialog]') !== null"
    for key in ["Tab"] * 14 + ["Shift+Tab"] * 14:
        page.keyboard.press(key)
        assert page.evaluate(inside), key
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(opener).to_be_focused()


@pytest.mark.parametrize("way", ["close", "cancel", "outside"])
def test_a_dialog_is_closed(arrive: Arrive, way: str) -> None:
    page = arrive("alice").page
    page.goto("/users")
    page.get_by_role("link", name="Add user").click()
    dialog = page.get_by_role("dialog", name="Add user")
    expect(dialog).to_be_visible()
    if way == "close":
        dialog.get_by_role("button", name="Close").click()
    elif way == "cancel":
        dialog.get_by_role("link", name="Cancel").click()
    else:
        page.mouse.click(20, 600)
    expect(dialog).to_be_hidden()
    heading(page, "Users")
    page.get_by_role("link", name="Add user").click()
    expect(dialog.get_by_label("User name")).to_have_value("")


# Menus


def test_the_menu_of_a_phone(arrive: Arrive, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript, viewport=PHONE).page
    page.goto("/users")
    link = page.get_by_role("link", name="Settings")
    expect(link).to_be_hidden()
    page.get_by_label("Menu").click()
    expect(link).to_be_visible()
    if javascript:
        page.keyboard.press("Escape")
        expect(link).to_be_hidden()
        expect(page.get_by_label("Menu")).to_be_focused()
        page.get_by_label("Menu").click()
    link.click()
    heading(page, "Settings")
    expect(page.get_by_role("link", name="Users")).to_be_hidden()


def test_a_menu_closes_when_one_looks_elsewhere(arrive: Arrive) -> None:
    page = arrive("alice").page
    page.goto("/users")
    item = page.get_by_role("link", name="Profile and security")
    page.get_by_text("Your account").locator("..").click()
    expect(item).to_be_visible()
    page.get_by_role("heading", level=1).click()
    expect(item).to_be_hidden()


def test_the_navigation_shows_where_one_is(arrive: Arrive, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/users/new")
    current = page.get_by_role("navigation", name="Main").locator("[aria-current=page]")
    expect(current).to_have_text("Users")


# The way back


def test_back_and_forward_show_whole_pages(arrive: Arrive) -> None:
    page = arrive("alice").page
    field = page.get_by_role("searchbox", name="Search", exact=True)
    page.goto("/users")
    search(page)
    expect(page.locator(".chips")).to_contain_text("ali")
    page.get_by_label("Role").select_option("Viewer")
    expect(page.locator(".empty")).to_contain_text("Nothing matches")
    page.evaluate("history.back()")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(field).to_have_value("ali")
    expect(page.get_by_label("Role")).to_have_value("")
    page.evaluate("history.back()")
    expect(page.locator(".chips")).to_have_count(0)
    expect(field).to_have_value("")
    page.evaluate("history.forward()")
    expect(page.locator(".chips")).to_contain_text("ali")
    page.evaluate("history.forward()")
    expect(page.locator(".empty")).to_contain_text("Nothing matches")
    expect(page.get_by_role("navigation", name="Main")).to_be_visible()
    heading(page, "Users")


def test_coming_back_from_elsewhere_shows_the_whole_list(arrive: Arrive) -> None:
    page = arrive("alice").page
    page.goto("/users")
    search(page)
    page.get_by_role("link", name="alice", exact=True).click()
    heading(page, "alice")
    page.go_back()
    heading(page, "Users")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.get_by_role("navigation", name="Main")).to_be_visible()


def test_a_link_in_a_new_tab_is_a_whole_page(arrive: Arrive) -> None:
    visit = arrive("alice")
    visit.page.goto("/users")
    with visit.context.expect_page() as opened:
        visit.page.get_by_role("link", name="Add user").click(modifiers=["Control"])
    heading(opened.value, "Add user")
    expect(visit.page.locator("#dialog")).to_be_hidden()


# Sessions


def test_who_signed_out_in_another_tab_is_led_to_the_sign_in(arrive: Arrive) -> None:
    visit = arrive("alice")
    visit.witness.expect("status of 401")
    page, other = visit.page, visit.context.new_page()
    page.goto("/users")
    other.goto("/profile")
    other.get_by_text("Your account").locator("..").click()
    other.get_by_role("button", name="Sign out").click()
    heading(other, "Sign in")
    page.get_by_role("searchbox", name="Search", exact=True).press_sequentially("a")
    heading(page, "Sign in")
    assert page.url.endswith("/login?next=/users")
    page.get_by_label("User name").fill("alice")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    heading(page, "Users")


def test_a_dialog_after_the_session_ended_leads_to_the_sign_in(arrive: Arrive) -> None:
    visit = arrive("alice")
    visit.witness.expect("status of 401")
    visit.page.goto("/users")
    visit.context.clear_cookies(name="ops_session")
    visit.page.get_by_role("link", name="Add user").click()
    heading(visit.page, "Sign in")


def test_a_form_that_has_grown_too_old_says_so(arrive: Arrive, manager: Manager, javascript: bool) -> None:
    visit = arrive("alice", javascript=javascript)
    visit.witness.expect("status of 400")
    visit.page.goto("/profile")
    visit.context.clear_cookies(name="ops_form")
    visit.page.get_by_label("Phone").fill("123456")
    visit.page.get_by_role("button", name="Save").click()
    expect(visit.page.locator("main")).to_contain_text("This form is too old. Please load the page again.")
    assert manager.audited("user.update_profile") == []


# Sending once


def posts(page: Page) -> list[str]:
    seen: list[str] = []

    def note(request: Request) -> None:
        if request.method == "POST":
            seen.append(request.url)

    page.on("request", note)
    return seen


def test_a_double_click_sends_a_form_once(arrive: Arrive, manager: Manager) -> None:
    page = arrive("alice").page
    page.goto("/profile/tokens/new")
    page.get_by_label("Name").fill("once")
    seen = posts(page)
    page.get_by_role("button", name="Make token").dblclick()
    heading(page, "Your new token")
    assert len(seen) == 1
    assert len(manager.audited("token.create")) == 1


def test_a_double_click_in_a_dialog_sends_it_once(arrive: Arrive, manager: Manager) -> None:
    page = arrive("alice").page
    page.goto("/users")
    page.get_by_role("link", name="Add user").click()
    page.get_by_label("User name").fill("once")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    seen = posts(page)
    page.locator(".buttons").get_by_role("button", name="Add user").dblclick()
    expect(page.locator("#toasts")).to_contain_text("User once was created.")
    assert len(seen) == 1


# Messages


def test_good_news_goes_away_and_bad_news_stays(arrive: Arrive) -> None:
    page = arrive("alice").page
    page.clock.install()
    page.goto("/profile")
    page.get_by_role("button", name="Save").click()
    toast = page.locator("[data-toast]")
    expect(toast).to_have_count(1)
    page.clock.fast_forward(9000)
    expect(toast).to_have_count(0)


def test_a_message_is_put_away(arrive: Arrive) -> None:
    page = arrive("alice").page
    page.goto("/profile")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("button", name="Dismiss").click()
    expect(page.locator("[data-toast]")).to_have_count(0)


def test_times_go_on(arrive: Arrive) -> None:
    page = arrive("alice").page
    page.clock.install()
    page.goto("/users")
    moment = page.locator("tbody time").first
    page.clock.fast_forward(130_000)
    expect(moment).to_have_text("2 minutes ago")


# Trouble


def test_a_server_that_is_away_is_told(arrive: Arrive, web_server: WebServer) -> None:
    visit = arrive("alice")
    visit.witness.expect("ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET|htmx:(afterRequest|sendError)")
    page = visit.page
    page.goto("/users")
    field = page.get_by_role("searchbox", name="Search", exact=True)
    with web_server.away():
        field.press_sequentially("ali")
        expect(page.locator("#toasts")).to_contain_text("The server cannot be reached.")
        expect(page.locator("tbody tr")).to_have_count(1)
    field.press("c")
    expect(page).to_have_url(re.compile("keyword=alic$"))


@pytest.mark.parametrize("username", ["alice", None], ids=["signed-in", "stranger"])
def test_an_address_that_leads_nowhere(arrive: Arrive, username: str | None, javascript: bool) -> None:
    visit = arrive(username, javascript=javascript)
    visit.witness.expect("status of 404")
    visit.page.goto("/nowhere")
    heading(visit.page, "Not found")
    visit.page.get_by_role("link", name="To the overview").click()
    expect(visit.page).not_to_have_url(re.compile("/nowhere"))
