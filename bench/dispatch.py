"""From the click to the script: `python -m bench.dispatch` on one host, with a real Manager, Daemon and task agent.

    python -m bench.dispatch                             # clicks one after the other, then fifty tasks at once
    python -m bench.dispatch --steady 600                # ten at once for ten minutes: none lost, none doubled
    python -m bench.dispatch --database mariadb --salt   # Salt from PyPI beside it, same work

A click is `POST /tasks/{id}/execute`. Its first instruction is the script's first `echo` into a FIFO that the bench
reads, so both stamps are of one clock, and one `echo` and one wake-up are in the figure. All run on this machine.
"""

import argparse
import contextlib
import http.client
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.fleet.manager import Manager

ATONCE = 10
STAMPS = ("queued_at", "delivered_at", "started_at")
STAGES = ("click to stored", "stored to delivered", "delivered to started", "started to first instruction")
FIRST_S = 60.0


class Ear:
    """Hears the scripts of all tasks: each line is a word of a script and the moment when it came."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        # Open for both, so that neither a script nor the reader ever waits for the other to come.
        self._fd = os.open(path, os.O_RDWR)
        self.heard: dict[str, float] = {}
        self._changed = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            data = os.read(self._fd, 4096)
            at = time.perf_counter()
            with self._changed:
                self.heard |= {word: at for word in data.decode().split() if word not in self.heard}
                self._changed.notify_all()

    def wait(self, words: set[str], timeout_s: float = 30.0) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: words <= self.heard.keys(), timeout_s):
                raise SystemExit(f"never heard: {sorted(words - self.heard.keys())[:5]}")


class Caller:
    """A program that uses the API over one kept connection."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        self._http = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        self._http.request(method, f"/api/v1{path}", json.dumps(body) if body is not None else None, self._headers)
        answer = json.loads(self._http.getresponse().read())
        if answer["code"] != 0:
            raise SystemExit(f"{method} {path}: {answer}")
        return answer["data"]


class Stage:
    """A Manager with the machine's own Daemon and its task agent."""

    def __init__(self, manager: Manager, place: Path) -> None:
        self.manager = manager
        self.token = manager.sign_in()
        self.caller = self.new_caller()
        self.ear = Ear(place / "ear")
        self.node = self._node()

    def new_caller(self) -> Caller:
        return Caller(self.manager.web_url, self.token)

    def task(self, name: str, script: str) -> int:
        content = {"interpreter": "shell", "script": script}
        body = {"name": name, "type": "script", "content": content, "target_type": "node", "target_value": [self.node]}
        return int(self.caller.ask("POST", "/tasks", body)["id"])

    def _node(self) -> int:
        """The machine itself, once its task agent works."""
        deadline = time.monotonic() + FIRST_S
        while time.monotonic() < deadline:
            nodes = self.caller.ask("GET", "/nodes")["items"]
            if nodes and nodes[0]["status"] == "online" and nodes[0]["agent_status"] == "running":
                return int(nodes[0]["id"])
            time.sleep(0.2)
        raise SystemExit(f"the host has no task agent:\n{self.manager.log.read_text()[-4000:]}")


def spread(values: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "p50_ms": round(1000 * statistics.median(ordered), 1),
        "p95_ms": round(1000 * ordered[int(len(ordered) * 0.95)], 1),
        "p99_ms": round(1000 * ordered[int(len(ordered) * 0.99)], 1),
        "max_ms": round(1000 * ordered[-1], 1),
    }


