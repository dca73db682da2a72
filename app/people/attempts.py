"""How often somebody may guess a password: for one account from one address, and from one address for all accounts.

An attempt is looked at when its turn to be hashed has come (see `passwords`), so the limit also holds for a thousand
guesses that arrive at once.
"""

import ipaddress
from dataclasses import dataclass

from flask_babel import gettext as _

from app.kernel import ratelimit
from app.kernel.access import Actor
from app.kernel.errors import Refusal, TooManyRequests
from app.kernel.live_settings import live_settings
from app.people import tokens

ACCOUNT_WINDOW_S = 300
ADDRESS_WINDOW_S = 900
HOST_BITS = 64
"""An IPv6 host sends from any address of its /64, so all of them count as one."""


@dataclass(frozen=True)
class Counter:
    """Failures of one kind: where they are counted, for how long, and how many are too many."""

    key: str
    window_s: int
    most: int


@dataclass(frozen=True)
class Attempt:
    """One guess, with the counters that decide whether it is looked at, and what the log says if it is not."""

    counters: tuple[Counter, ...]
    refusal: Refusal

    def check(self) -> None:
        """Raise when there were too many already."""
        for counter in self.counters:
            usage = ratelimit.count(counter.key, counter.window_s, by=0)
            if usage.count >= counter.most:
                error = TooManyRequests(_("Too many failed sign-ins. Please wait a little."))
                error.retry_after_s, error.refusal = usage.resets_in_s, self.refusal
                raise error

    def has_failed(self) -> None:
        for counter in self.counters:
            ratelimit.count(counter.key, counter.window_s)

    def has_succeeded(self) -> None:
        """The account starts afresh. The address does not: else one account of one's own would open the others."""
        ratelimit.forget(self.counters[0].key)


def of_sign_in(actor: Actor, username: str, shown_name: str) -> Attempt:
    limits, place = live_settings().auth, _place(actor.ip)
    account = Counter(f"sign-in:{tokens.fingerprint(username)}:{place}", ACCOUNT_WINDOW_S, limits.attempts_per_account)
    address = Counter(f"sign-in-address:{place}", ADDRESS_WINDOW_S, limits.attempts_per_address)
    return Attempt((account, address), Refusal("auth.sign_in", "user", shown_name, "too many failed attempts"))


def of_own_password(actor: Actor) -> Attempt:
    """Somebody who found an open session must not find out its owner's password."""
    most = live_settings().auth.attempts_per_account
    counter = Counter(f"own-password:{actor.user_id}", ACCOUNT_WINDOW_S, most)
    refusal = Refusal("auth.change_password", "user", str(actor.user_id), "too many failed attempts")
    return Attempt((counter,), refusal)


def _place(address: str) -> str:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 4 or found.ipv4_mapped is not None:
        return str(found if found.version == 4 else found.ipv4_mapped)
    return str(ipaddress.ip_network((found, HOST_BITS), strict=False))
