"""A real Chromium for the tests, and a witness beside every page: console errors, policy violations, foreign requests.

Which pages are visited, and as whom, is the business of the tests.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from axe_playwright_python.base import AXE_FILE_PATH
from playwright.sync_api import (
    BrowserContext,
    CDPSession,
    ConsoleMessage,
    Page,
    Playwright,
    Request,
    WebError,
    sync_playwright,
)

SWITCHES = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-sync",
    "--no-first-run",
)
DESKTOP = (1440, 900)
PHONE = (390, 844)
NETWORK_SCHEMES = ("http", "https", "ws", "wss")
AXE_TAGS = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
AXE_SOURCE = Path(AXE_FILE_PATH).read_text(encoding="utf-8")

# Playwright hands this to the browser itself, so the page's policy does not apply to it.
REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) => console.error(
  `policy violation: ${event.effectiveDirective} ${event.blockedURI} ${event.sourceFile || ""}:${event.lineNumber}`));
"""


def find_chromium() -> str | None:
    """`OPS_CHROMIUM`, else the first Chromium on PATH."""
    if named := os.environ.get("OPS_CHROMIUM"):
        return named
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


def why_unavailable() -> str:
    """Empty if a browser can be started, else the reason, fit for a skip. A snap's stand-in on PATH is none."""
    path = find_chromium()
    if path is None:
        return "Chromium is not installed (apt install chromium, or set OPS_CHROMIUM)"
    try:
        subprocess.run([path, "--version"], capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{path} does not run: {error}"
    return ""


class Witness:
    """Notes what must not happen in the pages of one context, and says so at the end."""

    def __init__(self, context: BrowserContext, origins: Sequence[str]) -> None:
        self.complaints: list[str] = []
        self._origins = {origin_of(origin) for origin in origins}
        self._expected: list[re.Pattern[str]] = []
        context.on("console", self._on_console)
        context.on("weberror", self._on_error)
        context.on("request", self._on_request)

    def expect(self, pattern: str) -> None:
        """Complaints that match are meant to happen: Chromium logs every answer of 400 and above as an error."""
        self._expected.append(re.compile(pattern))

    def assert_silent(self) -> None:
        unexpected = [
            complaint
            for complaint in self.complaints
            if not any(pattern.search(complaint) for pattern in self._expected)
        ]
        assert not unexpected, "the browser complained:\n" + "\n".join(unexpected)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            place = message.location
            self.complaints.append(f"console: {message.text} ({place.get('url')}:{place.get('lineNumber')})")

    def _on_error(self, error: WebError) -> None:
        self.complaints.append(f"uncaught: {error.error}")

    def _on_request(self, request: Request) -> None:
        if urlsplit(request.url).scheme in NETWORK_SCHEMES and origin_of(request.url) not in self._origins:
            self.complaints.append(f"foreign request: {request.method} {request.url}")


def origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


class Visit:
    """One visitor: a context with its cookies, its first page, and the witness."""

    def __init__(self, context: BrowserContext, witness: Witness, javascript: bool) -> None:
        self.context = context
        self.witness = witness
        self.javascript = javascript
        self.page: Page = context.new_page()


class Browser:
    """One Chromium for many visitors. Starting it takes a second, a visitor a few milliseconds."""

    def __enter__(self) -> Self:
        self._playwright: Playwright = sync_playwright().start()
        try:
            # Chromium's own sandbox does not work for root; the tests visit nobody but ourselves.
            switches = [*SWITCHES, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
            self._browser = self._playwright.chromium.launch(executable_path=find_chromium(), args=switches)
        except BaseException:
            self._playwright.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._browser.close()
        finally:
            self._playwright.stop()

    @contextlib.contextmanager
    def visit(
        self,
        base_url: str,
        *,
        javascript: bool = True,
        locale: str = "en-US",
        colour_scheme: Literal["light", "dark"] = "light",
        viewport: tuple[int, int] = DESKTOP,
        timeout_s: float = 10,
        **options: Any,
    ) -> Iterator[Visit]:
        """A visitor of `base_url`. On the way out its witness must be silent, unless the test failed anyway."""
        context = self._browser.new_context(
            base_url=base_url,
            java_script_enabled=javascript,
            locale=locale,
            color_scheme=colour_scheme,
            viewport={"width": viewport[0], "height": viewport[1]},
            reduced_motion="reduce",
            **options,
        )
        try:
            context.set_default_timeout(timeout_s * 1000)
            context.add_init_script(REPORT_VIOLATIONS)
            visit = Visit(context, Witness(context, [base_url]), javascript)
            yield visit
            # A round trip, so that what the browser has said until now has arrived.
            for page in context.pages:
                page.evaluate("0")
            visit.witness.assert_silent()
        finally:
            context.close()


def axe(page: Page, *, tags: Sequence[str] = AXE_TAGS, without: Sequence[str] = ()) -> None:
    """Fails if axe-core finds a violation of `tags` in the page, rules in `without` left out.

    The script goes in through the browser's debugging protocol, which no Content-Security-Policy governs. A script
    element would be refused by the policy, and a context that ignores policies would no longer test ours. Where the
    page's JavaScript is off axe-core could not run either (it needs timers), so it looks at a copy of the document.
    """
    disabled = {rule: {"enabled": False} for rule in without}
    options = {"runOnly": list(tags), "rules": disabled, "resultTypes": ["violations"]}
    with _scriptable(page) as subject:
        session = subject.context.new_cdp_session(subject)
        try:
            _evaluate(session, AXE_SOURCE + "; undefined")
            results = _evaluate(session, f"axe.run(document, {json.dumps(options)})")
        finally:
            session.detach()
    found = [
        f"{violation['id']} ({violation['impact']}): {violation['help']}\n  {node['html']}\n  {node['failureSummary']}"
        for violation in results["violations"]
        for node in violation["nodes"]
    ]
    assert not found, f"{page.url} has {len(found)} accessibility violations:\n" + "\n".join(found)


@contextlib.contextmanager
def _scriptable(page: Page) -> Iterator[Page]:
    """The page itself or, if its JavaScript is off, a copy of its document where scripts run but none is loaded."""
    if page.evaluate("!matchMedia('(scripting: none)').matches"):
        yield page
        return
    # What stands in <noscript> is part of the page here.
    document = re.sub(r"<(/?)noscript\b", r"<\1div", page.content())
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    browser = page.context.browser
    assert browser is not None
    context = browser.new_context(
        viewport=page.viewport_size, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    try:
        copy = context.new_page()
        copy.route(
            "**/*", lambda route: route.abort() if route.request.resource_type == "script" else route.continue_()
        )
        copy.route(page.url, lambda route: route.fulfill(body=document, content_type="text/html; charset=utf-8"))
        copy.goto(page.url)
        yield copy
    finally:
        context.close()


def _evaluate(session: CDPSession, expression: str) -> Any:
    answer = session.send("Runtime.evaluate", {"expression": expression, "awaitPromise": True, "returnByValue": True})
    if "exceptionDetails" in answer:
        raise AssertionError(f"axe-core failed in the page: {answer['exceptionDetails']}")
    return answer["result"].get("value")
