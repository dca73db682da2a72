"""Settings: where values come from and which wins, every problem at once, nothing secret in what is said about them."""

from pathlib import Path
from typing import Any

import pytest

from config import (
    Known,
    Settings,
    SettingsError,
    allowed_values,
    as_environment,
    known_settings,
    load_settings,
    parse_duration,
    parse_size,
    reachable,
    split_address,
)

CANARY = "c4nary-hunter2"


def problems_of(arguments: list[str] | None = None, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(arguments or [], environment or {})
    return caught.value.problems


def yaml(tmp_path: Path, text: str) -> str:
    path = tmp_path / "manager.yaml"
    path.write_text(text, "utf-8")
    return str(path)


def test_without_any_source_the_defaults_are_right() -> None:
    settings = load_settings([], {})
    assert settings.server.http.addr == "127.0.0.1:8080"
    assert settings.node.heartbeat_timeout == 90
    assert settings.database_url == f"sqlite:///{Path('var/ops.db').absolute()}"
    assert settings.redis_url == f"unix://{Path('var/run/redis.sock').absolute()}"
    assert settings.public_url == "http://127.0.0.1:8080"
    assert settings.gateway_url == "https://127.0.0.1:9443"


def test_the_command_line_wins_over_the_environment_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = yaml(
        tmp_path,
        "log: {level: error}\nmetrics: {retention_days: 11}\nnode: {heartbeat_timeout: 77s}\nui: {refresh_interval: 9}",
    )
    environment = {"OPS_CONFIG": path, "OPS_METRICS__RETENTION_DAYS": "22", "OPS_NODE__HEARTBEAT_TIMEOUT": "88s"}
    settings = load_settings(["--node.heartbeat_timeout", "99s"], environment)
    assert settings.node.heartbeat_timeout == 99
    assert settings.metrics.retention_days == 22
    assert settings.log.level == "error"
    assert settings.ui.refresh_interval == 9
    assert settings.audit.checkpoint_interval == 60


def test_a_file_named_on_the_command_line_replaces_the_one_of_the_environment(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("log: {level: error}")
    second.write_text("server.http.addr: ':81'")
    settings = load_settings([f"--config={second}"], {"OPS_CONFIG": str(first)})
    assert settings.log.level == "info"
    assert settings.server.http.addr == ":81"


@pytest.mark.parametrize("words", [["--log.level=debug"], ["--log.level", "debug"]])
def test_an_option_may_be_one_word_or_two(words: list[str]) -> None:
    assert load_settings(words, {}).log.level == "debug"


def test_all_problems_of_all_sources_are_told_at_once(tmp_path: Path) -> None:
    path = yaml(tmp_path, "metrics: {retention_days: 0}\nsurprise: 1\nserver: {http: {colour: red}}\nlog: 7")
    found = problems_of(
        ["--log.levl", "debug", "--node.heartbeat_interval=9s"],
        {"OPS_CONFIG": path, "OPS_TLS__ENABLED": "perhaps", "OPS_DATABASE__PROT": "1", "OPS_DATABASE_HOST": "db"},
    )
    expected = [
        "--log.levl: not an option",
        "surprise: no such setting",
        "server.http.colour: no such setting",
        "log: expected named settings",
        "OPS_DATABASE__PROT: no such setting",
        "OPS_DATABASE_HOST: no such setting; OPS_DATABASE__HOST is meant",
        "metrics.retention_days: input should be greater than or equal to 1, got 0",
        "node.heartbeat_interval: input should be greater than or equal to 10, got 9",
        "tls.enabled: input should be a valid boolean",
    ]
    for start in expected:
        assert [line for line in found if line.startswith(start)], (start, found)
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"OPS_TLS__ENABLED": "true"}, "tls.cert_file, tls.key_file: needed"),
        ({"OPS_DATABASE_URL": "postgresql://x/y"}, "database.url: expected sqlite:///"),
        ({"OPS_DATABASE_URL": "sqlite:///:memory:"}, "database.url: expected sqlite:///"),
        ({"OPS_REDIS_URL": "http://x"}, "redis.url: expected redis://"),
        ({"OPS_AUTH__SESSION_IDLE": "8d"}, "auth.session_idle: at most auth.session_ttl"),
        ({"OPS_DATABASE__MAX_IDLE_CONNS": "50"}, "database.max_idle_conns: at most database.max_open_conns"),
        (
            {"OPS_SERVER__HTTP__TRUSTED_PROXIES": "10.0.0.0/8, 10.0.0.0/33"},
            "server.http.trusted_proxies: expected addr",
        ),
        ({"OPS_SERVER__METRICS_ALLOW": "everybody"}, "server.metrics_allow: expected addr"),
        ({"OPS_SERVER__CORS_ORIGINS": "https://a.example/path"}, "server.cors_origins: expected origins"),
        ({"OPS_SERVER__CORS_ORIGINS": "*"}, "server.cors_origins: expected origins"),
        ({"OPS_SERVER__PUBLIC_URL": "ops.example.org"}, "server.public_url: expected http"),
        ({"OPS_UI__TIMEZONE": "Mars/Olympus"}, "ui.timezone: expected a time zone"),
        ({"OPS_WEB_PORT": "http"}, "server.http.addr: expected host:port"),
        ({"OPS_WEB_PORT": "65536"}, "server.http.addr: expected host:port"),
        ({"OPS_WEB_PORT": "８０８０"}, "server.http.addr: expected host:port"),
        ({"OPS_WEB_HOST": "http://x"}, "server.http.addr: expected host:port"),
        ({"OPS_METRICS__RETENTION_DAYS": "9" * 5000}, "metrics.retention_days: "),
        ({"OPS_DATABASE__CONN_MAX_LIFETIME": "9" * 5000}, "database.conn_max_lifetime: expected a duration"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(environment: dict[str, str], problem: str) -> None:
    (found,) = problems_of(environment=environment)
    assert found.startswith(problem)


def test_a_file_that_is_missing_broken_or_not_text_is_one_clear_line(tmp_path: Path) -> None:
    (found,) = problems_of(["--config", str(tmp_path / "none.yaml")])
    assert found == f"{tmp_path / 'none.yaml'}: No such file or directory"
    path = yaml(tmp_path, "server:\n  http: [")
    assert problems_of(["--config", path])[0].startswith(f"{path}: not YAML, line ")
    path = yaml(tmp_path, "just words")
    assert problems_of(["--config", path]) == ["the settings file: expected named settings below it"]
    Path(path).write_bytes(b"log: \xff")
    assert problems_of(["--config", path]) == [f"{path}: not UTF-8"]
    Path(path).write_text("")
    assert load_settings(["--config", path], {}) == load_settings([], {})


def test_an_option_without_a_value_or_without_dashes_is_told_of() -> None:
    found = problems_of(["stray", "--log.level", "--log.format", "text", "--log.output"])
    assert [line.partition(":")[0] for line in found] == ["argument 1", "--log.level", "--log.output"]


@pytest.mark.parametrize(
    ("variables", "key", "value"),
    [
        ({"OPS_DATA_DIR": "/srv/ops"}, "data_dir", "/srv/ops"),
        ({"OPS_WEB_HOST": "0.0.0.0"}, "server.http.addr", "0.0.0.0:8080"),
        ({"OPS_WEB_PORT": "8081"}, "server.http.addr", "127.0.0.1:8081"),
        ({"OPS_WEB_HOST": "::1", "OPS_WEB_PORT": "8081"}, "server.http.addr", "[::1]:8081"),
        ({"OPS_GATEWAY_HOST": "0.0.0.0", "OPS_GATEWAY_PORT": "444"}, "server.gateway.addr", "0.0.0.0:444"),
        ({"OPS_PUBLIC_URL": "https://ops.example.org/"}, "server.public_url", "https://ops.example.org"),
        ({"OPS_GATEWAY_URL": "https://gw.example.org:9443"}, "server.gateway_url", "https://gw.example.org:9443"),
        ({"OPS_DATABASE_URL": "mysql://u:p@h/d"}, "database.url", "mysql://u:p@h/d"),
        ({"OPS_REDIS_URL": "redis://h:6379/1"}, "redis.url", "redis://h:6379/1"),
    ],
)
def test_the_short_variables_of_the_contract_work(variables: dict[str, str], key: str, value: str) -> None:
    found: object = load_settings([], variables)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_other_programs_variables_are_left_alone() -> None:
    names = ("OPS_ADMIN_PASSWORD", "OPS_DAEMON__LINK__URL", "OPS_AGENT__ADDR", "OPS_PARAM_NAME", "OPS_SOMETHING_ELSE")
    assert load_settings([], dict.fromkeys(names, "x")) == load_settings([], {})


@pytest.mark.parametrize("item", known_settings(), ids=lambda item: item.key)
def test_every_setting_can_be_given_by_its_variable(item: Known) -> None:
    default = item.info.default
    text = ",".join(default) if isinstance(default, list) else str(default)
    if item.is_secret:
        text = {"database.url": "mysql://h/d", "redis.url": "redis://h"}.get(item.key, "secret")
    branch: Any = load_settings([], {item.variable: text})
    *sections, name = item.key.split(".")
    for section in sections:
        branch = getattr(branch, section)
    assert name in branch.model_fields_set
    assert not (item.is_secret and item.is_runtime)


def test_a_secret_may_lie_in_a_file_named_by_any_source(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{CANARY}\n")
    path = yaml(tmp_path, f"auth: {{jwt: {{access_secret_file: {tmp_path / 'secret'}}}}}")
    settings = load_settings(
        ["--auth.jwt.refresh_secret_file", str(tmp_path / "secret")],
        {"OPS_CONFIG": path, "OPS_DATABASE__PASSWORD_FILE": str(tmp_path / "secret")},
    )
    assert settings.auth.jwt.access_secret == settings.auth.jwt.refresh_secret == settings.database.password == CANARY
    (tmp_path / "secret").write_text("redis://from-file:1/0\n")
    assert load_settings([], {"OPS_REDIS_URL_FILE": str(tmp_path / "secret")}).redis_url == "redis://from-file:1/0"


def test_a_secrets_file_of_a_stronger_source_wins_over_a_secret_of_a_weaker_one(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from-the-file")
    path = yaml(tmp_path, "database: {password: from-yaml}")
    environment = {"OPS_CONFIG": path, "OPS_DATABASE__PASSWORD_FILE": str(tmp_path / "secret")}
    assert load_settings([], environment).database.password == "from-the-file"
    assert load_settings(["--database.password=typed"], environment).database.password == "typed"


def test_a_secret_and_its_file_at_once_are_a_contradiction(tmp_path: Path) -> None:
    environment = {"OPS_DATABASE__PASSWORD": CANARY, "OPS_DATABASE__PASSWORD_FILE": str(tmp_path / "x")}
    assert problems_of(environment=environment) == [
        "database.password, database.password_file: only one of them can be given"
    ]


def test_only_secrets_may_lie_in_files_of_their_own() -> None:
    assert problems_of(environment={"OPS_LOG__LEVEL_FILE": "/x"}) == ["OPS_LOG__LEVEL_FILE: no such setting"]


def test_a_secrets_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (found,) = problems_of(environment={"OPS_DATABASE__PASSWORD_FILE": str(tmp_path / "none")})
    assert found == f"database.password_file: cannot read {tmp_path / 'none'}: No such file or directory"


@pytest.mark.parametrize(
    ("arguments", "environment", "text"),
    [
        ([f"--database.pasword={CANARY}"], {}, ""),
        (["--database.pasword", CANARY], {}, ""),
        ([CANARY], {}, ""),
        (["--database.password", CANARY, CANARY], {}, ""),
        (["--database.port=x"], {"OPS_DATABASE__PASSWORD": CANARY}, ""),
        ([], {"OPS_DATABASE_URL": f"postgresql://u:{CANARY}@h/d"}, ""),
        ([], {"OPS_REDIS_URL": f"http://:{CANARY}@h"}, ""),
        ([], {}, f"database: mysql://u:{CANARY}@h/d"),
        ([], {}, f"database: {{password: {CANARY}, password: {CANARY}2}}"),
        ([], {}, f"database: {{password: [{CANARY}]}}"),
        ([], {}, f"database: {{password: {{a: {CANARY}}}}}"),
        ([], {}, f"password: {CANARY}: {CANARY}"),
        ([], {}, f"database:\n\tpassword: {CANARY}"),
        ([], {}, f"database: !!python/object/apply:os.system [{CANARY}]"),
    ],
)
def test_no_problem_ever_shows_a_secret(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], text: str
) -> None:
    given = environment | ({"OPS_CONFIG": yaml(tmp_path, text)} if text else {})
    with pytest.raises(SettingsError) as caught:
        load_settings(arguments, given)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_command_line_reaches_child_processes_as_variables(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from-file")
    path = yaml(tmp_path, "log: {level: error}")
    arguments = ["--config", path, "--server.http.addr=:81", f"--database.password_file={tmp_path / 'secret'}"]
    environment = {"OPS_WEB_PORT": "9000", "OPS_DATABASE__PASSWORD": "weaker", "OPS_REDIS_URL": "redis://h/0"}
    child = load_settings([], environment | as_environment(arguments))
    assert child == load_settings(arguments, environment)
    assert (child.database.password, child.server.http.addr, child.log.level) == ("from-file", ":81", "error")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1.5m", 90), ("2h", 7200), ("7d", 604800), ("250ms", 0.25), (" 10 ", 10), (3, 3), (0.5, 0.5)],
)
def test_durations_have_units(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "fast", "-5s", "5 fortnights", True, None, float("nan"), float("inf"), 10**400, "9" * 400]
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(text)


def test_sizes_have_units() -> None:
    assert [parse_size(text) for text in ("10MB", "64KiB", "1GiB", "7", 8)] == [10**7, 65536, 2**30, 7, 8]
    for text in ("", "1.5MB", "10 XB", True, None):
        with pytest.raises(ValueError, match="expected a size"):
            parse_size(text)


def test_addresses_are_split_and_made_reachable() -> None:
    assert split_address(":8080") == ("0.0.0.0", 8080)
    assert split_address("[::1]:8080") == ("::1", 8080)
    assert [reachable(address) for address in (":80", "0.0.0.0:80", "[::]:80", "10.1.2.3:80")] == [
        "127.0.0.1:80",
        "127.0.0.1:80",
        "127.0.0.1:80",
        "10.1.2.3:80",
    ]


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({"OPS_DATABASE_URL": "mariadb://u:p@h/d"}, "mysql+pymysql://u:p@h/d"),
        ({"OPS_DATABASE_URL": "mysql+mysqldb://u:p@h/d?x=1"}, "mysql+pymysql://u:p@h/d?x=1"),
        ({"OPS_DATABASE_URL": "sqlite:////abs/x.db"}, "sqlite:////abs/x.db"),
        ({"OPS_DATABASE_URL": "sqlite:///rel/x.db"}, f"sqlite:///{Path('rel/x.db').absolute()}"),
        (
            {"OPS_DATABASE__DRIVER": "mysql", "OPS_DATABASE__PASSWORD": "p@ss/w:rd%", "OPS_DATABASE__HOST": "::1"},
            "mysql+pymysql://manager:p%40ss%2Fw%3Ard%25@[::1]:3306/ops_scaffold?charset=utf8mb4",
        ),
    ],
)
def test_every_spelling_of_a_database_becomes_a_url_that_we_support(environment: dict[str, str], url: str) -> None:
    assert load_settings([], environment).database_url == url


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, f"unix://{Path('var/run/redis.sock').absolute()}"),
        ({"OPS_REDIS__HOST": "cache"}, "redis://cache:6379/0"),
        ({"OPS_REDIS__HOST": "::1", "OPS_REDIS__PORT": "1"}, "redis://[::1]:1/0"),
        (
            {"OPS_REDIS__HOST": "cache", "OPS_REDIS__PASSWORD": "p@ss/w", "OPS_REDIS__DB": "2"},
            "redis://:p%40ss%2Fw@cache:6379/2",
        ),
        ({"OPS_REDIS__HOST": "cache", "OPS_REDIS_URL": "rediss://other:1/0"}, "rediss://other:1/0"),
    ],
)
def test_redis_may_be_named_by_its_parts(environment: dict[str, str], url: str) -> None:
    assert load_settings([], environment).redis_url == url
    assert problems_of(environment=environment | {"OPS_REDIS__PORT": "x", "OPS_REDIS__PASSWORD": CANARY})[0].startswith(
        "redis.port: input should be a valid integer"
    )


def test_settings_are_frozen_and_say_what_they_allow() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings([], {}).data_dir = "x"  # type: ignore[misc]
    words = {item.key: allowed_values(item) for item in known_settings(Settings)}
    assert words["log.level"] == "debug or info or warning or error"
    assert words["node.heartbeat_interval"] == "10 – 300"
    assert words["server.http.max_body"] == "at least 1,024"
    assert words["tls.enabled"] == "true or false"
    assert words["database.host"] == ""
