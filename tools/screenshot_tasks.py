"""Definitions that nobody needs, for pictures: tasks of several kinds and schedules, templates with parameters."""

from app.kernel.access import Actor, Role
from app.kernel.db import db, in_transaction
from app.people.models import User
from app.tasks import actions
from app.tasks.schemas import TaskIn, TemplateIn

SCRIPT = """\
set -eu
df -P -l | awk -v most="$OPS_PARAM_LIMIT" 'NR > 1 { sub("%", "", $5); if ($5 + 0 >= most) print $6, $5 "%" }'
"""
PARAMETERS = [
    {"name": "LIMIT", "type": "integer", "required": True, "default": 90, "minimum": 1, "maximum": 100,
     "description": "From how many percent on a file system counts as full"},
    {"name": "BY", "type": "choice", "choices": ["size", "files"], "required": True, "default": "size",
     "description": "What is counted"},
    {"name": "MOUNT", "type": "string", "pattern": "/.*", "description": "Only this one; empty for all"},
    {"name": "QUIET", "type": "boolean", "required": True, "default": False,
     "description": "Nothing is said if all is well"},
]  # fmt: skip
NIGHTLY = {
    "name": "Nightly clean-up of temporary files",
    "description": "Deletes what nobody has touched for thirty days, and says how much that was.",
    "type": "script",
    "content": {
        "script": "set -eu\nfind /var/tmp/app -xdev -type f -mtime +30 -print -delete | wc -l\n",
        "user": "app",
    },
    "target_type": "selector",
    "target_value": ["env=prod role in (web,cache) !canary"],
    "cron_expr": "30 3 * * 1-5",
    "timezone": "Asia/Shanghai",
    "max_parallel": "10%",
    "max_errors": 3,
    "retry_count": 2,
}
OTHERS = (
    {"name": "Restart nginx", "type": "service", "content": {"op": "restart", "name": "nginx"},
     "target_type": "group", "max_parallel": 2, "max_errors": 1},
    {"name": "Raise the log level", "type": "config", "target_type": "label", "target_value": ["env=staging"],
     "content": {"op": "set", "path": "/etc/app/app.ini", "format": "ini", "key": "log.level", "value": "debug"}},
    {"name": "Old certificates", "type": "file", "target_type": "tag", "target_value": ["canary"], "status": "disabled",
     "content": {"op": "delete", "path": "/etc/app/old-certs", "recursive": True}, "cron_expr": "@monthly"},
    {"name": "Warm the cache", "type": "custom", "target_type": "all", "cron_expr": "@hourly",
     "content": {"plugin": "warm-cache", "arguments": {"depth": 2}}},
)  # fmt: skip


def made_up_tasks(node_id: int, group_id: int) -> dict[str, object]:
    """What addresses are filled with: a task with a schedule, a template with parameters, one from the library."""
    session = db.session()
    user = session.query(User).filter_by(username="li.na").one()
    li_na = Actor("user", user.id, user.username, Role.OPERATOR)
    others = [one | ({"target_value": [group_id]} if one["target_type"] == "group" else {}) for one in OTHERS]

    def make() -> dict[str, object]:
        template = TemplateIn.model_validate(
            {"name": "Full file systems", "description": "Fails where one is fuller than it should be.",
             "type": "script", "content": {"script": SCRIPT}, "parameters": PARAMETERS}
        )  # fmt: skip
        made = actions.create_template(session, li_na, template)
        actions.copy_ready_template(session, li_na, "restart-service")
        for values in others:
            actions.create_task(session, li_na, TaskIn.model_validate(values))
        task = actions.create_task(session, li_na, TaskIn.model_validate(NIGHTLY))
        few = actions.create_task(
            session, li_na, TaskIn.model_validate(OTHERS[0] | {"target_type": "node", "target_value": [node_id]})
        )
        return {"task": task.id, "task_few": few.id, "template": made.id}

    return in_transaction(session, make)
