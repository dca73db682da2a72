"""The strings that people and programs prove themselves with: how they are made, hashed and read back."""

import hashlib
import secrets
from collections.abc import Iterable
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from app.kernel.clock import now

PAT_PREFIX = "ops_pat_"
ALGORITHM = "HS256"


class Claims(NamedTuple):
    """What a token of ours says, once its signature and dates are right."""

    jti: str
    user_id: int
    session_id: int


def new_secret() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)


def fingerprint(secret: str) -> str:
    """What is stored of a random secret. It has too much entropy to guess, so a plain hash will do."""
    return hashlib.sha256(secret.encode()).hexdigest()


def covers(scopes: Iterable[str], wanted: str) -> bool:
    """Whether these scopes hold a permission, or all that another scope holds: `*` and `users.*` hold `users.read`."""
    return any(fnmatchcase(wanted, scope) for scope in scopes)


def sign(key: bytes, use: str, claims: Claims, role: str, expires_at: datetime) -> str:
    said: dict[str, Any] = {"jti": claims.jti, "sub": str(claims.user_id), "sid": claims.session_id}
    said |= {"role": role, "use": use, "iat": int(now().timestamp()), "exp": int(expires_at.timestamp())}
    return jwt.encode({"alg": ALGORITHM, "typ": "JWT"}, said, OctKey.import_key(key))


def read(key: bytes, use: str, token: str) -> Claims | None:
    """The claims of a token that we signed for this use and that has not expired; else None."""
    try:
        claims = jwt.decode(token, OctKey.import_key(key), algorithms=[ALGORITHM]).claims
        jwt.JWTClaimsRegistry(
            now=lambda: int(now().timestamp()),
            exp={"essential": True},
            use={"essential": True, "value": use},
            jti={"essential": True},
        ).validate(claims)
        return Claims(str(claims["jti"]), _number(claims["sub"]), _number(claims["sid"]))
    except (JoseError, ValueError, KeyError, TypeError):
        return None


def _number(value: Any) -> int:
    """A row's number. Whoever has stolen a key may have written anything there."""
    number = int(value)
    if not 0 < number < 2**63:
        raise ValueError("no row has this number")
    return number
