"""What people ask and say about nodes, groups and tokens, and what they are shown."""

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from flask_babel import gettext as _
from pydantic import AfterValidator, AliasChoices, AwareDatetime, BeforeValidator, Field, StringConstraints

from app.kernel.api import In, Out
from app.kernel.paging import ListQuery

Tag = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64, pattern=r"^[^\s()=,:!<>\"']+$")
]
LabelKey = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64, pattern=r"^[^\s()=,:!<>\"']+$")
]
LabelValue = Annotated[str, StringConstraints(strip_whitespace=True, max_length=255)]
Id = Annotated[int, Field(ge=1, le=2**63 - 1)]
GroupName = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64, pattern=r"^[^/\s\"'()]+$")
]
Hostname = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._-]+$")
]
RESERVED_KEYS = frozenset({"status", "os", "arch", "version", "and", "or", "not", "in", "notin", "all", "has"})


def check_label_keys(labels: dict[str, str]) -> dict[str, str]:
    """Words that selectors understand already cannot be labels too: nobody could ask for them."""
    for key in labels:
        if key in RESERVED_KEYS:
            raise ValueError(_("%(key)s: this word has another meaning in selectors.", key=key))
    return labels


Labels = Annotated[dict[LabelKey, LabelValue], AfterValidator(check_label_keys), Field(max_length=64)]
Tags = Annotated[list[Tag], Field(max_length=64)]


def split_words(given: Any) -> Any:
    """A form's one line of tags: `web, eu legacy`."""
    text = " ".join(given) if isinstance(given, list) else given
    return [word for word in re.split(r"[,;\s]+", text) if word] if isinstance(text, str) else given


def split_labels(given: Any) -> Any:
    """A form's labels: `key=value`, one on each line."""
    if not isinstance(given, str):
        return given
    labels: dict[str, str] = {}
    for line in filter(None, map(str.strip, given.splitlines())):
        key, equals, value = line.partition("=")
        if not equals or re.search(r"[\s,;][^\s=]+=", value):
            raise ValueError(_("%(line)s: key=value is expected, one on each line.", line=line[:60]))
        labels[key.strip()] = value.strip()
    return labels


TypedTags = Annotated[Tags, BeforeValidator(split_words)]
TypedLabels = Annotated[Labels, BeforeValidator(split_labels)]
StatusName = Literal["pending", "unknown", "online", "offline", "rejected", "revoked"]


class NodeQuery(ListQuery):
    keyword: str | None = Field(None, max_length=100, description="In host name, address, tag or label.")
    status: StatusName | None = None
    group_id: Id | None = None
    tags: list[str] | None = Field(None, max_length=20, description="Nodes that have all of these.")
    selector: str | None = Field(None, max_length=4000)
    version: str | None = Field(None, max_length=64, description="Exactly this Daemon version.")
    maintenance: bool | None = None


class NodeCreate(In):
    """A node that is made before its host comes: the answer holds a token for this one node."""

    hostname: Hostname
    group_id: Id | None = None
    tags: Tags = Field(default_factory=list)
    labels: Labels = Field(default_factory=dict)
    description: str | None = Field(None, max_length=255)


class NodeUpdate(In):
    """What is left out stays as it is. Host name and addresses are the host's own business."""

    group_id: Id | None = None
    tags: Tags | None = None
    labels: Labels | None = None
    description: str | None = Field(None, max_length=255)


class NodeForm(In):
    """The edit page sends every field, so an empty one there means: none."""

    group_id: Id | None = None
    tags: TypedTags = Field(default_factory=list)
    labels: TypedLabels = Field(default_factory=dict)
    description: str | None = Field(None, max_length=255)


class NewNodeForm(NodeForm):
    hostname: Hostname


class NodeIds(In):
    node_ids: list[Id] = Field(min_length=1, max_length=10000)


class NodeBulk(In):
    """One action on many: what the action needs beside it is checked by the action."""

    action: Literal[
        "tag", "untag", "label", "move", "maintenance", "end_maintenance", "delete", "approve", "reject", "revoke"
    ]
    selector: str | None = Field(None, min_length=1, max_length=4000)
    node_ids: list[Id] | None = Field(None, min_length=1, max_length=10000)
    tags: Tags | None = None
    labels: Labels | None = None
    group_id: Id | None = None
    until: AwareDatetime | None = None
    reason: str | None = Field(None, max_length=255)


class BulkOut(Out):
    changed: int
    node_ids: list[int]


class Maintenance(In):
    until: AwareDatetime
    reason: str | None = Field(None, max_length=255)


class MaintenanceForm(In):
    """Hours from now, or a moment on the clock of whoever types it."""

    hours: int | None = Field(None, ge=1, le=24 * 366)
    until: datetime | None = None
    reason: str | None = Field(None, max_length=255)


