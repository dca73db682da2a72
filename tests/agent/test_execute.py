"""Executions over the API: what they get, what they say, the queue, the deadline, the same order twice."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent.processes import AgentProcess, wait_for


def test_a_script_says_what_it_did(shared_agent: AgentProcess) -> None:
    found = shared_agent.run("echo out; echo err >&2; exit 3")
    assert (found["status"], found["exit_code"], found["error_code"]) == ("failed", 3, "task_failed")
    assert (found["stdout"], found["stderr"], found["user"]) == ("out\n", "err\n", "root")
    assert found["signal"] is None
    assert found["duration_ms"] >= 0
    assert found["queued_at"] <= found["started_at"] <= found["finished_at"]


def test_success_has_no_error(shared_agent: AgentProcess) -> None:
    found = shared_agent.run("true")
    assert (found["status"], found["exit_code"], found["error_code"], found["error"]) == ("success", 0, None, None)


def test_a_signal_is_no_exit_code(shared_agent: AgentProcess) -> None:
    found = shared_agent.run("kill -SEGV $$")
    assert (found["status"], found["exit_code"], found["signal"]) == ("failed", None, 11)


def test_arguments_environment_directory_and_parameters_reach_the_script(
    shared_agent: AgentProcess, tmp_path: Path
) -> None:
    found = shared_agent.run(
        'printf "%s|" "$0" "$@" "$MINE" "$OPS_PARAM_WHAT" "$OPS_PARAM_COUNT" "$OPS_PARAM_FLAG" "$PWD"',
        args=["a b", "", "$(id)", "{script}"],
        env={"MINE": "x;y"},
        cwd=str(tmp_path),
        parameters={"what": "'; id #", "count": 3, "flag": True},
    )
    words = found["stdout"].split("|")[1:-1]
    assert words == ["a b", "", "$(id)", "{script}", "x;y", "'; id #", "3", "true", str(tmp_path)]


def test_a_script_gets_a_clean_environment(new_agent: Callable[..., AgentProcess]) -> None:
    agent = new_agent()
    agent.start(AGENT_SECRET="hidden", LD_DEBUG_OUTPUT="x")
    found = agent.run("env")
    names = {line.partition("=")[0] for line in found["stdout"].splitlines()}
    assert names <= {
        "PATH",
        "LANG",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "PWD",
        "OPS_EXECUTION_ID",
        "SHLVL",
        "_",
        "OLDPWD",
    }


def test_other_interpreters(shared_agent: AgentProcess, tmp_path: Path) -> None:
    assert shared_agent.run("import sys; print(sys.argv[1])", interpreter="python", args=["x"])["stdout"] == "x\n"
    assert shared_agent.run("echo ${BASH_VERSION:+bash}", interpreter="/bin/bash")["stdout"] == "bash\n"
    found = shared_agent.run("x", interpreter=str(tmp_path / "absent"))
    assert (found["status"], found["error_code"]) == ("failed", "task_failed")
    assert "absent" in found["error"]


def test_a_script_of_the_largest_size_runs(shared_agent: AgentProcess) -> None:
    filler = "# filler\n" * 28000
    assert shared_agent.run(filler + "echo end")["stdout"] == "end\n"


def test_the_user_is_switched_with_groups_and_home(shared_agent: AgentProcess) -> None:
    found = shared_agent.run('id -un; id -Gn; echo "$HOME $USER"; cat /etc/shadow', user="nobody")
    assert found["user"] == "nobody"
    assert found["stdout"].splitlines() == ["nobody", "nogroup", "/nonexistent nobody"]
    assert "Permission denied" in found["stderr"]


def test_an_unknown_user_is_no_start(shared_agent: AgentProcess) -> None:
    found = shared_agent.run("id", user="nobody-at-all")
    assert (found["status"], found["error_code"], found["started_at"] is not None) == ("failed", "task_failed", True)
    assert "nobody-at-all" in found["error"]


def test_a_missing_directory_is_no_start(shared_agent: AgentProcess) -> None:
    found = shared_agent.run("id", cwd="/absent/dir")
    assert found["status"] == "failed"
    assert "/absent/dir" in found["error"]


@pytest.mark.parametrize(
    ("order", "field"),
    [
        ({"type": "script", "content": {"script": "x"}}, "id"),
        ({"id": "../x", "type": "script", "content": {"script": "x"}}, "id"),
        ({"id": ".x", "type": "script", "content": {"script": "x"}}, "id"),
        ({"id": "a", "type": "shell", "content": {"script": "x"}}, "type"),
        ({"id": "a", "type": "script", "content": {}}, "content.script"),
        ({"id": "a", "type": "script", "content": {"script": "x", "uesr": "root"}}, "content.uesr"),
        ({"id": "a", "type": "script", "content": {"script": "x", "interpreter": "bash"}}, "content.interpreter"),
        ({"id": "a", "type": "script", "content": {"script": "x", "args": [1]}}, "content.args.0"),
        ({"id": "a", "type": "script", "content": {"script": "x", "env": {"A=B": "1"}}}, "content.env"),
        ({"id": "a", "type": "script", "content": {"script": "x"}, "timeout": 0}, "timeout"),
        ({"id": "a", "type": "script", "content": {"script": "x"}, "timeout": 86401}, "timeout"),
        ({"id": "a", "type": "script", "content": {"script": "x"}, "parameters": {"a-b": 1}}, "parameters.a-b"),
        ({"id": "a", "type": "script", "content": {"script": "x"}, "extra": 1}, "extra"),
        ({"id": "a", "type": "file", "content": {"op": "upload", "dest": "/x"}}, "content.sha256"),
        ({"id": "a", "type": "config", "content": {"op": "set", "path": "/x", "key": "a"}}, "content.value"),
        ({"id": "a", "type": "service", "content": {"op": "start", "name": "-H x"}}, "content.name"),
        ({"id": "a", "type": "custom", "content": {"plugin": "../x"}}, "content.plugin"),
    ],
)
def test_a_wrong_order_names_the_field(shared_agent: AgentProcess, order: dict[str, object], field: str) -> None:
    answer = shared_agent.post("task/execute", order)
    assert (answer.status, answer.code) == (400, 1001)
    assert [error["field"] for error in answer.data["errors"]] == [field]
    assert shared_agent.get("status").data["running"] == 0


def test_the_same_order_a_hundred_times_runs_once(agent: AgentProcess, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    content = {"script": f"echo ran >> {marks}; sleep 0.2"}
    answers: list[int] = []

    def send() -> None:
        answers.extend(agent.order("script", content, id="once").status for _ in range(10))

    threads = [threading.Thread(target=send) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert agent.wait_end("once")["status"] == "success"
    agent.stop()
    agent.start()
    answers.append(agent.order("script", content, id="once").status)
    assert agent.wait_end("once")["status"] == "success"
    assert set(answers) == {202}
    assert marks.read_text() == "ran\n"


def test_another_order_with_a_known_id_is_a_conflict(agent: AgentProcess) -> None:
    agent.run("true", id="mine")
    answer = agent.order("script", {"script": "false"}, id="mine")
    assert (answer.status, answer.code) == (409, 1006)


def test_a_forgotten_id_never_runs_again(agent: AgentProcess) -> None:
    agent.run("true", id="gone")
    assert agent.post("task/gone/forget").status == 200
    for _ in range(2):
        answer = agent.order("script", {"script": "true"}, id="gone")
        assert (answer.status, answer.code) == (409, 1006)
        assert (agent.get("task/gone/status").status, agent.get("task/gone/status").code) == (404, 4001)
        agent.stop()
        agent.start()


def test_ten_run_at_once_more_wait_and_too_many_are_refused(
    new_agent: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    agent = new_agent(tasks_max_queued=5)
    agent.start()
    gate = tmp_path / "gate"
    wait = f"while [ ! -e {gate} ]; do sleep 0.05; done"
    ids = [agent.script(wait) for _ in range(15)]
    assert [agent.status(name)["status"] for name in ids] == ["running"] * 10 + ["pending"] * 5
    assert agent.status(ids[-1])["waiting_for"] == "agent_queue"
    assert (agent.get("status").data["running"], agent.get("status").data["queued"]) == (10, 5)
    answer = agent.order("script", {"script": "true"})
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (429, 1005, "1")
    gate.touch()
    assert {agent.wait_end(name)["status"] for name in ids} == {"success"}


def test_one_that_cannot_start_does_not_block_the_queue(new_agent: Callable[..., AgentProcess]) -> None:
    agent = new_agent(tasks_max_running=1)
    agent.start()
    first = agent.script("sleep 0.3")
    bad = agent.script("x", interpreter="/absent")
    good = agent.script("echo fine")
    assert agent.wait_end(first)["status"] == "success"
    assert agent.wait_end(bad)["status"] == "failed"
    assert agent.wait_end(good)["stdout"] == "fine\n"


def test_one_whose_turn_comes_too_late_expires(new_agent: Callable[..., AgentProcess]) -> None:
    agent = new_agent(tasks_max_running=1)
    agent.start()
    first = agent.script("sleep 1")
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    late = agent.script("echo never", not_after=moment)
    assert agent.wait_end(first)["status"] == "success"
    found = agent.wait_end(late)
    assert (found["status"], found["started_at"], found["stdout"]) == ("expired", None, "")


def test_cancel_ends_what_runs_and_what_waits(new_agent: Callable[..., AgentProcess]) -> None:
    agent = new_agent(tasks_max_running=1)
    agent.start()
    running, waiting = agent.script("echo begun; sleep 60"), agent.script("echo never")
    wait_for(lambda: agent.status(running)["stdout"], "the first line")
    assert agent.post(f"task/{waiting}/cancel").status == 202
    assert agent.post(f"task/{running}/cancel").status == 202
    assert agent.wait_end(waiting)["status"] == "cancelled"
    found = agent.wait_end(running)
    assert (found["status"], found["stdout"]) == ("cancelled", "begun\n")
    again = agent.post(f"task/{running}/cancel")
    assert (again.status, again.code) == (409, 4002)
    assert agent.post("task/unknown/cancel").code == 4001


def test_the_time_is_limited(shared_agent: AgentProcess) -> None:
    started = time.monotonic()
    found = shared_agent.run("echo begun; sleep 60", timeout=1)
    assert (found["status"], found["error_code"], found["stdout"]) == ("timeout", "task_timeout", "begun\n")
    assert 0.9 < time.monotonic() - started < 5


def test_events_are_told_as_they_happen(shared_agent: AgentProcess) -> None:
    name = shared_agent.script("echo one; sleep 0.6; echo two >&2; sleep 0.6; echo three")
    arrivals = {}
    after = 0
    while True:
        told = shared_agent.events(name, after, 5)
        for event in told["events"]:
            arrivals[event["n"]] = (time.monotonic(), event)
        after = told["next"]
        if told["done"]:
            break
    kinds = [event["type"] for _, event in arrivals.values()]
    assert kinds == ["start", "output", "output", "output", "result"]
    assert [event["stream"] for _, event in arrivals.values() if event["type"] == "output"] == [
        "stdout",
        "stderr",
        "stdout",
    ]
    assert [event["seq"] for _, event in arrivals.values() if event["type"] == "output"] == [0, 1, 2]
    assert [event["offset"] for _, event in arrivals.values() if event["type"] == "output"] == [0, 0, 4]
    assert arrivals[2][0] - arrivals[1][0] > 0.4


def test_many_are_followed_in_one_request(shared_agent: AgentProcess) -> None:
    first, second = shared_agent.script("sleep 0.3; echo a"), shared_agent.script("echo b")
    shared_agent.wait_end(first)
    told = shared_agent.get(f"events?after={first}:0,{second}:1,unknown:0").data
    assert told["unknown"] == ["unknown"]
    assert {task["id"]: task["done"] for task in told["tasks"]} == {first: True, second: True}
    assert {task["id"]: task["events"][0]["n"] for task in told["tasks"]} == {first: 0, second: 1}


def test_a_new_execution_ends_the_wait_for_many(agent: AgentProcess) -> None:
    name = agent.script("sleep 30")
    found: list[float] = []

    def follow() -> None:
        started = time.monotonic()
        agent.get(f"events?after={name}:1&wait_s=20")
        found.append(time.monotonic() - started)

    thread = threading.Thread(target=follow)
    thread.start()
    time.sleep(0.3)
    agent.script("true")
    thread.join()
    assert 0.2 < found[0] < 5
    agent.post(f"task/{name}/cancel")


def test_a_caller_who_leaves_a_held_request_leaves_nothing(shared_agent: AgentProcess) -> None:
    name = shared_agent.script("sleep 2")
    for _ in range(20):
        connection = shared_agent.connect()
        connection.request("GET", f"/api/v1/task/{name}/events?after=1&wait_s=30")
        connection.close()
    assert shared_agent.wait_end(name)["status"] == "success"


def test_output_is_read_in_bytes_from_anywhere(shared_agent: AgentProcess) -> None:
    name = shared_agent.script("printf '0123456789'")
    shared_agent.wait_end(name)
    answer = shared_agent.get(f"task/{name}/output?stream=stdout&offset=4")
    assert (answer.body, answer.headers["x-ops-offset"]) == (b"456789", "4")
    assert shared_agent.get(f"task/{name}/output?stream=out").code == 1001


def test_the_host_has_the_last_word(agent: AgentProcess) -> None:
    agent.capabilities.write_text("allow: {scripts: false, config: false}\n")
    found = agent.run("echo no")
    assert (found["status"], found["error_code"], found["stdout"]) == ("failed", "forbidden_by_host", "")
    assert agent.do("custom", {"plugin": "x"})["error_code"] == "forbidden_by_host"
    assert agent.do("config", {"op": "read", "path": "/etc/hostname"})["error_code"] == "forbidden_by_host"
    agent.capabilities.write_text("allow: {run_as: [nobody]}\n")
    assert agent.run("id")["error_code"] == "forbidden_by_host"
    assert agent.run("id -un", user="nobody")["stdout"] == "nobody\n"
    agent.capabilities.write_text("allow: {scripst: true}\n")
    assert agent.run("id", user="nobody")["error_code"] == "forbidden_by_host"
    agent.capabilities.unlink()
    assert agent.run("id -un")["stdout"] == "root\n"
