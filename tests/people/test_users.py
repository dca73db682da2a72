"""The administration of users, by page and API: making, listing, changing, deleting, many at once."""

import csv
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select

from app.kernel.db import db
from app.people import actions
from app.people.models import User
from tests.audit.reading import entries
from tests.factories import PASSWORD, Api, api_as, browser_as, make_user, submit

NEW = {"username": "zoe", "password": PASSWORD, "role": "operator", "status": "enabled"}


@pytest.fixture
def admin(app: Flask) -> Api:
    with app.app_context():
        make_user("alice", "admin")
    return api_as(app, "alice")


@pytest.fixture
def page(sqlite_app: Flask) -> FlaskClient:
    """An administrator's browser."""
    with sqlite_app.app_context():
        make_user("alice", "admin")
    return browser_as(sqlite_app, "alice")


def test_it_makes_shows_changes_and_deletes_a_user(app: Flask, admin: Api) -> None:
    answer = admin.post("/system/users", NEW | {"email": "zoe@example.org", "phone": "+86 10 1234"})
    assert answer.status_code == 201
    made = answer.json["data"]
    assert (made["username"], made["role"], made["last_login_at"]) == ("zoe", "operator", None)
    assert "password" not in answer.text.replace("must_change_password", "")
    path = f"/system/users/{made['id']}"
    assert admin.get(path).json["data"] == made | {"updated_at": made["updated_at"]}
    changed = admin.put(path, {"role": "viewer", "email": None}).json["data"]
    assert (changed["role"], changed["email"], changed["phone"]) == ("viewer", None, "+86 10 1234")
    assert admin.delete(path).json["data"] is None
    assert admin.get(path).json["code"] == admin.put(path, {}).json["code"] == admin.delete(path).json["code"] == 1004

    created, updated, deleted = (entries(app, action=f"user.{verb}") for verb in ("create", "update", "delete"))
    assert [len(created), len(updated), len(deleted)] == [2, 1, 1]
    assert created[1].detail["after"]["email"] == "zoe@example.org"
    assert updated[0].detail == {
        "before": {"role": "operator", "email": "zoe@example.org"},
        "after": {"role": "viewer", "email": None},
    }
    assert deleted[0].detail["before"]["username"] == "zoe"
    assert {row.username for row in created[1:] + updated + deleted} == {"alice"}


def test_a_change_that_changes_nothing_is_not_in_the_log(app: Flask, admin: Api) -> None:
    user_id = admin.post("/system/users", NEW).json["data"]["id"]
    assert admin.put(f"/system/users/{user_id}", {"role": "operator", "status": "enabled"}).status_code == 200
    assert admin.put(f"/system/users/{user_id}", {}).status_code == 200
    assert entries(app, action="user.update") == []


def test_a_name_or_address_that_is_taken_is_a_conflict_that_names_the_field(admin: Api) -> None:
    first = admin.post("/system/users", NEW | {"email": "zoe@example.org"}).json["data"]
    for change, field in (({}, "username"), ({"username": "zoe2", "email": "zoe@example.org"}, "email")):
        answer = admin.post("/system/users", NEW | change)
        assert (answer.status_code, answer.json["code"]) == (409, 1006)
        assert [error["field"] for error in answer.json["data"]["errors"]] == [field]
    both = admin.post("/system/users", NEW | {"email": "zoe@example.org"})
    assert [error["field"] for error in both.json["data"]["errors"]] == ["username", "email"]
    other = admin.post("/system/users", NEW | {"username": "other"}).json["data"]["id"]
    assert admin.put(f"/system/users/{other}", {"email": "zoe@example.org"}).json["code"] == 1006
    assert admin.put(f"/system/users/{first['id']}", {"email": "zoe@example.org"}).json["code"] == 0