class BulkForm(MaintenanceForm):
    """Whatever fields the actions on many need; each page shows only its own."""

    tags: TypedTags | None = None
    untags: TypedTags | None = None
    labels: TypedLabels | None = None
    group_id: Id | None = None


class ViewForm(In):
    name: str = Field(min_length=1, max_length=64)
    query: str = Field("", max_length=8000)


class GroupRef(Out):
    id: int
    name: str


def _copied(attribute: str, name: str) -> Any:
    """A field that is called otherwise in the table."""
    return Field(validation_alias=AliasChoices(attribute, name))


class NodeOut(Out):
    id: int
    uuid: str
    hostname: str
    ip: str
    ips: list[str]
    os: str
    arch: str
    kernel_version: str
    daemon_version: str
    agent_version: str | None
    agent_status: str
    cpu_cores: int
    memory_total: int
    disk_total: int
    cpu_usage: float | None = _copied("last_cpu_usage", "cpu_usage")
    memory_usage: float | None = _copied("last_memory_usage", "memory_usage")
    disk_usage: float | None = _copied("last_disk_usage", "disk_usage")
    status: str
    maintenance: bool
    maintenance_until: AwareDatetime | None
    maintenance_reason: str | None
    suspect: bool = _copied("is_suspect", "suspect")
    cloned: bool = _copied("is_cloned", "cloned")
    group: GroupRef | None
    group_id: int | None
    tags: list[str]
    labels: dict[str, str]
    description: str | None
    last_heartbeat: AwareDatetime | None
    certificate_expires_at: AwareDatetime | None
    created_at: AwareDatetime
    updated_at: AwareDatetime


class NodeDetailOut(NodeOut):
    macs: list[str]
    os_name: str
    os_version: str
    cpu_model: str
    swap_total: int
    disks: list[Any]
    python_version: str
    boot_time: AwareDatetime | None
    virtualization: str | None
    cloud: str | None
    timezone: str | None
    capabilities: Any
    clock_offset_ms: int | None
    settings_error: str | None
    dropped_points: int
    pending_points: int


class NewNodeOut(NodeOut):
    """With the token that lets exactly this node in; shown only here."""

    token: str
    install_command: str


class GroupIn(In):
    name: GroupName
    description: str | None = Field(None, max_length=255)
    parent_id: Id | None = None
    sort_order: int = Field(0, ge=-1_000_000, le=1_000_000)


class GroupQuery(ListQuery):
    keyword: str | None = Field(None, min_length=1, max_length=100, description="In the group's path.")
    sort: Literal["tree", "name", "-name", "id", "-id", "node_count", "-node_count"] | None = None


class GroupUpdate(In):
    """What is left out stays as it is; null as parent makes it a root."""

    name: GroupName | None = None
    description: str | None = Field(None, max_length=255)
    parent_id: Id | None = None
    sort_order: int | None = Field(None, ge=-1_000_000, le=1_000_000)


class GroupOut(Out):
    id: int
    name: str
    path: str
    description: str | None
    parent_id: int | None
    sort_order: int
    node_count: int
    created_at: AwareDatetime
    updated_at: AwareDatetime


class SelectorIn(In):
    selector: str = Field(min_length=1, max_length=4000)


class HostOut(Out):
    id: int
    hostname: str
    ip: str
    status: str
    maintenance: bool


class PreviewOut(Out):
    total: int
    online: int
    offline: int
    maintenance: int
    items: list[HostOut]


class SmartGroupIn(In):
    name: GroupName
    selector: str = Field(min_length=1, max_length=4000)
    description: str | None = Field(None, max_length=255)


class TokenQuery(ListQuery):
    keyword: str | None = Field(None, max_length=100, description="In the token's name.")


class TokenIn(In):
    name: str = Field(min_length=1, max_length=64)
    expires_at: AwareDatetime | None = None
    max_uses: int | None = Field(None, ge=1, le=1_000_000)
    needs_approval: bool = False
    group_id: Id | None = None
    tags: Tags = Field(default_factory=list)
    labels: Labels = Field(default_factory=dict)


class TokenForm(In):
    """As a form has it: days instead of a moment, words instead of lists."""

    name: str = Field(min_length=1, max_length=64)
    days: int | None = Field(None, ge=1, le=3650)
    max_uses: int | None = Field(None, ge=1, le=1_000_000)
    needs_approval: bool = False
    group_id: Id | None = None
    tags: TypedTags = Field(default_factory=list)
    labels: TypedLabels = Field(default_factory=dict)


class EnrollmentTokenOut(Out):
    id: int
    name: str
    prefix: str
    expires_at: AwareDatetime | None
    max_uses: int | None
    uses: int
    needs_approval: bool
    group_id: int | None
    tags: list[str]
    labels: dict[str, str]
    node_id: int | None
    created_by: str
    revoked_at: AwareDatetime | None
    created_at: AwareDatetime


class NewEnrollmentTokenOut(EnrollmentTokenOut):
    """The only answer that holds the token itself."""

    token: str
    install_command: str
