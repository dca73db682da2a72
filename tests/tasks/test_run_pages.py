"""Pages about runs without a browser: what they say, to whom, about what, and that nothing in them does harm."""

import csv
import io
import json
import re
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, insert, select, update

from app.commands.models import Command, Target
from app.kernel.clock import now
from app.kernel.db import db
from app.nodes.models import OFFLINE, Node
from app.tasks import comparing, record_queries
from app.tasks.explaining import duration, explain
from app.tasks.harmless import harmless, last_line
from app.tasks.models import TaskOutput, TaskRun
from app.tasks.queries import record_view, run_by_uuid
from protocol import states
from tests.commands.rig import Clock
from tests.factories import browser_as, make_user, submit
from tests.tasks.runs import Stage

HOSTILE = (
    b"\x1b[31mred\x1b[0m </pre><script>alert(1)</script> \x00\x07\x08 \xff\xfe \xe2\x80\xae \x1b]0;title\x07\r\n"
    b"10%\r20%\r\n"
)


@pytest.fixture
def stage(app: Flask) -> Stage:
    return Stage(app)


@pytest.fixture
def oscar(app: Flask) -> FlaskClient:
    with app.app_context():
        make_user("oscar", "operator")
    return browser_as(app, "oscar")


@pytest.fixture
def vera(app: Flask) -> FlaskClient:
    with app.app_context():
        make_user("vera", "viewer")
    return browser_as(app, "vera")


def opened(client: FlaskClient, path: str, **options: Any) -> str:
    answer = client.get(path, **options)
    assert answer.status_code == 200, (path, answer.status_code)
    return answer.text


