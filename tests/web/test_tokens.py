"""Access tokens in front of a browser: made, copied, used by a program, revoked."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser import axe
from tests.web.conftest import Arrive, Manager

pytestmark = pytest.mark.browser


def make_token(page: Page, name: str, *scopes: str) -> str:
    page.goto("/profile/tokens/new")
    page.get_by_label("Name").fill(name)
    for box in page.get_by_role("group", name="Scopes").get_by_role("checkbox").all():
        box.uncheck()
    for scope in scopes:
        page.get_by_label(scope, exact=True).check()
    page.get_by_role("button", name="Make token").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Your new token")
    return page.get_by_label("Access token").input_value()


def test_it_is_made_used_and_revoked(arrive: Arrive, manager: Manager, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto("/profile/tokens")
    expect(page.locator(".empty")).to_contain_text("No access tokens yet")
    page.locator(".head").get_by_role("link", name="New token").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("New access token")
    secret = make_token(page, "backup script", "users.read")
    assert secret.startswith("ops_pat_")
    assert manager.ask("/system/users", secret)[0] == 200
    assert manager.ask("/system/audit-logs", secret)[0] == 403

    page.get_by_role("link", name="Done, I have copied it").click()
    row = page.get_by_role("row").filter(has_text="backup script")
    expect(row).to_contain_text("users.read")
    expect(row).to_contain_text("in 3 months")
    assert secret not in page.content()
    row.get_by_role("button", name="Revoke").click()
    expect(page.locator("#toasts")).to_contain_text("The token was revoked.")
    assert manager.ask("/system/users", secret)[0] == 401


def test_it_is_copied_with_one_click(arrive: Arrive) -> None:
    visit = arrive("alice", permissions=["clipboard-read", "clipboard-write"])
    secret = make_token(visit.page, "backup script", "users.read")
    visit.page.get_by_role("button", name="Copy").click()
    expect(visit.page.get_by_role("button", name="Copied")).to_be_visible()
    assert visit.page.evaluate("navigator.clipboard.readText()") == secret


def test_it_may_live_for_ever(arrive: Arrive) -> None:
    page = arrive("alice").page
    page.goto("/profile/tokens/new")
    page.get_by_label("Name").fill("for ever")
    page.get_by_label("Valid for").fill("")
    page.get_by_role("button", name="Make token").click()
    page.get_by_role("link", name="Done, I have copied it").click()
    expect(page.get_by_role("row").filter(has_text="for ever").get_by_role("cell").nth(2)).to_have_text("never")


def test_a_form_with_mistakes_comes_back(arrive: Arrive, manager: Manager, javascript: bool) -> None:
    visit = arrive("alice", javascript=javascript)
    visit.witness.expect("status of 422")
    page = visit.page
    page.goto("/profile/tokens/new")
    page.get_by_label("Everything that you may see").uncheck()
    page.get_by_label("Valid for").fill("0")
    page.get_by_role("button", name="Make token").click()
    alert = page.get_by_role("alert")
    for label in ("Name", "Valid for", "Scopes"):
        expect(alert).to_contain_text(f"{label}: ")
    expect(page.get_by_label("Valid for")).to_have_value("0")
    axe(page)
    assert manager.audited("token.create") == []


def test_viewers_are_offered_what_they_may_do(arrive: Arrive, manager: Manager) -> None:
    manager.user("vera", "viewer")
    page = arrive("vera").page
    page.goto("/profile/tokens/new")
    expect(page.get_by_label("nodes.read", exact=True)).to_be_visible()
    expect(page.get_by_label("users.manage", exact=True)).to_have_count(0)


def test_an_administrator_revokes_the_token_of_somebody_else(arrive: Arrive, manager: Manager) -> None:
    manager.user("vera", "viewer")
    secret = make_token(arrive("vera").page, "hers", "Everything that you may see")
    assert manager.ask("/auth/me", secret)[0] == 200
    page = arrive("alice").page
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto("/users")
    page.get_by_role("link", name="vera").click()
    page.get_by_role("row").filter(has_text="hers").get_by_role("button", name="Revoke").click()
    expect(page.locator("#toasts")).to_contain_text("The token was revoked.")
    expect(page.get_by_role("heading", level=1)).to_have_text("vera")
    assert manager.ask("/auth/me", secret)[0] == 401
