"""JWTs of the API: what a forger can do with and without a key, refreshing, and use after the end."""

import base64
import json
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from flask import Flask
from sqlalchemy import select, text

from app.kernel.context import ops
from app.kernel.db import db
from app.people import tokens
from app.people.models import UserSession
from tests.audit.reading import entries
from tests.factories import PASSWORD, Api, api_as, make_user
from tests.people.conftest import Clock


def part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(key: bytes, claims: dict[str, Any], header: dict[str, Any] | None = None) -> str:
    """A JWT made without the product, signed with this key."""
    signed = f"{part(header or {'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}"
    mac = hmac.HMAC(key, hashes.SHA256())
    mac.update(signed.encode())
    return f"{signed}.{part(mac.finalize())}"


def claims_of(token: str) -> dict[str, Any]:
    middle = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))


@pytest.fixture
def pair(app: Flask) -> dict[str, Any]:
    """What ada, an administrator, got when she signed in."""
    with app.app_context():
        make_user("ada", "admin")
    return Api(app).post("/auth/login", {"username": "ada", "password": PASSWORD}).json["data"]


def status(app: Flask, token: str) -> int:
    return Api(app, token).get("/system/users").status_code


def test_a_stolen_signing_key_makes_no_session(app: Flask, pair: dict[str, Any]) -> None:
    """Whoever has the key knows neither the random number of a session nor can he put one into the database."""
    with app.app_context():
        key = ops().keys.jwt_access
    claims = claims_of(pair["access_token"])
    assert status(app, forged(key, claims)) == 200
    for jti in ("made-up", "", str(claims["sid"]), None, 1, ["x"]):
        assert status(app, forged(key, claims | {"jti": jti})) == 401, jti
    with app.app_context():
        stored = db.session.scalar(select(UserSession.token_hash))
        db.session.rollback()
    assert status(app, forged(key, claims | {"jti": stored})) == 401


def test_what_the_token_says_of_its_owner_is_not_believed(app: Flask, pair: dict[str, Any]) -> None:
    with app.app_context():
        key, vera = ops().keys.jwt_access, make_user("vera").id
    mine = Api(app).post("/auth/login", {"username": "vera", "password": PASSWORD}).json["data"]["access_token"]
    claims = claims_of(mine)
    assert status(app, forged(key, claims | {"role": "admin"})) == 403
    ada = claims_of(pair["access_token"])["sub"]
    assert status(app, forged(key, claims | {"sub": ada})) == 401
    assert claims["sub"] == str(vera)
    assert "PASSWORD" not in str(claims)


def test_tokens_with_a_wrong_signature_use_or_time_are_nobody(app: Flask, pair: dict[str, Any]) -> None:
    with app.app_context():
        access, refresh = ops().keys.jwt_access, ops().keys.jwt_refresh
    good = claims_of(pair["access_token"])
    unsigned = f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(good)}."
    bad = {
        "another key": forged(b"x" * 48, good),
        "the key for refreshing": forged(refresh, good),
        "the refresh token itself": pair["refresh_token"],
        "its use says refresh": forged(access, good | {"use": "refresh"}),
        "no use": forged(access, {name: value for name, value in good.items() if name != "use"}),
        "expired": forged(access, good | {"exp": int(time.time()) - 1}),
        "no end": forged(access, {name: value for name, value in good.items() if name != "exp"}),
        "an end that is no number": forged(access, good | {"exp": "tomorrow"}),
        "alg none": unsigned,
        "alg None with a signature": unsigned + part(b"x" * 32),
        "alg none, signed": forged(access, good, {"alg": "none"}),
        "alg HS512": forged(access, good, {"alg": "HS512"}),
        "a key of its own": forged(b"k" * 32, good, {"alg": "HS256", "jwk": {"kty": "oct", "k": part(b"k" * 32)}}),
        "critical header": forged(access, good, {"alg": "HS256", "crit": ["x"], "x": 1}),
        "no subject": forged(access, {name: value for name, value in good.items() if name != "sub"}),
        "a subject that is no number": forged(access, good | {"sub": "ada"}),
        "an endless subject": forged(access, good | {"sub": "9" * 5000}),
        "no session": forged(access, {name: value for name, value in good.items() if name != "sid"}),
        "claims that are a list": forged(access, [good]),  # type: ignore[arg-type]
        "cut": pair["access_token"][:-1],
        "more": pair["access_token"] + "A",
        "not yet": forged(access, good | {"nbf": int(time.time()) + 3600}),
    }
    for name, token in bad.items():
        assert status(app, token) == 401, name


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "....", "a.b.c", "a.b.c.d.e", "é.é.é", "eyJhbGciOiJIUzI1NiJ9", "x" * 5000, "null.null.null",
     "eyJhbGciOiJkaXIiLCJlbmMiOiJBMTI4R0NNIn0..aa.bb.cc", "ops_pat_", "ops_pat_x", "ops_pat_" + "x" * 43, "ops_pat_é"],
)  # fmt: skip
def test_garbage_is_nobody_and_breaks_nothing(sqlite_app: Flask, token: str) -> None:
    header = f"Bearer {token}".encode().decode("latin-1")
    answer = sqlite_app.test_client().get("/api/v1/auth/me", headers={"Authorization": header})
    assert (answer.status_code, answer.json["code"]) == (401, 1002)
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    body = {"refresh_token": token or "x"}
    assert sqlite_app.test_client().post("/api/v1/auth/refresh", json=body).json["code"] in (1001, 1002)


