"""Measures the task agent: memory at rest, order to the script's first instruction, fifty tasks at once.

`python -m bench.agent` (a few seconds; nothing else should run). The script's first command writes into a FIFO that the
bench reads, so both stamps are of one clock, and the time of one `echo` and one wake-up is in the figure.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from tests.agent.processes import AgentProcess


def memory(agent: AgentProcess) -> dict[str, float]:
    """Resident and proportional megabytes."""
    process = agent.process
    assert process is not None
    status = Path(f"/proc/{process.pid}/status").read_text()
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return {"rss_mb": round(rss / 1024, 1), "pss_mb": round(pss / 1024, 1)}


def spread(values: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "p50_ms": round(1000 * statistics.median(ordered), 2),
        "p95_ms": round(1000 * ordered[int(len(ordered) * 0.95)], 2),
        "p99_ms": round(1000 * ordered[int(len(ordered) * 0.99)], 2),
        "max_ms": round(1000 * ordered[-1], 2),
    }


def first_instruction(agent: AgentProcess, directory: Path, rounds: int) -> dict[str, dict[str, float]]:
    """From sending the order to the script's first instruction, and to the answer; and to the first output heard."""
    fifo = directory / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    # Kept open, so that the script's own `echo` never waits.
    writer = os.open(fifo, os.O_WRONLY)
    os.set_blocking(reader, True)
    connection = agent.connect()
    started, answered, ended = [], [], []
    for number in range(rounds):
        order = {"id": f"bench-{number}", "type": "script", "content": {"script": f"echo x > {fifo}; echo done"}}
        body = json.dumps(order).encode()
        begin = time.perf_counter()
        connection.request("POST", "/api/v1/task/execute", body)
        os.read(reader, 16)
        started.append(time.perf_counter() - begin)
        answer = connection.getresponse()
        answer.read()
        answered.append(time.perf_counter() - begin)
        after = 0
        while True:
            connection.request("GET", f"/api/v1/task/bench-{number}/events?after={after}&wait_s=5")
            told = json.loads(connection.getresponse().read())["data"]
            after = told["next"]
            if told["done"]:
                break
        ended.append(time.perf_counter() - begin)
        time.sleep(0.01)
    os.close(writer)
    os.close(reader)
    connection.close()
    return {"first_instruction": spread(started), "answer": spread(answered), "result_heard": spread(ended)}


def fifty_at_once(agent: AgentProcess) -> dict[str, float]:
    """All ordered as fast as one connection can, then followed in one request until all are done."""
    connection = agent.connect()
    begin = time.perf_counter()
    places = {f"burst-{number}": 0 for number in range(50)}
    for name in places:
        order = {"id": name, "type": "script", "content": {"script": "echo done"}}
        connection.request("POST", "/api/v1/task/execute", json.dumps(order).encode())
        assert connection.getresponse().read().startswith(b'{"code":0')
    ordered = time.perf_counter() - begin
    requests = 0
    while places:
        after = ",".join(f"{name}:{place}" for name, place in places.items())
        connection.request("GET", f"/api/v1/events?after={after}&wait_s=5")
        told = json.loads(connection.getresponse().read())["data"]
        requests += 1
        for task in told["tasks"]:
            places[task["id"]] = task["next"]
            if task["done"]:
                assert task["status"] == "success"
                del places[task["id"]]
    connection.close()
    return {
        "ordered_ms": round(1000 * ordered, 1),
        "all_done_ms": round(1000 * (time.perf_counter() - begin), 1),
        "feed_requests": requests,
    }


def main() -> None:
    """Prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        agent = AgentProcess(directory)
        stack.callback(agent.stop)
        begin = time.perf_counter()
        agent.start()
        found: dict[str, object] = {"start_s": round(time.perf_counter() - begin, 2)}
        time.sleep(1)
        found["memory_at_rest"] = memory(agent)
        found |= first_instruction(agent, directory, arguments.rounds)
        found["fifty_at_once"] = fifty_at_once(agent)
        found["memory_afterwards"] = memory(agent)
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