def test_on_the_page_the_form_comes_back_with_it(sqlite_app: Flask, page: FlaskClient) -> None:
    values = NEW | {"email": "zoe@example.org"}
    assert submit(page, "/users/new", values).status_code == 303
    again = submit(page, "/users/new", values)
    assert again.status_code == 422
    assert 'href="#f-username"' in again.text
    assert 'value="zoe@example.org"' in again.text
    assert PASSWORD not in again.text
    with sqlite_app.app_context():
        other = make_user("other").id
    edited = submit(page, f"/users/{other}", {"email": "zoe@example.org", "role": "viewer", "status": "enabled"})
    assert edited.status_code == 422
    assert 'href="#f-email"' in edited.text


@pytest.mark.parametrize("change", [{}, {"username": "zoe2"}])
def test_of_two_who_take_a_name_or_address_at_once_one_gets_it(
    app: Flask, admin: Api, monkeypatch: pytest.MonkeyPatch, change: dict[str, str]
) -> None:
    """Nobody sees the other's row before it is committed: the unique index decides, and the answer is the same."""
    check, calls = actions._check_unused, []

    def blind_at_first(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) > 2:
            check(*arguments)

    monkeypatch.setattr(actions, "_check_unused", blind_at_first)
    bodies = [NEW | {"email": "zoe@example.org"}, NEW | {"email": "zoe@example.org"} | change]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda body: admin.post("/system/users", body), bodies))
    assert sorted(answer.json["code"] for answer in answers) == [0, 1006]
    refused = next(answer for answer in answers if answer.json["code"])
    assert refused.json["data"]["errors"][-1]["field"] == "email"
    assert len(entries(app, action="user.create")) == 2


def test_a_race_on_the_page_brings_the_form_back_too(
    sqlite_app: Flask, page: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, calls = actions._check_unused, []
    monkeypatch.setattr(actions, "_check_unused", lambda *a: calls.append(a) or (len(calls) > 1 and check(*a)))
    with sqlite_app.app_context():
        make_user("zoe")
    calls.clear()
    answer = submit(page, "/users/new", NEW)
    assert answer.status_code == 422
    assert 'href="#f-username"' in answer.text


def test_names_that_differ_in_case_are_two_people(app: Flask, admin: Api) -> None:
    for name in ("zoe", "Zoe", "ZOE"):
        assert admin.post("/system/users", NEW | {"username": name, "password": f"{PASSWORD}-{name}"}).json["code"] == 0
    assert api_as(app, "Zoe", f"{PASSWORD}-Zoe").get("/auth/me").json["data"]["username"] == "Zoe"
    assert Api(app).post("/auth/login", {"username": "zoe", "password": f"{PASSWORD}-Zoe"}).status_code == 401
    assert admin.get("/system/users?keyword=ZOE").json["data"]["total"] == 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"username": "zoё"}, "username"), ({"username": "аdmin"}, "username"), ({"username": "zo e"}, "username"),
        ({"username": "zoe\u200b"}, "username"), ({"username": "-zoe"}, "username"), ({"username": ""}, "username"),
        ({"username": "z" * 65}, "username"), ({"username": "<b>zoe"}, "username"), ({"username": 7}, "username"),
        ({"username": "system"}, "username"), ({"username": None}, "username"), ({"username": "z\nX"}, "username"),
        ({"email": "zoe"}, "email"), ({"email": "zoe@local"}, "email"), ({"email": "z@" + "x" * 127 + ".y"}, "email"),
        ({"phone": "call me"}, "phone"), ({"phone": "1"}, "phone"), ({"role": "root"}, "role"),
        ({"role": "ADMIN"}, "role"),
        ({"status": "asleep"}, "status"), ({"must_change_password": "yes"}, "must_change_password"),
        ({"id": 1}, "id"), ({"password_hash": "x"}, "password_hash"), ({"password": None}, "password"),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(page: FlaskClient, sqlite_app: Flask, change: dict[str, Any], field: str) -> None:
    answer = api_as(sqlite_app, "alice").post("/system/users", NEW | change)
    assert (answer.status_code, answer.json["code"]) == (400, 1001)
    assert {error["field"] for error in answer.json["data"]["errors"]} == {field}


def test_surrounding_blanks_are_no_part_of_a_name(admin: Api) -> None:
    assert admin.post("/system/users", NEW | {"username": "  zoe \n"}).json["data"]["username"] == "zoe"


