"""The Content-Security-Policy: every answer carries it, no page needs more, and the witness would tell."""

import re

import pytest
from playwright.sync_api import Page, Response

from app.kernel.edges import CSP
from tests.browser import Browser
from tests.web.conftest import Arrive, Manager

pytestmark = pytest.mark.browser

PAGES = ("/users", "/audit", "/settings", "/documentation", "/profile", "/profile/tokens", "/styleguide", "/nowhere")


def test_every_answer_carries_the_policy(arrive: Arrive) -> None:
    visit = arrive("alice")
    visit.witness.expect("status of 404")
    answers: list[Response] = []
    visit.page.on("response", lambda answer: answers.append(answer))
    for path in PAGES:
        visit.page.goto(path)
    policies = {answer.header_value("content-security-policy") for answer in answers}
    assert len(answers) > len(PAGES)
    assert policies == {CSP}


def test_no_page_holds_what_the_policy_forbids(arrive: Arrive) -> None:
    """Even where no browser would complain, such as in a template element that is not shown yet."""
    visit = arrive("alice", javascript=False)
    visit.witness.expect("status of 404")
    for path in PAGES:
        visit.page.goto(path)
        html = visit.page.content()
        assert not re.findall(r"<style|<script(?![^>]*\ssrc=)|\son[a-z]+=|javascript:", html), path
        assert not re.findall(r"<[a-z][^>]*\sstyle=", html), path


def break_the_policy(page: Page) -> None:
    page.evaluate("document.querySelector('main').setAttribute('style', 'color: red')")


def fetch_from_elsewhere(page: Page) -> None:
    page.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.2:9/picture.png'}))")


def raise_an_error(page: Page) -> None:
    page.evaluate("setTimeout(() => { throw new Error('nobody caught this'); })")
    page.wait_for_timeout(50)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (break_the_policy, "policy violation: style-src-attr"),
        (fetch_from_elsewhere, "policy violation: img-src"),
        (raise_an_error, "nobody caught this"),
    ],
)
def test_the_witness_tells(browser: Browser, manager: Manager, what: object, told: str) -> None:
    """A witness that sees nothing would make every other test worth less."""
    assert callable(what)

    def misbehave() -> None:
        with browser.visit(manager.url) as visit:
            visit.page.goto("/login")
            what(visit.page)

    with pytest.raises(AssertionError, match=told):
        misbehave()
