"""Tasks and templates in front of a browser: defining, previewing, running, with and without JavaScript."""

import pytest
from playwright.sync_api import Page, expect

from app.commands.models import Fanout
from app.kernel.db import db, in_transaction
from app.tasks import actions
from app.tasks.models import Task, TaskTemplate
from app.tasks.schemas import TaskIn, TemplateIn
from tests.agents.builders import make_host
from tests.browser import PHONE, axe
from tests.factories import SYSTEM
from tests.nodes.fleet import LATER
from tests.web.conftest import Arrive, Manager

pytestmark = pytest.mark.browser

LONG = "a-rather-long-name-of-a-task.that-somebody-gave-it-because-it-does-so-much"
PAGES = (
    "/tasks",
    "/tasks?type=script&keyword=zzz",
    "/tasks/{task}",
    "/tasks/{off}",
    "/tasks/new",
    "/tasks/new?target_type=selector&target_value=env%3Dprod",
    "/tasks/new?template={template}&target_type=tag&target_value=canary",
    "/tasks/{task}/edit",
    "/tasks/{task}/execute",
    "/tasks/{task}/delete",
    "/tasks/templates",
    "/tasks/templates/{template}",
    "/tasks/templates/library/clean-up",
    "/tasks/templates/new",
    "/tasks/templates/{template}/edit",
    "/tasks/templates/{template}/delete",
)
SOME_PAGES = ("/tasks", "/tasks/{task}", "/tasks/{task}/edit", "/tasks/templates/{template}/edit", "/tasks/templates")
PARAMETERS = [
    {"name": "LIMIT", "type": "integer", "required": True, "default": 90, "minimum": 1, "maximum": 100},
    {"name": "BY", "type": "choice", "choices": ["cpu", "memory"], "required": True, "default": "cpu"},
    {"name": "PATH", "type": "string", "pattern": "/.*", "description": "Where it looks"},
    {"name": "DELETE", "type": "boolean", "required": True, "default": False},
]


@pytest.fixture
def fleet(manager: Manager) -> dict[str, int]:
    """Hosts, tasks of two kinds, a template."""
    app = manager.app
    with app.app_context():
        session = db.session()
        web = make_host(app, "web-1", labels={"env": "prod"}, tags=["canary"], group="prod/eu")
        make_host(app, "db-1", labels={"env": "prod"}, status="offline", group="prod/us")
        make_host(app, "queue-1", labels={"env": "prod"}, maintenance_until=LATER)

        def make() -> dict[str, int]:
            content = {"script": 'echo "$OPS_PARAM_LIMIT"', "args": ["-v"], "env": {"A": "b" * 200}}
            template = TemplateIn.model_validate(
                {"name": "look", "type": "script", "content": content, "parameters": PARAMETERS}
            )
            given = {"type": "script", "content": content, "target_type": "selector", "target_value": ["env=prod"]}
            task = given | {"name": LONG, "cron_expr": "30 3 * * 1-5", "timezone": "Asia/Shanghai", "max_parallel": 1}
            off = {"type": "service", "content": {"op": "stop", "name": "nginx"}, "target_type": "all", "name": "stop"}
            return {
                "web": web,
                "template": actions.create_template(session, SYSTEM, template).id,
                "task": actions.create_task(session, SYSTEM, TaskIn.model_validate(task)).id,
                "off": actions.create_task(session, SYSTEM, TaskIn.model_validate(off | {"status": "disabled"})).id,
            }

        return in_transaction(session, make)


def many_hosts(manager: Manager, count: int) -> None:
    with manager.app.app_context():
        for number in range(count):
            make_host(manager.app, f"many-{number:02}", labels={"env": "many"})


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
    found, paths = [], options.get("paths", PAGES)
    page = arrive("alice", **{name: value for name, value in options.items() if name != "paths"}).page
    for path in paths:  # type: ignore[attr-defined]
        page.goto(path.format(**fleet))
        try:
            axe(page)
        except AssertionError as error:
            found.append(str(error))
    assert not found, "\n\n".join(found)


