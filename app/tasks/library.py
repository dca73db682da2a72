"""Ready templates: shown to everybody, copied by whoever wants to have one and change it.

Their scripts are for any /bin/sh. Parameters are read from the environment and always quoted.
"""

from dataclasses import dataclass, field
from typing import Any

from flask_babel import lazy_gettext as _l
from flask_babel.speaklater import LazyString

NAME = r"[A-Za-z0-9][A-Za-z0-9_.@:-]*"
PATH = r"/[^\0\n]*"


@dataclass(frozen=True)
class Ready:
    """A template that comes with the product."""

    key: str
    name: LazyString
    description: LazyString
    script: str
    asks: tuple[dict[str, Any], ...] = field(default=())
    type: str = "script"

    @property
    def parameters(self) -> list[dict[str, Any]]:
        """What it asks for, in the reader's language."""
        return [one | {"description": str(one["description"])} for one in self.asks]

    @property
    def content(self) -> dict[str, Any]:
        return {"interpreter": "shell", "script": self.script}


DISK_USAGE = """\
set -eu
df -P -l -x tmpfs -x devtmpfs 2>/dev/null || df -P
full=$(df -P -l 2>/dev/null |
    awk -v most="$OPS_PARAM_LIMIT" 'NR > 1 { sub("%", "", $5); if ($5 + 0 >= most) print $6 }')
if [ -n "$full" ]; then
    echo "at or above $OPS_PARAM_LIMIT%:" $full >&2
    exit 1
fi
"""

RESTART_SERVICE = """\
set -eu
if command -v systemctl >/dev/null 2>&1 && [ -d /run/systemd/system ]; then
    systemctl restart -- "$OPS_PARAM_SERVICE"
    sleep "$OPS_PARAM_WAIT_S"
    systemctl --no-pager --lines=5 status -- "$OPS_PARAM_SERVICE"
else
    service "$OPS_PARAM_SERVICE" restart
    sleep "$OPS_PARAM_WAIT_S"
    service "$OPS_PARAM_SERVICE" status
fi
"""

PATCH_LEVEL = """\
set -eu
[ -r /etc/os-release ] && . /etc/os-release && echo "system: ${PRETTY_NAME:-unknown}"
echo "kernel: $(uname -r)"
if command -v apt-get >/dev/null 2>&1; then
    echo "updates waiting: $(apt-get -s -o Debug::NoLocking=true upgrade 2>/dev/null | grep -c '^Inst ' || true)"
elif command -v dnf >/dev/null 2>&1; then
    echo "updates waiting: $(dnf -q check-update 2>/dev/null | grep -c '^[A-Za-z0-9]' || true)"
elif command -v yum >/dev/null 2>&1; then
    echo "updates waiting: $(yum -q check-update 2>/dev/null | grep -c '^[A-Za-z0-9]' || true)"
elif command -v zypper >/dev/null 2>&1; then
    echo "updates waiting: $(zypper -q list-updates 2>/dev/null | grep -c '^v ' || true)"
else
    echo "updates waiting: unknown, there is no package manager that is known here"
fi
if [ -e /var/run/reboot-required ]; then echo "a reboot is needed"; fi
"""

COLLECT_LOGS = """\
set -eu
umask 077
[ -d "$OPS_PARAM_DIRECTORY" ] || { echo "there is no directory $OPS_PARAM_DIRECTORY" >&2; exit 2; }
target="$(mktemp -d "$OPS_PARAM_TARGET/logs.XXXXXXXX")/$(uname -n)-$(date -u +%Y%m%dT%H%M%SZ).tar.gz"
list=$(mktemp)
trap 'rm -f "$list"' EXIT
cd "$OPS_PARAM_DIRECTORY"
find . -type f -mtime "-$OPS_PARAM_DAYS" > "$list"
tar -czf "$target" -T "$list"
echo "$(wc -l < "$list") files in $target, $(wc -c < "$target") bytes"
sha256sum "$target"
"""

ROTATE_KEY = """\
set -eu
umask 077
key="$OPS_PARAM_FILE"
new="$key.new.$$"
trap 'rm -f "$new" "$new.pub"' EXIT
ssh-keygen -q -t ed25519 -N '' -C "$(uname -n) $(date -u +%Y-%m-%d)" -f "$new"
if [ -e "$key" ]; then
    chown --reference="$key" "$new" "$new.pub" 2>/dev/null || true
    mv "$key" "$key.old"
    if [ -e "$key.pub" ]; then mv "$key.pub" "$key.pub.old"; fi
fi
mv "$new" "$key"
mv "$new.pub" "$key.pub"
cat "$key.pub"
"""

