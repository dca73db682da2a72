"""Runs in front of a browser: history, a run and a host's part in it while they go on, comparisons; with JavaScript and
without."""

import pytest
from playwright.sync_api import Page, expect

from app.nodes.models import OFFLINE
from protocol import states
from tests.browser import PHONE, axe
from tests.tasks.runs import Stage
from tests.tasks.test_run_pages import HOSTILE, record_of
from tests.web.conftest import Arrive, Manager

pytestmark = pytest.mark.browser

PAGES = (
    "/executions",
    "/executions?keyword=nothing-like-it",
    "/tasks/{task}/executions",
    "/executions/{run}",
    "/executions/{run}?status=failed",
    "/executions/{open}",
    "/executions/{open}/output",
    "/executions/{run}/groups",
    "/executions/{run}/compare",
    "/executions/{open}/cancel",
    "/executions/{run}/records/{failed}",
    "/executions/{open}/records/{going}",
    "/executions/{open}/records/{waiting}",
    "/executions/{run}/records/{failed}/difference?with={fine}",
    "/nodes/{node}/tasks",
)
SOME_PAGES = ("/executions", "/executions/{open}", "/executions/{run}/records/{failed}", "/executions/{run}/compare")


@pytest.fixture
def stage(manager: Manager) -> Stage:
    return Stage(manager.app)


@pytest.fixture
def played(stage: Stage) -> dict[str, object]:
    """Two runs of a task that have ended, and one of another that goes on."""
    nodes = stage.rig.hosts(6)
    task = stage.task("a task with a rather long name, as people give them", max_errors=5)
    before = stage.begin(task)
    stage.play_all(nodes, b"all is well\n")
    run = stage.begin(task)
    stage.play_all(nodes[:4], b"all is well\n")
    stage.play(nodes[4], b"x" * 5000, HOSTILE, states.FAILED, exit_code=3, error="it could not\nbe done")
    stage.play(nodes[5], b"all is well\n", status=states.TIMED_OUT, exit_code=None, error_code="task_timeout")
    stage.rig.set_node(nodes[5], status=OFFLINE)
    going = stage.begin(stage.task("slow", max_parallel=3))
    stage.write(nodes[0], stage.fetch(nodes[0]), ("stdout", b"it begins\n"), ("stderr", b"oh\n"))
    return {
        "task": task,
        "before": before,
        "run": run,
        "open": going,
        "node": nodes[4],
        "failed": record_of(stage, run, nodes[4]),
        "fine": record_of(stage, before, nodes[4]),
        "going": record_of(stage, going, nodes[0]),
        "waiting": record_of(stage, going, nodes[5]),
    }


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"colour_scheme": "light"}, id="light-en"),
        pytest.param({"locale": "zh-CN", "colour_scheme": "dark"}, id="dark-zh"),
        pytest.param({"colour_scheme": "dark", "viewport": PHONE, "paths": SOME_PAGES}, id="dark-en-phone"),
        pytest.param({"javascript": False, "paths": SOME_PAGES}, id="light-en-no-js"),
    ],
)
def test_every_page_is_for_everybody(arrive: Arrive, played: dict[str, object], options: dict[str, object]) -> None:
    found, paths = [], options.pop("paths", PAGES)
    page = arrive("alice", **options).page
    for path in paths:  # type: ignore[attr-defined]
        page.goto(path.format(**played))
        try:
            axe(page)
        except AssertionError as error:
            found.append(str(error))
    assert not found, "\n\n".join(found)


def test_no_page_is_wider_than_its_window(arrive: Arrive, played: dict[str, object]) -> None:
    page, found = arrive("alice").page, []
    for path in PAGES:
        for width in (720, PHONE[0], 320):
            page.set_viewport_size({"width": width, "height": 800})
            page.goto(path.format(**played))
            have = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if have > 0:
                found.append(f"{path} is {have} px too wide at {width}")
    assert not found, "\n".join(found)


