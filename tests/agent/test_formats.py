"""Configuration formats: one key changes, all the rest stays; and what is no such file is said to be none."""

import json
from pathlib import Path

import pytest

from agent.formats import FORMATS, FormatProblem, lines
from tests.agent.processes import AgentProcess

INI = "; top\nfirst = 1\n\n[server]\n# port\nport = 80 \nname=a b\n\n[client]\nport=81\n"
PROPERTIES = "# top\na.b=1\nlong = one \\\n   two\n! note\nexport PATH_X=/bin\nspaced value here\nesc\\:aped=x\n"
JSON = '{\n    "server": {\n        "ports": [80, 81],\n        "a.b": true\n    },\n    "ä": null\n}\n'
YAML = "# top\nserver:\n  ports: [80, 81]   # ports\n  name: 'quoted'\nitems:\n- a: 1\n- b: &x 2\n"
XML = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<!-- top --><config xmlns:x="urn:x">\n  <!-- inner -->\n'
    '  <server port="80"><name>a</name></server>\n  <server port="81"/>\n  <x:y>z</x:y>\n</config>\n<!-- end -->\n'
)


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("ini", INI, "first", "1"),
        ("ini", INI, "server.port", "80"),
        ("ini", INI, "server.name", "a b"),
        ("ini", INI, "client.port", "81"),
        ("ini", INI, "client.name", None),
        ("properties", PROPERTIES, "a.b", "1"),
        ("properties", PROPERTIES, "long", "one two"),
        ("properties", PROPERTIES, "PATH_X", "/bin"),
        ("properties", PROPERTIES, "spaced", "value here"),
        ("properties", PROPERTIES, "esc:aped", "x"),
        ("properties", PROPERTIES, "note", None),
        ("json", JSON, "server.ports[1]", "81"),
        ("json", JSON, "server.ports.1", "81"),
        ("json", JSON, 'server."a.b"', "true"),
        ("json", JSON, "server", '{"ports": [80, 81], "a.b": true}'),
        ("json", JSON, "ä", "null"),
        ("json", JSON, "server.ports[2]", None),
        ("yaml", YAML, "server.name", "quoted"),
        ("yaml", YAML, "items[1].b", "2"),
        ("yaml", YAML, "items[7]", None),
        ("xml", XML, "server/name", "a"),
        ("xml", XML, "/config/server/name", "a"),
        ("xml", XML, "server[2]/@port", "81"),
        ("xml", XML, "server[@port='81']/@port", "81"),
        ("xml", XML, "server/absent", None),
        ("lines", INI, "^port", "port = 80 \nport=81\n"),
        ("lines", INI, "absent", None),
    ],
)
def test_read(name: str, text: str, key: str, value: str | None) -> None:
    assert FORMATS[name].read(text, key) == value


@pytest.mark.parametrize(
    ("name", "text", "key", "value", "old", "new"),
    [
        ("ini", INI, "server.port", 90, "port = 80 ", "port = 90"),
        ("ini", INI, "client.port", "9", "port=81", "port=9"),
        ("ini", INI, "server.new", "x", "name=a b\n", "name=a b\nnew = x\n"),
        ("ini", INI, "fresh.key", "x", "port=81\n", "port=81\n\n[fresh]\nkey = x\n"),
        ("ini", INI, "top", "x", "first = 1\n", "first = 1\ntop = x\n"),
        ("properties", PROPERTIES, "a.b", "2", "a.b=1", "a.b=2"),
        ("properties", PROPERTIES, "long", "3", "long = one \\\n   two", "long = 3"),
        ("properties", PROPERTIES, "PATH_X", "/x", "export PATH_X=/bin", "export PATH_X=/x"),
        ("properties", PROPERTIES, "fresh", "1", "esc\\:aped=x\n", "esc\\:aped=x\nfresh = 1\n"),
        ("json", JSON, 'server."a.b"', "no", "true", '"no"'),
        ("yaml", YAML, "server.name", "new", "'quoted'", "'new'"),
        ("yaml", YAML, "server.ports[0]", 90, "[80, 81]", "[90, 81]"),
        ("xml", XML, "server/name", "b", "<name>a<", "<name>b<"),
        ("xml", XML, "server[2]/@port", 9, 'port="81"', 'port="9"'),
        ("lines", INI, "^first", "first = 2", "first = 1", "first = 2"),
        ("lines", INI, "^absent", "absent = 2", "port=81\n", "port=81\nabsent = 2\n"),
    ],
)
def test_set_changes_nothing_else(name: str, text: str, key: str, value: object, old: str, new: str) -> None:
    changed = FORMATS[name].set(text, key, value)
    expected = text.replace(old, new)
    if name == "json":
        assert json.loads(changed) == json.loads(expected)
        assert changed.startswith('{\n    "server": {\n        "ports"')
        assert "ä" in changed
    elif name == "xml":
        assert changed.replace(" />", "/>") == expected
    else:
        assert changed == expected
    shown = FORMATS[name].read(changed, key)
    assert shown is not None
    assert str(value) in shown


