"""What axe-core finds in every page, and what does not fit in: light, dark, both languages, wide, narrow, enlarged."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser import PHONE, axe
from tests.web.conftest import Arrive, Manager

pytestmark = pytest.mark.browser

STRANGERS = ("/login", "/nowhere")
PAGES = (
    "/users",
    "/users?keyword=nobody-like-that",
    "/users/new",
    "/users/{user}",
    "/users/{user}/delete",
    "/audit",
    "/audit/{entry}",
    "/settings",
    "/documentation",
    "/profile",
    "/profile/password",
    "/profile/sessions",
    "/profile/tokens",
    "/profile/tokens/new",
    "/tasks",
    "/tasks/new",
    "/tasks/templates",
    "/tasks/templates/new",
    "/nowhere",
    "/styleguide",
)
# Where scripts or width make a difference: lists, forms, tabs.
SOME_PAGES = ("/users", "/users/{user}", "/audit", "/settings", "/profile/tokens/new")
# Links of the fleet map are as small as it takes to see all hosts at once; its list is the way for fingers.
WITHOUT = {"/styleguide": ("target-size",)}


@pytest.fixture
def furnished(manager: Manager) -> dict[str, int]:
    """Enough of everything for tables to have rows, with names that are longer than pretty."""
    user = manager.user("somebody.with.a.very.long.name", "operator", email="a-long-address@somewhere.example.org")
    manager.many_users(25)
    manager.token("alice", "nightly-export", ["*.read"])
    manager.refuse("mallory")
    return {"user": user, "entry": manager.audited("token.create")[0].id}


def visited(
    arrive: Arrive, numbers: dict[str, int], paths: tuple[str, ...] = PAGES, **options: object
) -> Iterator[tuple[str, Page]]:
    """Pages, open in a browser, with the address that stands for each here."""
    for username, wanted in ((None, STRANGERS), ("alice", paths)):
        visit = arrive(username, **options)
        visit.witness.expect("status of 404")
        for path in wanted:
            visit.page.goto(path.format(**numbers))
            yield path, visit.page


def complaints(pages: Iterator[tuple[str, Page]]) -> list[str]:
    found = []
    for path, page in pages:
        try:
            axe(page, without=WITHOUT.get(path, ()))
        except AssertionError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"locale": "en-US", "colour_scheme": "light"}, id="light-en"),
        pytest.param({"locale": "zh-CN", "colour_scheme": "dark"}, id="dark-zh"),
        pytest.param({"colour_scheme": "dark", "viewport": PHONE, "paths": SOME_PAGES}, id="dark-en-phone"),
        pytest.param({"locale": "zh-CN", "javascript": False, "paths": SOME_PAGES}, id="light-zh-no-js"),
    ],
)
def test_every_page_is_for_everybody(arrive: Arrive, furnished: dict[str, int], options: dict[str, object]) -> None:
    found = complaints(visited(arrive, furnished, **options))
    assert not found, "\n\n".join(found)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_opens_is_for_everybody(arrive: Arrive, furnished: dict[str, int], scheme: str) -> None:
    page = arrive("alice", colour_scheme=scheme).page
    page.goto("/users")
    page.get_by_role("checkbox", name="Select all on this page").check()
    page.get_by_text("Your account").locator("..").click()
    axe(page)
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Add user").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    axe(page)
    page.goto(f"/users/{furnished['user']}")
    page.get_by_role("link", name="Delete").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    axe(page)


def overflow(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


# A window of 1440 at 200 % and one of 1280 at 400 % show as much as these widths; 360 is the smallest phone.
WIDTHS = (720, 360, 320)


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_no_page_is_wider_than_its_window(arrive: Arrive, furnished: dict[str, int], locale: str) -> None:
    found = []
    for path, page in visited(arrive, furnished, locale=locale):
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            if (pixels := overflow(page)) > 0:
                found.append(f"{path} is {pixels} px too wide at {width}")
        page.set_viewport_size({"width": 1440, "height": 900})
    assert not found, "\n".join(found)


def test_the_look_of_a_page_does_not_need_a_mouse(arrive: Arrive, furnished: dict[str, int]) -> None:
    """Every stop of the Tab key is to be seen: it has an outline, and nothing lies over it."""
    page = arrive("alice").page
    page.goto("/users")
    seen = """() => {
        const here = document.activeElement, box = here.getBoundingClientRect(), style = getComputedStyle(here);
        if (here === document.body) return null;
        const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
        const covered = !top || !(here.contains(top) || top.contains(here));
        return {name: here.outerHTML.slice(0, 120), outlined: style.outlineStyle !== "none", covered};
    }"""
    stops = 0
    for _ in range(60):
        page.keyboard.press("Tab")
        stop = page.evaluate(seen)
        if stop is None:
            break
        stops += 1
        assert stop["outlined"], stop["name"]
        assert not stop["covered"], stop["name"]
    assert stops > 30