def test_other_schemes_are_nobody(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("ada")
    token = api_as(sqlite_app, "ada").token
    basic = base64.b64encode(f"ada:{PASSWORD}".encode()).decode()
    for header in (f"Basic {basic}", token, f"Token {token}", f"Bearer: {token}", "Bearer", f"bearer{token}"):
        answer = sqlite_app.test_client().get("/api/v1/auth/me", headers={"Authorization": header})
        assert answer.status_code == 401, header
    answer = sqlite_app.test_client().get("/api/v1/auth/me", headers={"Authorization": f"bearer  {token} "})
    assert answer.status_code == 200


def test_an_access_token_ends_after_two_hours_and_the_session_with_its_refresh_token(app: Flask, clock: Clock) -> None:
    with app.app_context():
        make_user("ada", "admin")
    data = Api(app).post("/auth/login", {"username": "ada", "password": PASSWORD}).json["data"]
    clock.advance(hours=1, minutes=59)
    assert status(app, data["access_token"]) == 200
    clock.advance(minutes=2)
    assert status(app, data["access_token"]) == 401
    clock.advance(days=6)
    renewed = Api(app).post("/auth/refresh", {"refresh_token": data["refresh_token"]}).json["data"]
    assert status(app, renewed["access_token"]) == 200
    clock.advance(days=7, seconds=1)
    late = Api(app).post("/auth/refresh", {"refresh_token": renewed["refresh_token"]})
    assert (late.status_code, late.json["code"]) == (401, 1002)


def test_refreshing_ends_both_old_tokens(app: Flask, pair: dict[str, Any]) -> None:
    answer = Api(app).post("/auth/refresh", {"refresh_token": pair["refresh_token"]})
    assert set(answer.json["data"]) == set(pair)
    assert status(app, answer.json["data"]["access_token"]) == 200
    assert status(app, pair["access_token"]) == 401
    assert entries(app, action="auth.refresh", status="success")[0].username == "ada"


def refresh(app: Flask, token: str) -> dict[str, Any] | None:
    return Api(app).post("/auth/refresh", {"refresh_token": token}).json["data"]


@pytest.mark.parametrize("further", [0, 1, 3])
def test_a_spent_refresh_token_ends_the_session_however_long_ago_it_was_spent(
    app: Flask, pair: dict[str, Any], further: int
) -> None:
    """A thief refreshes again and again. As soon as the owner comes with the old token, the thief is out."""
    thief = refresh(app, pair["refresh_token"])
    for _ in range(further):
        thief = refresh(app, thief["refresh_token"])
    assert status(app, thief["access_token"]) == 200
    answer = Api(app).post("/auth/refresh", {"refresh_token": pair["refresh_token"]})
    assert (answer.status_code, answer.json["code"]) == (401, 1002)
    assert status(app, thief["access_token"]) == 401
    assert refresh(app, thief["refresh_token"]) is None
    row = entries(app, action="auth.refresh", status="failed")[0]
    assert row.username == "ada"
    assert "spent refresh token" in row.error_message


def test_other_sessions_of_the_same_person_live_on(app: Flask, pair: dict[str, Any]) -> None:
    other = api_as(app, "ada")
    refresh(app, pair["refresh_token"])
    refresh(app, pair["refresh_token"])
    assert other.get("/auth/me").status_code == 200


def test_an_access_token_does_not_refresh(app: Flask, pair: dict[str, Any]) -> None:
    assert refresh(app, pair["access_token"]) is None
    with app.app_context():
        key = ops().keys.jwt_refresh
    claims = claims_of(pair["refresh_token"])
    for change in ({"use": "access"}, {"sid": claims["sid"] + 1}, {"sid": 2**70}, {"sid": None}, {"sub": "999"}):
        answer = Api(app).post("/auth/refresh", {"refresh_token": forged(key, claims | change)})
        assert answer.json["code"] == 1002, change
    assert refresh(app, pair["refresh_token"]) is not None


def test_signing_out_ends_the_refresh_token_too(app: Flask, pair: dict[str, Any]) -> None:
    Api(app, pair["access_token"]).post("/auth/logout")
    assert refresh(app, pair["refresh_token"]) is None


def test_neither_token_is_stored(app: Flask, pair: dict[str, Any]) -> None:
    with app.app_context(), db.engine.connect() as connection:
        stored = str(connection.execute(text("SELECT * FROM user_sessions")).mappings().all())
    for token in (pair["access_token"], pair["refresh_token"]):
        assert claims_of(token)["jti"] not in stored
        assert tokens.fingerprint(claims_of(token)["jti"]) in stored