def test_output_of_a_host_appears_as_it_comes(arrive: Arrive, stage: Stage, javascript: bool) -> None:
    (node,) = stage.rig.hosts(1)
    run = stage.begin(stage.task())
    order = stage.fetch(node)
    path = f"/executions/{run}/records/{record_of(stage, run, node)}"
    page = arrive("alice", javascript=javascript).page
    page.goto(path)
    out, err = page.get_by_label("Standard output"), page.get_by_label("Standard error")

    def look() -> None:
        if not javascript:
            page.goto(path)

    stage.write(node, order, ("stdout", b"one\n"), ("stderr", b"careful\n"))
    look()
    expect(out).to_have_text("one\n")
    expect(err).to_have_text("careful\n")
    stage.write(node, order, ("stdout", "zwei – 二\n".encode()), seq=2, offset=4)
    look()
    expect(out).to_have_text("one\nzwei – 二\n")
    stage.end(node, order, states.FAILED, exit_code=9)
    look()
    expect(page.locator("#record-badge")).to_have_text("failed")
    expect(page.locator("#record-state")).to_contain_text("It ended with exit code 9.")
    expect(page.get_by_role("button", name="Cancel on this host")).to_have_count(0)
    if javascript:
        expect(page.locator("[data-log-state]")).to_contain_text("It has ended.")


def test_a_second_attempt_begins_with_an_empty_window(arrive: Arrive, stage: Stage) -> None:
    (node,) = stage.rig.hosts(1)
    run = stage.begin(stage.task(retry_count=1, retry_interval=0))
    order = stage.fetch(node)
    stage.write(node, order, ("stdout", b"first\n"))
    page = arrive("alice").page
    page.goto(f"/executions/{run}/records/{record_of(stage, run, node)}")
    out = page.get_by_label("Standard output")
    expect(out).to_have_text("first\n")
    stage.end(node, order, states.FAILED)
    stage.write(node, stage.fetch(node), ("stdout", b"second\n"))
    expect(out).to_have_text("second\n")


def test_all_hosts_in_the_order_in_which_they_wrote(arrive: Arrive, stage: Stage, javascript: bool) -> None:
    one, two = stage.rig.hosts(2)
    run = stage.begin(stage.task())
    first, second = stage.fetch(one), stage.fetch(two)
    stage.write(one, first, ("stdout", b"a\n"))
    path = f"/executions/{run}/output"
    page = arrive("alice", javascript=javascript).page
    page.goto(path)
    lines = page.locator(".out .l")
    expect(lines).to_have_count(1)
    stage.write(two, second, ("stderr", b"b\n"))
    stage.write(one, first, ("stdout", b"c\nd\n"), seq=1, offset=2)
    if not javascript:
        page.goto(path)
    expect(lines).to_have_text(["host-00000 a", "host-00001 b", "host-00000 c", "host-00000 d"])
    expect(page.locator(".out .l.e")).to_have_text("host-00001 b")
    stage.end(one, first)
    stage.end(two, second)
    if javascript:
        expect(page.locator("[data-log-state]")).to_contain_text("The run has ended.")
        expect(page.locator("#run-badge")).to_have_text("succeeded")


def test_nothing_is_asked_for_while_nobody_looks(arrive: Arrive, stage: Stage) -> None:
    (node,) = stage.rig.hosts(1)
    run = stage.begin(stage.task())
    order = stage.fetch(node)
    path = f"/executions/{run}/output"
    hidden, seen = arrive("alice").page, arrive("alice").page
    hidden.add_init_script("window.away = true; Object.defineProperty(document, 'hidden', { get: () => window.away });")
    asked: list[str] = []
    hidden.on("request", lambda request: asked.append(request.url))
    hidden.goto(path)
    seen.goto(path)
    stage.write(node, order, ("stdout", b"news\n"))
    expect(seen.locator(".out")).to_contain_text("news")
    expect(hidden.locator(".out")).not_to_contain_text("news")
    assert not [url for url in asked if "follow" in url or "was=" in url]
    hidden.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    expect(hidden.locator(".out")).to_contain_text("news")


