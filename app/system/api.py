"""Health for programs, inside the API."""

from typing import Any, Literal

from app.kernel.access import PUBLIC
from app.kernel.api import ApiRoom, Out
from app.system import queries

api = ApiRoom("system", "System")


class HealthOut(Out):
    status: Literal["ok", "unhealthy"]
    checks: dict[str, str]


@api.get("/health", permission=PUBLIC, summary="Whether database and Redis answer", returns=HealthOut)
def show_health() -> dict[str, Any]:
    checks = queries.health()
    return {"status": "ok" if set(checks.values()) == {"ok"} else "unhealthy", "checks": checks}
