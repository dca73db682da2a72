"""Keys on disk: made once, private, shared between Managers, and the box that seals what lies in the database."""

import datetime as dt
import json
import multiprocessing
import os
import socket
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from app.kernel import pki, secrets
from app.kernel.secrets import KeysError, SealError, SecretBox, create_missing_keys, load_keys
from config import Settings, load_settings

ALL = {
    "form.key", "jwt-access.key", "jwt-refresh.key", "encryption.json", "audit.pem", "ca.key", "ca.pem",
    "gateway.key",
}  # fmt: skip


def settings_for(directory: Path, **environment: str) -> Settings:
    return load_settings([], {"OPS_DATA_DIR": str(directory), **environment})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "data").mkdir()
    return settings_for(tmp_path / "data")


@pytest.fixture
def box(settings: Settings) -> SecretBox:
    create_missing_keys(settings)
    return load_keys(settings).box


def test_the_first_start_makes_every_key_for_our_eyes_only(settings):
    assert set(create_missing_keys(settings)) == ALL
    assert stat.S_IMODE(settings.keys_path.stat().st_mode) == 0o700
    for name in ALL:
        assert stat.S_IMODE((settings.keys_path / name).stat().st_mode) == 0o600, name


def test_modes_do_not_depend_on_the_umask(settings):
    before = os.umask(0)
    try:
        create_missing_keys(settings)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in settings.keys_path.iterdir()} == {0o600}


def test_a_directory_of_ours_that_others_can_read_is_closed(settings):
    settings.keys_path.mkdir(mode=0o755)
    settings.keys_path.chmod(0o755)
    create_missing_keys(settings)
    assert stat.S_IMODE(settings.keys_path.stat().st_mode) == 0o700


def test_the_next_start_keeps_them(settings):
    create_missing_keys(settings)
    before = {path.name: path.read_bytes() for path in settings.keys_path.iterdir()}
    assert create_missing_keys(settings) == []
    assert {path.name: path.read_bytes() for path in settings.keys_path.iterdir()} == before


def test_no_half_written_file_stays_behind(settings, monkeypatch):
    def broken(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="No space"):
        create_missing_keys(settings)
    assert [path.name for path in settings.keys_path.iterdir()] == [".lock"]


def test_file_and_directory_are_synced(settings, monkeypatch):
    """After a power cut a key that encrypted something must still be there."""
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(stat.S_ISDIR(os.fstat(fd).st_mode)), real(fd)))
    create_missing_keys(settings)
    assert synced == [False, True] * len(ALL)


def test_an_authority_whose_certificate_got_lost_keeps_its_key(settings):
    create_missing_keys(settings)
    before = load_keys(settings).authority
    (settings.keys_path / "ca.pem").unlink()
    assert create_missing_keys(settings) == ["ca.pem"]
    assert load_keys(settings).authority.key.public_key() == before.key.public_key()


def test_a_second_manager_refuses_to_make_keys_and_names_each_that_is_missing(settings):
    create_missing_keys(settings)
    for name in ("audit.pem", "ca.key"):
        (settings.keys_path / name).unlink()
    second = settings_for(settings.data_path, OPS_KEYS__REQUIRED="true")
    with pytest.raises(KeysError) as caught:
        create_missing_keys(second)
    assert caught.value.problems == [f"{settings.keys_path / name} is missing" for name in ("audit.pem", "ca.key")]
    assert not (settings.keys_path / "ca.key").exists()


def test_a_second_manager_with_all_keys_writes_nothing(settings, monkeypatch):
    create_missing_keys(settings)
    monkeypatch.setattr(os, "open", None)
    assert create_missing_keys(settings_for(settings.data_path, OPS_KEYS__REQUIRED="true")) == []


def test_keys_may_lie_elsewhere(tmp_path):
    settings = settings_for(tmp_path / "data", OPS_KEYS__DIR=str(tmp_path / "shared"))
    create_missing_keys(settings)
    assert {path.name for path in (tmp_path / "shared").iterdir()} == ALL | {".lock"}


def test_loading_names_every_missing_file(settings):
    with pytest.raises(KeysError) as caught:
        load_keys(settings)
    assert {line.split("/")[-1] for line in caught.value.problems} == {f"{name} is missing" for name in ALL}


@pytest.mark.parametrize("name", sorted(ALL))
def test_loading_names_a_broken_file(settings, name):
    create_missing_keys(settings)
    (settings.keys_path / name).write_bytes(b"x")
    with pytest.raises(KeysError, match=f"{name} cannot be read"):
        load_keys(settings)


