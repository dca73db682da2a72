"""Signing in and out, by page and by API."""

from flask import Flask

from app.people.identity import COOKIE
from tests.factories import PASSWORD, Api, api_as, browser_as, make_user, submit


def test_it_signs_a_browser_in_and_out(app: Flask) -> None:
    with app.app_context():
        make_user("ada", "admin")
    client = browser_as(app, "ada")
    assert client.get("/users").status_code == 200
    assert submit(client, "/logout", {}, page="/profile").status_code == 303
    assert client.get_cookie(COOKIE) is None
    assert client.get("/users").status_code == 302


def test_it_signs_a_program_in_and_out(app: Flask) -> None:
    with app.app_context():
        make_user("ada", "admin")
    api = api_as(app, "ada")
    assert api.get("/auth/me").json["data"]["username"] == "ada"
    assert api.post("/auth/logout").status_code == 200
    assert api.get("/auth/me").status_code == 401


def test_it_says_the_same_for_a_wrong_name_and_a_wrong_password(app: Flask) -> None:
    with app.app_context():
        make_user("ada")
    answers = [
        Api(app).post("/auth/login", {"username": name, "password": password}).json
        for name, password in (("ada", "wrong-password"), ("nobody", PASSWORD))
    ]
    assert [answer["code"] for answer in answers] == [1002, 1002]
    assert answers[0]["message"] == answers[1]["message"]
