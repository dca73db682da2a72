"""What can go wrong with agents, in the contract's codes."""

from http import HTTPStatus

from flask_babel import lazy_gettext as _l

from app.kernel.errors import AppError, Conflict, NotFound


class AgentNotFound(NotFound):
    message = _l("There is no such agent on this node.")


class NotOurs(Conflict):
    """The host, or a service, defines this agent."""

    message = _l("This agent is declared on the host itself, so it can only be changed there.")


class ComesAlong(NotOurs):
    """It belongs to the Daemon, as the task agent does."""

    message = _l("This agent comes with the Daemon. It can be started and stopped, but neither changed nor deleted.")


class NothingToRollBackTo(AppError):
    code, status, message = 3005, HTTPStatus.CONFLICT, _l("There is no earlier version that proved healthy.")
