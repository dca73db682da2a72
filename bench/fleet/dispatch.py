"""Issues commands through the Manager's own action, from a process beside it, and prints when each was begun."""

import json
import random
import sys
import time
from datetime import timedelta
from functools import partial

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.commands.actions import issue
from app.kernel.access import Actor
from app.kernel.db import db, in_transaction
from app.nodes.models import ONLINE, Node
from wsgi import create_app


def main(count: int, seconds: float) -> None:
    times: dict[str, float] = {}
    with create_app("web").app_context():
        session, actor = db.session(), Actor.system("bench")
        simulated = Node.status == ONLINE, Node.cpu_model == "Simulated CPU"
        nodes = session.scalars(select(Node.id).where(*simulated)).all()
        session.rollback()
        begin = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, begin + seconds * number / count - time.monotonic()))
            node_id = random.choice(nodes)
            at = time.time()
            times[in_transaction(session, partial(ping, session, actor, node_id))] = at
    sys.stdout.write(json.dumps(times))


def ping(session: Session, actor: Actor, node_id: int) -> str:
    """The command's name, read while the transaction is open: afterwards it would begin another and keep the file."""
    return issue(session, actor, node_id, "ping", {}, timedelta(minutes=5)).uuid


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
