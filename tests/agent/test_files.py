"""Files: pieces in with a hash and resume, ranges out, tasks on files, and every way out of what is allowed."""

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent.processes import AgentProcess


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def upload(agent: AgentProcess, path: Path | str, data: bytes, offset: int = 0, piece: int = 1 << 20, **more: str):  # type: ignore[no-untyped-def]
    extra = "".join(f"&{name}={value}" for name, value in more.items())
    query = f"path={path}&offset={offset}&total={len(data)}&sha256={sha(data)}{extra}"
    return agent.ask("POST", f"file/upload?{query}", data[offset : offset + piece])


def test_a_file_comes_in_pieces_and_goes_on_where_it_stopped(agent: AgentProcess, tmp_path: Path) -> None:
    target, data = tmp_path / "made", os.urandom(2_500_000)
    first = upload(agent, target, data, 0)
    assert (first.status, first.data) == (200, {"next": 1 << 20, "complete": False})
    assert not target.exists()
    agent.stop(9)
    agent.start()
    assert agent.get(f"file/upload?path={target}&sha256={sha(data)}").data == {"next": 1 << 20, "complete": False}
    gap = upload(agent, target, data, 2 << 20)
    assert (gap.status, gap.code, gap.data) == (409, 1006, {"next": 1 << 20})
    upload(agent, target, data, 1 << 19)
    last = upload(agent, target, data, (1 << 20) + (1 << 19), mode="0751", owner="nobody:nogroup")
    assert last.data["complete"] is True
    assert target.read_bytes() == data
    assert stat.S_IMODE(target.stat().st_mode) == 0o751
    assert target.owner() == "nobody"
    assert [entry.name for entry in target.parent.iterdir() if ".part" in entry.name] == []


def test_a_wrong_hash_changes_nothing(agent: AgentProcess, tmp_path: Path) -> None:
    target = tmp_path / "kept"
    target.write_bytes(b"old")
    query = f"path={target}&offset=0&total=3&sha256={sha(b'other')}"
    answer = agent.ask("POST", f"file/upload?{query}", b"new")
    assert (answer.status, answer.code) == (400, 3003)
    assert target.read_bytes() == b"old"
    assert upload(agent, target, b"new").data["complete"] is True
    assert target.read_bytes() == b"new"


def test_an_empty_file_and_one_that_is_too_large(new_agent: Callable[..., AgentProcess], tmp_path: Path) -> None:
    agent = new_agent(files_max_bytes=100)
    agent.start()
    assert upload(agent, tmp_path / "empty", b"").data["complete"] is True
    assert (tmp_path / "empty").read_bytes() == b""
    assert upload(agent, tmp_path / "large", b"x" * 101).code == 1008
    query = f"path={tmp_path}/x&offset=9&total=10&sha256={sha(b'')}"
    assert agent.ask("POST", f"file/upload?{query}", b"xx").code == 1001


