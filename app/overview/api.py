"""The dashboard for programs."""

from app.kernel.api import ApiRoom
from app.kernel.db import db
from app.overview import queries
from app.overview.schemas import DashboardOut

api = ApiRoom("overview", "Overview")


@api.get("/system/dashboard", permission="nodes.read", summary="The fleet in numbers", returns=DashboardOut)
def show_dashboard() -> queries.Dashboard:
    return queries.dashboard(db.session())
