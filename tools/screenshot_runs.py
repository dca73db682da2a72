"""Runs that never happened, for pictures: one that failed in part, the one before it, one that goes on, an odd one."""

import random
from datetime import timedelta

from flask import Flask
from sqlalchemy import select, update

from app.commands.models import Command, Fanout, Target
from app.kernel.access import Actor, Role
from app.kernel.clock import now
from app.kernel.context import ops
from app.kernel.db import db
from app.nodes.models import ONLINE, Node
from app.people.models import User
from app.tasks.models import SCHEDULE
from protocol import states
from tests.tasks.runs import Stage

PATCHES = """\
Reading package lists...
Building dependency tree...
14 packages can be upgraded:
  openssl       3.0.14-1 -> 3.0.15-1
  libssl3       3.0.14-1 -> 3.0.15-1
  nginx         1.22.1-9 -> 1.22.1-10
  tzdata        2024a-0  -> 2024b-0
"""
KERNEL = "Kernel: 6.1.0-26-amd64, reboot not needed\n"
WARNING = b"W: Some index files failed to download. They have been ignored.\n"
BROKEN = b"E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 4711 (unattended-upgr)\n"
HOSTILE = (
    b"\x1b[1;31mred\x1b[0m <script>alert(1)</script> <img src=x onerror=alert(2)>\r\n"
    b"10%\r40%\r100%\nbell\x07 null\x00 back\x08space \xff\xfe invalid \xe4\xb8\xad\xe6\x96\x87 \xe2\x80\xaetxet\n"
    b"\x1b]0;title of a window\x07" + b"a line without end " * 60 + b"\n"
)
chance = random.Random(11)  # noqa: S311  makes pictures alike, guards nothing


