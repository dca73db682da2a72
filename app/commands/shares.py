"""Numbers that people give as a count or as a percentage of a run's hosts, and what they come to."""

import re
from typing import Annotated

from flask_babel import gettext as _
from pydantic import AfterValidator, Field

MOST = 1_000_000
PERCENT = re.compile(r"(100|[0-9]{1,2})%")


def check_share(given: int | str) -> int | str:
    """An integer, or a percentage as text."""
    if isinstance(given, str):
        if not PERCENT.fullmatch(given):
            raise ValueError(_("A whole number or a percentage (such as 10%) is expected."))
    elif not 0 <= given <= MOST:
        raise ValueError(_("A whole number or a percentage (such as 10%) is expected."))
    return given


def check_window(given: int | str) -> int | str:
    if given in (0, "0%", "00%"):
        raise ValueError(_("With none at once, nothing would ever run."))
    return check_share(given)


Window = Annotated[int | str, AfterValidator(check_window), Field(examples=[10, "10%"])]
"""How many at once: `max_parallel` of the contract."""

ErrorLimit = Annotated[int | str, AfterValidator(check_share), Field(examples=[3, "5%"])]
"""How many errors stop a run: `max_errors` of the contract. 0 and 0% mean what 1 means: the first one does."""


def window_of(given: int | str | None, total: int) -> int:
    """How many at once. A percentage is rounded down, since it is "at most"; one is always allowed."""
    if given is None:
        return max(1, total)
    wanted = total * int(given[:-1]) // 100 if isinstance(given, str) else given
    return max(1, min(wanted, total))


def error_limit_of(given: int | str | None, total: int) -> int | None:
    """The number of errors at which a run stops. Of a percentage, the first number that reaches it."""
    if given is None:
        return None
    wanted = -(-total * int(given[:-1]) // 100) if isinstance(given, str) else given
    return max(1, wanted)