def test_a_replaced_file_keeps_its_owner_and_mode(agent: AgentProcess, tmp_path: Path) -> None:
    target = tmp_path / "kept"
    target.write_bytes(b"old")
    target.chmod(0o604)
    os.chown(target, 65534, 65534)
    upload(agent, target, b"new")
    found = target.stat()
    assert (target.read_bytes(), found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (
        b"new",
        65534,
        65534,
        0o604,
    )


def test_somebody_else_s_unfinished_file_is_not_written_to(agent: AgentProcess, tmp_path: Path) -> None:
    victim, data = tmp_path / "victim", b"data"
    victim.write_bytes(b"mine")
    (tmp_path / f".ops-{sha(data)[:32]}.part").symlink_to(victim)
    assert upload(agent, tmp_path / "target", data).data["complete"] is True
    os.link(victim, tmp_path / f".ops-{sha(b'more')[:32]}.part")
    assert upload(agent, tmp_path / "target", b"more").data["complete"] is True
    assert victim.read_bytes() == b"mine"
    assert (tmp_path / "target").read_bytes() == b"more"


def test_a_download_tells_its_hash_and_gives_ranges(agent: AgentProcess, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 4000)
    whole = agent.ask("GET", f"file/download?path={source}&sha256=1")
    assert whole.body == source.read_bytes()
    assert whole.headers["x-ops-sha256"] == sha(whole.body)
    part = agent.ask(
        "GET", f"file/download?path={source}", None, Range="bytes=1000000-", If_Range=whole.headers["etag"]
    )
    assert (part.status, part.body) == (206, whole.body[1000000:])
    assert part.headers["content-range"] == "bytes 1000000-1023999/1024000"
    assert agent.ask("GET", f"file/download?path={source}", None, Range="bytes=5-9").body == whole.body[5:10]
    source.write_bytes(b"changed meanwhile")
    again = agent.ask("GET", f"file/download?path={source}", None, Range="bytes=5-", If_Range=whole.headers["etag"])
    assert (again.status, again.body) == (200, b"changed meanwhile")
    assert agent.ask("GET", f"file/download?path={source}", None, Range="bytes=99-").status == 416


def test_what_is_no_file_is_not_downloaded(agent: AgentProcess, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent", tmp_path / "pipe", tmp_path, "/dev/zero"):
        assert agent.get(f"file/download?path={path}").code == 1004, path
    assert agent.get("file/download?path=relative").code == 1001
    assert agent.get("file/download").code == 1001


@pytest.fixture
def fenced(agent: AgentProcess, tmp_path: Path) -> Path:
    """A directory that alone is allowed, with ways out of it."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside, inside / "deep"):
        folder.mkdir()
    (outside / "secret").write_text("secret")
    (inside / "plain").write_text("plain")
    (inside / "link").symlink_to(outside / "secret")
    (inside / "folder").symlink_to(outside)
    agent.capabilities.write_text(f"allow: {{files: ['{inside}/**']}}\n")
    return inside


@pytest.mark.parametrize(
    "path", ["../outside/secret", "link", "folder/secret", "deep/../../outside/secret", "./deep/../link"]
)
def test_no_way_leads_out(agent: AgentProcess, fenced: Path, path: str) -> None:
    secret = fenced.parent / "outside" / "secret"
    way = f"{fenced}/{path}"
    answer = agent.get(f"file/download?path={way}")
    assert (answer.status, answer.code, answer.data["error_code"]) == (403, 1003, "forbidden_by_host")
    assert upload(agent, way, b"new").code == 1003
    for kind, content in (
        ("file", {"op": "copy", "path": way, "dest": f"{fenced}/copy"}),
        ("file", {"op": "copy", "path": f"{fenced}/plain", "dest": way}),
        ("file", {"op": "download", "path": way}),
        ("config", {"op": "read", "path": way}),
        ("config", {"op": "set", "path": way, "key": "secret", "value": "x"}),
        ("config", {"op": "backup", "path": way}),
    ):
        found = agent.do(kind, content)
        assert (found["status"], found["error_code"]) == ("failed", "forbidden_by_host"), content
        assert "does not allow" in found["error"] or "plain absolute path" in found["error"]
    assert secret.read_text() == "secret"
    assert not (fenced / "copy").exists()


@pytest.fixture
def app_home(tmp_path: Path) -> Path:
    """A directory of nobody, whose links lead to what is root's, in a directory of root's."""
    home, etc = tmp_path / "home", tmp_path / "etc"
    for folder in (home, etc, home / "own"):
        folder.mkdir()
    (etc / "secret").write_text("a=root\n")
    (home / "own" / "file").write_text("a=own\n")
    for name, target in (("conf", etc / "secret"), ("folder", etc), ("mine", "own/file"), ("new", etc / "new")):
        (home / name).symlink_to(target)
    for path in (home, home / "own", home / "conf", home / "folder", home / "mine", home / "new"):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    (home / "roots").symlink_to(etc / "secret")
    return home


@pytest.mark.parametrize("path", ["conf", "folder/secret"])
def test_nobody_s_link_leads_root_nowhere(agent: AgentProcess, app_home: Path, path: str) -> None:
    way, secret = app_home / path, app_home.parent / "etc" / "secret"
    plain = app_home / "own" / "file"
    query = f"offset=0&total=4&sha256={sha(b'evil')}"
    assert agent.ask("POST", f"file/stage?{query}", b"evil").data["complete"] is True
    assert upload(agent, way, b"evil", owner="nobody").status == 409
    refused = [
        ("file", {"op": "upload", "dest": str(way), "sha256": sha(b"evil"), "owner": "nobody"}),
        ("file", {"op": "copy", "path": str(plain), "dest": str(way), "owner": "nobody"}),
        ("file", {"op": "copy", "path": str(way), "dest": str(app_home / "copy")}),
        ("file", {"op": "download", "path": str(way)}),
        ("config", {"op": "set", "path": str(way), "format": "properties", "key": "a", "value": "evil"}),
        ("config", {"op": "read", "path": str(way)}),
    ]
    if path != "conf":
        refused.append(("file", {"op": "delete", "path": str(way)}))
        refused.append(("file", {"op": "upload", "dest": str(app_home / "new"), "sha256": sha(b"evil")}))
    for kind, content in refused:
        found = agent.do(kind, content)
        assert found["status"] == "failed", content
        assert "link of another user" in found["error"], content
    assert agent.get(f"file/download?path={way}").code == 1003
    assert (secret.read_text(), secret.stat().st_uid) == ("a=root\n", 0)
    assert sorted(entry.name for entry in secret.parent.iterdir()) == ["secret"]
    assert not (app_home / "copy").exists()


def test_links_of_root_are_followed_and_others_only_to_read_their_own(agent: AgentProcess, app_home: Path) -> None:
    secret = app_home.parent / "etc" / "secret"
    assert agent.get(f"file/download?path={app_home}/mine").body == b"a=own\n"
    assert upload(agent, app_home / "mine", b"x").status == 409
    change = {"op": "set", "path": str(app_home / "roots"), "format": "properties", "key": "a", "value": "b"}
    assert agent.do("config", change)["status"] == "success"
    assert "b" in secret.read_text()
    assert upload(agent, app_home / "roots", b"new").data["complete"] is True
    assert agent.do("file", {"op": "copy", "path": str(app_home / "roots"), "dest": str(app_home / "copy")})[
        "status"
    ] == ("success")
    assert (secret.read_bytes(), (app_home / "copy").read_bytes()) == (b"new", b"new")
    assert (app_home / "roots").is_symlink()
    # Of a link the link is deleted, whoever it belongs to.
    for name in ("roots", "conf"):
        assert agent.do("file", {"op": "delete", "path": str(app_home / name)})["status"] == "success"
    assert secret.exists()


def test_a_copied_link_stays_whose_it_was(agent: AgentProcess, app_home: Path, tmp_path: Path) -> None:
    copy = {"op": "copy", "path": str(app_home), "dest": str(tmp_path / "copy"), "recursive": True}
    for _ in range(2):
        assert agent.do("file", copy)["status"] == "success"
    assert (tmp_path / "copy" / "conf").lstat().st_uid == 65534
    assert (tmp_path / "copy" / "roots").lstat().st_uid == 0
    assert upload(agent, tmp_path / "copy" / "conf", b"evil").status == 409
    assert {entry.name for entry in (tmp_path / "copy").iterdir()} == {entry.name for entry in app_home.iterdir()}


def test_what_is_inside_is_allowed(agent: AgentProcess, fenced: Path) -> None:
    assert agent.get(f"file/download?path={fenced}/plain").body == b"plain"
    assert (
        agent.do("file", {"op": "copy", "path": f"{fenced}/plain", "dest": f"{fenced}/deep/copy"})["status"]
        == "success"
    )
    # A link is deleted, not what it points to.
    assert agent.do("file", {"op": "delete", "path": f"{fenced}/link"})["status"] == "success"
    assert (fenced.parent / "outside" / "secret").exists()
    assert agent.do("file", {"op": "delete", "path": f"{fenced}/folder", "recursive": True})["status"] == "success"
    assert (fenced.parent / "outside" / "secret").exists()


def test_a_staged_file_is_put_in_its_place_by_a_task(agent: AgentProcess, tmp_path: Path) -> None:
    data, target = os.urandom(300_000), tmp_path / "target"
    for offset in range(0, len(data), 1 << 17):
        query = f"offset={offset}&total={len(data)}&sha256={sha(data)}"
        answer = agent.ask("POST", f"file/stage?{query}", data[offset : offset + (1 << 17)])
    assert answer.data["complete"] is True
    assert agent.get(f"file/upload?sha256={sha(data)}").data == {"next": len(data), "complete": True}
    content = {"op": "upload", "dest": str(target), "sha256": sha(data), "mode": "0600", "file_id": 7}
    assert agent.do("file", content)["status"] == "success"
    assert target.read_bytes() == data
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    missing = agent.do("file", {**content, "sha256": sha(b"x")})
    assert (missing["status"], missing["error_code"]) == ("failed", "task_failed")
    assert "was not brought" in missing["error"]


def test_a_download_task_lays_a_copy_ready_until_it_is_forgotten(agent: AgentProcess, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100_000)
    found = agent.do("file", {"op": "download", "path": str(source)}, id="load")
    assert sha(source.read_bytes()) in found["stdout"]
    source.unlink()
    assert agent.get("task/load/file").body == b"x" * 100_000
    assert agent.post("task/load/forget").status == 200
    assert agent.get("task/load/file").code == 1004


def test_trees_are_copied_and_deleted(agent: AgentProcess, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").write_text("deep")
    (tree / "link").symlink_to("a/b/file")
    (tree / "a" / "run").write_text("x")
    (tree / "a" / "run").chmod(0o755)
    copy = {"op": "copy", "path": str(tree), "dest": str(tmp_path / "copy")}
    assert "recursive" in agent.do("file", copy)["error"]
    assert agent.do("file", {**copy, "recursive": True})["status"] == "success"
    assert (tmp_path / "copy" / "link").read_text() == "deep"
    assert stat.S_IMODE((tmp_path / "copy" / "a" / "run").stat().st_mode) == 0o755
    assert "itself" in agent.do("file", {**copy, "dest": str(tree / "a" / "inner"), "recursive": True})["error"]
    delete = {"op": "delete", "path": str(tree)}
    assert agent.do("file", delete)["status"] == "failed"
    assert agent.do("file", {**delete, "recursive": True})["status"] == "success"
    assert not tree.exists()
    assert agent.do("file", delete)["status"] == "success"


def test_a_tree_that_is_not_wholly_allowed_is_not_touched(agent: AgentProcess, tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "file").write_text("x")
    agent.capabilities.write_text(f"allow: {{files: ['{tmp_path}/*', '{tmp_path}/tree/*']}}\n")
    found = agent.do("file", {"op": "delete", "path": str(tmp_path / "tree"), "recursive": True})
    assert found["error_code"] == "forbidden_by_host"
    assert (tmp_path / "tree" / "sub" / "file").exists()


def test_copy_checks_a_promised_hash(agent: AgentProcess, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    copy = {"op": "copy", "path": str(tmp_path / "a"), "dest": str(tmp_path / "b"), "sha256": sha(b"b")}
    assert agent.do("file", copy)["error_code"] == "task_failed"
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.is_file()) == ["a"]
    assert agent.do("file", {**copy, "sha256": sha(b"a"), "owner": "nobody", "mode": "0640"})["status"] == "success"
    assert (tmp_path / "b").owner() == "nobody"
