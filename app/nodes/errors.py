"""What can go wrong with nodes, in the contract's codes."""

from http import HTTPStatus

from flask_babel import lazy_gettext as _l

from app.kernel.errors import AppError


class NodeNotFound(AppError):
    code, status, message = 2001, HTTPStatus.NOT_FOUND, _l("There is no such node.")


class NodeExists(AppError):
    code, status, message = 2002, HTTPStatus.CONFLICT, _l("This node exists already.")


class NodeOffline(AppError):
    code, status, message = 2003, HTTPStatus.CONFLICT, _l("The node is offline.")