@pytest.fixture
def many(admin: Api, app: Flask) -> Api:
    """Eight people more, some of them special."""
    rows = [
        ("bert", "viewer", "enabled", "bert@example.org"), ("Berta", "operator", "disabled", "x@example.net"),
        ("carl", "operator", "enabled", None), ("dora_1", "viewer", "enabled", None),
        ("dorax1", "viewer", "enabled", None), ("finn", "admin", "disabled", None),
        ("per.cent", "viewer", "disabled", "100%@example.org"), ("erik", "admin", "enabled", "BERT@other.org"),
    ]  # fmt: skip
    with app.app_context():
        for name, role, status, email in rows:
            make_user(name, role, status=status, email=email)
    return admin


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("keyword=bert", "bert Berta erik"), ("keyword=_", "dora_1"), ("keyword=%25", "per.cent"),
        ("keyword=a_1", "dora_1"), ("role=operator", "Berta carl"), ("status=disabled", "Berta finn per.cent"),
        ("role=admin&status=enabled", "alice erik"), ("keyword=bert&status=enabled", "bert erik"),
        ("keyword=nobody-here", ""), ("keyword=%27%20OR%201=1", ""), ("keyword=%5C", ""), ("keyword=/", ""),
    ],
)  # fmt: skip
def test_the_list_can_be_filtered(many: Api, query: str, expected: str) -> None:
    data = many.get(f"/system/users?{query}").json["data"]
    assert " ".join(item["username"] for item in data["items"]) == expected
    assert data["total"] == len(expected.split())


def test_the_list_has_pages_and_an_order(many: Api) -> None:
    names = [item["username"] for item in many.get("/system/users?page_size=100").json["data"]["items"]]
    assert names[0] == "alice"
    found = []
    for number in (1, 2, 3, 4):
        data = many.get(f"/system/users?page={number}&page_size=3").json["data"]
        assert (data["total"], data["page"], data["page_size"]) == (9, number, 3)
        found += [item["username"] for item in data["items"]]
    assert found == names
    by_role = many.get("/system/users?sort=role").json["data"]["items"]
    assert [item["role"] for item in by_role] == sorted(item["role"] for item in by_role)
    downwards = many.get("/system/users?sort=-username").json["data"]["items"]
    assert downwards[0]["username"] == "per.cent"
    for wrong in ("sort=password_hash", "sort=--id", "page=0", "page_size=101", "role=root", "colour=red", "page=x"):
        assert many.get(f"/system/users?{wrong}").json["code"] == 1001, wrong


def test_what_is_on_screen_can_be_taken_away(sqlite_app: Flask, page: FlaskClient) -> None:
    with sqlite_app.app_context():
        make_user("zoe", email="=1+1@example.org")
        make_user("bert", "operator")
        make_user("yan", phone="+86 10 1234")
    table = page.get("/users?format=csv&sort=-username&role=viewer")
    assert table.headers["Content-Disposition"] == 'attachment; filename="users.csv"'
    rows = list(csv.DictReader(io.StringIO(table.text.removeprefix("\ufeff"))))
    assert [row["username"] for row in rows] == ["zoe", "yan"]
    assert rows[0]["email"] == "'=1+1@example.org"
    assert rows[1]["phone"] == "'+86 10 1234"
    assert "password" not in table.text
    listed = page.get("/users?format=json&role=viewer&sort=username").json
    assert [row["username"] for row in listed] == ["yan", "zoe"]
    assert listed[1]["email"] == "=1+1@example.org"
    assert not any("password" in name.replace("must_change_password", "") for row in listed for name in row)


def statuses(app: Flask) -> dict[str, str]:
    with app.app_context():
        found = {user.username: user.status for user in db.session.execute(select(User.username, User.status))}
        db.session.rollback()
    return found


