"""Every setting of the Manager: its name, type, default, help text and whether it may change at run time.

Values come from the command line, then `OPS_…` variables, then a YAML file, then the defaults below. All problems are
reported together. Reading settings is all this module does: nobody is told about them, nothing is opened.
"""

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin
from urllib.parse import quote
from zoneinfo import available_timezones

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d)?")
UNIT_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, None: 1}
LONGEST_S = 1e10
EVERY_INTERFACE = "0.0.0.0"  # noqa: S104  # nosec B104: what leaving the host out means
LOOPBACK = ["127.0.0.1", "::1"]
SIZE = re.compile(r"(\d+)\s*(B|kB|KB|MB|GB|KiB|MiB|GiB)?")
UNIT_BYTES = {
    None: 1,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}


def parse_duration(value: object) -> float:
    """`90s`, `2h`, `1.5 m` or plain seconds, as seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LONGEST_S:
        return float(value)
    match = DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    seconds = float(match[1]) * UNIT_SECONDS[match[2]] if match else LONGEST_S
    if seconds >= LONGEST_S:
        raise ValueError("expected a duration such as 90s, 30m, 2h or 7d")
    return seconds


def parse_size(value: object) -> int:
    """`10MB`, `64KiB` or plain bytes, as bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("expected a size such as 512kB, 10MB or 1GiB")
    return int(match[1]) * UNIT_BYTES[match[2]]


