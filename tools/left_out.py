"""A pytest plugin for `make test`: says at the end which tests were left out and why; with CI=true it then fails."""

import os
from collections import Counter

import pytest


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return str(report.longrepr)


class LeftOut:
    """Counts skipped tests and modules by reason; with pytest-xdist it sees what the workers report."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self.reasons[reason_of(report)] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.reasons[reason_of(report)] += 1

    # First of all hooks: pytest's own sets its totals, and pytest-cov may still turn success into failure after us.
    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.reasons and os.environ.get("CI") == "true" and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.reasons:
            return
        terminalreporter.section(f"{self.reasons.total()} left out")
        for reason, count in self.reasons.most_common():
            terminalreporter.line(f"{count:5d}  {reason}")
        if os.environ.get("CI") == "true":
            terminalreporter.line("CI=true: a test that is left out is a failure", red=True)


def pytest_configure(config: pytest.Config) -> None:
    # Workers report to the main process, which alone adds up.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(LeftOut(), "ops-left-out")