def test_a_certificate_of_another_authority_is_noticed(settings):
    create_missing_keys(settings)
    (settings.keys_path / "ca.pem").write_bytes(pki.to_pem(pki.create_authority().certificate))
    with pytest.raises(KeysError, match=r"ca\.pem does not belong to ca\.key"):
        load_keys(settings)


def test_every_key_is_different(settings):
    create_missing_keys(settings)
    keys = load_keys(settings)
    assert len({keys.form, keys.jwt_access, keys.jwt_refresh, keys.audit_seal}) == 4
    assert min(len(keys.form), len(keys.jwt_access), len(keys.jwt_refresh)) >= 32


def test_the_seal_of_the_audit_log_follows_from_its_key(settings):
    create_missing_keys(settings)
    assert load_keys(settings).audit_seal == load_keys(settings).audit_seal


def test_secrets_from_the_settings_replace_files(tmp_path):
    given = {"OPS_AUTH__JWT__ACCESS_SECRET": "a" * 32, "OPS_AUTH__JWT__REFRESH_SECRET": "b" * 40}
    settings = settings_for(tmp_path, **given)
    assert set(create_missing_keys(settings)) == ALL - {"jwt-access.key", "jwt-refresh.key"}
    keys = load_keys(settings)
    assert (keys.jwt_access, keys.jwt_refresh) == (b"a" * 32, b"b" * 40)


def test_short_secrets_from_the_settings_are_refused_without_being_shown(tmp_path):
    settings = settings_for(tmp_path, OPS_AUTH__JWT__ACCESS_SECRET="hunter2")
    create_missing_keys(settings)
    with pytest.raises(KeysError) as caught:
        load_keys(settings)
    assert caught.value.problems == ["auth.jwt.access_secret: at least 32 characters"]


def test_keys_do_not_show_in_logs(settings):
    create_missing_keys(settings)
    keys = load_keys(settings)
    assert repr(keys) == "Keys()"


def make_keys(data: str, made: "multiprocessing.Queue[list[str]]") -> None:
    made.put(create_missing_keys(settings_for(Path(data))))


def test_two_managers_that_start_at_once_make_one_set_of_keys(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=make_keys, args=(str(tmp_path), queue)) for _ in range(4)]
    for child in children:
        child.start()
    made = [name for _ in children for name in queue.get(timeout=60)]
    for child in children:
        child.join(60)
    assert sorted(made) == sorted(ALL)
    load_keys(settings_for(tmp_path))


def test_what_is_sealed_can_be_opened(box):
    assert box.decrypt(box.encrypt(b"hunter2", "totp:7"), "totp:7") == b"hunter2"
    assert box.decrypt(box.encrypt(b"", "x"), "x") == b""


def test_the_same_secret_never_looks_the_same(box):
    assert box.encrypt(b"hunter2", "a") != box.encrypt(b"hunter2", "a")
    assert "hunter2" not in box.encrypt(b"hunter2", "a")


def test_a_secret_moved_to_another_row_stays_shut(box):
    sealed = box.encrypt(b"hunter2", "totp:7")
    with pytest.raises(SealError):
        box.decrypt(sealed, "totp:8")


@pytest.mark.parametrize(
    "change", [lambda s: s[:-2], lambda s: s + "AA", lambda s: "", lambda s: s.split(".")[0], lambda s: "x." + s]
)
def test_a_changed_secret_stays_shut(box, change):
    with pytest.raises(SealError):
        box.decrypt(change(box.encrypt(b"hunter2", "a")), "a")


def test_one_flipped_bit_is_noticed_anywhere(box):
    identifier, _, body = box.encrypt(b"hunter2", "a").partition(".")
    for position in range(len(body) - 1):
        flipped = "A" if body[position] != "A" else "B"
        with pytest.raises(SealError):
            box.decrypt(f"{identifier}.{body[:position]}{flipped}{body[position + 1 :]}", "a")


def test_a_new_key_encrypts_and_the_old_one_still_opens(box):
    old = box.encrypt(b"hunter2", "a")
    assert box.is_current(old)
    box.rotate()
    new = box.encrypt(b"hunter2", "a")
    assert not box.is_current(old)
    assert box.is_current(new)
    assert box.decrypt(old, "a") == box.decrypt(new, "a") == b"hunter2"


def test_other_processes_learn_of_a_new_key_when_they_meet_it(settings):
    create_missing_keys(settings)
    one, other = load_keys(settings).box, load_keys(settings).box
    one.rotate()
    assert other.decrypt(one.encrypt(b"hunter2", "a"), "a") == b"hunter2"


