"""The one family of errors that people may see: actions raise them, edges translate them."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar, NamedTuple

from flask import Response
from flask_babel import lazy_gettext as _l
from flask_babel.speaklater import LazyString


class FieldError(dict[str, str]):
    """One wrong field: its name and what is wrong with it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field=field, message=str(message))


class Refusal(NamedTuple):
    """What the audit log is to say about something that was not done."""

    action: str
    resource_type: str
    resource_id: str | None
    reason: str


class AppError(Exception):
    """A refusal with a code of the contract, an HTTP status and a sentence for people."""

    refusal: Refusal | None = None
    response: Response | None = None
    """What a page wants shown instead of the error page: its form, filled as it was sent."""

    code: ClassVar[int] = 5000
    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    message: str | LazyString = _l("Something went wrong on our side.")

    def __init__(
        self,
        message: str | LazyString | None = None,
        *,
        errors: Sequence[FieldError] = (),
        data: Mapping[str, Any] | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        self.message = message or type(self).message
        self.errors = list(errors)
        self.data = data
        self.retry_after_s = retry_after_s
        super().__init__(str(self.code))

    def __str__(self) -> str:
        return f"{self.code} {self.message}"


class BadParameter(AppError):
    code, status, message = 1001, HTTPStatus.BAD_REQUEST, _l("Some values are wrong.")


class NotAuthenticated(AppError):
    code, status, message = 1002, HTTPStatus.UNAUTHORIZED, _l("Please sign in.")


class Forbidden(AppError):
    """Also tells the audit log what was refused."""

    code, status, message = 1003, HTTPStatus.FORBIDDEN, _l("You may not do that.")

    def __init__(self, permission: str = "", message: str | LazyString | None = None) -> None:
        super().__init__(message)
        self.refusal = Refusal("access.refused", "permission", permission or None, "forbidden")


class NotFound(AppError):
    code, status, message = 1004, HTTPStatus.NOT_FOUND, _l("There is no such thing.")


class TooManyRequests(AppError):
    code, status, message = 1005, HTTPStatus.TOO_MANY_REQUESTS, _l("Too many requests. Please wait a little.")


class Conflict(AppError):
    code, status, message = 1006, HTTPStatus.CONFLICT, _l("That contradicts what is there already.")


class MethodNotAllowed(AppError):
    code, status, message = 1007, HTTPStatus.METHOD_NOT_ALLOWED, _l("That method is not allowed here.")


class TooLarge(AppError):
    code, status, message = 1008, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _l("That is too large.")


class DatabaseAway(AppError):
    code, status, message = 5001, HTTPStatus.SERVICE_UNAVAILABLE, _l("The database is away. Please try again soon.")


class QueueAway(AppError):
    code, status, message = (
        5002,
        HTTPStatus.SERVICE_UNAVAILABLE,
        _l("The cache or queue is away. Please try again soon."),
    )