BUSIEST = """\
set -eu
echo "load: $(cut -d' ' -f1-3 /proc/loadavg)"
ps -eo pid,user,pcpu,pmem,etime,args --sort="-$OPS_PARAM_BY" | cut -c1-160 | head -n "$((OPS_PARAM_COUNT + 1))"
"""

CLEAN_UP = """\
set -eu
[ -d "$OPS_PARAM_DIRECTORY" ] || { echo "there is no directory $OPS_PARAM_DIRECTORY" >&2; exit 2; }
case "$OPS_PARAM_DIRECTORY" in
    *..*) echo "a path without .. is expected" >&2; exit 2 ;;
    /tmp/?*|/var/tmp/?*|/var/log/?*|/var/cache/?*|/srv/?*|/opt/?*|/home/?*) ;;
    *) echo "not below /tmp, /var/tmp, /var/log, /var/cache, /srv, /opt or /home" >&2; exit 2 ;;
esac
count=$(find "$OPS_PARAM_DIRECTORY" -xdev -type f -mtime "+$OPS_PARAM_DAYS" | wc -l)
if [ "$OPS_PARAM_DELETE" = true ]; then
    find "$OPS_PARAM_DIRECTORY" -xdev -type f -mtime "+$OPS_PARAM_DAYS" -delete
    echo "$count files deleted"
else
    echo "$count files are older than $OPS_PARAM_DAYS days; nothing was deleted"
fi
"""


def _text(name: str, description: LazyString, default: str | None = None, pattern: str = PATH) -> dict[str, Any]:
    asked = {"name": name, "type": "string", "required": default is None, "default": default, "pattern": pattern}
    return asked | {"description": description}


def _number(name: str, description: LazyString, default: int, most: int) -> dict[str, Any]:
    asked = {"name": name, "type": "integer", "required": True, "default": default, "minimum": 0, "maximum": most}
    return asked | {"description": description}


LIBRARY = (
    Ready(
        "disk-usage",
        _l("Disk usage"),
        _l("Shows every file system and fails where one is fuller than the limit."),
        DISK_USAGE,
        (_number("LIMIT", _l("Percent from which on a file system counts as full"), 90, 100),),
    ),
    Ready(
        "restart-service",
        _l("Restart a service"),
        _l("With systemd or SysV; shows its state afterwards and fails if it does not run."),
        RESTART_SERVICE,
        (
            _text("SERVICE", _l("Name of the service, such as nginx"), pattern=NAME),
            _number("WAIT_S", _l("Seconds before its state is looked at"), 2, 60),
        ),
    ),
    Ready(
        "patch-level",
        _l("Patch level"),
        _l("System, kernel, how many updates wait and whether a reboot is needed. Changes nothing."),
        PATCH_LEVEL,
    ),
    Ready(
        "collect-logs",
        _l("Collect logs"),
        _l("Packs the log files of the last days into one archive on the host."),
        COLLECT_LOGS,
        (
            _text("DIRECTORY", _l("Where the log files are"), "/var/log"),
            _text("TARGET", _l("Where the archive is put"), "/var/tmp"),  # noqa: S108  # nosec B108
            _number("DAYS", _l("Only files of so many days"), 1, 365),
        ),
    ),
    Ready(
        "rotate-key",
        _l("Rotate an SSH key"),
        _l("Makes a new Ed25519 key, keeps the one before beside it, and shows the public half."),
        ROTATE_KEY,
        (_text("FILE", _l("Path of the private key")),),
    ),
    Ready(
        "busiest-processes",
        _l("Busiest processes"),
        _l("Those that use most CPU or memory."),
        BUSIEST,
        (
            {
                "name": "BY",
                "type": "choice",
                "required": True,
                "default": "pcpu",
                "choices": ["pcpu", "pmem"],
                "description": _l("pcpu: CPU; pmem: memory"),
            },
            _number("COUNT", _l("How many are shown"), 10, 100),
        ),
    ),
    Ready(
        "clean-up",
        _l("Clean up old files"),
        _l("Counts files that were not changed for so many days; deletes them only if told so."),
        CLEAN_UP,
        (
            _text("DIRECTORY", _l("Below /tmp, /var/tmp, /var/log, /var/cache, /srv, /opt or /home")),
            _number("DAYS", _l("Only files that were not changed for so many days"), 30, 3650),
            {
                "name": "DELETE",
                "type": "boolean",
                "required": True,
                "default": False,
                "description": _l("Delete them; otherwise they are only counted"),
            },
        ),
    ),
)
BY_KEY = {ready.key: ready for ready in LIBRARY}
