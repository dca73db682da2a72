"""Tasks begun through the API as by a person who clicks: on one simulated host each, and on all of them at once."""

import random
import time
from typing import Any, NamedTuple

from bench.fleet.manager import Manager
from bench.fleet.tally import Tally

POLL_S = 0.5
MOST_S = 120.0
SETTLE_S = 2.0


class Click(NamedTuple):
    """One request that began a run: when, how long its answer took, and on which node (None: all)."""

    at: float
    answered_s: float
    node_id: int | None
    execution_id: str


def click_on_hosts(manager: Manager, token: str, count: int, seconds: float) -> list[Click]:
    """So many runs on one host each, of hosts at random, evenly over the time."""
    nodes = node_ids(manager, token)
    chosen = random.sample(nodes, min(count, len(nodes)))
    tasks = [make_task(manager, token, "node", [node_id]) for node_id in chosen]
    begin, clicks = time.monotonic(), []
    for number, (node_id, task_id) in enumerate(zip(chosen, tasks, strict=True)):
        time.sleep(max(0.0, begin + seconds * number / len(chosen) - time.monotonic()))
        clicks.append(execute(manager, token, task_id, node_id))
    return clicks


def click_on_all(manager: Manager, token: str, times: int) -> list[Click]:
    """Runs on the whole fleet, one after the other."""
    task_id = make_task(manager, token, "all", [])
    clicks = []
    for _ in range(times):
        clicks.append(execute(manager, token, task_id, None))
        wait_for_end(manager, token, clicks[-1].execution_id)
        time.sleep(SETTLE_S)
    return clicks


def node_ids(manager: Manager, token: str) -> list[int]:
    found: list[int] = []
    while True:
        page = manager.api("GET", f"/nodes?page_size=100&sort=id&page={len(found) // 100 + 1}", token=token)
        found += [node["id"] for node in page["items"] if node["hostname"][-5:].isdigit()]
        if page["page"] * page["page_size"] >= page["total"]:
            return found


def make_task(manager: Manager, token: str, target_type: str, target_value: list[int]) -> int:
    content = {"script": "echo hello"}
    given: dict[str, Any] = {"name": "bench", "type": "script", "content": content, "target_type": target_type}
    return int(manager.api("POST", "/tasks", given | {"target_value": target_value}, token)["id"])


def execute(manager: Manager, token: str, task_id: int, node_id: int | None) -> Click:
    at, began = time.time(), time.perf_counter()
    answer = manager.api("POST", f"/tasks/{task_id}/execute", token=token)
    return Click(at, time.perf_counter() - began, node_id, answer["execution_id"])


def wait_for_end(manager: Manager, token: str, execution_id: str) -> None:
    deadline = time.monotonic() + MOST_S
    while time.monotonic() < deadline:
        if manager.api("GET", f"/executions/{execution_id}?page_size=1", token=token)["finished_at"]:
            return
        time.sleep(POLL_S)


def delays(clicks: list[Click], tally: Tally) -> list[float]:
    """From each click to its arrival at its host."""
    found = []
    for click in clicks:
        arrivals = [at for node_id, at in tally.tasks if node_id == click.node_id and at >= click.at]
        found += [min(arrivals) - click.at] if arrivals else []
    return found


def spans(clicks: list[Click], tally: Tally) -> list[list[float]]:
    """For each run over the whole fleet: from the click to each arrival."""
    ends = [*(click.at for click in clicks[1:]), float("inf")][: len(clicks)]
    return [
        sorted(at - click.at for _node_id, at in tally.tasks if click.at <= at < end)
        for click, end in zip(clicks, ends, strict=True)
    ]
