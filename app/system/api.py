"""Health for programs, inside the API."""

from typing import Any, Literal

from app.kernel.access import PUBLIC
from app.kernel.api import ApiRoom, Out
from app.kernel.errors import DatabaseAway, QueueAway
from app.system import queries

api = ApiRoom("system", "System")
RETRY_AFTER_S = 5


class HealthOut(Out):
    status: Literal["ok", "unhealthy"]
    checks: dict[str, str]


@api.get("/health", permission=PUBLIC, summary="Whether database and Redis answer", returns=HealthOut)
def show_health() -> dict[str, Any]:
    health = queries.health()
    if health["checks"]["database"] != "ok":
        raise DatabaseAway(data=health, retry_after_s=RETRY_AFTER_S)
    if health["checks"]["redis"] != "ok":
        raise QueueAway(data=health, retry_after_s=RETRY_AFTER_S)
    return health
