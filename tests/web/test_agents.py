"""Agents in front of a browser: lists, one agent, its dossier, configuration and log; with and without JavaScript."""

import re
import threading
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from app.agents import actions, configuring, ready
from app.agents.schemas import ConfigIn
from app.kernel import streams
from app.kernel.db import db
from tests.agents.builders import answer, check_in, event, fetch, make_host, told
from tests.browser import PHONE, axe
from tests.factories import SYSTEM
from tests.web.conftest import Arrive, Manager

pytestmark = pytest.mark.browser

LONG = "a-rather-long-name-of-a-program.that-somebody-gave-it"
PATH = "/etc/nginx/nginx.conf"
PAGES = (
    "/agents",
    "/agents?status=error",
    "/nodes/{node}/agents",
    "/nodes/{node}/agents/nginx",
    "/nodes/{node}/agents/nginx/config",
    "/nodes/{node}/agents/nginx/config/edit",
    "/nodes/{node}/agents/nginx/config/versions/2",
    "/nodes/{node}/agents/nginx/config/spread?selector=all",
    "/nodes/{node}/agents/nginx/manifest",
    "/nodes/{node}/agents/nginx/edit",
    "/nodes/{node}/agents/nginx/delete",
    "/nodes/{node}/agent-new",
    "/nodes/{node}/agent-new/node_exporter",
    "/nodes/{node}/agent-new/manifest",
    "/nodes/{off}/agents/daemon/logs",
    "/agents/bulk/restart?everything=1&query=",
)
SOME_PAGES = ("/agents", "/nodes/{node}/agents/nginx", "/nodes/{node}/agents/nginx/config")
DOSSIER = {
    "agent": "nginx", "exit_code": None, "signal": 11, "pid": 7, "ran_s": 90.5, "restarts": 2,
    "log": {"/var/log/nginx/error.log": ["[emerg] the last line " + "x" * 200]},
    "curve": [[-20, 1.0, 1000], [-10, 50.0, 2000], [0, 80.0, 3000]],
    "config": {"at_start_before": 1, "at_start": 2, "now": 2, "changed_at": None},
}  # fmt: skip


@pytest.fixture
def fleet(manager: Manager) -> dict[str, int]:
    """A host with agents of several kinds, one of them configured twice and crashed once; one host that is away."""
    app = manager.app
    with app.app_context():
        session = db.session()
        node, off = make_host(app, "web-1", labels={"env": "prod"}), make_host(app, "off-1", status="offline")
        actions.create_agent(session, SYSTEM, node, ready.catalogue()["nginx"].manifest)
        session.commit()
        for content in ("worker_processes 1;\n", "worker_processes {{ cpu_cores }};\nname {{ labels.env }};\n"):
            files = [{"path": PATH, "content": content}]
            configuring.save_config(session, SYSTEM, node, "nginx", ConfigIn.model_validate({"files": files}))
            session.commit()
            (order,) = fetch(node)
            answer(node, order["id"], {"outcome": "kept"})
        agents = [
            told(source="manager", config_version=2, drifted=True),
            told(LONG, status="error", last_error="exited with code 1", pid=None, restart_count=9),
            told("task-agent", type="task", source="builtin", status="stopped", desired="stopped", pid=None),
        ]
        crash = event("agent.crashed", data=DOSSIER, severity="critical", message="ended by signal 11 (SEGV)")
        check_in(node, agents, events=[crash])
    return {"node": node, "off": off}


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
    found, paths = [], options.pop("paths", PAGES)
    page = arrive("alice", **options).page
    for path in paths:  # type: ignore[attr-defined]
        page.goto(path.format(**fleet))
        try:
            axe(page)
        except AssertionError as error:
            found.append(str(error))
    assert not found, "\n\n".join(found)


def test_a_page_fits_a_phone(arrive: Arrive, fleet: dict[str, int]) -> None:
    page = arrive("alice", viewport=PHONE).page
    for path in PAGES:
        page.goto(path.format(**fleet))
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE[0], (path, width)


def test_stopping_and_what_became_of_it(
    arrive: Arrive, manager: Manager, fleet: dict[str, int], javascript: bool
) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/nodes/{node}/agents/nginx".format(**fleet))
    expect(page.get_by_text("ended by signal 11 (SEGV)").first).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".toast")).to_contain_text("Stop: nginx has been told.")
    with manager.app.app_context():
        (order,) = fetch(fleet["node"])
        assert order["kind"] == "agent.stop"
        answer(fleet["node"], order["id"], {"status": "stopped", "pid": None})
    page.reload()
    expect(page.locator(".head")).to_contain_text("stopped")
    page.get_by_role("button", name="Start").click()
    expect(page.locator(".toast")).to_contain_text("Start: nginx has been told.")


def test_a_change_is_shown_before_it_is_sent(
    arrive: Arrive, manager: Manager, fleet: dict[str, int], javascript: bool
) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/nodes/{node}/agents/nginx/config".format(**fleet))
    page.get_by_role("link", name="Change").click()
    page.get_by_label(PATH).fill("worker_processes 8;\nname {{ labels.env }};\n")
    page.get_by_role("button", name="Show what would change").click()
    expect(page.locator(".diff .add")).to_contain_text("+worker_processes 8;")
    page.get_by_role("button", name=re.compile("Save and send")).click()
    expect(page.locator(".toast")).to_contain_text("Version 3 was saved.")
    with manager.app.app_context():
        (order,) = fetch(fleet["node"])
        assert order["files"][0]["content"] == "worker_processes 8;\nname prod;\n"


@pytest.fixture
def chatty_host(manager: Manager, fleet: dict[str, int]) -> Iterator[None]:
    """A host that answers what it is asked about its log, and writes two lines to whoever follows."""
    ended = threading.Event()

    def serve() -> None:
        with manager.app.app_context():
            while not ended.is_set():
                for order in fetch(fleet["node"]):
                    if order["kind"] == "agent.logs":
                        lines = [{"file": "stderr", "text": "an old line"}]
                        data = {"lines": lines, "truncated": False, "files": [{"path": "/var/log/x.log", "size": 5}]}
                        answer(fleet["node"], order["id"], data)
                    elif order["kind"] == "agent.stream_logs":
                        streams.write(order["stream"], fleet["node"], 0, "a new line ✓\n".encode())
                        streams.write(order["stream"], fleet["node"], 15, b"the last line\n", is_end=True)
                        answer(fleet["node"], order["id"], {})
                db.session.remove()
                time.sleep(0.05)

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_a_log_is_read_and_followed(arrive: Arrive, fleet: dict[str, int], chatty_host: None, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/nodes/{node}/agents/nginx/logs".format(**fleet))
    log = page.locator("[data-log]")
    expect(log).to_contain_text("an old line")
    if not javascript:
        page.get_by_role("link", name="Follow").click()
        expect(page.get_by_text("This page loads itself anew every 3 seconds.")).to_be_visible()
        return
    page.get_by_role("button", name="Follow").click()
    expect(log).to_contain_text("a new line ✓")
    expect(log).to_contain_text("the last line")
    expect(page.locator("[data-log-state]")).to_contain_text("The host has ended the stream.")
