"""`/files`: a file comes through the form without JavaScript, is listed, and goes; forged forms bring nothing."""

import io
import re
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.factories import browser_as, make_user


def post(browser: FlaskClient, **form: Any) -> TestResponse:
    return browser.post("/files", data=form, content_type="multipart/form-data")


def test_a_file_comes_through_the_form_and_goes(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("oscar", "operator")
        make_user("vera", "viewer")
    browser = browser_as(sqlite_app, "oscar")
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', browser.get("/files").text)
    assert found is not None
    token, root = found[1], sqlite_app.extensions["ops"].settings.files_path
    before = len(list(root.glob("*/*")))
    assert post(browser, file=(io.BytesIO(b"x"), "forged")).status_code == 400
    assert post(browser, csrf_token="wrong", file=(io.BytesIO(b"x"), "forged")).status_code == 400
    assert post(browser, csrf_token=token).status_code == 422
    assert len(list(root.glob("*/*"))) == before
    assert post(browser, csrf_token=token, file=(io.BytesIO(b"x" * 12_000_000), "big.bin")).status_code == 303
    html = browser.get("/files?keyword=big&sort=-size").text
    assert "<b>big.bin</b>" in html
    gone = re.search(r"/files/\d+/delete", html)
    assert gone is not None
    assert browser.get("/files?sort=nothing").status_code == 200
    assert browser.get(gone[0]).status_code == 200
    assert browser.post(gone[0], data={"csrf_token": token}).status_code == 303
    assert "<b>big.bin</b>" not in browser.get("/files").text
    viewer = browser_as(sqlite_app, "vera").get("/files")
    assert (viewer.status_code, 'type="file"' in viewer.text) == (200, False)
