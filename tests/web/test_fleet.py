"""Hosts in front of a browser: list, bulk bar, dialogs, queue, map, live lines; every page fits everybody."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Page, expect

from app.events.actions import note
from app.kernel.clock import now
from app.kernel.db import db
from app.link import live
from app.metrics.models import FleetPoint, epoch_ms
from app.nodes.models import SmartGroup
from protocol.metrics import Sample
from protocol.times import to_text
from tests.browser import PHONE, axe
from tests.nodes.fleet import make_certificate, make_group, make_node, make_waiting, node, tags_of
from tests.web.conftest import Arrive, Manager

pytestmark = pytest.mark.browser

PAGES = (
    "/dashboard",
    "/nodes",
    "/nodes?selector=env%3Dprod+role+in+web",
    "/nodes/{node}",
    "/nodes/{node}/edit",
    "/nodes/{node}/maintenance",
    "/nodes/{node}/events",
    "/nodes/{node}/identity",
    "/nodes/{node}/live?reload=0",
    "/nodes/{node}/delete",
    "/nodes/{waiting}",
    "/nodes/bulk/names?ids={node}",
    "/nodes/bulk/delete?ids={node}",
    "/groups",
    "/groups/new",
    "/groups/smart/new",
    "/enrollment",
    "/enrollment/new",
    "/enrollment/node",
    "/enrollment/queue",
    "/events",
    "/search?q=a-very",
)
SOME_PAGES = ("/dashboard", "/nodes", "/nodes/{node}", "/groups", "/enrollment/queue", "/events")
# Links of the fleet map are as small as it takes to see all hosts at once; its list is the way for fingers.
WITHOUT = {"/dashboard": ("target-size",)}
LONG_NAME = "a-very-long-host-name-of-the-kind.that.some-people.like-to-give.example.org"


@pytest.fixture
def fleet(manager: Manager) -> dict[str, int]:
    """Hosts in every state, with names that are longer than pretty; numbers for addresses."""
    at = now()
    with manager.app.app_context():
        node_id = make_node(
            LONG_NAME,
            ip="10.200.100.200",
            ips=["10.200.100.200", "fd00:1111:2222:3333:4444:5555:6666:7777"],
            group="production/europe/frankfurt-am-main",
            tags=["canary", "a-rather-long-tag-that-somebody-made"],
            labels={"environment": "production-of-something-important", "role": "web"},
            version="1.4.2-rc.1+build.2026",
            agent_status="running",
            last_cpu_usage=88.0,
            last_memory_usage=97.5,
            last_disk_usage=40.0,
            last_heartbeat=at,
            maintenance_until=at + timedelta(hours=3),
            maintenance_reason="Kernel",
            cloned_at=at,
            capabilities={"state": "file", "scripts": True, "terminal": False, "run_as": ["*"], "files": ["/**"]},
        )
        make_certificate(node_id, "ab" * 32)
        make_node("off-1", status="offline", agent_status="error")
        for number in range(14):
            make_node(f"web-{number:02}", last_cpu_usage=number * 7.0, last_heartbeat=at, labels={"env": "prod"})
        waiting = make_waiting("copy-1", kind="clone", origin_node_id=node_id)
        session = db.session()
        session.add(SmartGroup(name="frontends", selector="env=prod role in (web,cache) !legacy"))
        for step in range(24):
            ts = epoch_ms(at) // 300_000 * 300_000 - step * 300_000
            session.add(FleetPoint(ts=ts, nodes=3, cpu_usage=20.0 + step, memory_usage=50.0, disk_usage=40.0))
        for severity in ("critical", "warning", "info"):
            note(session, "spool.damaged", "x" * 60, node_id=node_id, hostname=LONG_NAME, severity=severity)
        session.commit()
    return {"node": node_id, "waiting": waiting}


def visited(
    arrive: Arrive, numbers: dict[str, int], paths: tuple[str, ...] = PAGES, **options: object
) -> Iterator[tuple[str, Page]]:
    page = arrive("alice", **options).page
    for path in paths:
        page.goto(path.format(**numbers))
        yield path, page


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"colour_scheme": "light"}, id="light-en"),
        pytest.param({"locale": "zh-CN", "colour_scheme": "dark"}, id="dark-zh"),
        pytest.param({"colour_scheme": "dark", "viewport": PHONE, "paths": SOME_PAGES}, id="dark-en-phone"),
        pytest.param({"javascript": False, "paths": SOME_PAGES}, id="light-en-no-js"),
    ],
)
def test_every_page_is_for_everybody(arrive: Arrive, fleet: dict[str, int], options: dict[str, object]) -> None:
    found = []
    for path, page in visited(arrive, fleet, **options):  # type: ignore[arg-type]
        try:
            axe(page, without=WITHOUT.get(path, ()))
        except AssertionError as error:
            found.append(str(error))
    assert not found, "\n\n".join(found)


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_no_page_is_wider_than_its_window(arrive: Arrive, fleet: dict[str, int], locale: str) -> None:
    found = []
    for path, page in visited(arrive, fleet, locale=locale):
        for width in (1440, 1280, 720, 360, 320):
            page.set_viewport_size({"width": width, "height": 800})
            pixels = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if pixels > 0:
                found.append(f"{path} is {pixels} px too wide at {width}")
    assert not found, "\n".join(found)


def test_the_list_narrows_while_one_types_and_points_at_what_is_wrong(arrive: Arrive, fleet: dict[str, int]) -> None:
    page = arrive("alice").page
    page.goto("/nodes")
    page.get_by_role("searchbox", name="Search", exact=True).press_sequentially("web-0")
    expect(page.locator("tbody tr")).to_have_count(10)
    field = page.get_by_role("textbox", name="Selector")
    field.fill("env=prod and")
    field.press("Enter")
    expect(page.locator(".selector-error")).to_contain_text("Column 13: expected a name")
    expect(page.locator("tbody tr")).to_have_count(0)
    field.fill("env=prod and node:web-00")
    field.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page).to_have_url(re.compile(r"selector=env%3Dprod"))


def test_what_is_saved_as_a_view_is_the_list_as_it_was_last_shown(arrive: Arrive, fleet: dict[str, int]) -> None:
    page = arrive("alice").page
    page.goto("/nodes")
    page.get_by_label("Status").select_option("offline")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_text("Views").click()
    page.get_by_label("Name of the view").fill("broken ones")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page).to_have_url(re.compile(r"/nodes\?status=offline$"))
    page.goto("/nodes")
    page.get_by_text("Views").click()
    page.get_by_role("link", name="broken ones").click()
    expect(page.locator("tbody tr")).to_have_count(1)


def test_ticked_nodes_are_tagged(arrive: Arrive, manager: Manager, fleet: dict[str, int], javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/nodes?keyword=web-0")
    page.get_by_role("checkbox", name="Select web-00").check()
    page.get_by_role("checkbox", name="Select web-01").check()
    if javascript:
        expect(page.locator("[data-count]")).to_have_text("2 selected")
    page.get_by_role("button", name="Tag").click()
    expect(page.get_by_role("link", name="Take all 10 nodes of the list instead")).to_be_visible()
    page.get_by_label("Tags to add").fill("picked")
    page.get_by_role("button", name="Save").click()
    expect(page).to_have_url(re.compile(r"/nodes\?keyword=web-0$"))
    expect(page.get_by_role("link", name="picked")).to_have_count(2)


def test_names_are_edited_in_a_dialog(arrive: Arrive, manager: Manager, fleet: dict[str, int]) -> None:
    visit = arrive("alice")
    visit.witness.expect("status of 422")
    page = visit.page
    page.goto(f"/nodes/{fleet['node']}")
    page.get_by_role("link", name="Edit").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Labels").fill("nonsense")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_contain_text("key=value is expected")
    dialog.get_by_label("Labels").fill("env=lab")
    dialog.get_by_label("Tags").fill("one two")
    dialog.get_by_role("button", name="Save").click()
    expect(page.get_by_role("link", name="env=lab")).to_be_visible()
    with manager.app.app_context():
        assert tags_of(fleet["node"]) == ["one", "two"]


def test_a_waiting_host_is_let_in(arrive: Arrive, manager: Manager, fleet: dict[str, int], javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/enrollment/queue")
    page.get_by_role("checkbox", name="Select copy-1").check()
    page.locator("form.bulk").get_by_role("button", name="Approve").click()
    expect(page.locator("#toasts")).to_contain_text("1 host was let in.")
    expect(page.get_by_text("Nobody waits")).to_be_visible()
    with manager.app.app_context():
        assert node(fleet["waiting"]).status == "unknown"


def test_a_token_is_made_and_its_line_can_be_copied(arrive: Arrive, fleet: dict[str, int], javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/enrollment/new")
    page.get_by_role("button", name="Make the token").click()
    expect(page.get_by_text(re.compile(r"^curl -fsSk --pinnedpubkey sha256//.* --token ops_join_"))).to_be_visible()
    expect(page.get_by_role("button", name="Copy").first).to_be_visible(visible=javascript)
    axe(page)


def test_arrows_walk_the_map(arrive: Arrive, fleet: dict[str, int]) -> None:
    page = arrive("alice").page
    page.goto("/dashboard")
    cells = page.locator(".map a")
    expect(cells).to_have_count(16)
    cells.first.focus()
    page.keyboard.press("ArrowRight")
    expect(cells.nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/nodes/\d+$"))


def samples(start: datetime, seconds: int) -> list[Sample]:
    moments = [start + timedelta(seconds=second) for second in range(seconds)]
    return [Sample(to_text(at.timestamp()), 40.0, 60.0, 2**30, 3e6, 1e6, 5e5, 1e5) for at in moments]


def test_live_lines_grow_as_samples_come(arrive: Arrive, manager: Manager, fleet: dict[str, int]) -> None:
    page = arrive("alice").page
    page.goto(f"/nodes/{fleet['node']}/live")
    state = page.locator("[data-follow-state]")
    expect(state).to_have_text("waiting for the host …")
    with manager.app.app_context():
        assert live.wanted_until(fleet["node"]) is not None
        live.keep(fleet["node"], samples(datetime.now(UTC) - timedelta(seconds=20), 20))
    expect(state).to_have_text("live, every second")
    line = page.locator("[data-followed=cpu_usage] path.line")
    expect(line).to_have_attribute("d", re.compile(r"^M\d"))
    before = line.get_attribute("d") or ""
    with manager.app.app_context():
        live.keep(fleet["node"], samples(datetime.now(UTC), 2))
    expect(line).not_to_have_attribute("d", before)
    assert (line.get_attribute("d") or "").count("L") == before.count("L") + 2
    expect(page.locator("[data-followed=cpu_usage] .legend b")).to_have_text("40.0%")
    expect(page.locator("[data-followed='disk_read disk_write'] .legend b").first).to_have_text("2.9 MiB/s")
    page.locator("[data-followed=memory_usage] .area").hover(position={"x": 300, "y": 40})
    axe(page)


def test_without_a_script_the_live_page_comes_anew_by_itself(
    arrive: Arrive, manager: Manager, fleet: dict[str, int]
) -> None:
    page = arrive("alice", javascript=False).page
    page.goto(f"/nodes/{fleet['node']}/live")
    expect(page).to_have_url(re.compile(r"/live\?reload=2$"))
    with manager.app.app_context():
        live.keep(fleet["node"], samples(datetime.now(UTC) - timedelta(seconds=20), 20))
    expect(page.locator("[data-followed=cpu_usage] path.line")).to_have_count(1)
    page.get_by_role("link", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()


def test_a_group_is_added_in_a_dialog(arrive: Arrive, manager: Manager, fleet: dict[str, int]) -> None:
    with manager.app.app_context():
        make_group("lab")
    page = arrive("alice").page
    page.goto("/groups")
    page.get_by_role("link", name="Add a group below lab").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("deep")
    dialog.get_by_role("button", name="Add group").click()
    expect(page.get_by_title("lab/deep")).to_be_visible()