def made_up_runs(app: Flask) -> dict[str, object]:
    """What addresses are filled with: runs that have ended or go on, and some of their records."""
    stage = Stage(app)
    _give_keys(stage)
    with app.app_context():
        user = db.session.scalars(select(User).where(User.username == "bob.meyer")).one()
        bob = Actor("user", user.id, user.username, Role.OPERATOR)
        nodes = db.session.execute(
            select(Node.id, Node.hostname)
            .where(Node.status == ONLINE, Node.maintenance_until.is_(None))
            .order_by(Node.hostname)
        ).all()
        online = [row.id for row in nodes]
    patch = stage.task("Patch level", bob, max_parallel=max(5, len(online) // 5), retry_count=1, retry_interval=0)
    before = stage.begin(patch, bob, SCHEDULE)
    _play(stage, online, set())
    _end_rest(stage, before)
    _shift(stage, before, timedelta(days=1, minutes=12))
    run = stage.begin(patch, bob)
    _play(stage, online, set(online[3::17]))
    _end_rest(stage, run)
    _shift(stage, run, timedelta(minutes=24))
    clean = stage.task("Rotate logs", bob, target_type="tag", target_value=["canary"])
    other = stage.begin(clean, bob, SCHEDULE)
    for node_id in online:
        if _has_order(stage, node_id):
            stage.play(node_id, b"rotated 12 files\n", duration_ms=chance.randint(30, 400))
    _end_rest(stage, other)
    _shift(stage, other, timedelta(minutes=7))
    odd = stage.task("Odd output", bob, target_type="node", target_value=online[:1])
    hostile_run = stage.begin(odd, bob)
    stage.play(
        online[0], HOSTILE + b"x" * 200_000, HOSTILE, states.FAILED, signal=11, exit_code=None, duration_ms=83_400
    )
    slow = stage.task("Disk check", bob, max_parallel=20)
    going = stage.begin(slow, bob)
    waiting = [node_id for node_id in online if _has_order(stage, node_id)]
    for node_id in waiting[:9]:
        stage.play(node_id, b"/dev/sda1: clean, 48211/3276800 files\n", duration_ms=chance.randint(300, 4000))
    failed = waiting[9:11]
    for node_id in failed:
        stage.play(node_id, b"", b"fsck: /dev/sdb1: Input/output error\n", states.FAILED, exit_code=8, duration_ms=911)
    for node_id in waiting[11:15]:
        order = stage.fetch(node_id)
        stage.write(
            node_id,
            order,
            ("stdout", b"checking /dev/sda1\n  pass 1: inodes, blocks and sizes\n"),
            ("stderr", b"W: 3 inodes were skipped\n"),
            ("stdout", b"  pass 2: directory structure 4"),
        )
    with app.app_context():
        record = _record(run, failed=True)
        return {
            "run": run,
            "run_before": before,
            "run_going": going,
            "record": record,
            "record_before": _twin(before, record),
            "record_live": _record(going, state="running"),
            "run_hostile": hostile_run,
            "record_hostile": _record(hostile_run),
            "record_waiting": _record(going, state="parked") or _record(going, state="waiting"),
        }


def _give_keys(stage: Stage) -> None:
    """So that orders can be signed for them."""

    def give() -> None:
        for node in db.session.scalars(select(Node).where(Node.command_key == "")):
            node.command_key = ops().keys.box.encrypt(b"k" * 32, f"command-key:{node.uuid}")

    stage.rig.do(give)


def _has_order(stage: Stage, node_id: int) -> bool:
    with stage.rig.app.app_context():
        asked = select(Command.id).where(Command.node_id == node_id, Command.state == states.QUEUED)
        return db.session.scalar(asked.limit(1)) is not None


def _play(stage: Stage, nodes: list[int], bad: set[int]) -> None:
    while open_ones := [node_id for node_id in nodes if _has_order(stage, node_id)]:
        for node_id in open_ones:
            took = chance.randint(700, 9000)
            if node_id in bad:
                stage.play(node_id, PATCHES[:52].encode(), BROKEN, states.FAILED, exit_code=100, duration_ms=took)
            else:
                stage.play(
                    node_id, (PATCHES + KERNEL).encode(), WARNING if node_id % 13 == 0 else b"", duration_ms=took
                )


def _end_rest(stage: Stage, run: str) -> None:
    """What waits for hosts that are away is given up."""

    def make_due() -> None:
        fanout = db.session.scalars(select(Fanout).where(Fanout.uuid == run)).one()
        past = now() - timedelta(seconds=1)
        mine = (Target.fanout_id == fanout.id, Target.due_at.is_not(None))
        db.session.execute(update(Target).where(*mine).values(due_at=past, not_after=past))

    for _round in range(20):
        stage.rig.do(make_due)
        if not stage.rig.sweep():
            break


def _shift(stage: Stage, run: str, by: timedelta) -> None:
    def move() -> None:
        fanout = db.session.scalars(select(Fanout).where(Fanout.uuid == run)).one()
        fanout.created_at -= by
        fanout.finished_at = None if fanout.finished_at is None else fanout.created_at + timedelta(seconds=48)
        for target in db.session.scalars(select(Target).where(Target.fanout_id == fanout.id)):
            target.finished_at = None if target.finished_at is None else target.finished_at - by
            for command in db.session.scalars(select(Command).where(Command.target_id == target.id)):
                for name in ("issued_at", "delivered_at", "accepted_at", "started_at", "finished_at"):
                    moment = getattr(command, name)
                    setattr(command, name, None if moment is None else moment - by)

    stage.rig.do(move)


def _record(run: str, *, failed: bool = False, state: str | None = None) -> int:
    asked = select(Target.id).join(Fanout, Fanout.id == Target.fanout_id).where(Fanout.uuid == run)
    if failed:
        asked = asked.where(Target.state == "failed")
    if state is not None:
        asked = asked.where(Target.state == state)
    return db.session.scalar(asked.order_by(Target.id).limit(1)) or 0


def _twin(run: str, record: int) -> int:
    """The same host's record in another run."""
    node = select(Target.node_id).where(Target.id == record).scalar_subquery()
    asked = select(Target.id).join(Fanout, Fanout.id == Target.fanout_id)
    return db.session.scalar(asked.where(Fanout.uuid == run, Target.node_id == node)) or 0