def words(html: str) -> str:
    """What somebody reads."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html)))


def table_of(html: str) -> str:
    return html.partition("<tbody>")[2].partition("</tbody>")[0]


def record_of(stage: Stage, run: str, node_id: int) -> int:
    def find() -> int:
        fanout_id = run_by_uuid(db.session(), run).fanout_id
        asked = select(Target.id).where(Target.fanout_id == fanout_id, Target.node_id == node_id)
        return db.session.scalars(asked).one()

    return stage.rig.do(find)


def told(stage: Stage, run: str, node_id: int) -> str:
    """Why it has not run, or what became of it."""

    def ask() -> str:
        session = db.session()
        found = run_by_uuid(session, run)
        view = record_view(session, found, record_of_run(found.fanout_id, node_id))
        ends = record_queries.maintenance_ends(session, [node_id])
        reason = explain(view, is_paused=found.fanout.state == "paused", maintenance=ends)
        return f"{reason.text}|{reason.label}|{reason.detail or ''}"

    with stage.rig.app.test_request_context():
        return stage.rig.do(ask)


def record_of_run(fanout_id: int, node_id: int) -> int:
    asked = select(Target.id).where(Target.fanout_id == fanout_id, Target.node_id == node_id)
    return db.session.scalars(asked).one()


# Words


def test_output_does_no_harm() -> None:
    shown = harmless(HOSTILE.decode(errors="replace"))
    assert shown.startswith("red </pre><script>alert(1)</script> ␀␇␈ �� ‹202E› \n10%\n20%\n")
    assert "\x1b" not in shown
    assert harmless("a\x9b31mb\x1b[38;5;200mc\x1b(Bd\x7f\u2028") == "a‹009B›31mbcd␡‹2028›"
    assert harmless("cut in the middle: \x1b[") == "cut in the middle: "
    assert last_line("one\ntwo\n\x1b[0m  \n") == "two"
    assert last_line("x" * 500) == "x" * 200


def test_hostile_lengths_are_read_quickly() -> None:
    for text in ("\x1b[" * 200_000, "\x1b]" * 200_000, "\r" * 400_000, "\x1bP" * 200_000):
        assert len(harmless(text)) <= len(text)


@pytest.mark.parametrize(
    ("ms", "said"),
    [(None, "–"), (0, "0 ms"), (999.4, "999 ms"), (1000, "1 s"), (59_940, "59.9 s"), (60_000, "1 min 0 s"),
     (3_725_000, "1 h 2 min")],
)  # fmt: skip
def test_durations_are_short(app: Flask, ms: float | None, said: str) -> None:
    with app.test_request_context():
        assert duration(ms) == said


def test_each_record_says_what_it_waits_for(stage: Stage, clock: Clock) -> None:
    nodes = stage.rig.hosts(6)
    stage.rig.set_node(nodes[0], status=OFFLINE)
    stage.rig.set_node(nodes[1], maintenance_until=now() + timedelta(minutes=5))
    stage.rig.set_node(nodes[2], maintenance_until=now() + timedelta(days=3))
    run = stage.begin(stage.task(max_parallel=2, retry_count=1, retry_interval=60))
    assert told(stage, run, nodes[0]).startswith("The host is offline")
    assert told(stage, run, nodes[1]) == "The host is in maintenance. It begins when that ends.|maintenance ends|"
    assert told(stage, run, nodes[2]).endswith("|given up|"), "its maintenance is longer than we wait"
    assert told(stage, run, nodes[3]) == "The order is on its way to the host.|given up|"
    assert told(stage, run, nodes[5]) == "Others come first: only so many hosts run at once.||"
    stage.play(nodes[3], status=states.FAILED, error="no such file")
    assert told(stage, run, nodes[3]) == "It failed and will be tried again.|next attempt|no such file"


def test_each_ending_is_explained(stage: Stage, clock: Clock) -> None:
    nodes = stage.rig.hosts(6)
    stage.rig.set_node(nodes[5], status=OFFLINE)
    run = stage.begin(stage.task(not_after_s=60))
    stage.play(nodes[0], status=states.FAILED, exit_code=3, error="boom")
    stage.play(nodes[1], status=states.FAILED, exit_code=None, signal=9)
    stage.play(nodes[2], status=states.TIMED_OUT, exit_code=None, error_code="task_timeout")
    stage.play(nodes[3], status=states.FAILED, exit_code=None, error_code="forbidden_by_host")
    clock.advance(seconds=61)
    stage.rig.sweep()
    said = [told(stage, run, node_id) for node_id in nodes]
    assert said == [
        "It ended with exit code 3.||boom",
        "A signal ended it: 9 (SIGKILL).||",
        "It ran too long and was stopped.||",
        "The host's own rules forbid this.||",
        "Delivery timed out: the host did not fetch it in time.||",
        "Delivery timed out: the host was offline or in maintenance all the time.||",
    ]


# Pages


def test_the_history_is_filtered_searched_sorted_and_exported(stage: Stage, vera: FlaskClient) -> None:
    nodes = stage.rig.hosts(2)
    disk, patch = stage.task("disk usage"), stage.task("patches")
    full = stage.begin(disk)
    stage.play(nodes[0], b"Fehler: voll 100%\n")
    stage.play(nodes[1], status=states.FAILED)
    fine = stage.begin(disk, triggered_by="schedule")
    stage.play_all(nodes)
    open_one = stage.begin(patch)

    def listed(query: str, base: str = "/executions") -> set[str]:
        shown = table_of(opened(vera, f"{base}?{query}"))
        return {run for run in (full, fine, open_one) if f"/executions/{run}" in shown}

    assert listed("") == {full, fine, open_one}
    assert listed("status=partial") == {full}
    assert listed("triggered_by=schedule") == {fine}
    assert listed("keyword=patch") == {open_one}
    assert listed("output=voll+100%25") == {full}
    assert listed("output=Voll") == set()
    assert listed("", f"/tasks/{disk}/executions") == {full, fine}
    assert listed("output=fine&status=success", f"/tasks/{disk}/executions") == {fine}
    assert listed("sort=nonsense&status=nonsense&page=99999") <= {full, fine, open_one}
    rows = list(csv.DictReader(io.StringIO(vera.get("/executions?format=csv&output=voll").text.lstrip("\ufeff"))))
    assert [row["execution_id"] for row in rows] == [full]
    assert [row["status"] for row in json.loads(vera.get("/executions?format=json").text)] == [
        "running", "success", "partial",
    ]  # fmt: skip
    assert vera.get("/tasks/999/executions").status_code == 404


def test_a_search_says_how_far_it_went(stage: Stage, vera: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, task = stage.rig.hosts(1), stage.task()
    for _ in range(3):
        stage.begin(task)
        stage.play(nodes[0], b"needle\n")
    assert "newest" not in words(opened(vera, "/executions?output=needle"))
    monkeypatch.setattr(record_queries, "SEARCHED_RUNS", 1)
    html = opened(vera, "/executions?output=needle")
    assert "Only the output of the newest 1 of these runs was looked through" in words(html)


def test_a_search_stops_amid_a_run(stage: Stage, vera: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much one run wrote: a statement of the database keeps everybody else waiting."""
    nodes = stage.rig.hosts(3)
    run = stage.begin(stage.task())
    stage.play_all(nodes, b"needle\n")
    monkeypatch.setattr(record_queries, "PIECES_AT_ONCE", 1)
    with stage.rig.app.app_context():
        engine = db.engine
    searched: list[str] = []

    def count(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "instr(" in statement:
            searched.append(statement)

    event.listen(engine, "before_cursor_execute", count)
    try:
        assert run in opened(vera, "/executions?output=needle")
        assert len(searched) == 3
        monkeypatch.setattr(record_queries, "SEARCHED_FOR_S", -1.0)
        assert "newest 0 of these runs" in words(opened(vera, "/executions?output=needle"))
        assert len(searched) == 3
    finally:
        event.remove(engine, "before_cursor_execute", count)


def test_failures_stand_first_and_a_thousand_hosts_are_pages(stage: Stage, vera: FlaskClient) -> None:
    nodes = stage.rig.hosts(1000)
    run = stage.begin(stage.task())
    stage.play(nodes[700], b"", b"disk full\n", states.FAILED, exit_code=4)
    stage.play(nodes[3], b"fine\n")
    html = opened(vera, f"/executions/{run}")
    rows = table_of(html).split("<tr")[1:]
    assert len(rows) == 50
    assert "host-00700" in rows[0]
    assert "It ended with exit code 4." in words(rows[0])
    assert "disk full" in rows[0]
    assert "998 The order is on its way to the host." in words(html)
    assert "host-00003" in opened(vera, f"/executions/{run}?page=20")
    only = table_of(opened(vera, f"/executions/{run}?output=fine"))
    assert (only.count("<tr"), "host-00003" in only) == (1, True)
    assert table_of(opened(vera, f"/executions/{run}?keyword=007&status=failed")).count("<tr") == 1
    exported = json.loads(vera.get(f"/executions/{run}?format=json&status=failed").text)
    assert [record["hostname"] for record in exported] == ["host-00700"]


def test_whole_runs_are_exported_with_what_hosts_wrote(stage: Stage, vera: FlaskClient) -> None:
    nodes = stage.rig.hosts(45)
    run = stage.begin(stage.task())
    stage.play(nodes[0], "grüß\n".encode() * 12_000, b"=formula\n")
    stage.play_all(nodes[1:])
    answer = vera.get(f"/executions/{run}/export?format=jsonl")
    assert answer.headers["Content-Disposition"] == f'attachment; filename="run-{run}.jsonl"'
    records = [json.loads(line) for line in answer.text.splitlines()]
    assert len(records) == 45
    assert records[0]["stdout"] == "grüß\n" * 12_000
    rows = list(csv.DictReader(io.StringIO(vera.get(f"/executions/{run}/export?format=csv").text.lstrip("\ufeff"))))
    assert (len(rows), rows[0]["stderr"], rows[44]["stdout"]) == (45, "'=formula\n", "fine\n")


def test_one_stream_is_given_as_it_is(stage: Stage, vera: FlaskClient) -> None:
    nodes = stage.rig.hosts(1)
    stage.rig.set_node(nodes[0], hostname='we"ird/na me')
    run = stage.begin(stage.task())
    stage.play(nodes[0], HOSTILE, b"err")
    path = f"/executions/{run}/records/{record_of(stage, run, nodes[0])}"
    answer = vera.get(f"{path}/stdout.txt")
    assert (answer.data, answer.mimetype) == (HOSTILE, "text/plain")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert re.fullmatch(r'attachment; filename="[\w.-]+-stdout.txt"', answer.headers["Content-Disposition"])
    assert vera.get(f"{path}/stderr.txt").data == b"err"
    assert vera.get(f"{path}/secrets.txt").status_code == 404


def test_hostile_output_is_only_text_wherever_it_stands(stage: Stage, vera: FlaskClient) -> None:
    nodes = stage.rig.hosts(2)
    run = stage.begin(stage.task())
    stage.play(nodes[0], HOSTILE, HOSTILE, states.FAILED, error="<b>bold</b>")
    stage.play(nodes[1], b"x" * 1024 * 1024)
    one, two = (record_of(stage, run, node_id) for node_id in nodes)
    base = f"/executions/{run}"
    pages = ("", "/output", "/groups", f"/records/{one}", f"/records/{two}?whole=stdout",
             f"/records/{one}/difference?with={two}")  # fmt: skip
    for path in pages:
        html = opened(vera, f"{base}{path}")
        assert "<script>alert" not in html, path
        assert "<b>bold" not in html, path
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", html), path
    follow = json.loads(opened(vera, f"{base}/output/follow?record={one}"))
    assert "\x1b" not in "".join(piece["text"] for piece in follow["pieces"])


def test_long_output_begins_with_a_line_near_its_end(stage: Stage, vera: FlaskClient) -> None:
    nodes = stage.rig.hosts(1)
    run = stage.begin(stage.task())
    stage.play(nodes[0], b"".join(b"line %07d\n" % number for number in range(20_000)))
    path = f"/executions/{run}/records/{record_of(stage, run, nodes[0])}"
    html = opened(vera, path)
    first = html.partition('aria-label="Standard output">')[2].lstrip()
    assert re.match(r"line 00\d{5}\n", first), first[:40]
    assert "line 0000000" not in html
    assert "line 0019999" in html
    assert "are not shown" in words(html)
    whole = opened(vera, f"{path}?whole=stdout")
    assert "line 0000000" in whole
    assert "are not shown" not in words(whole)


def test_a_thousand_pieces_are_read_at_once(stage: Stage, vera: FlaskClient) -> None:
    """A host may send its output byte by byte; whoever looks at it must not pay for that."""
    nodes = stage.rig.hosts(1)
    run = stage.begin(stage.task())
    order = stage.fetch(nodes[0])

    def write() -> None:
        command = db.session.scalars(select(Command).where(Command.uuid == order)).one()
        fanout_id = db.session.scalars(select(Target.fanout_id).where(Target.id == command.target_id)).one()
        rows = [
            {"command_id": command.id, "fanout_id": fanout_id, "seq": number, "stream": "stdout", "offset": number * 2,
             "size": 2, "data": b"%d\n" % (number % 10), "is_cut": False}
            for number in range(1000)
        ]  # fmt: skip
        db.session.execute(insert(TaskOutput), rows)

    stage.rig.do(write)
    path = f"/executions/{run}/records/{record_of(stage, run, nodes[0])}"
    with stage.rig.app.app_context():
        engine = db.engine
    asked: list[str] = []

    def count(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        asked.append(statement)

    event.listen(engine, "before_cursor_execute", count)
    try:
        assert "8\n9\n0\n1\n2" in opened(vera, path)
        assert len(vera.get(f"{path}/stdout.txt").data) == 2000
    finally:
        event.remove(engine, "before_cursor_execute", count)
    assert len(asked) < 100


def test_earlier_attempts_can_be_looked_at(stage: Stage, vera: FlaskClient) -> None:
    nodes = stage.rig.hosts(1)
    run = stage.begin(stage.task(retry_count=1, retry_interval=0))
    stage.play(nodes[0], b"the first try\n", status=states.FAILED, exit_code=7)
    stage.play(nodes[0], b"the second try\n")
    path = f"/executions/{run}/records/{record_of(stage, run, nodes[0])}"
    now_shown, before = opened(vera, path), opened(vera, f"{path}?attempt=1")
    assert "the second try" in now_shown
    assert "the first try" not in now_shown
    assert "the first try" in before
    assert "It ended with exit code 7." in words(before)
    assert vera.get(f"{path}/stdout.txt?attempt=1").data == b"the first try\n"


# Groups and comparisons


def test_hosts_that_said_the_same_are_one_group(stage: Stage, vera: FlaskClient) -> None:
    nodes = stage.rig.hosts(6)
    run = stage.begin(stage.task())
    stage.play_all(nodes[:3], b"Kernel 6.1\n")
    stage.play(nodes[3], b"Kernel 6.2\n")
    stage.play(nodes[4], b"Kernel 6.1\n", status=states.FAILED)
    html = opened(vera, f"/executions/{run}/groups")
    assert "3 hosts say the same, 2 differ. 1 has not ended." in words(html)
    loose = words(opened(vera, f"/executions/{run}/groups?loose=1"))
    assert "4 hosts say the same, 1 differs." in loose
    with stage.rig.app.app_context():
        session = db.session()
        found = comparing.outcomes(session, run_by_uuid(session, run))
        made = comparing.groups(found)
    assert [len(group.members) for group in made] == [3, 1, 1]
    shown = opened(vera, f"/executions/{run}/groups?group={made[0].key}")
    assert f'id="g{made[0].key}"' in shown


def test_what_is_longer_than_is_compared_still_differs(stage: Stage) -> None:
    nodes = stage.rig.hosts(3)
    run = stage.begin(stage.task())
    for node_id, size in zip(nodes, (70_000, 70_000, 70_001), strict=True):
        stage.play(node_id, b"a" * size)
    with stage.rig.app.app_context():
        session = db.session()
        made = comparing.groups(comparing.outcomes(session, run_by_uuid(session, run)))
    assert [len(group.members) for group in made] == [2, 1]


def test_two_runs_side_by_side(stage: Stage, vera: FlaskClient) -> None:
    nodes, task = stage.rig.hosts(4), stage.task()
    before = stage.begin(task)
    stage.play_all(nodes)
    after = stage.begin(task)
    stage.play(nodes[0])
    stage.play(nodes[1], b"fine\n")
    stage.play(nodes[2], b"broken\n", status=states.FAILED)
    html = opened(vera, f"/executions/{after}/compare")
    assert "1 host succeeded then and did not now." in words(html)
    rows = [words(row) for row in table_of(html).split("<tr")[1:]]
    verdicts = [re.search(r"other ending|other output|the same|not ended yet", row) for row in rows]
    assert [found and found.group() for found in verdicts] == [
        "other ending", "other output", "not ended yet", "the same",
    ]  # fmt: skip
    only = table_of(opened(vera, f"/executions/{after}/compare/{before}?verdict=status"))
    assert (only.count("<tr"), "host-00002" in only) == (1, True)
    assert table_of(opened(vera, f"/executions/{after}/compare?with={before}&keyword=00003")).count("<tr") == 1
    pair = [record_of(stage, run, nodes[2]) for run in (before, after)]
    diff = opened(vera, f"/executions/{after}/records/{pair[1]}/difference?with={pair[0]}")
    assert "-fine" in diff
    assert "+broken" in diff
    assert vera.get(f"/executions/{after}/records/{pair[1]}/difference").status_code == 404
    assert "Nothing to compare with" in opened(vera, f"/executions/{stage.begin(stage.task('other'))}/compare")


def test_very_long_outputs_are_compared_in_no_time(stage: Stage, vera: FlaskClient) -> None:
    nodes = stage.rig.hosts(2)
    run = stage.begin(stage.task())
    for number, node_id in enumerate(nodes):
        stage.play(node_id, b"".join(b"%d\n" % ((line * (7 + number)) % 97) for line in range(120_000)))
    one, two = (record_of(stage, run, node_id) for node_id in nodes)
    assert "Only the first part is compared" in opened(vera, f"/executions/{run}/records/{one}/difference?with={two}")


# Doing something


def test_buttons_do_what_they_say(stage: Stage, oscar: FlaskClient) -> None:
    nodes, task = stage.rig.hosts(3), stage.task(max_parallel=1)
    run = stage.begin(task)
    base = f"/executions/{run}"

    def press(path: str, **values: str) -> Any:
        return submit(oscar, f"{base}{path}", values, page=base)

    assert press("/pause").status_code == 303
    html = words(opened(oscar, base))
    assert "paused" in html
    assert "The run is paused." in html
    assert press("/pause").status_code == 409
    assert press("/resume").status_code == 303
    record = record_of(stage, run, nodes[2])
    assert press(f"/records/{record}/cancel", back="run").headers["Location"] == base
    assert "Cancelled before it began." in words(opened(oscar, base))
    stage.play(nodes[0], status=states.FAILED)
    assert press("/retry").status_code == 409, "it has not ended"
    assert press("/cancel").status_code == 303
    assert "Somebody cancelled this run." in words(opened(oscar, base))
    again = press("/retry").headers["Location"]
    assert again != base
    assert f"repeats run {run[:8]}" in words(opened(oscar, again))
    assert press("/cancel").status_code == 409


def test_giving_up_many_hosts_is_typed(stage: Stage, oscar: FlaskClient) -> None:
    stage.rig.hosts(21)
    run = stage.begin(stage.task())
    base = f"/executions/{run}"
    assert f'href="{base}/cancel"' in opened(oscar, base)
    refused = submit(oscar, f"{base}/cancel", {"confirm": "20"})
    assert (refused.status_code, "Please type 21." in refused.text) == (422, True)
    assert submit(oscar, f"{base}/cancel", {"confirm": "21"}).status_code == 303
    assert "21 cancelled" in words(opened(oscar, base))


def test_a_viewer_sees_everything_and_does_nothing(stage: Stage, vera: FlaskClient) -> None:
    nodes = stage.rig.hosts(2)
    run = stage.begin(stage.task())
    stage.play(nodes[0], status=states.FAILED)
    record = record_of(stage, run, nodes[1])
    base = f"/executions/{run}"
    for path in ("", "/output", "/groups", "/compare", f"/records/{record}"):
        html = opened(vera, f"{base}{path}")
        assert html.count("<form") == html.count("/logout") + html.count('class="filters"') + html.count(
            "compare-with"
        ) + html.count('role="search" action="/search"') + html.count("/preferences"), path
    for path in ("/cancel", "/pause", "/resume", "/retry", f"/records/{record}/cancel"):
        assert submit(vera, f"{base}{path}", {}, page=base).status_code == 403, path


def test_a_run_that_changes_says_so_in_its_fragment(stage: Stage, vera: FlaskClient) -> None:
    nodes = stage.rig.hosts(1)
    run = stage.begin(stage.task())
    base, asks = f"/executions/{run}", {"HX-Request": "true", "HX-Target": "run-state"}
    same = opened(vera, f"{base}?was=running", headers=asks)
    assert "<html" not in same
    assert "hx-swap-oob" not in same
    assert "every 2s" in same
    stage.play(nodes[0])
    ended = opened(vera, f"{base}?was=running", headers=asks)
    assert 'id="run-badge"' in ended
    assert "every 2s" not in ended


def test_what_ran_on_one_host(stage: Stage, vera: FlaskClient) -> None:
    nodes = stage.rig.hosts(2)
    run = stage.begin(stage.task("patches"))
    stage.play(nodes[0], b"done\n", b"oh dear\n", states.FAILED, exit_code=2)
    base = f"/nodes/{nodes[0]}/tasks"
    shown = words(table_of(opened(vera, base)))
    assert all(text in shown for text in ("patches", "failed", "It ended with exit code 2.", "oh dear"))
    assert table_of(opened(vera, f"{base}?status=success")) == ""
    assert "patches" in table_of(opened(vera, f"{base}?keyword=patch&sort=nonsense"))
    assert "waiting" in words(table_of(opened(vera, f"/nodes/{nodes[1]}/tasks")))
    assert run[:8] in shown
    empty = stage.rig.hosts(1)[0]
    assert "Nothing has run on this host" in opened(vera, f"/nodes/{empty}/tasks")


def test_what_is_not_there_is_not_found(stage: Stage, vera: FlaskClient) -> None:
    stage.rig.hosts(1)
    run, other = stage.begin(stage.task()), stage.begin(stage.task())
    nowhere = "/executions/00000000-0000-4000-8000-000000000000"
    for path in ("", "/output", "/groups", "/compare", "/export", "/output/follow", "/records/1"):
        assert vera.get(f"{nowhere}{path}").status_code == 404, path
    with stage.rig.app.app_context():
        foreign = db.session.scalars(select(Target.id).order_by(Target.id.desc())).first()
    assert vera.get(f"/executions/{run}/records/{foreign}").status_code == 404, other
    assert vera.get(f"/executions/{run}/output/follow?record={foreign}").status_code == 404
    assert vera.get(f"/executions/{run}/output/follow?after=rubbish").status_code == 400
    with stage.rig.app.app_context():
        first = db.session.scalars(select(Target.id).order_by(Target.id)).first()
    for number in (10**30, -(10**30), 0):
        assert vera.get(f"/executions/{run}/records/{first}/difference?with={number}").status_code == 404


def test_a_run_whose_task_and_hosts_are_gone_is_still_there(stage: Stage, vera: FlaskClient) -> None:
    nodes = stage.rig.hosts(1)
    task = stage.task("gone")
    run = stage.begin(task)
    stage.play(nodes[0], b"was here\n")

    def forget() -> None:
        db.session.execute(update(TaskRun).values(task_id=None))
        db.session.delete(db.session.get(Node, nodes[0]))

    stage.rig.do(forget)
    for path in ("", "/output", "/groups", "/compare", f"/records/{record_of(stage, run, nodes[0])}"):
        assert "gone" in opened(vera, f"/executions/{run}{path}")
