"""Personal access tokens: made once, shown once, never stronger than whoever made them, over when they are over."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from app.kernel.access import MATRIX, SIGNED_IN
from app.kernel.db import db
from app.people import actions, tokens
from tests.audit.reading import entries
from tests.factories import Api, api_as, browser_as, make_user, submit
from tests.people.conftest import Clock


def make(api: Api, *scopes: str, **more: Any) -> Api:
    """Somebody's program with a new token."""
    answer = api.post("/auth/tokens", {"name": "script", "scopes": list(scopes)} | more)
    assert answer.status_code == 201, answer.text
    return Api(api.app, answer.json["data"]["token"])


def test_it_is_shown_once_and_stored_as_a_hash(app: Flask) -> None:
    with app.app_context():
        make_user("ada")
    api = api_as(app, "ada")
    answer = api.post("/auth/tokens", {"name": "backup", "scopes": ["*.read"]})
    made, secret = answer.json["data"], answer.json["data"]["token"]
    assert re.fullmatch(r"ops_pat_[\w-]{43}", secret)
    assert made["prefix"] == secret[:12]
    assert made["expires_at"] is None
    assert secret not in api.get("/auth/tokens").text
    with app.app_context(), db.engine.connect() as connection:
        stored = str(connection.execute(text("SELECT * FROM access_tokens")).mappings().all())
    assert secret not in stored
    assert tokens.fingerprint(secret) in stored
    row = entries(app, action="token.create")[0]
    assert row.detail == {"after": {"name": "backup", "scopes": ["*.read"]}}
    assert secret not in row.canonical


