"""What people ask and say about agents, and what they are shown."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from app.commands.shares import ErrorLimit, Window
from app.kernel.api import In, Out
from app.kernel.paging import ListQuery
from app.nodes.schemas import Id
from protocol import manifests as wire

AgentName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$")]
AgentType = Literal["task", "filebeat", "telegraf", "node_exporter", "custom"]
Status = Literal["running", "starting", "stopping", "stopped", "backoff", "error", "unknown"]
Source = Literal["builtin", "manager", "host", "service", "adopted"]
Signal = Literal["TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "WINCH", "KILL"]
Verb = Literal["start", "stop", "restart", "reload"]
Apply = Literal["reload", "restart", "none"]
Path = Annotated[str, StringConstraints(min_length=2, max_length=1024, pattern=r"^/[^\x00\n]*$")]
User = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\$?$")]
Argument = Annotated[str, StringConstraints(strip_whitespace=False, max_length=wire.ARGUMENT_CHARS)]
Arguments = Annotated[list[Argument], Field(max_length=wire.ARGUMENTS)]
SecretName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
SecretValue = Annotated[str, StringConstraints(strip_whitespace=False, min_length=4, max_length=16_384)]
Secrets = Annotated[dict[SecretName, SecretValue | None], Field(max_length=64)]
Selector = Annotated[str, StringConstraints(min_length=1, max_length=4000)]
FILE_CHARS = 192 * 1024


class StopIn(In):
    """How it is asked to end before its whole process group is killed."""

    signal: Signal = "TERM"
    timeout_s: float = Field(10, ge=0, le=3600)
    command: Arguments | None = None
    detached: Literal["end", "leave"] = Field(
        "end", description="What becomes of processes that left its session and lost their parents."
    )


class ReloadIn(In):
    """How it reads its configuration again: a signal or a command, not both."""

    signal: Signal | None = None
    command: Arguments | None = None


class ConfigFileIn(In):
    """A file that the Manager may manage."""

    path: Path
    mode: str = Field("0640", pattern=r"^0?[0-7]{3}$")
    owner: User | None = None
    group: User | None = None


class HealthIn(In):
    """A check; which fields count depends on `kind`."""

    kind: Literal["process", "http", "tcp", "heartbeat", "command"]
    url: str | None = Field(None, min_length=8, max_length=1024, description="Of `http`.")
    status: int | None = Field(None, ge=100, le=599, description="Of `http`; null: anything from 200 to 399.")
    contains: str | None = Field(None, min_length=1, max_length=200, description="Of `http`: in the answer.")
    host: str | None = Field(None, min_length=1, max_length=255, description="Of `tcp`; null: 127.0.0.1.")
    port: int | None = Field(None, ge=1, le=65535, description="Of `tcp`.")
    command: Arguments | None = Field(None, description="Of `command`: well if it exits with 0.")
    interval_s: float = Field(30, ge=1, le=86400)
    timeout_s: float = Field(5, ge=0.1, le=300)
    failures: int | None = Field(None, ge=1, le=100, description="In a row, before it counts.")


class LimitsIn(In):
    """Of the whole process group; CPU in percent of one core. Null: no limit."""

    cpu_percent: float | None = Field(50, ge=1, le=1e6)
    cpu_for_s: float = Field(60, ge=1, le=86400)
    memory_bytes: int | None = Field(None, ge=1024 * 1024, le=2**63 - 1)
    action: Literal["restart", "alert"] = "restart"


class AdoptIn(In):
    """Which process that somebody else started this is; what is given must all fit."""

    pid_file: Path | None = None
    process: str | None = Field(None, min_length=1, max_length=64)
    command_line: str | None = Field(None, min_length=1, max_length=256)
    control: bool = False


class ManifestIn(In):
    """A program to supervise; `docs/protocol.md` describes each field."""

    name: AgentName
    type: AgentType
    description: str | None = Field(None, max_length=500)
    start: Arguments | None = Field(None, description="Program and arguments; may be absent only with `adopt`.")
    cwd: Path | None = None
    user: User | None = None
    env: dict[str, Argument] | None = Field(None, max_length=wire.ENV_NAMES)
    stop: StopIn | None = None
    reload: ReloadIn | None = None
    validate_command: Arguments | None = Field(
        None, alias="validate", description="`{config}` in it stands for the candidate file."
    )
    version: Arguments | None = Field(None, description="A command that prints the version.")
    config: list[ConfigFileIn] | None = Field(None, max_length=wire.CONFIG_FILES)
    health: list[HealthIn] | None = Field(None, max_length=wire.HEALTH_CHECKS)
    logs: list[Path] | None = Field(None, max_length=wire.LOG_PATHS)
    limits: LimitsIn | None = None
    adopt: AdoptIn | None = None
    autostart: bool = True

    def plain(self) -> dict[str, Any]:
        """As it was said: without what nobody mentioned."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class AgentQuery(ListQuery):
    keyword: str | None = Field(None, min_length=1, max_length=100, description="In the agent's or the host's name.")
    name: str | None = Field(None, min_length=1, max_length=64, description="Exactly this name.")
    type: str | None = Field(None, min_length=1, max_length=32)
    status: Status | None = None
    source: Source | None = None
    drifted: bool | None = None
    node_id: Id | None = None
    selector: str | None = Field(None, min_length=1, max_length=4000, description="Of nodes.")


