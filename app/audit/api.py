"""The audit log for programs."""

from app.audit import queries
from app.audit.models import AuditRow
from app.audit.schemas import AuditOut, AuditQuery
from app.kernel.api import ApiRoom, Listing
from app.kernel.db import db
from app.kernel.paging import Page

api = ApiRoom("audit", "Audit")


@api.get(
    "/system/audit-logs",
    permission="audit.read",
    summary="The audit log, newest first",
    query=AuditQuery,
    returns=Listing[AuditOut],
)
def list_audit_logs(query: AuditQuery) -> Page[AuditRow]:
    return queries.audit_rows(db.session(), query)
