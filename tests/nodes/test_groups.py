"""The tree of groups: making, moving, deleting; counts; smart groups."""

from flask import Flask

from app.kernel.db import db
from app.nodes.models import NodeGroup, SmartGroup
from tests.factories import Api, submit
from tests.nodes.fleet import make_group, make_node
from tests.visitors import visit


def paths(app: Flask) -> list[str]:
    with app.app_context():
        return sorted(group.path for group in db.session.query(NodeGroup))


def test_a_group_is_made_shown_changed_and_deleted(app: Flask, cast: dict[str, Api]) -> None:
    oscar = cast["oscar"]
    made = oscar.post("/groups", {"name": "prod", "description": "customers"})
    assert made.status_code == 201, made.text
    prod = made.json["data"]
    assert (prod["path"], prod["parent_id"], prod["node_count"], prod["sort_order"]) == ("prod", None, 0, 0)
    eu = oscar.post("/groups", {"name": "eu", "parent_id": prod["id"]}).json["data"]
    assert eu["path"] == "prod/eu"
    changed = oscar.put(f"/groups/{prod['id']}", {"description": None, "sort_order": 5}).json["data"]
    assert (changed["name"], changed["description"], changed["sort_order"]) == ("prod", None, 5)
    assert oscar.get(f"/groups/{eu['id']}").json["data"]["path"] == "prod/eu"
    assert oscar.delete(f"/groups/{eu['id']}").status_code == 403
    assert cast["alice"].delete(f"/groups/{eu['id']}").json["data"] is None
    assert oscar.get(f"/groups/{eu['id']}").json["code"] == 1004
    assert cast["vera"].post("/groups", {"name": "x"}).json["code"] == 1003


