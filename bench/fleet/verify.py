"""Looks for every acknowledged point in the Manager's database and prints how many are not there."""

import json
import sys
from collections import Counter
from pathlib import Path

from sqlalchemy import select

from app.kernel.db import db
from app.metrics.models import MetricPoint
from wsgi import create_app


def main(path: Path) -> None:
    acknowledged = Counter((node_id, ts) for node_id, ts in json.loads(path.read_text()))
    with create_app("web").app_context():
        stored = {tuple(row) for row in db.session.execute(select(MetricPoint.node_id, MetricPoint.ts))}
    lost = [key for key in acknowledged if key not in stored]
    sys.stdout.write(json.dumps({"acknowledged": len(acknowledged), "lost": len(lost)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
