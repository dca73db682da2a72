"""The search over everything."""

from flask import Flask

from app.kernel.access import Actor
from app.kernel.db import db, in_transaction
from app.tasks.actions import create_task
from app.tasks.schemas import TaskIn
from tests.agents.builders import check_in, make_host, told
from tests.factories import Api
from tests.nodes.fleet import make_group, make_node, make_waiting
from tests.visitors import visit


def test_it_finds_nodes_by_all_their_names(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node("web-1", ip="10.0.0.7", tags=["canary"], labels={"env": "prod"}, uuid="0" * 35 + "1")
        make_node("db-1")
    browser = visit(app, "vera")
    for text in ("WEB", "10.0.0.7", "canar", "env=prod", "0" * 35 + "1"):
        html = browser.get("/search", query_string={"q": text}).text
        assert f'href="/nodes/{node_id}"' in html, text
        assert "db-1" not in html, text


def test_the_exact_name_comes_first_and_those_who_wait_are_found_too(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        make_node("a-web-1")
        make_node("web-10")
        make_waiting("web-1")
    html = visit(app, "vera").get("/search?q=web-1").text
    places = [html.index(f"<b>{name}</b>") for name in ("web-1", "web-10", "a-web-1")]
    assert places == sorted(places)


def test_groups_are_for_everybody_and_users_for_those_who_may_see_them(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        group_id = make_group("prod/vera")
    assert f'href="/nodes?group_id={group_id}"' in visit(app, "vera").get("/search?q=vera").text
    assert 'href="/users/' not in visit(app, "vera").get("/search?q=vera").text
    assert 'href="/users/' in visit(app, "alice").get("/search?q=vera").text


def test_it_says_when_there_is_more_and_when_there_is_nothing(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        for number in range(21):
            make_node(f"web-{number:02}")
    browser = visit(app, "vera")
    html = browser.get("/search?q=web").text
    assert 'href="/nodes?keyword=web"' in html
    assert html.count("<b>web-") == 20
    assert "Nothing found" in browser.get("/search?q=%25").text
    assert "What are you looking for?" in browser.get("/search?q=+").text
    assert "&lt;script&gt;" in browser.get("/search?q=<script>").text


def test_the_search_field_stands_on_every_page(app: Flask, cast: dict[str, Api]) -> None:
    assert '<form class="search" role="search" action="/search" method="get">' in visit(app, "vera").get("/groups").text


def test_agents_are_found_by_name_with_their_hosts_and_tasks_as_well(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        for name in ("web-1", "web-2"):
            check_in(make_host(app, name), [told("nginx")])
        values = TaskIn(name="reload nginx", type="script", content={"script": "true"}, target_type="all")
        task_id = in_transaction(db.session(), lambda: create_task(db.session(), Actor.system("tests"), values).id)
    html = visit(app, "vera").get("/search?q=NGINX").text
    assert 'href="/agents?name=nginx"' in html
    assert "2 hosts" in html
    assert f'href="/tasks/{task_id}"' in html
