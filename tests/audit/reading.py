"""Looking at the audit log past the product, and at what the product says of it."""

from types import SimpleNamespace
from typing import Any

from flask import Flask
from sqlalchemy import select, text

from app.audit.models import AuditRow
from app.audit.verification import Report, verify
from app.kernel.db import db


def entries(app: Flask, **fields: Any) -> list[Any]:
    """The rows with these values, oldest first, detached from any session."""
    with app.app_context():
        found = db.session.scalars(select(AuditRow).filter_by(**fields).order_by(AuditRow.id)).all()
        names = AuditRow.__table__.columns.keys()
        rows = [SimpleNamespace(**{name: getattr(row, name) for name in names}) for row in found]
        db.session.rollback()
    return rows


def checked(app: Flask) -> Report:
    """What verification says."""
    with app.app_context():
        report = verify(db.session())
        db.session.rollback()
    return report


def run_sql(app: Flask, *statements: str, **values: Any) -> None:
    """What somebody does who owns the database."""
    with app.app_context(), db.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement), values)
