"""A room made for testing the frame around rooms: it writes one kind of row and fails in every way."""

from typing import Any, Literal

from flask import Blueprint, Flask, Response, request
from pydantic import AwareDatetime, Field
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError, OperationalError

from app.kernel.access import PUBLIC, SIGNED_IN, Actor
from app.kernel.api import ApiRoom, In, Listing, Out
from app.kernel.db import db
from app.kernel.edges import page, see_other
from app.kernel.errors import AppError, BadParameter, Conflict, FieldError, Forbidden, NotFound, TooManyRequests
from app.kernel.live_settings import ChangedSetting
from app.kernel.paging import ListQuery, Page, paginate
from app.shell import tell

ROW = "lab."
SORTABLE = {"key": ChangedSetting.key, "updated_at": ChangedSetting.updated_at}


class ThingQuery(ListQuery):
    keyword: str | None = Field(None, max_length=20)
    tags: list[str] = Field(default_factory=list, max_length=3)
    since: AwareDatetime | None = None


class ThingIn(In):
    name: str = Field(min_length=1, max_length=64)
    count: int = Field(1, ge=1, le=2**31)
    ratio: float | None = None
    is_red: bool = False
    kind: Literal["big", "small"] = "small"
    parts: list[str] = Field(default_factory=list)
    labels: dict[str, str] = Field(default_factory=dict)
    since: AwareDatetime | None = None


class ThingOut(Out):
    key: str
    updated_at: AwareDatetime


class Echo(Out):
    name: str
    since: AwareDatetime | None


class Lab:
    """One laboratory for each application, so that tests may look at what was called and order what is to fail."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.failures: list[Exception] = []
        self.room = ApiRoom("lab", "Laboratory")
        self.pages = Blueprint("lab", __name__)
        self._declare_api()
        self._declare_pages()

    def install(self, app: Flask) -> None:
        app.extensions["csrf"].exempt(self.room.blueprint)
        app.register_blueprint(self.room.blueprint)
        app.register_blueprint(self.pages)
        app.extensions["api_rooms"] = (*app.extensions["api_rooms"], self.room)

    def rows(self) -> int:
        statement = select(func.count()).where(ChangedSetting.key.startswith(ROW))
        return db.session.scalar(statement) or 0

    def _write(self, name: str) -> ChangedSetting:
        self.calls.append(name)
        row = ChangedSetting(key=ROW + name, value=1)
        db.session.add(row)
        db.session.flush()
        if self.failures:
            raise self.failures.pop(0)
        return row

    def _declare_api(self) -> None:
        room = self.room

        @room.get("/lab/things", permission=PUBLIC, summary="List", query=ThingQuery, returns=Listing[ThingOut])
        def list_things(query: ThingQuery) -> Page[ChangedSetting]:
            self.calls.append(query)
            return paginate(db.session(), select(ChangedSetting), query, SORTABLE, "key")

        @room.post(
            "/lab/things", permission=PUBLIC, summary="Make", body=ThingIn, returns=ThingOut, status=201,
            errors=(Conflict,), is_idempotent=True,
        )  # fmt: skip
        def make_thing(body: ThingIn) -> ChangedSetting:
            return self._write(body.name)

        @room.post("/lab/start", permission=PUBLIC, summary="Start", returns=Echo, status=202, is_idempotent=True)
        def start() -> dict[str, Any]:
            return {"name": "started", "since": None}

        @room.put("/lab/echo", permission=PUBLIC, summary="Echo", body=ThingIn, returns=Echo)
        def echo(body: ThingIn) -> dict[str, Any]:
            self.calls.append(body)
            return {"name": body.name, "since": body.since}

        @room.get("/lab/things/<id:thing_id>", permission=SIGNED_IN, summary="Show", returns=Echo)
        def show_thing(thing_id: int) -> dict[str, Any]:
            return {"name": str(thing_id), "since": None}

        @room.delete("/lab/things/<id:thing_id>", permission=PUBLIC, summary="Delete", errors=(NotFound,))
        def delete_thing(thing_id: int) -> None:
            self.calls.append(thing_id)

        @room.get("/lab/fail/<how>", permission=PUBLIC, summary="Fail")
        def fail(how: str) -> None:
            raise FAILURES[how]

    def _declare_pages(self) -> None:
        @page(self.pages, "/lab/fail/<how>", permission=PUBLIC)
        def fail_page(how: str) -> str:
            raise FAILURES[how]

        @page(self.pages, "/lab/write", permission=PUBLIC, methods=("POST",))
        def write_page() -> Any:
            tell("It was written.")
            self._write(request.form["name"])
            return see_other("/login")

        @page(self.pages, "/lab/read", permission=PUBLIC)
        def read_page() -> Response:
            return Response(str(self.rows()))


def with_response() -> AppError:
    error = TooManyRequests(retry_after_s=7)
    error.response = Response("a form", 429)
    return error


class DriverError(Exception):
    """What a database driver raises."""


FAILURES: dict[str, Exception] = {
    "conflict": Conflict("Two of <them>."),
    "fields": BadParameter(errors=[FieldError("name", "wrong")]),
    "forbidden": Forbidden("lab.break"),
    "form": with_response(),
    "integrity": IntegrityError("INSERT", {}, DriverError("UNIQUE")),
    "deadlock": OperationalError("UPDATE", {}, DriverError(1213, "Deadlock")),
    "gone": OperationalError("SELECT", {}, DriverError(2013, "Lost connection")),
    "secret": RuntimeError("the password is hunter2"),
}


def anonymous() -> Actor:
    return Actor(ip="192.0.2.1")
