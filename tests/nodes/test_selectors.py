"""The selector language: what it means, held against an evaluator without a database; where it is wrong; its bounds."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from app.kernel.db import db
from app.kernel.errors import BadParameter
from app.kernel.selectors import (
    And,
    Comparison,
    Everything,
    Has,
    Match,
    Not,
    Or,
    Tree,
    parse,
    quoted,
)
from app.nodes.models import Node
from app.nodes.selecting import selected
from app.nodes.versions import sortable_version
from tests.factories import Api
from tests.nodes.fleet import make_group, make_node

TAGS = ("legacy", "Legacy", "a_b", "axb", "a%b", "back\\slash", "x[1]", "x1", "标签", "all", "and")
KEYS = ("env", "ENV", "role", "k_y", "key", "has")
VALUES = ("prod", "production", "PROD", "", "two words", 'quo"te', "100%", "1_0", "1x0", "back\\slash", "(web,db)")
GROUPS = ("prod", "prod/eu", "prod/eu/west", "production", "Prod/eu", "pr_d/x", "prod-eu", "a%b/c")
HOSTS = ("web-1", "web-10", "WEB-1", "web_1", "db.example.org", "db%", "a\\b", "x[0]")
VERSIONS = ("", "1.4.0", "1.4.2", "1.10.0", "1.4.2-rc.1", "1.4.2-rc.2", "1.4.2-beta", "2.0.0", "strange")
STATUSES = ("online", "offline", "unknown")


@dataclass(frozen=True)
class Host:
    """A node as the evaluator sees it."""

    hostname: str
    status: str = "online"
    version: str = ""
    group: str | None = None
    tags: frozenset[str] = frozenset()
    labels: dict[str, str] = field(default_factory=dict)


def fits(host: Host, tree: Tree) -> bool:
    """The language in twenty lines, without a database."""
    match tree:
        case Everything():
            return True
        case And(parts):
            return all(fits(host, part) for part in parts)
        case Or(parts):
            return any(fits(host, part) for part in parts)
        case Not(inner):
            return not fits(host, inner)
        case Has(key):
            return key in host.labels
        case Match("node", pattern):
            return globs(pattern, host.hostname)
        case Match("tag", pattern):
            return any(globs(pattern, tag) for tag in host.tags)
        case Match("group", pattern):
            steps = host.group.split("/") if host.group else []
            return any(globs(pattern.strip("/"), "/".join(steps[: n + 1])) for n in range(len(steps)))
        case Comparison("version", operator, values):
            return compares(host.version, operator, values)
        case Comparison(key, operator, values):
            found = host.status if key == "status" else "linux" if key == "os" else host.labels.get(key)
            return (found in values) == (operator in ("=", "in"))
    raise AssertionError(tree)


def globs(pattern: str, text: str) -> bool:
    parts = (".*" if letter == "*" else "." if letter == "?" else re.escape(letter) for letter in pattern)
    return re.fullmatch("".join(parts), text, re.DOTALL) is not None


def precedence(text: str) -> tuple[Any, ...] | None:
    """SemVer 2, section 11, by the letter."""
    found = re.fullmatch(r"(\d+)\.(\d+)(?:\.(\d+))?(?:-(.+))?", text)
    if found is None:
        return None
    pre = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in (found[4] or "").split(".") if part)
    return (int(found[1]), int(found[2]), int(found[3] or 0), not pre, pre)


def compares(version: str, operator: str, values: tuple[str, ...]) -> bool:
    here, there = precedence(version), [precedence(value) for value in values]
    if here is None:
        return False
    relations: dict[str, Callable[[], bool]] = {
        "=": lambda: here in there,
        "in": lambda: here in there,
        "!=": lambda: here not in there,
        "notin": lambda: here not in there,
        "<": lambda: here < there[0],  # type: ignore[operator]
        "<=": lambda: here <= there[0],  # type: ignore[operator]
        ">": lambda: here > there[0],  # type: ignore[operator]
        ">=": lambda: here >= there[0],  # type: ignore[operator]
    }
    return relations[operator]()


hosts = st.builds(
    Host,
    hostname=st.sampled_from(HOSTS),
    status=st.sampled_from(STATUSES),
    version=st.sampled_from(VERSIONS),
    group=st.none() | st.sampled_from(GROUPS),
    tags=st.frozensets(st.sampled_from(TAGS), max_size=4),
    labels=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=4),
)


def with_wildcards(words: tuple[str, ...]) -> st.SearchStrategy[str]:
    """A word, or a pattern made of one."""

    def blur(word: str, at: int, star: str) -> str:
        cut = at % len(word)
        return word[:cut] + star + word[cut + 1 :]

    return st.sampled_from(words) | st.builds(blur, st.sampled_from(words), st.integers(0, 9), st.sampled_from("*?"))


def lists(words: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(words), min_size=1, max_size=3).map(tuple)


def compared(key: str, words: tuple[str, ...], sized: bool = False) -> st.SearchStrategy[Comparison]:
    single = st.sampled_from(("=", "!=", "<", "<=", ">", ">=") if sized else ("=", "!="))
    return st.builds(lambda op, value: Comparison(key, op, (value,)), single, st.sampled_from(words)) | st.builds(
        lambda op, values: Comparison(key, op, values), st.sampled_from(("in", "notin")), lists(words)
    )


known_versions = (*(version for version in VERSIONS if precedence(version)), "1.4", "3.0")
atoms: st.SearchStrategy[Tree] = st.one_of(
    st.just(Everything()),
    st.builds(Match, st.just("node"), with_wildcards(HOSTS)),
    st.builds(Match, st.just("tag"), with_wildcards(TAGS)),
    st.builds(Match, st.just("group"), with_wildcards(GROUPS)),
    st.builds(Has, st.sampled_from(KEYS)),
    st.sampled_from(KEYS).flatmap(lambda key: compared(key, VALUES)),
    compared("status", STATUSES),
    compared("os", ("linux", "windows")),
    compared("version", known_versions, sized=True),
)
trees = st.recursive(
    atoms,
    lambda inner: (
        st.builds(Not, inner)
        | st.lists(inner, min_size=2, max_size=3).map(lambda parts: And(tuple(parts)))
        | st.lists(inner, min_size=2, max_size=3).map(lambda parts: Or(tuple(parts)))
    ),
    max_leaves=8,
)


def written(tree: Tree, random: Any) -> str:
    """A selector that means this tree, in one of the many ways to write it."""
    match tree:
        case Everything():
            return "all"
        case Has(key):
            return f"has({word(key, random)})"
        case Match(kind, pattern):
            return f"{kind}:{word(pattern, random)}"
        case Comparison(key, operator, values):
            shown = ", ".join(word(value, random) for value in values)
            if operator in ("in", "notin"):
                return f"{word(key, random)} {operator} ({shown})"
            return f"{word(key, random)}{random.choice(('', ' '))}{operator}{shown}"
        case Not(inner):
            return random.choice(("!", "not ")) + f"({written(inner, random)})"
        case And(parts):
            return random.choice((" ", " and ", "  AND ")).join(f"({written(part, random)})" for part in parts)
        case Or(parts):
            return " or ".join(f"({written(part, random)})" for part in parts)


def word(text: str, random: Any) -> str:
    """Quoted where it must be, and sometimes where it need not."""
    if random.random() < 0.3:
        quote = random.choice("\"'")
        return quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote
    return quoted(text)


@given(tree=trees, random=st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_it_reads_what_is_written(tree: Tree, random: Any) -> None:
    assert parse(written(tree, random)) == tree


def test_it_means_the_same_to_the_database_as_to_the_evaluator(context: Flask) -> None:
    fleet: dict[int, Host] = {}

    @given(host=hosts)
    @settings(max_examples=60, deadline=None, derandomize=True)
    def make_fleet(host: Host) -> None:
        number = make_node(
            host.hostname,
            status=host.status,
            version=host.version,
            group=host.group,
            tags=sorted(host.tags),
            labels=host.labels,
        )
        fleet[number] = host

    @given(tree=trees, random=st.randoms(use_true_random=False))
    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    def compare(tree: Tree, random: Any) -> None:
        text = written(tree, random)
        found = set(db.session.scalars(select(Node.id).where(selected(text))))
        assert found == {number for number, host in fleet.items() if fits(host, tree)}, text

    make_fleet()
    assert len(fleet) > 40
    compare()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("group:prod", {"in-prod", "in-eu"}),
        ("group:prod/eu", {"in-eu"}),
        ("group:prod*", {"in-prod", "in-eu", "in-production"}),
        ("group:/prod/", {"in-prod", "in-eu"}),
        ("group:*/eu", {"in-eu"}),
        ("!group:prod", {"in-production", "nowhere"}),
        ("group:/", set()),
    ],
)
def test_a_group_is_itself_and_what_is_below_it(context: Flask, text: str, expected: set[str]) -> None:
    for hostname, group in (
        ("in-prod", "prod"),
        ("in-eu", "prod/eu"),
        ("in-production", "production"),
        ("nowhere", None),
    ):
        make_node(hostname, group=group)
    assert set(db.session.scalars(select(Node.hostname).where(selected(text)))) == expected


VERSIONED = {
    "version<1.4.2": {"1.4.0", "1.4.2-rc.1"},
    "version<=1.4.2": {"1.4.0", "1.4.2-rc.1", "1.4.2"},
    "version>1.4.2": {"1.10.0"},
    "version>=1.4.2": {"1.4.2", "1.10.0"},
    "version=1.4": {"1.4.0"},
    "version!=1.4": {"1.4.2-rc.1", "1.4.2", "1.10.0"},
    "version in (1.4, v1.10.0+build)": {"1.4.0", "1.10.0"},
    "version notin (1.4, 1.10.0)": {"1.4.2-rc.1", "1.4.2"},
    "!version>1.4.2": {"1.4.0", "1.4.2-rc.1", "1.4.2", "", "strange"},
}


def test_versions_are_compared_as_versions_and_hosts_without_one_are_in_no_comparison(context: Flask) -> None:
    for version in ("1.4.0", "1.4.2-rc.1", "1.4.2", "1.10.0", "", "strange"):
        make_node(f"v{version}", version=version)
    for text, expected in VERSIONED.items():
        assert set(db.session.scalars(select(Node.daemon_version).where(selected(text)))) == expected, text


@pytest.mark.parametrize(
    ("text", "column", "expected"),
    [
        ("", 1, "a name"),
        ("   ", 1, "a name"),
        ("env=", 5, "a value"),
        ("env==prod", 5, "a value"),
        ("env=prod or", 12, "a name"),
        ("env=prod and and x", 14, "a name"),
        ("role in web", 9, "“(”"),
        ("role in (web db)", 14, "“,” or “)”"),
        ("role in (web,", 14, "a value"),
        ("role in ()", 10, "a value"),
        ("(a or b", 8, "“)”"),
        ("a ) b", 3, "the end"),
        ("env>prod", 4, "= or !="),
        ("host:web", 1, "node:, group:, tag:"),
        ("has(", 5, "a label's name"),
        ("has(env", 8, "“)”"),
        ('a "never closed', 3, "quotation mark"),
        ("  'x", 3, "quotation mark"),
        ("node:", 6, "a name"),
        ("version<abc", 9, "1.4"),
        ('os=linux version in (1.4, "abc")', 27, "1.4"),
    ],
)
def test_an_error_says_the_column_and_what_was_expected(context: Flask, text: str, column: int, expected: str) -> None:
    with pytest.raises(BadParameter) as caught:
        selected(text)
    assert caught.value.data == {"column": column}
    message = caught.value.errors[0]["message"]
    assert message.startswith(f"Column {column}: expected ")
    assert expected in message


def test_it_goes_only_so_deep_and_so_long(context: Flask) -> None:
    selected("(" * 19 + "a" + ")" * 19)
    selected(" ".join(["a"] * 100))
    selected("!" * 3999 + "a")
    for text in (
        "(" * 20 + "a" + ")" * 20,
        " ".join(["a"] * 101),
        "a" * 4001,
        "role in (" + "a," * 100 + "a)" + " b" * 100,
    ):
        with pytest.raises(BadParameter):
            selected(text)


def test_the_longest_ones_are_still_fine_for_the_database(context: Flask) -> None:
    node_id = make_node(tags=["a"], labels={"env": "prod"})
    for text in (
        " ".join(["a"] * 100),
        " or ".join(["(b !c)"] * 49) + " or a",
        "env in (" + ",".join(f"v{n}" for n in range(600)) + ",prod)",
        "(" * 19 + "a" + ")" * 19,
    ):
        assert list(db.session.scalars(select(Node.id).where(selected(text)))) == [node_id], text[:30]


@pytest.mark.parametrize("text", ["web", "and", "a b", 'quo"te', "back\\slash", "", "(x)", "'", "notin", "标签"])
def test_a_quoted_word_is_read_back(text: str) -> None:
    assert parse(f"tag:{quoted(text)}") == Match("tag", text)


def test_versions_sort_as_semver_says() -> None:
    ordered = [
        "1.0.0-1",
        "1.0.0-20",
        "1.0.0--x",
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-beta",
        "1.0.0-beta.2",
        "1.0.0-beta.11",
    ]
    ordered += ["1.0.0-rc.1", "1.0.0", "1.2.0", "1.10.0", "2.0.0"]
    keys = [sortable_version(version) or "" for version in ordered]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)
    assert sortable_version("1.4") == sortable_version("v1.4.0+build.7")
    assert sortable_version("latest") is None


def test_the_preview_lists_the_very_hosts(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        make_node("web-1", labels={"env": "prod"})
        make_node("web-2", labels={"env": "prod"}, status="offline")
        make_node("web-3", labels={"env": "prod"}, status="pending")
        make_node("db-1")
    data = cast["vera"].post("/selectors/preview", {"selector": "env=prod"}).json["data"]
    assert (data["total"], data["online"], data["offline"], data["maintenance"]) == (2, 1, 1, 0)
    assert [item["hostname"] for item in data["items"]] == ["web-1", "web-2"]


def test_the_preview_says_what_is_wrong(app: Flask, cast: dict[str, Api]) -> None:
    answer = cast["vera"].post("/selectors/preview", {"selector": "env=(x"})
    assert answer.status_code == 400
    assert answer.json["code"] == 1001
    assert answer.json["data"]["column"] == 5
    assert answer.json["data"]["errors"][0]["field"] == "selector"


def test_a_group_with_a_wildcard_in_its_name_is_only_itself(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        one, other = make_group("a_b/x"), make_group("axb/x")
        wanted, _other = make_node("wanted", group="a_b/x"), make_node("other", group="axb/x")
        top = db.session.scalar(select(Node.group_id).where(Node.id == wanted))
        assert top == one != other
        parent = make_group("a_b")
    found = cast["vera"].get(f"/nodes?group_id={parent}").json["data"]["items"]
    assert [item["hostname"] for item in found] == ["wanted"]