@pytest.mark.parametrize(
    ("name", "text", "key", "gone"),
    [
        ("ini", INI, "server.port", "port = 80 \n"),
        ("properties", PROPERTIES, "long", "long = one \\\n   two\n"),
        ("lines", INI, "^# port", "# port\n"),
        ("yaml", YAML, "server.name", "  name: 'quoted'\n"),
    ],
)
def test_unset_takes_out_nothing_else(name: str, text: str, key: str, gone: str) -> None:
    assert FORMATS[name].unset(text, key) == text.replace(gone, "")
    assert FORMATS[name].read(FORMATS[name].unset(text, key), key) is None
    assert FORMATS[name].unset(text, "absent_key") == text


def test_unset_in_trees() -> None:
    assert FORMATS["json"].read(FORMATS["json"].unset(JSON, "server.ports[0]"), "server.ports") == "[81]"
    assert FORMATS["xml"].read(FORMATS["xml"].unset(XML, "server/name"), "server/name") is None
    assert FORMATS["xml"].read(FORMATS["xml"].unset(XML, "server/@port"), "server/@port") is None
    assert FORMATS["xml"].unset(XML, "absent") == XML


def test_what_is_missing_on_the_way_is_made() -> None:
    assert json.loads(FORMATS["json"].set("", "a.b.c", [1])) == {"a": {"b": {"c": [1]}}}
    assert FORMATS["yaml"].set("", "a.b", {"c": True}) == "a:\n  b:\n    c: true\n"
    assert FORMATS["json"].read(FORMATS["json"].set(JSON, "server.ports[2]", 82), "server.ports") == "[80, 81, 82]"
    assert FORMATS["xml"].read(FORMATS["xml"].set(XML, "client/host/@name", "n"), "client/host/@name") == "n"


def test_line_ends_stay() -> None:
    assert FORMATS["ini"].set("[a]\r\nb=1\r\n", "a.c", "2") == "[a]\r\nb=1\r\nc=2\r\n"
    assert FORMATS["lines"].set("a\r\nb", "a", "x") == "x\r\nb"
    assert lines.replace_line("a1\na2\nb\n", "^a", "c") == "c\nc\nb\n"


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("json", "{", "a", 1),
        ("json", "[]", "a.b", 1),
        ("json", JSON, "a..b", 1),
        ("yaml", "a: [", "a", 1),
        ("xml", "<a>", "a", "1"),
        ("xml", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "b", "1"),
        ("xml", XML, "absent[1]/x", "1"),
        ("ini", INI, "server.", "1"),
        ("ini", INI, "server.port", "1\n[evil]"),
        ("properties", PROPERTIES, "a b", "1"),
        ("properties", PROPERTIES, "a", "1\nb=2"),
        ("lines", INI, "(", "1"),
        ("lines", INI, "a", "1\n2"),
    ],
)
def test_what_cannot_be_changed_is_said(name: str, text: str, key: str, value: object) -> None:
    with pytest.raises(FormatProblem):
        FORMATS[name].set(text, key, value)


def test_a_file_is_changed_in_one_step_and_can_be_brought_back(agent: AgentProcess, tmp_path: Path) -> None:
    path = tmp_path / "app.ini"
    path.write_text(INI)
    path.chmod(0o640)
    base = {"path": str(path), "format": "ini"}
    assert agent.do("config", {**base, "op": "backup"})["status"] == "success"
    found = agent.do("config", {**base, "op": "set", "key": "server.port", "value": "90"})
    assert json.loads(found["stdout"]) == {"path": str(path), "changed": True}
    assert agent.do("config", {**base, "op": "read", "key": "server.port"})["stdout"] == "90\n"
    same = agent.do("config", {**base, "op": "set", "key": "server.port", "value": "90"})
    assert json.loads(same["stdout"])["changed"] is False
    assert path.stat().st_mode & 0o777 == 0o640
    missing = agent.do("config", {**base, "op": "read", "key": "server.absent"})
    assert (missing["status"], missing["error"]) == ("failed", "server.absent is not there")
    agent.do("config", {**base, "op": "unset", "key": "server.port"})
    assert agent.do("config", {**base, "op": "replace_line", "key": "^nothing", "value": "x"})["status"] == "failed"
    assert agent.do("config", {**base, "op": "replace_line", "key": "^name", "value": "name=b"})["status"] == "success"
    assert agent.do("config", {**base, "op": "restore"})["status"] == "success"
    assert path.read_text() == INI
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["app.ini"]
    assert "no backup" in agent.do("config", {**base, "op": "restore", "value": "absent"})["error"]
