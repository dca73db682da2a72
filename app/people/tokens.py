"""The strings that people and programs prove themselves with: how they are made, hashed and read back."""

import hashlib
import secrets
from datetime import datetime
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


def new_secret() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)


def fingerprint(secret: str) -> str:
    """What is stored of a random secret. It has too much entropy to guess, so a plain hash will do."""
    return hashlib.sha256(secret.encode()).hexdigest()


def sign(key: bytes, use: str, user_id: int, role: str, jti: str, expires_at: datetime) -> str:
    issued = int(now().timestamp())
    claims: dict[str, Any] = {"sub": str(user_id), "role": role, "jti": jti, "use": use}
    claims |= {"iat": issued, "exp": int(expires_at.timestamp())}
    return jwt.encode({"alg": ALGORITHM, "typ": "JWT"}, claims, OctKey.import_key(key))


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
        return Claims(str(claims["jti"]), int(claims["sub"]))
    except (JoseError, ValueError, KeyError, TypeError):
        return None