def test_the_page_shows_it_once(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("ada")
    client = browser_as(sqlite_app, "ada")
    made = submit(client, "/profile/tokens/new", {"name": "backup", "scopes": ["*"], "days": "30"})
    secret = re.search(r"ops_pat_[\w-]{43}", made.text)[0]
    listed = client.get("/profile/tokens").text
    assert secret not in listed
    assert secret[:12] in listed
    assert made.headers["Cache-Control"] == "no-store"
    assert Api(sqlite_app, secret).get("/auth/me").json["data"]["username"] == "ada"
    expires = Api(sqlite_app, secret).get("/auth/tokens").json["data"]["items"][0]["expires_at"]
    ends = datetime.fromisoformat(expires) - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < ends <= timedelta(days=30)
    forever = submit(client, "/profile/tokens/new", {"name": "forever", "scopes": ["*"], "days": ""})
    assert forever.status_code == 200
    assert Api(sqlite_app, secret).get("/auth/tokens?sort=-id").json["data"]["items"][0]["expires_at"] is None


@pytest.mark.parametrize(
    ("scopes", "allowed", "refused"),
    [
        (["*"], ["users.read", "users.manage", "audit.read"], []),
        (["*.read"], ["users.read", "audit.read"], ["users.manage", "self.manage"]),
        (["users.*"], ["users.read", "users.manage"], ["audit.read", "self.manage"]),
        (["audit.read"], ["audit.read"], ["users.read", "users.manage", "settings.read", "self.manage"]),
        (["self.manage"], ["self.manage"], ["users.read"]),
        (["audit.read", "users.read"], ["audit.read", "users.read"], ["users.manage"]),
    ],
)
def test_each_form_of_scope_opens_what_it_says(
    sqlite_cast: dict[str, Api], scopes: list[str], allowed: list[str], refused: list[str]
) -> None:
    program = make(sqlite_cast["alice"], *scopes)
    asked = {
        "users.read": ("GET", "/system/users", None),
        "users.manage": ("DELETE", "/system/users/999999", None),
        "audit.read": ("GET", "/system/audit-logs", None),
        "settings.read": ("GET", "/system/settings", None),
        "self.manage": ("GET", "/auth/tokens", None),
    }
    for permission in allowed:
        assert program.call(*asked[permission]).json["code"] in (0, 1004), permission
    for permission in refused:
        assert program.call(*asked[permission]).json["code"] == 1003, permission
    listed = set(program.get("/auth/me").json["data"]["permissions"])
    assert set(allowed) <= listed
    assert not set(refused) & listed


def test_a_token_never_does_more_than_its_owner_may(sqlite_app: Flask, sqlite_cast: dict[str, Api]) -> None:
    program = make(sqlite_cast["vera"], "*", "users.*", "audit.read")
    assert program.get("/system/users").json["code"] == 1003
    assert program.get("/system/audit-logs").json["code"] == 1003
    owned = sqlite_cast["vera"].get("/auth/me").json["data"]["permissions"]
    assert program.get("/auth/me").json["data"]["permissions"] == owned


@pytest.mark.parametrize(
    "scopes", [[], ["users.fly"], ["*.manage"], ["**"], ["users.read*"], ["[a-z]*"], ["?"], ["Users.read"], ["public"],
               [SIGNED_IN], ["users"], [""], ["*.*"], ["self.manage\n"], "*", [1], None, ["*"] * 51]
)  # fmt: skip
def test_scopes_that_mean_nothing_are_refused(sqlite_cast: dict[str, Api], scopes: Any) -> None:
    answer = sqlite_cast["alice"].post("/auth/tokens", {"name": "script", "scopes": scopes})
    assert answer.json["code"] == (0 if scopes == ["self.manage\n"] else 1001), answer.text
    if scopes == ["self.manage\n"]:
        assert answer.json["data"]["scopes"] == ["self.manage"]


@pytest.mark.parametrize(
    ("held", "wanted", "is_fine"),
    [
        ("*", ["*"], True), ("*", ["users.read", "*.read", "audit.*"], True),
        ("self.* users.*", ["users.manage"], True), ("self.* users.*", ["users.*"], True),
        ("self.manage *.read", ["*.read"], True), ("self.manage *.read", ["audit.read"], True),
        ("self.manage users.*", ["*"], False), ("self.manage users.*", ["*.read"], False),
        ("self.manage users.*", ["audit.read"], False), ("self.manage *.read", ["users.*"], False),
        ("self.manage users.read", ["users.*"], False), ("self.manage users.read", ["users.manage"], False),
        ("*.read", ["*.read"], False),
    ],
)  # fmt: skip
def test_a_token_makes_none_that_may_do_more_than_itself(
    sqlite_cast: dict[str, Api], held: str, wanted: list[str], is_fine: bool
) -> None:
    program = make(sqlite_cast["alice"], *held.split())
    answer = program.post("/auth/tokens", {"name": "child", "scopes": wanted})
    assert answer.json["code"] == (0 if is_fine else 1003)


def test_a_token_makes_none_that_outlives_itself(sqlite_cast: dict[str, Api]) -> None:
    soon, later = (datetime.now(UTC) + timedelta(days=days) for days in (1, 2))
    program = make(sqlite_cast["alice"], "*", expires_at=soon.isoformat())
    for ends, code in ((None, 1003), (later.isoformat(), 1003), ((soon - timedelta(hours=1)).isoformat(), 0)):
        assert program.post("/auth/tokens", {"name": "child", "expires_at": ends}).json["code"] == code, ends


def test_it_expires(app: Flask, clock: Clock) -> None:
    with app.app_context():
        make_user("ada")
    program = make(api_as(app, "ada"), "*", expires_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    assert program.get("/auth/me").status_code == 200
    clock.advance(minutes=59)
    assert program.get("/auth/me").status_code == 200
    clock.advance(minutes=2)
    assert program.get("/auth/me").status_code == 401


@pytest.mark.parametrize(
    "ends", ["2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z", "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00",
             "2030-01-01T00:00:00", "tomorrow", 1893456000, ""]
)  # fmt: skip
def test_impossible_ends_are_refused(app: Flask, ends: Any) -> None:
    with app.app_context():
        make_user("ada")
    answer = api_as(app, "ada").post("/auth/tokens", {"name": "script", "expires_at": ends})
    assert answer.json["code"] == 1001
    assert answer.json["data"]["errors"][0]["field"] == "expires_at"


def test_it_is_revoked_by_its_owner_at_once(app: Flask) -> None:
    with app.app_context():
        make_user("ada")
    api, client = api_as(app, "ada"), browser_as(app, "ada")
    first, second = make(api, "*"), make(api, "*")
    ids = [item["id"] for item in api.get("/auth/tokens?sort=id").json["data"]["items"]]
    assert api.delete(f"/auth/tokens/{ids[0]}").json["data"] is None
    assert first.get("/auth/me").status_code == 401
    assert second.get("/auth/me").status_code == 200
    assert submit(client, f"/profile/tokens/{ids[1]}/revoke", {}, page="/profile/tokens").status_code == 303
    assert second.get("/auth/me").status_code == 401
    assert [row.resource_id for row in entries(app, action="token.revoke")] == [str(one) for one in ids]
    assert api.delete(f"/auth/tokens/{ids[0]}").json["code"] == 1004


def test_to_others_a_token_does_not_exist_and_administrators_revoke_it(
    sqlite_app: Flask, sqlite_cast: dict[str, Api]
) -> None:
    program = make(sqlite_cast["vera"], "*")
    vera = program.get("/auth/me").json["data"]["id"]
    token_id = program.get("/auth/tokens").json["data"]["items"][0]["id"]
    assert sqlite_cast["oscar"].delete(f"/auth/tokens/{token_id}").json["code"] == 1004
    oscar = browser_as(sqlite_app, "oscar")
    assert submit(oscar, f"/profile/tokens/{token_id}/revoke", {}, page="/profile/tokens").status_code == 404
    answer = submit(oscar, f"/users/{vera}/tokens/{token_id}/revoke", {}, page="/profile/tokens")
    assert answer.status_code == 403
    assert sqlite_cast["oscar"].get(f"/auth/tokens?user_id={vera}").json["code"] == 1003
    assert program.get("/auth/me").status_code == 200
    assert sqlite_cast["alice"].get(f"/auth/tokens?user_id={vera}").json["data"]["total"] == 1
    assert sqlite_cast["alice"].get("/auth/tokens").json["data"]["total"] == 0
    assert sqlite_cast["oscar"].get("/auth/tokens").json["data"]["total"] == 0
    read_only = make(sqlite_cast["alice"], "self.manage", "users.read")
    assert read_only.get(f"/auth/tokens?user_id={vera}").json["code"] == 1003
    assert read_only.delete(f"/auth/tokens/{token_id}").json["code"] == 1004
    admin = browser_as(sqlite_app, "alice")
    answer = submit(admin, f"/users/{vera}/tokens/{token_id}/revoke", {}, page=f"/users/{vera}")
    assert answer.status_code == 303
    assert program.get("/auth/me").status_code == 401


def test_when_and_from_where_it_was_used_last_is_noted_now_and_then(app: Flask, clock: Clock) -> None:
    with app.app_context():
        make_user("ada")
    api = api_as(app, "ada")
    program = make(api, "*")
    assert api.get("/auth/tokens").json["data"]["items"][0]["last_used_at"] is None
    program.get("/auth/me")
    first = api.get("/auth/tokens").json["data"]["items"][0]
    assert first["last_used_ip"] == "127.0.0.1"
    assert first["last_used_at"].endswith("Z")
    program.get("/auth/me")
    assert api.get("/auth/tokens").json["data"]["items"][0]["last_used_at"] == first["last_used_at"]
    clock.advance(seconds=61)
    program.get("/auth/me")
    assert api.get("/auth/tokens").json["data"]["items"][0]["last_used_at"] > first["last_used_at"]


def test_nobody_collects_tokens_without_end(sqlite_cast: dict[str, Api], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "MOST_TOKENS", 3)
    for _ in range(3):
        make(sqlite_cast["vera"], "*")
    assert sqlite_cast["vera"].post("/auth/tokens", {"name": "fourth"}).json["code"] == 1006
    assert sqlite_cast["oscar"].post("/auth/tokens", {"name": "first"}).json["code"] == 0


def test_signing_out_with_a_token_ends_nobodys_session(sqlite_app: Flask, sqlite_cast: dict[str, Api]) -> None:
    program = make(sqlite_cast["vera"], "*")
    assert program.post("/auth/logout").status_code == 200
    assert program.get("/auth/me").status_code == 200
    assert sqlite_cast["vera"].get("/auth/me").status_code == 200
    assert entries(sqlite_app, action="auth.sign_out") == []


def test_a_token_opens_no_page(sqlite_app: Flask, sqlite_cast: dict[str, Api]) -> None:
    program = make(sqlite_cast["alice"], "*")
    answer = sqlite_app.test_client().get("/users", headers={"Authorization": f"Bearer {program.token}"})
    assert answer.status_code == 302


def test_whoever_is_named_in_the_log_is_the_tokens_owner(sqlite_app: Flask, sqlite_cast: dict[str, Api]) -> None:
    program = make(sqlite_cast["alice"], "*")
    program.post("/system/users", {"username": "new", "password": "correct-horse-1"})
    assert entries(sqlite_app, action="user.create", resource_type="user")[-1].username == "alice"


def test_a_wrong_form_comes_back(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("ada")
    client = browser_as(sqlite_app, "ada")
    fine = {"name": "x", "scopes": "*"}
    wrong = [{"name": "x"}, *({**fine, **change} for change in (
        {"name": ""}, {"name": "x" * 65}, {"scopes": "nonsense"}, {"days": "0"}, {"days": "4000"}, {"days": "soon"},
    ))]  # fmt: skip
    for values in wrong:
        assert submit(client, "/profile/tokens/new", values).status_code == 422, values
    assert api_as(sqlite_app, "ada").get("/auth/tokens").json["data"]["total"] == 0


def test_every_permission_is_a_scope_that_can_be_asked_for(sqlite_cast: dict[str, Api]) -> None:
    make(sqlite_cast["alice"], *sorted(set(MATRIX) - {SIGNED_IN})[:50])