def test_a_rotated_ring_stays_private_and_keeps_every_key(settings, box):
    box.rotate()
    path = settings.keys_path / "encryption.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(json.loads(path.read_text())["keys"]) == 2


NOW = dt.datetime(2026, 5, 4, tzinfo=dt.UTC)


@pytest.fixture
def authority(settings: Settings) -> pki.Authority:
    create_missing_keys(settings)
    return pki.create_authority(at=NOW)


def gateway_certificate(settings: Settings) -> x509.Certificate:
    return x509.load_pem_x509_certificate(secrets.gateway_certificate_path(settings).read_bytes())


def test_the_gateway_is_named_as_everybody_may_call_it(tmp_path, authority):
    given = {"OPS_GATEWAY_URL": "https://Ops.Example:9443", "OPS_SERVER__GATEWAY__NAMES": "10.0.0.5, ops2.example"}
    settings = settings_for(tmp_path, **given)
    create_missing_keys(settings)
    assert secrets.renew_gateway_certificate(settings, authority, NOW)
    expected = {"ops.example", "10.0.0.5", "ops2.example", "localhost", "127.0.0.1", "::1"}
    expected.add(socket.gethostname().lower())
    assert pki.server_names(gateway_certificate(settings)) == expected


def test_key_and_certificate_are_one_private_file(settings, authority):
    secrets.renew_gateway_certificate(settings, authority, NOW)
    path = secrets.gateway_certificate_path(settings)
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    assert key.public_key() == gateway_certificate(settings).public_key()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_good_certificate_is_kept(settings, authority):
    assert secrets.renew_gateway_certificate(settings, authority, NOW)
    assert not secrets.renew_gateway_certificate(settings, authority, NOW + dt.timedelta(days=400))


def test_a_certificate_is_renewed_when_less_than_a_third_of_its_life_is_left(settings, authority):
    secrets.renew_gateway_certificate(settings, authority, NOW)
    later = NOW + dt.timedelta(days=490)
    assert secrets.renew_gateway_certificate(settings, authority, later)
    assert gateway_certificate(settings).not_valid_after_utc == later + dt.timedelta(days=730)


def test_the_key_that_hosts_know_the_gateway_by_survives_renewals(settings, authority):
    secrets.renew_gateway_certificate(settings, authority, NOW)
    before = gateway_certificate(settings).public_key()
    assert secrets.renew_gateway_certificate(settings, authority, NOW + dt.timedelta(days=490))
    assert gateway_certificate(settings).public_key() == before


def test_a_certificate_is_renewed_when_names_change(settings, authority):
    secrets.renew_gateway_certificate(settings, authority, NOW)
    renamed = settings_for(settings.data_path, OPS_GATEWAY_URL="https://new.example:9443")
    assert secrets.renew_gateway_certificate(renamed, authority, NOW)
    assert "new.example" in pki.server_names(gateway_certificate(settings))


def test_a_certificate_of_another_authority_is_replaced(settings, authority):
    secrets.renew_gateway_certificate(settings, pki.create_authority(at=NOW), NOW)
    assert secrets.renew_gateway_certificate(settings, authority, NOW)
    gateway_certificate(settings).verify_directly_issued_by(authority.certificate)


def test_a_certificate_for_another_key_is_replaced(settings, authority):
    """Several Managers share one key: hosts know us by it."""
    secrets.renew_gateway_certificate(settings, authority, NOW)
    key = pki.create_key()
    (settings.keys_path / "gateway.key").write_bytes(pki.to_pem(key))
    assert secrets.renew_gateway_certificate(settings, authority, NOW)
    assert gateway_certificate(settings).public_key() == key.public_key()


def test_a_file_whose_halves_do_not_match_is_replaced(settings, authority):
    secrets.renew_gateway_certificate(settings, authority, NOW)
    path = secrets.gateway_certificate_path(settings)
    path.write_bytes(pki.to_pem(pki.create_key()) + pki.to_pem(gateway_certificate(settings)))
    assert secrets.renew_gateway_certificate(settings, authority, NOW)


def test_a_broken_certificate_is_replaced(settings, authority):
    secrets.gateway_certificate_path(settings).write_bytes(b"x")
    assert secrets.renew_gateway_certificate(settings, authority, NOW)


def test_a_name_that_cannot_be_one_is_refused_with_its_setting(tmp_path):
    with pytest.raises(KeysError, match=r"server\.gateway\.names"):
        secrets.gateway_names(settings_for(tmp_path, OPS_SERVER__GATEWAY__NAMES="ä" * 80))