def test_a_run_is_watched_to_its_end(arrive: Arrive, stage: Stage, javascript: bool) -> None:
    nodes = stage.rig.hosts(2)
    run = stage.begin(stage.task())
    page = arrive("alice", javascript=javascript).page
    page.goto(f"/executions/{run}")
    expect(page.locator("#run-state")).to_contain_text("Why are 2 hosts waiting?")
    stage.play(nodes[0], b"fine\n")
    stage.play(nodes[1], b"", b"disk full\n", states.FAILED, exit_code=4)
    if not javascript:
        page.reload()
    expect(page.locator("#run-badge")).to_have_text("partly failed")
    first = page.locator("#records-table tbody tr").first
    expect(first).to_contain_text("host-00001")
    expect(first).to_contain_text("disk full")
    expect(page.get_by_role("button", name="Cancel run")).to_have_count(0)
    page.get_by_role("button", name="Retry the failed ones").click()
    expect(page.locator(".toast")).to_contain_text("Tried again on 1 host.")
    expect(page.locator(".head")).to_contain_text(f"repeats run {run[:8]}")


def test_pausing_going_on_and_giving_up(arrive: Arrive, stage: Stage, javascript: bool) -> None:
    stage.rig.hosts(25)
    run = stage.begin(stage.task(max_parallel=5))
    page = arrive("alice", javascript=javascript).page
    page.goto(f"/executions/{run}")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#run-badge")).to_contain_text("paused")
    page.get_by_role("button", name="Go on").click()
    expect(page.locator("#run-badge")).not_to_contain_text("paused")
    page.get_by_role("link", name="Cancel run").click()
    page.get_by_label("Type 25 to go on").fill("25")
    page.get_by_role("button", name="Yes, cancel the run").click()
    expect(page.locator(".toast")).to_contain_text("The run is being cancelled.")
    expect(page.locator("#run-badge")).to_contain_text("cancelled")


def test_finding_hosts_of_a_run(arrive: Arrive, played: dict[str, object], javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/executions/{run}".format(**played))
    rows = page.locator("#records-table tbody tr")
    expect(rows).to_have_count(6)
    page.get_by_role("navigation", name="Hosts by status").get_by_role("link", name="ran too long").click()
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("It ran too long and was stopped.")
    page.get_by_role("link", name="Clear all").click()
    page.get_by_placeholder("Output contains …").fill("alert(1)")
    page.get_by_placeholder("Output contains …").press("Enter")
    expect(rows).to_have_count(1)
    rows.get_by_role("link").click()
    expect(page.get_by_label("Standard error")).to_contain_text("<script>alert(1)</script>")


def test_comparing_and_looking_at_one_difference(arrive: Arrive, played: dict[str, object], javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/executions/{run}".format(**played))
    page.get_by_role("link", name="Who said the same").click()
    expect(page.locator(".lead-line")).to_contain_text("4 hosts say the same, 2 differ.")
    page.get_by_role("link", name="Compare with another run").click()
    expect(page.locator(".lead-line")).to_contain_text("2 hosts succeeded then and did not now.")
    page.get_by_role("navigation", name="Hosts by what differs").get_by_role("link", name="the same").click()
    expect(page.locator("#pairs-table tbody tr")).to_have_count(4)
    page.get_by_role("link", name="Clear all").click()
    page.get_by_role("link", name="Difference").first.click()
    expect(page.locator(".diff .del").first).to_contain_text("-all is well")


def test_searching_the_history(arrive: Arrive, played: dict[str, object], javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/executions")
    rows = page.locator("#runs-table tbody tr")
    expect(rows).to_have_count(3)
    page.get_by_placeholder("Output contains …").fill("it begins")
    page.get_by_placeholder("Output contains …").press("Enter")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("slow")


def test_a_megabyte_in_one_line_can_be_looked_at(arrive: Arrive, stage: Stage) -> None:
    (node,) = stage.rig.hosts(1)
    run = stage.begin(stage.task())
    stage.play(node, b"\x1b[1m" + b"<i>" * 340_000)
    page: Page = arrive("alice").page
    page.goto(f"/executions/{run}/records/{record_of(stage, run, node)}?whole=stdout")
    out = page.get_by_label("Standard output")
    expect(out).to_be_visible()
    assert len(out.text_content() or "") == 3 * 340_000
    assert page.locator(".out i").count() == 0