def test_a_group_that_moves_takes_its_subtree_along_and_nobody_elses(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        prod = make_group("prod")
        for path in ("prod/eu/west", "PROD/eu", "production/eu", "old"):
            make_group(path)
        old = make_group("old")
    answer = cast["oscar"].put(f"/groups/{prod}", {"name": "live", "parent_id": old})
    assert answer.json["data"]["path"] == "old/live"
    assert paths(app) == [
        "PROD",
        "PROD/eu",
        "old",
        "old/live",
        "old/live/eu",
        "old/live/eu/west",
        "production",
        "production/eu",
    ]
    assert cast["oscar"].put(f"/groups/{prod}", {"parent_id": None}).json["data"]["path"] == "live"
    assert "live/eu/west" in paths(app)


def test_the_tree_stays_a_tree(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        prod, west = make_group("prod"), make_group("prod/eu/west")
        make_group("lab")
    put = cast["oscar"].put
    assert put(f"/groups/{prod}", {"parent_id": west}).json["code"] == 1006
    assert put(f"/groups/{prod}", {"parent_id": prod}).json["code"] == 1006
    assert put(f"/groups/{prod}", {"parent_id": 999}).json["code"] == 1001
    assert put(f"/groups/{prod}", {"name": "lab"}).json["code"] == 1006
    assert cast["oscar"].post("/groups", {"name": "lab"}).json["code"] == 1006
    assert paths(app) == ["lab", "prod", "prod/eu", "prod/eu/west"]


def test_a_group_has_a_name_that_can_stand_in_a_path(app: Flask, cast: dict[str, Api]) -> None:
    for name in ("", "a/b", "two words", 'quo"te', "x" * 65):
        assert cast["oscar"].post("/groups", {"name": name}).json["code"] == 1001, name


def test_the_tree_is_eight_levels_deep_at_most_also_after_a_move(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        deepest = make_group("1/2/3/4/5/6/7/8")
        tall = make_group("a/b")
        top = db.session.query(NodeGroup.id).filter_by(path="a").scalar()
        seventh = db.session.query(NodeGroup.id).filter_by(path="1/2/3/4/5/6/7").scalar()
    assert cast["oscar"].post("/groups", {"name": "9", "parent_id": deepest}).json["code"] == 1001
    assert cast["oscar"].put(f"/groups/{top}", {"parent_id": seventh}).json["code"] == 1001
    assert cast["oscar"].put(f"/groups/{tall}", {"parent_id": seventh}).status_code == 200


def test_a_group_with_nodes_or_groups_is_not_deleted(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        prod, eu = make_group("prod"), make_group("prod/eu")
        make_node(group="prod/eu", status="revoked")
    for group_id in (prod, eu):
        assert cast["alice"].delete(f"/groups/{group_id}").json["code"] == 1006
    assert paths(app) == ["prod", "prod/eu"]


def test_the_list_is_the_tree_with_its_members(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        make_group("lab")
        last = make_group("first")
        for number in range(3):
            make_node(f"web-{number}", group="prod/eu")
        make_node("db", group="prod")
        make_node("gone", group="prod", status="revoked")
        db.session.query(NodeGroup).filter_by(id=last).update({"sort_order": 9})
        db.session.commit()
    data = cast["vera"].get("/groups").json["data"]
    assert (data["total"], data["page"], data["page_size"]) == (4, 1, 20)
    assert [(one["path"], one["node_count"]) for one in data["items"]] == [
        ("lab", 0),
        ("prod", 4),
        ("prod/eu", 3),
        ("first", 0),
    ]
    second = cast["vera"].get("/groups?page=2&page_size=3&sort=-name").json["data"]
    assert [one["name"] for one in second["items"]] == ["eu"]
    assert cast["vera"].get("/groups?keyword=EU").json["data"]["total"] == 1


def test_the_page_shows_the_tree_and_lets_operators_build_it(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        prod = make_group("prod")
        make_node(group="prod")
    browser = visit(app, "oscar")
    assert submit(browser, "/groups/new", {"name": "eu", "parent_id": prod}, page="/groups/new").status_code == 303
    html = browser.get("/groups").text
    assert 'title="prod/eu"' in html
    assert "The group prod/eu was made." in html
    taken = submit(browser, "/groups/new", {"name": "eu", "parent_id": prod}, page="/groups/new")
    assert taken.status_code == 422
    assert "There is a group of this name already." in taken.text
    moved = submit(browser, f"/groups/{prod}/edit", {"name": "live", "parent_id": "", "sort_order": "1"})
    assert moved.status_code == 303
    assert paths(app) == ["live", "live/eu"]
    # Its own subtree is not offered as a place.
    assert f'<option value="{prod}"' not in browser.get(f"/groups/{prod}/edit").text
    assert browser.get(f"/groups/{prod}/delete").status_code == 403


def test_the_page_refuses_to_delete_what_is_in_use(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        prod, lab = make_group("prod"), make_group("lab")
        make_node(group="prod")
    browser = visit(app, "alice")
    refused = submit(browser, f"/groups/{prod}/delete", {})
    assert refused.status_code == 422
    assert "There are nodes in this group. Move them first." in refused.text
    assert submit(browser, f"/groups/{lab}/delete", {}).status_code == 303
    assert paths(app) == ["prod"]


def test_a_smart_group_counts_whoever_fits_it(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        make_node("web-1", labels={"env": "prod"})
        make_node("web-2", labels={"env": "prod"}, status="pending")
    browser = visit(app, "alice")
    wrong = submit(browser, "/groups/smart/new", {"name": "prod", "selector": "env="})
    assert wrong.status_code == 422
    assert "Column 5: expected a value." in wrong.text
    assert submit(browser, "/groups/smart/new", {"name": "prod", "selector": "env=prod"}).status_code == 303
    html = browser.get("/groups").text
    assert '<a href="/nodes?selector=env%3Dprod">1</a>' in html
    with app.app_context():
        group_id = db.session.query(SmartGroup.id).scalar()
    edit = f"/groups/smart/{group_id}/edit"
    assert submit(browser, edit, {"name": "prod", "selector": "env=none"}).status_code == 303
    assert '<a href="/nodes?selector=env%3Dnone">0</a>' in browser.get("/groups").text
    assert submit(browser, f"/groups/smart/{group_id}/delete", {}).status_code == 303
    with app.app_context():
        assert db.session.query(SmartGroup).count() == 0


def test_a_smart_group_that_cannot_be_read_any_more_says_so(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        db.session.add(SmartGroup(name="broken", selector="env=("))
        db.session.commit()
    assert "cannot be read" in visit(app, "vera").get("/groups").text
