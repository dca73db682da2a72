"""`make check`: every rule of the house that a machine can keep, run to the end so that all complaints come at once."""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
HOST_PROGRAMS = ("protocol", "daemon", "agent")
SOURCES = ("app", *HOST_PROGRAMS, "opsctl", "config.py", "wsgi.py", "tools")
AUDIT_SECONDS = 90


class Outcome(NamedTuple):
    ok: bool
    output: str
    note: str = ""


class Step(NamedTuple):
    name: str
    check: Callable[[], Outcome]


def existing(paths: tuple[str, ...]) -> list[str]:
    """The paths that hold Python today: the house is built room by room."""
    return [path for path in paths if (ROOT / path).is_file() or any((ROOT / path).rglob("*.py"))]


def module(name: str, *arguments: str) -> Outcome:
    done = subprocess.run(
        [sys.executable, "-m", name, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return Outcome(done.returncode == 0, done.stdout + done.stderr)


def vermin() -> Outcome:
    found = existing(HOST_PROGRAMS)
    if not found:
        return Outcome(True, "", "nothing to check yet")
    command = [str(Path(sys.executable).with_name("vermin")), "-t=3.9-", "--violations", "--no-tips", *found]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return Outcome(done.returncode == 0, done.stdout + done.stderr)


def on_sources(name: str, *arguments: str, paths: tuple[str, ...] = SOURCES) -> Outcome:
    found = existing(paths)
    return module(name, *arguments, *found) if found else Outcome(True, "", "nothing to check yet")


def migrations() -> Outcome:
    if not (ROOT / "migrations" / "env.py").exists():
        return Outcome(True, "", "no migrations yet")
    return module("tools.check_migrations")


def known_vulnerabilities() -> Outcome:
    """Findings fail. A vulnerability service that cannot be asked does not, but the check says what it left undone."""
    findings: list[str] = []
    asked = unanswered = 0
    for requirements in ("requirements-dev.txt", "requirements-host.txt"):
        command = [sys.executable, "-m", "pip_audit", "-r", requirements, "--disable-pip", "--require-hashes"]
        command += ["--format", "json", "--progress-spinner", "off"]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=AUDIT_SECONDS)
        except subprocess.TimeoutExpired:
            return Outcome(True, "", f"NOT audited: the vulnerability service did not answer in {AUDIT_SECONDS} s")
        try:
            dependencies = json.loads(done.stdout)["dependencies"]
        except (ValueError, KeyError):
            reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
            return Outcome(True, "", f"NOT audited: the vulnerability service cannot be asked ({reason[:160]})")
        for dependency in dependencies:
            if "skip_reason" in dependency:
                unanswered += 1
                continue
            asked += 1
            findings += [
                f"{dependency['name']} {dependency['version']}: {vulnerability['id']}, "
                f"fixed in {', '.join(vulnerability['fix_versions']) or 'no release yet'}"
                for vulnerability in dependency["vulns"]
            ]
    if not asked:
        return Outcome(True, "", "NOT audited: the vulnerability service knows none of our dependencies")
    note = f"{unanswered} of {asked + unanswered} unknown to the vulnerability service" if unanswered else ""
    return Outcome(not findings, "\n".join(findings), note)


STEPS = (
    Step("format", lambda: module("ruff", "format", "--check", "--quiet", "--diff", ".")),
    Step("lint", lambda: module("ruff", "check", "--quiet", "--output-format", "concise", ".")),
    Step("types", lambda: on_sources("mypy", "--cache-dir", ".cache/mypy")),
    Step("imports", lambda: module("tools.check_imports")),
    Step("migrations in step", migrations),
    Step("catalogues in step", lambda: module("tools.check_catalogues")),
    Step("Python 3.9 on hosts", vermin),
    # What bandit calls low, ruff's S rules judge line by line.
    Step("security lint", lambda: on_sources("bandit", "-q", "-r", "-c", "pyproject.toml", "--severity-level=medium")),
    Step("known vulnerabilities", known_vulnerabilities),
)


def main(wanted: list[str]) -> int:
    """Runs all steps, or those whose names contain one of the words given."""
    if importlib.util.find_spec("ruff") is None:
        print("the development dependencies are not installed: use `make check`")
        return 1
    failed = []
    for step in STEPS:
        if wanted and not any(word in step.name for word in wanted):
            continue
        started = time.monotonic()
        outcome = step.check()
        mark = "ok    " if outcome.ok else "FAILED"
        note = f"  {outcome.note}" if outcome.note else ""
        print(f"{mark} {step.name:<24}{time.monotonic() - started:6.1f} s{note}", flush=True)
        if not outcome.ok:
            failed.append(step.name)
            print(outcome.output.rstrip() + "\n", flush=True)
    if failed:
        print(f"make check: failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
