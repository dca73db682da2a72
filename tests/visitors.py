"""The fixed cast, signed in without their password, since comparing one takes longer than most tests."""

from functools import cache

from flask import Flask
from flask.testing import FlaskClient

from app.kernel.access import Actor
from app.kernel.db import db, in_transaction
from app.people import actions, passwords
from app.people.identity import COOKIE
from app.people.models import User
from tests.factories import PASSWORD, Api

HERE = Actor(ip="127.0.0.1", user_agent="tests")
ROLES = {"alice": "admin", "oscar": "operator", "vera": "viewer"}


@cache
def _hash() -> str:
    return passwords.hash_password(PASSWORD)


def make_cast(app: Flask) -> dict[str, Api]:
    """One user of each role, each signed in to the API."""
    with app.app_context():
        session = db.session()
        people = [User(username=name, password_hash=_hash(), role=role) for name, role in ROLES.items()]

        def sign_in() -> dict[str, Api]:
            session.add_all(people)
            session.flush()
            return {
                user.username: Api(app, actions.open_api_session(session, HERE, user, PASSWORD)["access_token"])
                for user in people
            }

        return in_transaction(session, sign_in)


def visit(app: Flask, username: str) -> FlaskClient:
    """A browser without JavaScript that one of the cast has signed in with."""
    with app.app_context():
        session = db.session()
        user = session.query(User).filter_by(username=username).one()
        secret = in_transaction(session, lambda: actions.open_browser_session(session, HERE, user, PASSWORD))
    client = app.test_client()
    client.set_cookie(COOKIE, secret)
    return client