def clicks(stage: Stage, count: int, pause_s: float) -> dict[str, Any]:
    """One after the other; each waits until the Manager knows how the one before it ended."""
    tasks = [stage.task(f"click {number}", f"echo c{number} >{stage.ear.path}") for number in range(count + 3)]
    first, answered, known = [], [], []
    stages: dict[str, list[float]] = {name: [] for name in STAGES}
    for number, task in enumerate(tasks):
        at = time.time()
        begun = time.perf_counter()
        run = stage.caller.ask("POST", f"/tasks/{task}/execute")["execution_id"]
        answered.append(time.perf_counter() - begun)
        stage.ear.wait({f"c{number}"})
        first.append(stage.ear.heard[f"c{number}"] - begun)
        while (found := stage.caller.ask("GET", f"/executions/{run}"))["status"] != "success":
            time.sleep(0.002)
        known.append(time.perf_counter() - begun)
        moments = [at, *(_epoch(found["records"][0][name]) for name in STAMPS), at + first[-1]]
        for name, before, after in zip(STAGES, moments, moments[1:], strict=False):
            stages[name].append(after - before)
        time.sleep(random.uniform(0.5, 1.5) * pause_s)
    # The first three warm everything up.
    return {
        "first_instruction": spread(first[3:]),
        "stages_p50_ms": {name: round(1000 * statistics.median(times[3:]), 1) for name, times in stages.items()},
        "api_answer": spread(answered[3:]),
        "end_known": spread(known[3:]),
    }


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def burst(stage: Stage, count: int, round_number: int) -> dict[str, Any]:
    """So many tasks started at once by as many requests as the API takes, until the Manager knows that all are done."""
    words = [f"b{round_number}-{number}" for number in range(count)]
    tasks = [stage.task(word, f"echo {word} >{stage.ear.path}") for word in words]
    callers = [stage.new_caller() for _ in range(ATONCE)]
    runs: list[str] = []
    lock = threading.Lock()

    def click(caller: Caller, mine: list[int]) -> None:
        for task in mine:
            run = caller.ask("POST", f"/tasks/{task}/execute")["execution_id"]
            with lock:
                runs.append(run)

    threads = [threading.Thread(target=click, args=(caller, tasks[i::ATONCE])) for i, caller in enumerate(callers)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asked = time.perf_counter() - begun
    stage.ear.wait(set(words))
    wanted = set(runs)
    while True:
        done = [run["execution_id"] for run in _newest(stage) if run["status"] == "success"]
        if wanted <= set(done):
            break
        if time.perf_counter() - begun > FIRST_S:
            raise SystemExit("the burst did not end")
        time.sleep(0.005)
    ended = time.perf_counter() - begun
    firsts = [stage.ear.heard[word] - begun for word in words]
    return {
        "all_asked_ms": round(1000 * asked),
        "first_instruction": spread(firsts),
        "all_known_ms": round(1000 * ended),
    }


def _newest(stage: Stage) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = stage.caller.ask("GET", "/executions?page_size=100")["items"]
    return found


def steady(stage: Stage, seconds: float, place: Path) -> dict[str, Any]:
    """Ten at once, each followed by the next as soon as it is known to have ended; every script notes that it ran."""
    note = place / "ran"
    script = f"echo $OPS_EXECUTION_ID >>{note}; sleep 0.$((($$ % 9) + 1)); echo $OPS_EXECUTION_ID"
    task = stage.task("steady", script)
    problems: Counter[str] = Counter()
    lasted: list[float] = []
    until = time.monotonic() + seconds
    lock = threading.Lock()

    def work(caller: Caller) -> None:
        while time.monotonic() < until:
            begun = time.perf_counter()
            run = caller.ask("POST", f"/tasks/{task}/execute")["execution_id"]
            found: dict[str, Any] = {}
            while not found or found["status"] in ("pending", "running"):
                time.sleep(0.1)
                found = caller.ask("GET", f"/executions/{run}")
                if time.perf_counter() - begun > FIRST_S:
                    found = {"status": "lost"}
            if found["status"] != "success":
                problems[found["status"]] += 1
            elif len(found["records"][0]["stdout"]) != 37:
                problems["output"] += 1
            with lock:
                lasted.append(time.perf_counter() - begun)

    workers = [threading.Thread(target=work, args=(stage.new_caller(),)) for _ in range(ATONCE)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    times = Counter(note.read_text().split())
    return {
        "runs": len(lasted),
        "lost": len(lasted) - len(times),
        "doubled": sum(count > 1 for count in times.values()),
        "problems": dict(problems),
        "click_to_known": spread(lasted),
    }


# ---- Salt


@contextlib.contextmanager
def salt(place: Path) -> Iterator[tuple[Path, Path]]:
    """Master and minion on loopback, of a venv of their own; the commands' directory and the configuration's."""
    venv, base = place / "salt-venv", place / "salt"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    install = [str(venv / "bin/pip"), "install", "--quiet", "salt", "setuptools<81"]
    subprocess.run(install, check=True, stderr=subprocess.DEVNULL)
    base.mkdir()
    common = {"root_dir": str(base), "user": "root", "log_level": "error", "sock_dir": str(base / "s")}
    (base / "master").write_text(
        json.dumps(common | {"interface": "127.0.0.1", "auto_accept": True, "publish_port": 14505, "ret_port": 14506})
    )
    (base / "minion").write_text(
        json.dumps(common | {"master": "127.0.0.1", "id": "one", "publish_port": 14505, "master_port": 14506})
    )
    processes = [
        subprocess.Popen(
            [str(venv / "bin" / name), "-c", str(base)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for name in ("salt-master", "salt-minion")
    ]
    try:
        yield venv / "bin/python", base
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


SALT_CLIENT = """
import json, sys, threading, time
import salt.client, salt.exceptions
conf, fifo, count, burst = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
until = time.time() + 120
while True:
    try:
        # Made anew each time: it reads a key that the master writes when it starts.
        client = salt.client.LocalClient(c_path=conf + "/master")
        if client.cmd("one", "test.ping", timeout=5):
            break
    except salt.exceptions.SaltException:
        time.sleep(0.5)
    if time.time() > until:
        sys.exit("the minion did not come")
begun = {}
for number in range(count):
    begun[f"s{number}"] = time.perf_counter()
    client.cmd("one", "cmd.run", [f"echo s{number} >{fifo}"])
    time.sleep(0.2)
at = time.perf_counter()
def one(number):
    salt.client.LocalClient(c_path=conf + "/master").cmd("one", "cmd.run", [f"echo t{number} >{fifo}"], timeout=60)
threads = [threading.Thread(target=one, args=(number,)) for number in range(burst)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps({"begun": begun, "burst_at": at, "burst_s": time.perf_counter() - at}))
"""


def measure_salt(place: Path, count: int, many: int) -> dict[str, Any]:
    """`cmd.run` through Salt's own Python client, which stays loaded: no start of a program is in the figures."""
    with salt(place) as (python, base):
        ear = Ear(place / "salt-ear")
        command = [str(python), "-c", SALT_CLIENT, str(base), str(ear.path), str(count), str(many)]
        # perf_counter is CLOCK_MONOTONIC in both interpreters.
        ended = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        told = json.loads(ended.stdout.splitlines()[-1])
    firsts = [ear.heard[word] - at for word, at in told["begun"].items()]
    bursts = [ear.heard[f"t{number}"] - told["burst_at"] for number in range(many) if f"t{number}" in ear.heard]
    return {
        "first_instruction": spread(firsts),
        "burst_first": spread(bursts),
        "burst_done_ms": round(1000 * told["burst_s"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200, help="clicks one after the other")
    parser.add_argument("--pause", type=float, default=0.3, help="seconds between them, on average")
    parser.add_argument("--burst", type=int, default=50, help="tasks started at once")
    parser.add_argument("--bursts", type=int, default=3)
    parser.add_argument("--steady", type=float, default=0.0, metavar="SECONDS", help="of ten tasks at once")
    parser.add_argument("--database", choices=("sqlite", "mariadb"), default="sqlite")
    parser.add_argument("--salt", action="store_true", help="measure Salt too, installed for this run from PyPI")
    given = parser.parse_args()
    # Whoever ends it early must not be left with its servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    conditions = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "database": given.database,
        "load_before": os.getloadavg()[0],
    }
    print(json.dumps({"conditions": conditions}), flush=True)
    with tempfile.TemporaryDirectory(prefix="ops-") as name:
        place = Path(name)
        free = {f"OPS_SERVER__RATE_LIMIT__PER_{who}": "1000000" for who in ("USER", "ADDRESS")}
        with Manager(given.database, **free) as manager:
            stage = Stage(manager, place)
            if given.tasks:
                print(json.dumps({"clicks": clicks(stage, given.tasks, given.pause)}), flush=True)
            for number in range(given.bursts if given.burst else 0):
                print(json.dumps({f"{given.burst}_at_once": burst(stage, given.burst, number)}), flush=True)
            if given.steady:
                print(json.dumps({"steady": steady(stage, given.steady, place)}), flush=True)
        if given.salt:
            print(json.dumps({"salt": measure_salt(place, min(given.tasks, 100), given.burst)}), flush=True)


if __name__ == "__main__":
    main()
