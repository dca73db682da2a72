"""What can go wrong with tasks, in the contract's codes."""

from http import HTTPStatus

from flask_babel import lazy_gettext as _l

from app.kernel.errors import AppError


class TaskNotFound(AppError):
    code, status, message = 4001, HTTPStatus.NOT_FOUND, _l("There is no such task.")


class NotInThisState(AppError):
    code, status, message = 4002, HTTPStatus.CONFLICT, _l("That cannot be done in this state.")