def parse_list(value: object) -> object:
    """A list may be written as one comma-separated string, which is all an environment variable can hold."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def check_address(value: str) -> str:
    if value.startswith("/"):
        return value
    host, _, port = value.rpartition(":")
    is_port = re.fullmatch(r"[0-9]{1,5}", port) is not None and int(port) <= 65535
    if not is_port or not re.fullmatch(r"[\w.-]*|\[[0-9A-Fa-f:.%\w]+\]", host):
        raise ValueError("expected host:port such as 127.0.0.1:8080, :8080 for every interface, or a socket's path")
    return value


def check_networks(values: list[str]) -> list[str]:
    """Addresses and networks; `local` is whoever comes through a Unix socket."""
    for value in values:
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError:
            if value != "local":
                raise ValueError("expected addresses or networks such as 10.0.0.7 or 10.0.0.0/8") from None
    return values


def check_origins(values: list[str]) -> list[str]:
    if not all(re.fullmatch(r"https?://[^\s/?#@*]+", value) for value in values):
        raise ValueError("expected origins such as https://panel.example.org, without a path")
    return [value.lower() for value in values]


def check_url(value: str) -> str:
    if value and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", value):
        raise ValueError("expected http://host[:port] or https://host[:port]")
    return value.rstrip("/")


@cache
def known_time_zones() -> list[str]:
    """By name, without the legacy aliases that hang on no place."""
    return [*sorted(name for name in available_timezones() if "/" in name and not name.startswith("Etc/")), "UTC"]


def check_time_zone(value: str) -> str:
    if value not in known_time_zones():
        raise ValueError("expected a time zone such as UTC, Europe/Berlin or Asia/Shanghai")
    return value


Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
Strings = Annotated[list[str], BeforeValidator(parse_list)]
Networks = Annotated[list[str], BeforeValidator(parse_list), AfterValidator(check_networks)]
Origins = Annotated[list[str], BeforeValidator(parse_list), AfterValidator(check_origins)]
Address = Annotated[str, AfterValidator(check_address)]
Url = Annotated[str, AfterValidator(check_url)]
TimeZone = Annotated[str, AfterValidator(check_time_zone)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def setting(default: Any, meaning: str, *, runtime: bool = False, secret: bool = False, **bounds: Any) -> Any:
    """One setting. `runtime`: stands on the settings page. `secret`: may come from `*_FILE` and is never shown."""
    return Field(default, description=meaning, json_schema_extra={"runtime": runtime, "secret": secret}, **bounds)


class Http(Section):
    addr: Address = setting("127.0.0.1:8080", "Where the web pages and the API listen.")
    read_timeout: Duration = setting("30s", "How long a request's head and body may take to arrive.", gt=0, le=3600)
    write_timeout: Duration = setting("30s", "How long an ordinary answer may take to be sent.", gt=0, le=3600)
    max_body: Size = setting("10MB", "Largest request body; uploads of packages have their own limit.", ge=1024)
    trusted_proxies: Networks = setting(
        [], "Addresses or networks of proxies whose X-Forwarded-For, -Proto and -Host are believed."
    )


class Gateway(Section):
    addr: Address = setting("127.0.0.1:9443", "Where Daemons connect.")
    names: Strings = setting([], "Further host names or addresses that the gateway's certificate is valid for.")
    handshake_timeout: Duration = setting("10s", "How long a TLS handshake may take.", gt=0, le=300)
    max_connections: int = setting(12000, "Connections held at once.", ge=10, le=1_000_000)
    proxy_certificate: str = setting("", "The certificate (PEM) of the proxy in front, if it is not ours.")
    behind_proxy: bool = setting(
        False, "TLS ends at a proxy, which hands over the verified certificate; then addr is a Unix socket's path."
    )


class RateLimit(Section):
    per_user: int = setting(6000, "API requests a minute for one user or token.", runtime=True, ge=10, le=10_000_000)
    per_address: int = setting(12000, "API requests a minute from one address.", runtime=True, ge=10, le=10_000_000)
    anonymous: int = setting(
        600, "Requests a minute from one address without a valid sign-in.", runtime=True, ge=10, le=10_000_000
    )


class Server(Section):
    http: Http = Http()
    gateway: Gateway = Gateway()
    rate_limit: RateLimit = RateLimit()
    public_url: Url = setting("", "What people's browsers call; empty: http://<server.http.addr>.")
    gateway_url: Url = setting("", "What Daemons call; empty: https://<server.gateway.addr>.")
    cors_origins: Origins = setting([], "Origins that may call the API from a browser; empty: none.")
    workers: int = setting(1, "Web processes.", ge=1, le=64)
    gateway_workers: int = setting(1, "Gateway processes.", ge=1, le=64)
    job_workers: int = setting(1, "Processes that run background jobs.", ge=1, le=64)
    metrics_allow: Networks = setting(LOOPBACK, "Addresses or networks that may read /metrics without a token.")
    development: bool = setting(False, "Shows the style page at /styleguide.")


class Database(Section):
    driver: Literal["sqlite", "mysql"] = setting(
        "sqlite", "sqlite (a file in the data directory) or mysql (MySQL 8 or MariaDB)."
    )
    url: str = setting("", "A whole URL, instead of the parts below: mysql+pymysql://… or sqlite:///….", secret=True)
    host: str = setting("localhost", "Host of the database.")
    port: int = setting(3306, "Port of the database.", ge=1, le=65535)
    user: str = setting("manager", "User at the database.")
    password: str = setting("", "Password at the database.", secret=True)
    name: str = setting("ops_scaffold", "Name of the database.")
    max_open_conns: int = setting(40, "Connections of one process at the most.", ge=2, le=1000)
    max_idle_conns: int = setting(10, "Connections that a process keeps.", ge=1, le=1000)
    conn_max_lifetime: Duration = setting("1h", "Age at which a connection is replaced.", ge=1)
    answer_timeout: Duration = setting(
        "30s", "How long one answer may take before the database counts as away.", ge=1, le=3600
    )


class Redis(Section):
    url: str = setting(
        "",
        "redis://…, rediss://… or unix://…; without it and without a host: an embedded Redis of our own.",
        secret=True,
    )
    host: str = setting("", "Host of Redis, with the parts below instead of a URL.")
    port: int = setting(6379, "Port of Redis.", ge=1, le=65535)
    password: str = setting("", "Password at Redis.", secret=True)
    db: int = setting(0, "Number of the database in Redis.", ge=0, le=1000)

    @model_validator(mode="before")
    @classmethod
    def _url_of_parts(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("url") or not given.get("host"):
            return given
        host, account = str(given["host"]), f":{quote(str(given.get('password', '')), '')}@"
        address = f"{f'[{host}]' if ':' in host else host}:{given.get('port', 6379)}"
        return given | {"url": f"redis://{account if given.get('password') else ''}{address}/{given.get('db', 0)}"}


class Jwt(Section):
    access_secret: str = setting("", "Key that signs access tokens; empty: made at first start.", secret=True)
    refresh_secret: str = setting("", "Key that signs refresh tokens; empty: made at first start.", secret=True)
    access_ttl: Duration = setting("2h", "Life of an access token.", runtime=True, ge=60, le=86400)
    refresh_ttl: Duration = setting("7d", "Life of a refresh token.", runtime=True, ge=300, le=86400 * 365)


class Auth(Section):
    jwt: Jwt = Jwt()
    session_idle: Duration = setting(
        "12h", "A browser session ends after this much idleness.", runtime=True, ge=60, le=86400 * 30
    )
    session_ttl: Duration = setting(
        "7d", "A browser session ends after this in any case.", runtime=True, ge=300, le=86400 * 90
    )
    password_min_length: int = setting(8, "Shortest password that is accepted.", runtime=True, ge=8, le=128)
    attempts_per_account: int = setting(
        5, "Failed sign-ins for one name from one address before it has to wait.", runtime=True, ge=1, le=1000
    )
    attempts_per_address: int = setting(
        50, "Failed sign-ins from one address in 15 minutes before it has to wait.", runtime=True, ge=1, le=100_000
    )


class Tls(Section):
    enabled: bool = setting(False, "TLS on the web port itself (else a proxy does it).")
    cert_file: str = setting("", "Certificate chain of the web port, PEM.")
    key_file: str = setting("", "Key of the web port, PEM.")


class Keys(Section):
    dir: str = setting(
        "", "Directory of the CA, signing and encryption keys; empty: <data_dir>/keys. Several Managers share it."
    )
    required: bool = setting(False, "Refuse to start when a key is missing instead of making it (second Manager).")


class Node(Section):
    heartbeat_interval: Duration = setting("60s", "How often a Daemon checks in.", runtime=True, ge=10, le=300)
    heartbeat_timeout: Duration = setting(
        "90s", "Silence after which a node is offline; at least 1.5 intervals.", runtime=True, ge=15, le=3600
    )
    offline_check_interval: Duration = setting("10s", "How often silence is looked for.", runtime=True, ge=1, le=30)
    certificate_life: Duration = setting("90d", "Life of a node's certificate.", runtime=True, ge=3600, le=86400 * 825)
    certificate_renew_before: Duration = setting(
        "30d", "A Daemon renews its certificate when less than this is left.", runtime=True, ge=60, le=86400 * 366
    )
    kit_dir: str = setting("", "Directory of the kits for new hosts; empty: kit, where `make kit` puts them.")
    discovery: bool = setting(
        False, "Hosts without a token may ask to be let in; an administrator approves them.", runtime=True
    )


class Events(Section):
    retention_days: int = setting(180, "Days that events are kept.", runtime=True, ge=1, le=3650)


class Metrics(Section):
    retention_days: int = setting(30, "Days that raw metrics are kept.", runtime=True, ge=1, le=3650)
    detail_retention_days: int = setting(
        7, "Days that the parts behind raw metrics (cores, mounts, interfaces) are kept.", runtime=True, ge=1, le=3650
    )
    rollup_5m_retention_days: int = setting(
        90, "Days that means over five minutes are kept.", runtime=True, ge=1, le=3650
    )
    rollup_1h_retention_days: int = setting(730, "Days that means over an hour are kept.", runtime=True, ge=1, le=3650)


class Tasks(Section):
    root_requires_admin: bool = setting(
        False, "Tasks of operators need a named user that is not root; only administrators' run as root.", runtime=True
    )
    retention_days: int = setting(
        180, "Days that runs with their output, batches and commands are kept.", runtime=True, ge=1, le=3650
    )
    files_dir: str = setting(
        "", "Directory of files for and from hosts; empty: <data_dir>/files. Several Managers share it."
    )
    files_max_size: Size = setting("500MB", "Largest file that is taken for tasks, or brought back by one.", ge=1024)
    files_quota: Size = setting("10GB", "What all of these files may take together.", ge=1024)
    files_keep_days: int = setting(
        30, "Days after which a file that no task names is deleted.", runtime=True, ge=1, le=3650
    )


class Audit(Section):
    checkpoint_interval: Duration = setting(
        "60s", "How often the audit log's head is signed.", runtime=True, ge=10, le=3600
    )


class Ui(Section):
    refresh_interval: Duration = setting(
        "30s", "How often pages that watch something refresh themselves.", runtime=True, ge=5, le=3600
    )
    timezone: TimeZone = setting("UTC", "Time zone of pages for people who chose none.", runtime=True)


class LogFile(Section):
    enabled: bool = setting(False, "Write the log to a file as well.")
    path: str = setting("", "Log file; empty: <data_dir>/logs/manager.log.")
    max_size: int = setting(100, "Megabytes at which the file is rotated.", ge=1, le=10_000)
    max_backups: int = setting(10, "Rotated files that are kept.", ge=1, le=1000)
    max_age: int = setting(30, "Days that rotated files are kept.", ge=1, le=3650)


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = setting("info", "Least important level that is logged.")
    format: Literal["json", "text"] = setting("json", "json or text.")
    output: Literal["stdout", "stderr"] = setting("stdout", "Stream the log goes to.")
    file: LogFile = LogFile()


class Settings(Section):
    """The whole tree. Derived values are properties, so that each rule stands once."""

    data_dir: str = setting("./var", "Directory of everything that the Manager keeps on disk.")
    server: Server = Server()
    database: Database = Database()
    redis: Redis = Redis()
    auth: Auth = Auth()
    tls: Tls = Tls()
    keys: Keys = Keys()
    node: Node = Node()
    events: Events = Events()
    metrics: Metrics = Metrics()
    tasks: Tasks = Tasks()
    audit: Audit = Audit()
    ui: Ui = Ui()
    log: Log = Log()

    @property
    def root_path(self) -> Path:
        """Where templates, static files and migrations lie."""
        return Path(__file__).parent

    @cached_property
    def kit_path(self) -> Path:
        return Path(self.node.kit_dir).absolute() if self.node.kit_dir else self.root_path / "kit"

    @cached_property
    def data_path(self) -> Path:
        return Path(self.data_dir).absolute()

    @cached_property
    def keys_path(self) -> Path:
        return Path(self.keys.dir).absolute() if self.keys.dir else self.data_path / "keys"

    @cached_property
    def files_path(self) -> Path:
        return Path(self.tasks.files_dir).absolute() if self.tasks.files_dir else self.data_path / "files"

    @cached_property
    def database_url(self) -> str:
        """A URL whose driver is one that we support, whichever way it was spelt."""
        part = self.database
        if part.url.startswith("sqlite:///"):
            return f"sqlite:///{Path(part.url.removeprefix('sqlite:///')).absolute()}"
        if part.url:
            return re.sub(r"^(mysql|mariadb)(\+\w+)?://", "mysql+pymysql://", part.url)
        if part.driver == "sqlite":
            return f"sqlite:///{self.data_path / 'ops.db'}"
        account = f"{quote(part.user, '')}:{quote(part.password, '')}"
        host = f"[{part.host}]" if ":" in part.host else part.host
        return f"mysql+pymysql://{account}@{host}:{part.port}/{quote(part.name, '')}?charset=utf8mb4"

    @cached_property
    def redis_url(self) -> str:
        return self.redis.url or f"unix://{self.data_path / 'run' / 'redis.sock'}"

    @cached_property
    def public_url(self) -> str:
        scheme = "https" if self.tls.enabled else "http"
        return self.server.public_url or f"{scheme}://{reachable(self.server.http.addr)}"

    @cached_property
    def gateway_url(self) -> str:
        return self.server.gateway_url or f"https://{reachable(self.server.gateway.addr)}"


def split_address(address: str) -> tuple[str, int]:
    """Host and port of a checked address; an empty host means every interface."""
    host, _, port = address.rpartition(":")
    return host.strip("[]") or EVERY_INTERFACE, int(port)


def reachable(address: str) -> str:
    """An address somebody on this machine can call, for a listener that may be bound to every interface."""
    host, port = split_address(address)
    return f"127.0.0.1:{port}" if host in (EVERY_INTERFACE, "::") else address


class Known(NamedTuple):
    """One setting as documents, the settings page and the environment name it."""

    key: str
    info: FieldInfo

    @property
    def variable(self) -> str:
        return "OPS_" + self.key.upper().replace(".", "__")

    @property
    def is_runtime(self) -> bool:
        return self._extra("runtime")

    @property
    def is_secret(self) -> bool:
        return self._extra("secret")

    def _extra(self, name: str) -> bool:
        extra = self.info.json_schema_extra
        return isinstance(extra, dict) and bool(extra.get(name))


def known_settings(section: type[BaseModel] = Settings, prefix: str = "") -> list[Known]:
    """All settings in the order in which they are declared."""
    found: list[Known] = []
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            found += known_settings(info.annotation, f"{prefix}{name}.")
        else:
            found.append(Known(prefix + name, info))
    return found


SHORT_VARIABLES = {
    "OPS_DATA_DIR": "data_dir",
    "OPS_PUBLIC_URL": "server.public_url",
    "OPS_GATEWAY_URL": "server.gateway_url",
    "OPS_DATABASE_URL": "database.url",
    "OPS_REDIS_URL": "redis.url",
}
ADDRESS_VARIABLES = {"OPS_WEB": "server.http.addr", "OPS_GATEWAY": "server.gateway.addr"}


class SettingsError(Exception):
    """Every problem with the settings, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def load_settings(arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Settings:
    """The settings from all sources. Raises SettingsError with everything that is wrong, not just the first."""
    environment = os.environ if environment is None else environment
    known = {item.key: item for item in known_settings()}
    problems: list[str] = []
    from_arguments, config_file = _from_arguments(arguments, known, problems)
    from_file = _from_file(config_file or environment.get("OPS_CONFIG", ""), known, problems)
    from_environment = _from_environment(environment, known, problems)
    values: dict[str, Any] = {}
    for source in (from_file, from_environment, from_arguments):
        values |= _expand_secret_files(source, known, problems)
    return _validated(values, problems)


def as_environment(arguments: Sequence[str]) -> dict[str, str]:
    """The command line as variables, which is how a started process hands it to its children.

    A secret said there unsays the variables that would say it in another way: an empty one counts as not given.
    """
    given, config_file = _from_arguments(arguments, {item.key: item for item in known_settings()}, [])
    variables = {"OPS_" + key.upper().replace(".", "__"): str(value) for key, value in given.items()}
    for item in known_settings():
        if item.is_secret and (item.key in given or f"{item.key}_file" in given):
            names = [item.variable, *(name for name, key in SHORT_VARIABLES.items() if key == item.key)]
            unsaid = [variable for name in names for variable in (name, f"{name}_FILE")]
            variables = dict.fromkeys(unsaid, "") | variables
    return variables | ({"OPS_CONFIG": str(Path(config_file).absolute())} if config_file else {})


def _from_arguments(
    arguments: Sequence[str], known: Mapping[str, Known], problems: list[str]
) -> tuple[dict[str, Any], str]:
    """`--config F`, `--section.key value` and `--section.key=value`."""
    values: dict[str, Any] = {}
    config_file, rest = "", list(arguments)
    while rest:
        word = rest.pop(0)
        name, has_value, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or (name != "config" and not _is_known(name, known)):
            # Never the word itself: it may be a secret whose option was misspelt.
            shown = f"--{name}" if word.startswith("--") else f"argument {len(arguments) - len(rest)}"
            problems.append(f"{shown}: not an option (--config FILE, --section.key value)")
            if word.startswith("--") and not has_value and rest and not rest[0].startswith("--"):
                rest.pop(0)
            continue
        if not has_value:
            if not rest or rest[0].startswith("--"):
                problems.append(f"--{name}: a value is missing")
                continue
            value = rest.pop(0)
        if name == "config":
            config_file = value
        else:
            values[name] = value
    return values, config_file


def _from_file(path: str, known: Mapping[str, Known], problems: list[str]) -> dict[str, Any]:
    if not path:
        return {}
    try:
        tree = YAML(typ="safe", pure=True).load(Path(path).read_text("utf-8"))
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
        return {}
    except UnicodeDecodeError:
        problems.append(f"{path}: not UTF-8")
        return {}
    except YAMLError as error:
        # What the library says may quote the file, and the file may hold secrets.
        mark = getattr(error, "problem_mark", None)
        kind = "a name stands twice" if isinstance(error, DuplicateKeyError) else "not YAML"
        problems.append(f"{path}: {kind}" + (f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""))
        return {}
    values: dict[str, Any] = {}
    _flatten(tree if tree is not None else {}, "", known, values, problems)
    return values


def _flatten(tree: Any, prefix: str, known: Mapping[str, Known], values: dict[str, Any], problems: list[str]) -> None:
    if not isinstance(tree, dict):
        problems.append(f"{prefix.rstrip('.') or 'the settings file'}: expected named settings below it")
        return
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if _is_known(key, known):
            values[key] = value
        elif any(item.startswith(f"{key}.") for item in known):
            _flatten({} if value is None else value, f"{key}.", known, values, problems)
        else:
            problems.append(f"{key}: no such setting")


def _from_environment(
    environment: Mapping[str, str], known: Mapping[str, Known], problems: list[str]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, key in SHORT_VARIABLES.items():
        if environment.get(variable):
            values[key] = environment[variable]
        if environment.get(f"{variable}_FILE"):
            values[f"{key}_file"] = environment[f"{variable}_FILE"]
    for prefix, key in ADDRESS_VARIABLES.items():
        host, port = environment.get(f"{prefix}_HOST"), environment.get(f"{prefix}_PORT")
        if host or port:
            default_host, default_port = split_address(str(known[key].info.default))
            host = host or default_host
            values[key] = f"{f'[{host}]' if ':' in host else host}:{port or default_port}"
    misspelt = {item.variable.replace("__", "_"): item.variable for item in known.values() if "." in item.key}
    for variable, value in environment.items():
        if not variable.startswith("OPS_") or variable.startswith(("OPS_DAEMON__", "OPS_AGENT__")):
            continue
        key = variable.removeprefix("OPS_").lower().replace("__", ".")
        if "__" in variable and _is_known(key, known):
            if value or not (known.get(key) or known[key.removesuffix("_file")]).is_secret:
                values[key] = value
        elif "__" in variable:
            problems.append(f"{variable}: no such setting")
        elif variable in misspelt and variable not in SHORT_VARIABLES:
            problems.append(f"{variable}: no such setting; {misspelt[variable]} is meant")
    return values


def _is_known(key: str, known: Mapping[str, Known]) -> bool:
    """A secret `a.b` may also be given as `a.b_file`."""
    base = known.get(key.removesuffix("_file"))
    return key in known or (key.endswith("_file") and base is not None and base.is_secret)


def _expand_secret_files(values: dict[str, Any], known: Mapping[str, Known], problems: list[str]) -> dict[str, Any]:
    """The values of one source, with what stands in files that it names."""
    expanded = {key: value for key, value in values.items() if key in known}
    for key, path in values.items():
        if key in known:
            continue
        base = key.removesuffix("_file")
        if base in expanded:
            problems.append(f"{base}, {key}: only one of them can be given")
            continue
        try:
            expanded[base] = Path(str(path)).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{key}: cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}")
    return expanded


def _validated(values: Mapping[str, Any], problems: list[str]) -> Settings:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = value
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        secrets = {item.key for item in known_settings() if item.is_secret}
        raise SettingsError(problems + [_describe(item, secrets) for item in error.errors(include_url=False)]) from None
    problems += _contradictions(settings)
    if problems:
        raise SettingsError(problems)
    return settings


def _describe(error: Any, secrets: set[str]) -> str:
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{key}: {message}" if key in secrets else f"{key}: {message}, got {error['input']!r}"


def _contradictions(settings: Settings) -> list[str]:
    """What is wrong between settings that are each right alone."""
    problems = []
    if settings.tls.enabled and not (settings.tls.cert_file and settings.tls.key_file):
        problems.append("tls.cert_file, tls.key_file: needed when tls.enabled")
    is_file = settings.database.url.startswith("sqlite:///") and ":memory:" not in settings.database.url
    if settings.database.url and not is_file and not settings.database_url.startswith("mysql+pymysql://"):
        problems.append("database.url: expected sqlite:///… or mysql+pymysql://…")
    if settings.redis.url and not settings.redis.url.startswith(("redis://", "rediss://", "unix://")):
        problems.append("redis.url: expected redis://…, rediss://… or unix://…")
    if settings.server.gateway.behind_proxy != settings.server.gateway.addr.startswith("/"):
        problems.append("server.gateway.behind_proxy: goes with a Unix socket as server.gateway.addr, and only with it")
    if settings.server.gateway.addr.startswith("/") and not settings.server.gateway_url:
        problems.append("server.gateway_url: needed when server.gateway.addr is a Unix socket")
    if settings.server.http.addr.startswith("/") and not settings.server.public_url:
        problems.append("server.public_url: needed when server.http.addr is a Unix socket")
    if settings.auth.session_idle > settings.auth.session_ttl:
        problems.append("auth.session_idle: at most auth.session_ttl")
    if settings.database.max_idle_conns > settings.database.max_open_conns:
        problems.append("database.max_idle_conns: at most database.max_open_conns")
    return problems


def allowed_values(item: Known) -> str:
    """What a setting accepts, in words for documents and pages."""
    if get_origin(item.info.annotation) is Literal:
        return " or ".join(get_args(item.info.annotation))
    if item.info.annotation is bool:
        return "true or false"
    low = next(
        (getattr(rule, name) for rule in item.info.metadata for name in ("ge", "gt") if hasattr(rule, name)), None
    )
    high = next(
        (getattr(rule, name) for rule in item.info.metadata for name in ("le", "lt") if hasattr(rule, name)), None
    )
    return (
        f"{low:,} – {high:,}"
        if low is not None and high is not None
        else f"at least {low:,}"
        if low is not None
        else ""
    )
