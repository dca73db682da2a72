"""Several processes that write into the same log at once. Arguments: how many, and how many rows each."""

import os
import sys

from app.audit.actions import record
from app.factory import create_app
from app.kernel.access import Actor
from app.kernel.db import db, in_transaction
from config import load_settings


def write(number: int, rows: int, start: int) -> None:
    app = create_app(load_settings([]))
    with app.app_context():
        session, actor = db.session(), Actor.system(f"process-{number}")
        os.read(start, 1)
        for row in range(rows):
            in_transaction(session, lambda row=row: record(session, actor, "test.done", "thing", row))


def main(processes: int, rows: int) -> int:
    start, starter = os.pipe()
    children = []
    for number in range(processes):
        if (child := os.fork()) == 0:
            write(number, rows, start)
            os._exit(0)
        children.append(child)
    os.write(starter, b"x" * processes)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