def test_every_kind_of_work_is_for_everybody(arrive: Arrive, fleet: dict[str, int]) -> None:
    visit = arrive("alice")
    visit.witness.expect("status of 422")
    page = visit.page
    page.goto("/tasks/new")
    for kind in ("File", "Configuration file", "Service", "Plugin", "From a template"):
        choose(page, kind)
        axe(page)
    for target in ("Groups", "Tags", "Labels", "Hosts", "All hosts"):
        choose(page, target)
    choose(page, "By a schedule")
    axe(page)
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("alert")).to_be_visible()
    axe(page)


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_no_page_is_wider_than_its_window(arrive: Arrive, fleet: dict[str, int], locale: str) -> None:
    found, page = [], arrive("alice", locale=locale).page
    for path in PAGES:
        page.goto(path.format(**fleet))
        for width in (1440, 720, 360, 320):
            page.set_viewport_size({"width": width, "height": 800})
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if wide > 0:
                found.append(f"{path} is {wide} px too wide at {width}")
    assert not found, "\n".join(found)


def choose(page: Page, label: str) -> None:
    """One of the words that stand side by side."""
    page.locator(".seg-label:visible").get_by_text(label, exact=True).click()


def test_from_nothing_to_a_run(arrive: Arrive, manager: Manager, fleet: dict[str, int], javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/tasks")
    page.get_by_role("link", name="New task").click()
    page.get_by_label("Name", exact=True).fill("uptime")
    page.get_by_label("Script", exact=True).last.fill("set -eu\nuptime\n")
    page.get_by_label("Selector").last.fill("env=prod")
    hosts = page.locator("#hosts")
    if not javascript:
        page.get_by_role("button", name="Show the hosts").click()
        expect(page.get_by_label("Script", exact=True).last).to_have_value("set -eu\nuptime\n")
    expect(hosts).to_contain_text("3 hosts")
    expect(hosts).to_contain_text("1 offline")
    expect(hosts).to_contain_text("1 in maintenance")
    page.get_by_role("button", name="Save and run now").click()
    page.wait_for_url("**/executions/*")
    with manager.app.app_context():
        task, run = db.session.query(Task).filter_by(name="uptime").one(), db.session.query(Fanout).one()
        assert (task.content["script"], run.total, run.created_by) == ("set -eu\nuptime\n", 3, "alice")
    page.goto(f"/tasks/{task.id}")
    expect(page.locator(".run-list li")).to_have_count(1)


def test_a_schedule_shows_its_next_times(arrive: Arrive, fleet: dict[str, int], javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/tasks/new")
    expect(page.get_by_label("Cron expression")).to_be_hidden()
    choose(page, "By a schedule")
    page.get_by_label("Cron expression").fill("30 3 * * 1-5")
    page.get_by_label("Time zone").select_option("Asia/Shanghai")
    if not javascript:
        page.get_by_role("button", name="Show the next times").click()
    expect(page.get_by_role("list", name="Next times").get_by_role("listitem")).to_have_count(5)
    expect(page.locator("#times")).to_contain_text("03:30")
    if javascript:
        page.get_by_label("Cron expression").fill("30 3 * * 1-9")
        expect(page.locator("#times")).to_contain_text("Five fields of cron")


def test_wrong_fields_keep_what_was_typed(arrive: Arrive, fleet: dict[str, int], javascript: bool) -> None:
    visit = arrive("alice", javascript=javascript)
    visit.witness.expect("status of 422")
    page = visit.page
    page.goto("/tasks/new")
    choose(page, "Configuration file")
    choose(page, "Set a value")
    page.locator("#f-config_path").fill("relative/path")
    page.locator("#f-config_key").fill("log.level")
    page.locator("#f-config_value").fill("kept")
    choose(page, "Labels")
    page.get_by_label("Labels").last.fill("env")
    page.get_by_role("button", name="Save", exact=True).click()
    alert = page.get_by_role("alert")
    for words in ("Name: This is needed.", "File: An absolute path", "Labels: env: key=value"):
        expect(alert).to_contain_text(words)
    expect(page.locator("#f-config_value")).to_have_value("kept")
    expect(page.locator("#f-config_path")).to_have_value("relative/path")


def test_a_template_asks_and_is_used(arrive: Arrive, manager: Manager, fleet: dict[str, int], javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/tasks/new")
    page.get_by_label("Name", exact=True).fill("filled in")
    choose(page, "From a template")
    page.get_by_label("Template", exact=True).select_option("look")
    if not javascript:
        page.get_by_role("button", name="Show what it asks for").click()
    expect(page.get_by_label("LIMIT", exact=True)).to_have_value("90")
    page.get_by_label("LIMIT", exact=True).fill("50")
    page.get_by_label("BY", exact=True).select_option("memory")
    page.locator("#f-p_PATH").fill("/srv")
    page.locator("#f-p_DELETE").check()
    choose(page, "All hosts")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("heading", level=1, name="filled in")).to_be_visible()
    with manager.app.app_context():
        task = db.session.query(Task).filter_by(name="filled in").one()
        assert task.parameters == {"LIMIT": 50, "BY": "memory", "PATH": "/srv", "DELETE": True}


def test_many_hosts_are_counted_aloud(arrive: Arrive, manager: Manager, javascript: bool) -> None:
    many_hosts(manager, 21)
    with manager.app.app_context():
        given = {"name": "all of them", "type": "script", "content": {"script": "true"}, "target_type": "all"}
        values = TaskIn.model_validate(given)
        task = in_transaction(db.session(), lambda: actions.create_task(db.session(), SYSTEM, values)).id
    visit = arrive("alice", javascript=javascript)
    visit.witness.expect("status of 422")
    page = visit.page
    page.goto(f"/tasks/{task}")
    page.get_by_role("link", name="Run now").click()
    button = page.get_by_role("button", name="Run now", exact=True)
    if javascript:
        expect(page.get_by_role("dialog")).to_be_visible()
        expect(button).to_be_disabled()
    else:
        button.click()
        expect(page.get_by_role("alert")).to_contain_text("Please type 21.")
    page.get_by_label("Type 21 to go on").fill("21")
    button.click()
    page.wait_for_url("**/executions/*")
    with manager.app.app_context():
        assert db.session.query(Fanout).one().total == 21


def test_a_template_is_written(arrive: Arrive, manager: Manager, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/tasks/templates")
    page.get_by_role("link", name="New template").first.click()
    page.get_by_label("Name", exact=True).fill("clean")
    page.get_by_label("Script", exact=True).last.fill("ls\n")
    for name, type_ in (("DAYS", "Whole number"), ("GONE", "Text"), ("BY", "One of several")):
        page.get_by_role("button", name="Add a parameter").click()
        row = page.locator(".param").last
        row.get_by_label("Name").fill(name)
        row.get_by_text(type_, exact=True).click()
    page.locator(".param").last.get_by_label("Choices").fill("name\nage\n")
    page.locator(".param").first.get_by_label("Default").first.fill("30")
    page.get_by_role("button", name="Remove GONE").click()
    expect(page.locator(".param")).to_have_count(2)
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("heading", level=1, name="clean")).to_be_visible()
    with manager.app.app_context():
        first, last = db.session.query(TaskTemplate).one().parameters
        assert (first["name"], first["type"], first["default"]) == ("DAYS", "integer", 30)
        assert (last["name"], last["choices"]) == ("BY", ["name", "age"])


def test_a_ready_template_is_copied_and_used(arrive: Arrive, manager: Manager, javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/tasks/templates")
    page.locator(".host-card", has_text="Disk usage").get_by_role("button", name="Have a copy").click()
    page.get_by_role("link", name="Use it").click()
    expect(page.get_by_label("LIMIT", exact=True)).to_have_value("90")
    expect(page.get_by_label("Name", exact=True)).to_have_value("Disk usage")


def test_ticked_nodes_become_the_target(arrive: Arrive, fleet: dict[str, int], javascript: bool) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto("/nodes")
    page.get_by_role("checkbox", name="Select web-1").check()
    page.get_by_role("button", name="Run a task").click()
    expect(page.locator("#f-nodes")).to_have_value("web-1")
    expect(page.locator("#hosts")).to_contain_text("1 host")
    page.goto(f"/nodes/{fleet['web']}")
    page.get_by_role("link", name="Run a task here").click()
    expect(page.locator("#f-nodes")).to_have_value("web-1")


def test_the_keys_change_the_kind_of_work(arrive: Arrive, fleet: dict[str, int]) -> None:
    page = arrive("alice").page
    page.goto("/tasks/new")
    page.get_by_label("Name", exact=True).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("Path on the host")).to_be_visible()
    expect(page.locator("#f-script")).to_be_hidden()
    outline = "getComputedStyle(document.activeElement.nextElementSibling).outlineStyle"
    assert page.evaluate(outline) != "none"


def test_deleting_names_what_it_destroys(
    arrive: Arrive, manager: Manager, fleet: dict[str, int], javascript: bool
) -> None:
    page = arrive("alice", javascript=javascript).page
    page.goto(f"/tasks/{fleet['off']}")
    page.get_by_text("More actions").or_(page.locator("main summary[aria-label='More actions']")).first.click()
    page.get_by_role("link", name="Delete").click()
    page.get_by_label("Type stop to go on").fill("stop")
    page.get_by_role("button", name="Delete").click()
    page.wait_for_url("**/tasks")
    expect(page.get_by_role("link", name="stop", exact=True)).to_have_count(0)
