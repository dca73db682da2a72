"""Pictures of the pages, taken from a private Manager with made-up people: `python -m tools.screenshots DIRECTORY`.

Each page is taken wide and narrow, light and dark, in each language. `--manual` takes the few that the manuals show.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from flask_migrate import upgrade
from playwright.sync_api import Page
from sqlalchemy import select, update

from app.audit.actions import record
from app.audit.models import AuditRow
from app.factory import create_app
from app.kernel.access import Actor
from app.kernel.clock import now
from app.kernel.db import db, in_transaction
from app.kernel.secrets import Keys, create_missing_keys, load_keys
from app.nodes.models import NodeGroup
from app.people import actions
from app.people.identity import COOKIE
from app.people.models import User
from app.people.schemas import TokenCreate, UserCreate, UserUpdate
from app.settings.actions import change_settings
from config import Settings, load_settings
from tests.browser import Browser
from tests.services import Redis
from tests.web.server import WebServer
from tools.screenshot_fleet import made_up_fleet
from tools.screenshot_runs import made_up_runs
from tools.screenshot_tasks import made_up_tasks

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
PASSWORD = "a-picture-of-a-password"  # noqa: S105  of people who do not exist
WIDE, NARROW = (1440, 900), (390, 844)
LANGUAGES = {"en": "en-US", "zh": "zh-CN"}
BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"


class Person(NamedTuple):
    name: str
    email: str | None
    role: Literal["admin", "operator", "viewer"]
    address: str
    minutes: int | None
    """Since the last sign-in."""


PEOPLE = (
    Person("alice", "alice@example.org", "admin", "10.20.0.14", 3),
    Person("bob.meyer", "bob.meyer@example.org", "operator", "10.20.0.31", 26),
    Person("chen.wei", "chen.wei@example.org", "admin", "10.20.4.8", 95),
    Person("deploy-bot", None, "operator", "10.20.9.2", 11),
    Person("erika", "erika@example.org", "viewer", "192.168.7.110", 60 * 26),
    Person("li.na", "li.na@example.org", "operator", "10.20.4.19", 60 * 5),
    Person("monitoring", None, "viewer", "10.20.9.3", 1),
    Person("oscar", "oscar@example.org", "operator", "10.20.0.77", 60 * 24 * 64),
    Person("vera", "vera@example.org", "viewer", "", None),
)


class Shot(NamedTuple):
    """A page, and what is done on it before the picture is taken."""

    name: str
    path: str
    click: str = ""
    """A link or button to press first."""
    fill: tuple[str, str] | None = None
    """A field, and what is typed into it before that."""
    is_public: bool = False


SHOTS = (
    Shot("sign-in", "/login", is_public=True),
    Shot("sign-in-wrong", "/login", "main [type=submit]", is_public=True),
    Shot("users", "/users"),
    Shot("users-picked", "/users", "[data-all]"),
    Shot("users-nothing", "/users?keyword=zzz"),
    Shot("user-new", "/users", "a[href='/users/new']"),
    Shot("user", "/users/{bob}"),
    Shot("user-delete", "/users/{bob}", "a[href$='/delete']"),
    Shot("audit", "/audit"),
    Shot("audit-filtered", "/audit?status=failed&keyword=10.20"),
    Shot("audit-entry", "/audit", "table a[data-dialog] >> nth=3"),
    Shot("settings", "/settings"),
    Shot("settings-wrong", "/settings", ".settings [type=submit]", fill=("[name='node.heartbeat_interval']", "5s")),
    Shot("profile", "/profile"),
    Shot("password", "/profile/password", "main [type=submit]"),
    Shot("sessions", "/profile/sessions"),
    Shot("tokens", "/profile/tokens"),
    Shot("token-new", "/profile/tokens/new"),
    Shot("documentation", "/documentation"),
    Shot("not-found", "/nowhere"),
    Shot("styleguide", "/styleguide"),
    Shot("dashboard", "/dashboard"),
    Shot("nodes", "/nodes"),
    Shot("nodes-picked", "/nodes?selector=role%3Dweb", "[data-all]"),
    Shot("node", "/nodes/{node}"),
    Shot("node-metrics", "/nodes/{node}/metrics"),
    Shot("live", "/nodes/{node}/live?reload=0"),
    Shot("node-events", "/nodes/{node}/events"),
    Shot("groups", "/groups"),
    Shot("enrolment", "/enrollment"),
    Shot("queue", "/enrollment/queue"),
    Shot("events", "/events"),
    Shot("tasks", "/tasks"),
    Shot("tasks-nothing", "/tasks?keyword=zzz"),
    Shot("task", "/tasks/{task}"),
    Shot("task-new", "/tasks/new?target_type=selector&target_value=env%3Dprod"),
    Shot("task-new-schedule", "/tasks/{task}/edit"),
    Shot("task-new-template", "/tasks/new?template={template}&target_type=tag&target_value=canary"),
    Shot("task-new-file", "/tasks/new?target_type=node&target_value={node}", "label[for=f-type-file]"),
    Shot("task-new-wrong", "/tasks/new?template={template}", "form [value=save]:not(.sr)"),
    Shot("task-execute", "/tasks/{task}/execute"),
    Shot("task-delete", "/tasks/{task}/delete"),
    Shot("templates", "/tasks/templates"),
    Shot("template", "/tasks/templates/{template}"),
    Shot("template-ready", "/tasks/templates/library/clean-up"),
    Shot("template-edit", "/tasks/templates/{template}/edit"),
    Shot("runs", "/executions"),
    Shot("runs-nothing", "/executions?keyword=zzz"),
    Shot("run", "/executions/{run}"),
    Shot("run-going", "/executions/{run_going}"),
    Shot("run-output", "/executions/{run_going}/output"),
    Shot("run-groups", "/executions/{run}/groups"),
    Shot("run-compare", "/executions/{run}/compare"),
    Shot("run-difference", "/executions/{run}/records/{record}/difference?with={record_before}"),
    Shot("run-cancel", "/executions/{run_going}/cancel"),
    Shot("record", "/executions/{run}/records/{record}"),
    Shot("record-live", "/executions/{run_going}/records/{record_live}"),
    Shot("record-waiting", "/executions/{run_going}/records/{record_waiting}"),
    Shot("record-hostile", "/executions/{run_hostile}/records/{record_hostile}"),
    Shot("node-tasks", "/nodes/{node}/tasks"),
)
MANUAL = ("sign-in", "users", "audit", "dashboard", "nodes")


class Stage(NamedTuple):
    """A running Manager, and what its pages are called and opened with."""

    url: str
    cookie: str
    numbers: dict[str, object]


@contextlib.contextmanager
def stage(is_development: bool, hosts: int) -> Iterator[Stage]:
    """A Manager on temporary data, with people who have done something."""
    with tempfile.TemporaryDirectory(prefix="ops-screenshots-") as directory, Redis() as redis:
        settings = load_settings([], {"OPS_DATA_DIR": directory, "OPS_REDIS_URL": redis.url})
        create_missing_keys(settings)
        keys = load_keys(settings)
        cookie, numbers = _furnish(settings, keys, hosts)
        with WebServer(settings, {"OPS_SERVER__DEVELOPMENT": str(is_development)}) as server:
            yield Stage(server.url, cookie, numbers)


def _furnish(settings: Settings, keys: Keys, hosts: int) -> tuple[str, dict[str, object]]:
    app = create_app(settings, keys=keys)
    with app.app_context():
        upgrade()
        session, system = db.session(), Actor.system("command line")
        users = {person.name: _signed_up(system, person) for person in PEOPLE}
        alice = actions.as_user(
            Actor(ip="10.20.0.14", user_agent=BROWSER, request_id="8c1f20a94e77d3b6"), users["alice"]
        )
        in_transaction(session, lambda: _happenings(alice, users))
        here = Actor(ip="127.0.0.1", user_agent=BROWSER)
        cookie = in_transaction(session, lambda: actions.open_browser_session(session, here, users["alice"], PASSWORD))
        in_transaction(session, lambda: _spread_over_time(users))
        bob = users["bob.meyer"].id  # asked before, so that no transaction of this session stands open
        node = made_up_fleet(hosts)
        numbers: dict[str, object] = {"bob": bob, "node": node}
        numbers |= made_up_runs(app)
        numbers |= made_up_tasks(node, db.session.scalars(select(NodeGroup.id)).first() or 0)
        db.session.remove()
        db.engine.dispose()
    return cookie, numbers


def _signed_up(system: Actor, person: Person) -> User:
    session = db.session()
    values = UserCreate(username=person.name, password=PASSWORD, email=person.email, role=person.role)
    user = in_transaction(session, lambda: actions.create_user(session, system, values))
    if person.address:
        there = Actor(ip=person.address, user_agent=BROWSER)
        in_transaction(session, lambda: actions.open_browser_session(session, there, user, PASSWORD))
    return user


def _happenings(alice: Actor, users: dict[str, User]) -> None:
    session = db.session()
    stranger = Actor(ip="203.0.113.9", user_agent="curl/8.5.0")
    actions.update_user(session, alice, users["oscar"].id, UserUpdate(status="disabled"))
    record(session, stranger, "auth.sign_in", "user", "root", error_message="wrong user name or password, or disabled")
    record(session, stranger, "auth.sign_in", "user", "admin", error_message="wrong user name or password, or disabled")
    actions.update_user(session, alice, users["li.na"].id, UserUpdate(role="operator", email="li.na@example.org"))
    bob = actions.as_user(replace(alice, ip="10.20.0.31"), users["bob.meyer"])
    record(session, bob, "access.refused", "permission", "users.read", error_message="forbidden")
    change_settings(session, alice, {"node.heartbeat_interval": "30s", "ui.timezone": "Asia/Shanghai"})
    for name, scopes, days in (("nightly-export", ["*.read"], 90), ("ansible", ["users.read", "audit.read"], None)):
        ends = now() + timedelta(days=days) if days else None
        actions.create_token(session, alice, TokenCreate(name=name, scopes=scopes, expires_at=ends))


def _spread_over_time(users: dict[str, User]) -> None:
    """As if all this had taken weeks."""
    session, present = db.session(), now()
    for name, *_said, minutes in PEOPLE:
        users[name].created_at = present - timedelta(days=70 + len(name), hours=len(name))
        users[name].last_login_at = None if minutes is None else present - timedelta(minutes=minutes)
    newest = session.query(AuditRow).count() + 1
    for row in session.query(AuditRow):
        age = timedelta(minutes=3.2 * (newest - row.id) ** 1.7)
        session.execute(update(AuditRow).where(AuditRow.id == row.id).values(created_at=present - age))


def take(browser: Browser, there: Stage, shot: Shot, path: Path, size: tuple[int, int], **options: Any) -> None:
    with browser.visit(there.url, viewport=size, **options) as visit:
        visit.witness.expect("Failed to load resource")
        if not shot.is_public:
            visit.context.add_cookies([{"name": COOKIE, "value": there.cookie, "url": there.url}])
        page = visit.page
        page.goto(shot.path.format(**there.numbers))
        if shot.fill:
            page.fill(*shot.fill)
        if shot.click:
            _press(page, shot.click)
        page.screenshot(path=path, full_page=not page.locator("#dialog:visible").count())


def _press(page: Page, selector: str) -> None:
    target = page.locator(selector)
    if target.first.is_visible():
        target.first.click()
        page.wait_for_load_state("networkidle")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, help="where the pictures go")
    parser.add_argument("--manual", action="store_true", help="take those that the manuals show, into docs/images")
    parser.add_argument("--only", default="", help="names of pages, separated by commas")
    parser.add_argument("--variants", default="", help="words that file names must contain, such as 390-dark")
    parser.add_argument("--hosts", type=int, default=48, help="how many there are")
    parser.add_argument("--no-javascript", action="store_true", help="as a browser without JavaScript shows it")
    given = parser.parse_args(arguments)
    if not given.manual and given.directory is None:
        parser.error("name a directory, or use --manual")
    wanted = MANUAL if given.manual else tuple(filter(None, given.only.split(","))) or tuple(s.name for s in SHOTS)
    directory = IMAGES if given.manual else given.directory
    directory.mkdir(parents=True, exist_ok=True)
    with stage(not given.manual, given.hosts) as there, Browser() as browser:
        for shot in (shot for shot in SHOTS if shot.name in wanted):
            if given.manual:
                take(browser, there, shot, directory / f"{shot.name}.png", WIDE)
                continue
            for size, colours, language in product((WIDE, NARROW), ("light", "dark"), LANGUAGES):
                name = f"{shot.name}-{size[0]}-{colours}-{language}{'-nojs' if given.no_javascript else ''}"
                if given.variants in name:
                    look = {"colour_scheme": colours, "locale": LANGUAGES[language]}
                    is_scripted = not given.no_javascript
                    take(browser, there, shot, directory / f"{name}.png", size, javascript=is_scripted, **look)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