def test_many_are_enabled_and_disabled_at_once(app: Flask) -> None:
    with app.app_context():
        make_user("alice", "admin")
        ids = [make_user(name).id for name in ("bert", "carl", "dora")]
    client, bert = browser_as(app, "alice"), api_as(app, "bert")
    sent = {"action": "disable", "ids": [str(one) for one in (*ids, ids[0])]}
    assert submit(client, "/users/bulk", sent, page="/users").status_code == 303
    assert statuses(app) == {"alice": "enabled", "bert": "disabled", "carl": "disabled", "dora": "disabled"}
    assert bert.get("/auth/me").status_code == 401
    rows = entries(app, action="user.update")
    assert [row.resource_id for row in rows] == [str(one) for one in ids]
    assert rows[0].detail == {"before": {"status": "enabled"}, "after": {"status": "disabled"}}
    submit(client, "/users/bulk", {"action": "enable", "ids": [str(ids[1])]}, page="/users")
    assert statuses(app)["carl"] == "enabled"


def test_many_are_changed_all_or_none(app: Flask) -> None:
    with app.app_context():
        alice = make_user("alice", "admin").id
        bert = make_user("bert").id
    client = browser_as(app, "alice")
    for ids, status in (([bert, alice], 409), ([bert, 999_999], 404)):
        sent = {"action": "disable", "ids": [str(one) for one in ids]}
        assert submit(client, "/users/bulk", sent, page="/users").status_code == status
    assert statuses(app) == {"alice": "enabled", "bert": "enabled"}
    assert entries(app, action="user.update") == []


@pytest.mark.parametrize(
    "sent", [{}, {"action": "disable"}, {"action": "delete", "ids": ["2"]}, {"action": "disable", "ids": ["²"]},
             {"action": "disable", "ids": ["9" * 5000]}, {"action": "disable", "ids": ["-1"]},
             {"action": "disable", "ids": ["2; DROP TABLE users"]}, {"action": "disable", "ids": [str(2**63)]},
             {"action": "disable", "ids": ["2", "x"]}]
)  # fmt: skip
def test_a_strange_bulk_form_changes_nothing(sqlite_app: Flask, page: FlaskClient, sent: dict[str, Any]) -> None:
    with sqlite_app.app_context():
        make_user("bert")
    assert submit(page, "/users/bulk", sent, page="/users").status_code == 303
    assert set(statuses(sqlite_app).values()) == {"enabled"}


def test_deleting_on_the_page_asks_for_the_name(sqlite_app: Flask, page: FlaskClient) -> None:
    with sqlite_app.app_context():
        bert = make_user("bert").id
    path = f"/users/{bert}/delete"
    assert "bert" in page.get(path).text
    for typed in ("", "Bert", "bert2", "be rt", "alice"):
        answer = submit(page, path, {"confirm": typed})
        assert answer.status_code == 422
        assert 'href="#f-confirm"' in answer.text
    assert "bert" in statuses(sqlite_app)
    assert submit(page, path, {"confirm": " bert "}).headers["Location"] == "/users"
    assert "bert" not in statuses(sqlite_app)
    assert page.get(path).status_code == 404


def test_the_edit_page_sends_every_field_so_an_empty_one_is_none(sqlite_app: Flask, page: FlaskClient) -> None:
    with sqlite_app.app_context():
        bert = make_user("bert", email="bert@example.org", phone="12345").id
    sent = {"email": "", "phone": "555 123", "role": "operator", "status": "enabled"}
    assert submit(page, f"/users/{bert}", sent).status_code == 303
    with sqlite_app.app_context():
        found = db.session.get(User, bert)
        assert (found.email, found.phone, found.role) == (None, "555 123", "operator")
        db.session.rollback()


def test_a_repeated_request_with_its_key_makes_one_user(app: Flask, admin: Api) -> None:
    first, second = (admin.post("/system/users", NEW, Idempotency_Key="k1") for _ in range(2))
    assert first.json["data"]["id"] == second.json["data"]["id"]
    assert admin.post("/system/users", NEW | {"role": "viewer"}, Idempotency_Key="k1").json["code"] == 1006
    with app.app_context():
        assert db.session.scalar(select(func.count()).select_from(User)) == 2
        db.session.rollback()
    assert len(entries(app, action="user.create")) == 2
