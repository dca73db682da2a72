"""The settings page in front of a browser: changed, refused, taken back."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser import axe
from tests.web.conftest import Arrive, Manager

pytestmark = pytest.mark.browser

INTERVAL = "How often a Daemon checks in"


def save(page: Page) -> None:
    page.get_by_role("button", name="Save settings").click()


def test_a_change_applies_is_shown_and_can_be_taken_back(arrive: Arrive, manager: Manager, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/settings")
    field = page.get_by_label(INTERVAL)
    expect(field).to_have_value("1m")
    field.fill("45s")
    page.get_by_label("Hosts without a token").select_option("yes")
    page.get_by_label("Time zone of pages").select_option("Asia/Shanghai")
    save(page)
    expect(page.locator("#toasts")).to_contain_text("The settings were saved.")
    expect(field).to_have_value("45s")
    row = page.locator(".field").filter(has=field)
    expect(row).to_contain_text("changed")
    expect(row).to_contain_text("Configured: 1m; empty goes back to it.")
    expect(page.get_by_label("Hosts without a token")).to_have_value("true")
    change = manager.audited("settings.change")[0].detail
    assert change["before"] == {"node.heartbeat_interval": 60.0, "node.discovery": False, "ui.timezone": "UTC"}
    assert change["after"] == {"node.heartbeat_interval": 45.0, "node.discovery": True, "ui.timezone": "Asia/Shanghai"}

    field.fill("")
    page.get_by_label("Hosts without a token").select_option("no")
    page.get_by_label("Time zone of pages").select_option("UTC")
    save(page)
    expect(field).to_have_value("1m")
    expect(page.get_by_text("changed", exact=True)).to_have_count(0)


def test_what_is_not_allowed_comes_back_with_the_reason(arrive: Arrive, manager: Manager, javascript: bool) -> None:
    visit = arrive("alice", javascript=javascript)
    visit.witness.expect("status of 422")
    page = visit.page
    page.goto("/settings")
    page.get_by_label(INTERVAL).fill("5s")
    page.get_by_label("Days that events are kept").fill("many")
    page.get_by_label("Shortest password").fill("10")
    save(page)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("node.heartbeat_interval: At least 10s is expected.")
    expect(alert).to_contain_text("events.retention_days: ")
    expect(page.get_by_label(INTERVAL)).to_have_value("5s")
    expect(page.get_by_label(INTERVAL)).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Shortest password")).to_have_value("10")
    axe(page)
    page.goto("/settings")
    expect(page.get_by_label("Shortest password")).to_have_value("8")
    assert manager.audited("settings.change") == []


def test_an_unchanged_page_changes_nothing(arrive: Arrive, manager: Manager) -> None:
    page = arrive("alice").page
    page.goto("/settings")
    save(page)
    expect(page.locator("#toasts")).to_contain_text("The settings were saved.")
    expect(page.get_by_text("changed", exact=True)).to_have_count(0)
    assert manager.audited("settings.change") == []


def test_only_administrators_open_it(arrive: Arrive, manager: Manager) -> None:
    manager.user("oscar", "operator")
    visit = arrive("oscar")
    visit.witness.expect("status of 403")
    visit.page.goto("/settings")
    expect(visit.page.get_by_role("heading", level=1)).to_have_text("Not allowed")
