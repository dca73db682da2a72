"""What people say about tasks, templates and runs, and what they are shown."""

from typing import Annotated, Any, Literal

from flask_babel import gettext as _
from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints

from app.commands.schemas import TargetStatus, WaitingFor
from app.commands.shares import ErrorLimit, Window
from app.kernel.api import In, Out
from app.kernel.paging import ListQuery
from app.tasks.contents import Parameter, TaskType, Value
from app.tasks.cron import is_cron, is_zone

TargetType = Literal["node", "group", "tag", "label", "all", "selector"]
TaskStatus = Literal["enabled", "disabled"]
RunStatus = Literal["pending", "running", "success", "failed", "partial", "cancelled"]
Trigger = Literal["manual", "schedule", "api", "alert"]


def check_cron(given: str) -> str:
    if not is_cron(given):
        raise ValueError(_("Five fields of cron, or @hourly, @daily, @weekly, @monthly, @yearly, are expected."))
    return given


def check_zone(given: str) -> str:
    if not is_zone(given):
        raise ValueError(_("This is not the name of a time zone, such as Europe/Berlin."))
    return given


Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=128)]
Description = Annotated[str, StringConstraints(strip_whitespace=True, max_length=2000)]
Cron = Annotated[str, StringConstraints(strip_whitespace=True, max_length=128), AfterValidator(check_cron)]
Zone = Annotated[str, StringConstraints(strip_whitespace=True, max_length=64), AfterValidator(check_zone)]
TargetValue = Annotated[list[int | str], Field(max_length=10_000)]
Content = Annotated[dict[str, Any], Field(description="By `type`: a script, a file or config operation, …")]
Parameters = Annotated[dict[str, Value], Field(max_length=100)]
Held: Any = Field(0, ge=0, le=50, description="Seconds to wait for something new, if there is nothing yet.")


class TaskBase(In):
    cron_expr: Cron | None = None
    timezone: Zone = "UTC"
    catch_up_s: int = Field(0, ge=0, le=7 * 86_400)
    timeout: int = Field(300, ge=1, le=86_400, description="Seconds from the start on the host.")
    retry_count: int = Field(0, ge=0, le=10)
    retry_interval: int = Field(60, ge=0, le=86_400)
    max_parallel: Window | None = None
    max_errors: ErrorLimit | None = None
    not_after_s: int = Field(3600, ge=1, le=30 * 86_400, description="Seconds that a host has to come and begin.")
    status: TaskStatus = "enabled"
    description: Description | None = None
    parameters: Parameters = Field(default_factory=dict)


class TaskIn(TaskBase):
    name: Name
    type: TaskType | None = Field(None, description="Needed unless a template says it.")
    content: Content | None = Field(None, description="Needed unless a template says it.")
    template_id: int | None = Field(None, ge=1, le=2**63 - 1)
    target_type: TargetType
    target_value: TargetValue = Field(default_factory=list)


class TaskUpdate(In):
    """What is left out stays."""

    name: Name = ""
    type: TaskType = "script"
    content: Content = Field(default_factory=dict)
    target_type: TargetType = "all"
    target_value: TargetValue = Field(default_factory=list)
    cron_expr: Cron | None = None
    timezone: Zone = "UTC"
    catch_up_s: int = Field(0, ge=0, le=7 * 86_400)
    timeout: int = Field(300, ge=1, le=86_400)
    retry_count: int = Field(0, ge=0, le=10)
    retry_interval: int = Field(60, ge=0, le=86_400)
    max_parallel: Window | None = None
    max_errors: ErrorLimit | None = None
    not_after_s: int = Field(3600, ge=1, le=30 * 86_400)
    status: TaskStatus = "enabled"
    description: Description | None = None
    parameters: Parameters = Field(default_factory=dict)


class TaskOut(Out):
    id: int
    name: str
    type: TaskType
    content: dict[str, Any]
    cron_expr: str | None
    timezone: str
    catch_up_s: int
    timeout: int
    retry_count: int
    retry_interval: int
    target_type: TargetType
    target_value: list[Any]
    max_parallel: int | str | None
    max_errors: int | str | None
    not_after_s: int
    status: TaskStatus
    description: str | None
    parameters: dict[str, Any]
    template_id: int | None
    created_by: str
    created_at: AwareDatetime
    updated_at: AwareDatetime
    next_run_at: AwareDatetime | None


class TaskQuery(ListQuery):
    keyword: str | None = Field(None, min_length=1, max_length=100, description="In the name.")
    type: TaskType | None = None
    status: TaskStatus | None = None
    scheduled: bool | None = Field(None, description="Only tasks with a schedule, or only those without.")


class PreviewNode(Out):
    id: int
    hostname: str
    status: str
    maintenance: bool
    waiting_for: WaitingFor | None = Field(description="What it would wait for before it begins.")


