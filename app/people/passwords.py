"""Passwords: hashing them (argon2id), checking them, and what a new one must be."""

import secrets
import string
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, ParamSpec, TypeVar

import gevent
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from flask_babel import gettext as _
from gevent.monkey import is_module_patched

from app.kernel.errors import BadParameter, FieldError
from app.kernel.live_settings import live_settings

P = ParamSpec("P")
Result = TypeVar("Result")

LONGEST: Final = 256
"""Longer ones are refused unseen: hashing costs time in proportion to length."""

HASHER = PasswordHasher(time_cost=3, memory_cost=32 * 1024, parallelism=1)
AT_ONCE = threading.BoundedSemaphore(4)
"""Each hashing takes 32 MiB; a flood of sign-ins must not take all memory."""

NOBODY = HASHER.hash(secrets.token_urlsafe(16))
"""Checked when there is no such user, so that the answer takes as long."""

COMMON = frozenset({"password", "12345678", "123456789", "1234567890", "qwertyui", "qwerty123", "11111111", "iloveyou"})
ALPHABET = "".join(sorted(set(string.ascii_letters + string.digits) - set("0O1lI")))


def hash_password(password: str) -> str:
    with AT_ONCE:
        return _apart(HASHER.hash, password)


@contextmanager
def turn() -> Iterator[Callable[[str, str], bool]]:
    """Waits for one of the few turns and hands over what compares a stored hash with a password.

    Whoever counts failures asks and counts inside, so that those who waited meanwhile are counted too.
    """
    with AT_ONCE:
        yield _matches


def _matches(password_hash: str, password: str) -> bool:
    return len(password) <= LONGEST and _apart(_verify, password_hash, password)


def _verify(password_hash: str, password: str) -> bool:
    try:
        return HASHER.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False


def _apart(function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
    """Run slow C code on a thread of its own, so that a server made of greenlets goes on serving meanwhile."""
    if not is_module_patched("socket"):
        return function(*args, **kwargs)
    result: Result = gevent.get_hub().threadpool.apply(function, args, kwargs)
    return result


def is_outdated(password_hash: str) -> bool:
    return HASHER.check_needs_rehash(password_hash)


def generated_password() -> str:
    """One that can be read aloud, with 115 bits."""
    return "-".join("".join(secrets.choice(ALPHABET) for _place in range(5)) for _group in range(4))


def check_new_password(password: str, username: str, field: str = "password") -> None:
    """Raise BadParameter unless this may become somebody's password."""
    shortest = live_settings().auth.password_min_length
    if len(password) < shortest:
        raise BadParameter(errors=[FieldError(field, _("At least %(count)s characters are needed.", count=shortest))])
    if len(password) > LONGEST:
        raise BadParameter(errors=[FieldError(field, _("At most %(count)s characters are allowed.", count=LONGEST))])
    if password.lower() in COMMON or password.lower() == username.lower():
        raise BadParameter(errors=[FieldError(field, _("This password is too easy to guess."))])