class HealthOut(Out):
    kind: str
    ok: bool
    detail: str
    checked_at: AwareDatetime


class AgentOut(Out):
    """CPU in percent of one core, memory in bytes."""

    name: str
    type: str
    version: str | None
    status: str
    desired: str
    pid: int | None
    cpu_usage: float | None
    memory_usage: int | None
    start_time: AwareDatetime | None
    restart_count: int
    last_error: str | None
    health: list[HealthOut]
    config_version: int | None
    drifted: bool
    source: str
    updated_at: AwareDatetime


class AgentDetailOut(AgentOut):
    manifest: dict[str, Any] | None = Field(description="Null if the host defines it.")


class FleetAgentOut(AgentOut):
    node_id: int
    hostname: str
    node_status: str


class AgentsOut(Out):
    items: list[AgentOut]


class CommandIdOut(Out):
    command_id: int


class BatchOut(Out):
    """Of agents there may be several on one node."""

    batch_id: str
    total: int
    total_nodes: int


class LogsQuery(In):
    lines: int = Field(200, ge=1, le=2000)
    query: str | None = Field(None, min_length=1, max_length=200, description="Only lines that hold this.")
    since: AwareDatetime | None = None
    file: str | None = Field(None, min_length=1, max_length=1024, description="One of `files`; null: all of them.")


class LogLineOut(Out):
    file: str
    text: str
    at: AwareDatetime | None = None


class LogFileOut(Out):
    path: str
    size: int


class LogsOut(Out):
    lines: list[LogLineOut]
    truncated: bool
    files: list[LogFileOut]


class TemplateFileIn(In):
    """A file as a template: `{{ hostname }}`, `{{ labels.env }}`, `{{ secret.NAME }}`, `{% if … %}`, `{% for … %}`."""

    path: Path
    content: Annotated[str, StringConstraints(strip_whitespace=False, max_length=FILE_CHARS)]


Files = Annotated[list[TemplateFileIn], Field(min_length=1, max_length=wire.CONFIG_FILES)]


class ConfigIn(In):
    """A new version of the configuration. Secrets that are left out stay; null forgets one."""

    files: Files
    secrets: Secrets | None = None
    apply: Apply = "reload"
    note: str | None = Field(None, max_length=255)
    push: bool = Field(True, description="False only keeps the version.")


class RollbackIn(In):
    version: int | None = Field(None, ge=1, le=2**63 - 1, description="Null: the last one that proved healthy.")


class PreviewIn(In):
    files: Files
    secrets: Secrets | None = None


class TemplateFileOut(Out):
    path: str
    content: str


class ConfigVersionOut(Out):
    version: int
    state: str = Field(description="saved, pushing, kept, reverted, refused or failed")
    healthy: bool | None = Field(validation_alias="is_healthy")
    detail: str | None
    apply: str
    note: str | None
    created_by: str
    created_at: AwareDatetime
    pushed_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    command_id: int | None
    files: list[TemplateFileOut]


class ConfigVersionsQuery(ListQuery):
    sort: Literal["version", "-version"] | None = None


class ConfigOut(Out):
    """The newest version, if there is one, and what the host says. Secrets are told by their names only."""

    version: int | None
    state: str | None
    healthy: bool | None
    detail: str | None
    apply: str
    note: str | None
    created_by: str | None
    created_at: AwareDatetime | None
    command_id: int | None
    files: list[TemplateFileOut]
    secrets: list[str]
    host_version: int | None
    drifted: bool


class PushedOut(Out):
    command_id: int
    version: int


class RenderedFileOut(Out):
    path: str
    content: str
    diff: str = Field(description="Against the newest version, as it would be for this host.")


class PreviewOut(Out):
    files: list[RenderedFileOut]


class HostFileOut(Out):
    path: str
    missing: bool
    truncated: bool
    problem: str | None = Field(description="Why it could not be read.")
    content: str | None
    diff: str = Field(description="From what we put there to what is there.")


class HostConfigOut(Out):
    read_at: AwareDatetime
    files: list[HostFileOut]


class Bulk(In):
    """The same for all agents that fit: of the chosen nodes, with this name or of this type."""

    action: Literal["start", "stop", "restart", "reload", "configure"]
    selector: Selector | None = None
    node_ids: list[Id] | None = Field(None, min_length=1, max_length=10_000)
    name: AgentName | None = None
    type: AgentType | None = None
    max_parallel: Window | None = Field(None, description="So many at once; `configure` without it: `10%`.")
    max_errors: ErrorLimit | None = Field(
        None, description="So many failures stop the rest; null: nothing does. `configure` without it: 3."
    )
    files: Files | None = Field(None, description="Of `configure`.")
    secrets: Secrets | None = None
    apply: Apply = "reload"
    note: str | None = Field(None, max_length=255)


class CatalogueParameterOut(Out):
    name: str
    label: str
    kind: str
    default: Any
    required: bool
    help: str


class CatalogueEntryOut(Out):
    key: str
    title: str
    description: str
    type: str
    parameters: list[CatalogueParameterOut]
    manifest: dict[str, Any] = Field(description="With the defaults of all parameters.")


class CatalogueOut(Out):
    items: list[CatalogueEntryOut]