class TaskPreview(Out):
    total: int
    online: int
    offline: int
    maintenance: int
    items: list[PreviewNode]


class ScheduleIn(In):
    cron_expr: Cron
    timezone: Zone = "UTC"
    count: int = Field(5, ge=1, le=50)


class ScheduleOut(Out):
    times: list[AwareDatetime]


class RunStarted(Out):
    execution_id: str
    total_nodes: int


class RetryIn(In):
    only: Literal["failed"] = "failed"


class RunQuery(ListQuery):
    task_id: int | None = Field(None, ge=1, le=2**63 - 1)
    status: RunStatus | None = None
    triggered_by: Trigger | None = None
    keyword: str | None = Field(None, min_length=1, max_length=100, description="In the task's name.")


class TaskRunQuery(ListQuery):
    status: RunStatus | None = None
    triggered_by: Trigger | None = None


class RecordQuery(ListQuery):
    page_size: int = Field(100, ge=1, le=100)
    status: TargetStatus | None = None
    keyword: str | None = Field(None, min_length=1, max_length=100, description="In the host name.")
    output: str | None = Field(None, min_length=1, max_length=200, description="In what it wrote, with case.")


class RecordOut(Out):
    id: int
    node_id: int
    hostname: str
    status: TargetStatus
    exit_code: int | None
    signal: int | None
    user: str | None
    stdout: str
    stderr: str
    truncated: bool
    error: str | None
    error_code: str | None
    waiting_for: WaitingFor | None
    attempt: int
    queued_at: AwareDatetime
    delivered_at: AwareDatetime | None
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    duration_ms: int | None


class RunOut(Out):
    execution_id: str
    task_id: int | None
    task_name: str
    status: RunStatus
    paused: bool
    triggered_by: Trigger
    created_by: str
    created_at: AwareDatetime
    finished_at: AwareDatetime | None
    total: int
    pending: int
    running: int
    success: int
    failed: int
    cancelled: int
    records: list[RecordOut] | None = Field(None, description="The first hundred by default; null in lists.")


class OutputQuery(In):
    stream: Literal["stdout", "stderr"] = "stdout"
    offset: int = Field(0, ge=0, le=2**53, description="Bytes of this stream that the caller has already.")
    attempt: int | None = Field(None, ge=1, le=100, description="Of several; the present one if left out.")
    wait_s: int = Held


class OutputOut(Out):
    stream: str
    offset: int
    next_offset: int
    data: str
    skipped: int = Field(description="So many bytes behind `data` were left out; `next_offset` lies behind them.")
    truncated: bool
    is_complete: bool = Field(description="Nothing more will come.")
    attempt: int
    attempts: int = Field(description="So many there were; of a new one the offset begins at 0.")
    status: TargetStatus


class RunOutputQuery(In):
    after: str | None = Field(None, max_length=1000, description="`after` of the last answer.")
    record_id: int | None = Field(None, ge=1, le=2**63 - 1, description="Only of this record.")
    newest: int | None = Field(None, ge=1, le=500, description="Without `after`: begin with so many of the newest.")
    wait_s: int = Held


class PieceOut(Out):
    id: int
    record_id: int
    node_id: int
    hostname: str
    attempt: int
    stream: str
    offset: int = Field(description="Bytes of this stream before the piece.")
    data: str
    cut: bool = Field(description="Something was left out behind it.")
    arrived_at: AwareDatetime


class RunOutputOut(Out):
    items: list[PieceOut] = Field(description="Pieces of all records in the order in which they came.")
    after: str = Field(description="Asks for what comes next.")
    has_more: bool = Field(description="More is there already.")
    skipped: bool = Field(description="There are older ones, before the newest that were asked for.")
    is_complete: bool = Field(description="The run has ended, and all that was written has been told.")
    status: RunStatus
    paused: bool
    total: int
    pending: int
    running: int
    success: int
    failed: int
    cancelled: int


class ExportQuery(In):
    format: Literal["jsonl", "csv"] = "jsonl"


class TemplateIn(In):
    name: Name
    description: Annotated[str, StringConstraints(strip_whitespace=True, max_length=255)] | None = None
    type: TaskType
    content: Content
    parameters: list[Parameter] = Field(default_factory=list, max_length=100)


class TemplateOut(Out):
    id: int
    name: str
    description: str | None
    type: TaskType
    content: dict[str, Any]
    parameters: list[Parameter]
    created_by: str
    created_at: AwareDatetime
    updated_at: AwareDatetime


class ReadyTemplateOut(Out):
    key: str
    name: str
    description: str
    type: TaskType
    content: dict[str, Any]
    parameters: list[Parameter]


class ReadyTemplates(Out):
    items: list[ReadyTemplateOut]


class TemplateQuery(ListQuery):
    keyword: str | None = Field(None, min_length=1, max_length=100, description="In the name.")
