"""One host's measurements for programs."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from flask import Response
from flask_babel import gettext as _

from app.kernel.api import ApiRoom
from app.kernel.clock import now, rfc3339
from app.kernel.db import db
from app.kernel.edges import bad_field
from app.kernel.envelope import success
from app.metrics import queries
from app.metrics.details import Parts
from app.metrics.models import POINTS, VALUES, moment_of
from app.metrics.queries import History
from app.metrics.schemas import MetricsOut, MetricsQuery
from app.nodes.errors import NodeNotFound
from app.nodes.models import Node
from protocol.metrics import Detail

api = ApiRoom("metrics", "Measurements")

MOST_POINTS = 20_000
MOST_DETAILED = 2_000
NO_DETAIL = Detail(None, None, None, None, None, ())
IS_WHOLE = tuple(POINTS.c[value].type.python_type is int for value in VALUES)
"""Bytes and counts: their means are rounded, since whole numbers are promised."""


@api.get(
    "/nodes/<id:node_id>/metrics",
    permission="nodes.read",
    summary="What a host measured",
    query=MetricsQuery,
    returns=MetricsOut,
    errors=(NodeNotFound,),
)
def show_metrics(node_id: int, query: MetricsQuery) -> Response:
    """Points are made without the schema that describes them: for 20,000 it would take longer than all the rest."""
    session = db.session()
    if session.get(Node, node_id) is None:
        raise NodeNotFound
    end = max(query.end or now(), moment_of(0))
    start = query.start or end - timedelta(hours=1)
    if start > end:
        raise bad_field("start", _("The beginning lies after the end."))
    most = MOST_DETAILED if query.detail else MOST_POINTS
    history = queries.series(session, node_id, start, end, query.resolution, most=most)
    if len(history.times) > most:
        raise bad_field("resolution", _("More than %(count)s points. Ask for less time or coarser ones.", count=most))
    items = _items(history)
    if query.detail:
        has_parts = history.step_ms == queries.RAW
        _add_details(history, items, queries.details(session, node_id, start, end) if has_parts else ())
    return success({"resolution": history.resolution, "items": items})


def _items(history: History) -> list[dict[str, Any]]:
    times = [{"timestamp": rfc3339(moment_of(ts))} for ts in history.times]
    values = _rows(history.values, is_rounded=bool(history.maxima))
    if not history.maxima:
        return [time | row for time, row in zip(times, values, strict=True)]
    maxima = _rows(history.maxima, is_rounded=True)
    return [time | row | {"max": peak} for time, row, peak in zip(times, values, maxima, strict=True)]


def _rows(columns: Mapping[str, Sequence[Any]], *, is_rounded: bool) -> list[dict[str, Any]]:
    if is_rounded:
        columns = {
            name: [value if value is None else round(value, None if is_whole else 3) for value in columns[name]]
            for name, is_whole in zip(VALUES, IS_WHOLE, strict=True)
        }
    return [dict(zip(VALUES, row, strict=True)) for row in zip(*(columns[name] for name in VALUES), strict=True)]


def _add_details(history: History, items: Sequence[dict[str, Any]], found: Sequence[Parts]) -> None:
    by_time = {parts.ts: parts.detail for parts in found}
    for ts, item in zip(history.times, items, strict=True):
        detail = by_time.get(ts, NO_DETAIL)
        item["cores"] = detail.cores
        for name in ("mounts", "interfaces", "disk_io", "gpu"):
            rows = getattr(detail, name)
            item[name] = None if rows is None else [row._asdict() for row in rows]
