#!/bin/sh
# Makes this host a node of an Ops Scaffold Manager: fetches the kit, checks it, enrols, installs the service.
# Safe to run again: it updates the files, keeps identity, settings and data. The Manager fills in the next five lines.
SERVER=@SERVER@
PIN=@PIN@
CA_FINGERPRINT=@CA_FINGERPRINT@
VERSION=@VERSION@
KITS=@KITS@

set -eu
umask 022

say() { printf '%s\n' "ops-scaffold: $*"; }
die() { printf '%s\n' "ops-scaffold: $*" >&2; exit 1; }

usage() {
    cat <<'TEXT'
install.sh [--token TOKEN | --token-file FILE] [--wait SECONDS] [--prefix DIR] [--python FILE] [--no-service] [--kit FILE]

  --token, --token-file  the join token; without one the host asks to be let in (discovery)
  --wait                 how long to wait for an administrator's approval (default 0: the Daemon goes on asking)
  --prefix               install below this directory instead of /
  --python               the Python (3.9 or newer) to use
  --no-service           install and enrol, but leave starting the Daemon to you
  --kit                  a kit that lies here already, for hosts that cannot download it
TEXT
}

TOKEN='' TOKEN_FILE='' WAIT=0 PREFIX='' PYTHON='' SERVICE=yes KIT=''
while [ $# -gt 0 ]; do
    case $1 in
        --token) TOKEN=${2:?--token needs a value}; shift 2 ;;
        --token-file) TOKEN_FILE=${2:?--token-file needs a value}; shift 2 ;;
        --wait) WAIT=${2:?--wait needs a value}; shift 2 ;;
        --prefix) PREFIX=${2:?--prefix needs a value}; shift 2 ;;
        --python) PYTHON=${2:?--python needs a value}; shift 2 ;;
        --kit) KIT=${2:?--kit needs a value}; shift 2 ;;
        --no-service) SERVICE=no; shift ;;
        --help|-h) usage; exit 0 ;;
        *) usage >&2; die "unknown option: $1" ;;
    esac
done

[ "$(uname -s)" = Linux ] || die "only Linux hosts can be nodes today"
[ -n "$PREFIX" ] || [ "$(id -u)" = 0 ] || die "run this as root (or with --prefix DIR)"
case $(uname -m) in
    x86_64|amd64) ARCH=amd64 ;;
    aarch64|arm64) ARCH=arm64 ;;
    *) die "there is no kit for $(uname -m)" ;;
esac

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; }
if [ -z "$PYTHON" ]; then
    for name in python3 python3.13 python3.12 python3.11 python3.10 python3.9; do
        candidate=$(command -v "$name" 2>/dev/null) || continue
        if is_new_enough "$candidate"; then PYTHON=$candidate; break; fi
    done
fi
[ -n "$PYTHON" ] && is_new_enough "$PYTHON" || die "Python 3.9 or newer is needed (or name one with --python)"

EXPECTED=''
for entry in $KITS; do
    case $entry in "$ARCH":*) EXPECTED=${entry#*:} ;; esac
done
[ -n "$EXPECTED" ] || die "this Manager has no kit for $ARCH: run 'make kit' there"

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
trap 'exit 1' HUP INT TERM

fetch() {
    if command -v curl >/dev/null 2>&1; then
        if curl --help all 2>/dev/null | grep -q pinnedpubkey; then
            curl -fsSk --retry 3 --pinnedpubkey "$PIN" -o "$2" "$1"
        else
            curl -fsSk --retry 3 -o "$2" "$1"
        fi
    elif command -v wget >/dev/null 2>&1; then
        wget -q --no-check-certificate -O "$2" "$1"
    else
        "$PYTHON" - "$1" "$2" <<'CODE'
import shutil, ssl, sys, urllib.request
context = ssl._create_unverified_context()  # what arrives is checked by its digest below
with urllib.request.urlopen(sys.argv[1], context=context) as answer, open(sys.argv[2], "wb") as file:
    shutil.copyfileobj(answer, file)
CODE
    fi
}

if [ -n "$KIT" ]; then
    cp "$KIT" "$WORK/kit.tar.gz"
else
    say "fetching the kit $VERSION for $ARCH"
    fetch "$SERVER/daemon/v1/kits/$ARCH" "$WORK/kit.tar.gz" || die "the kit cannot be fetched from $SERVER"
fi
FOUND=$("$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$WORK/kit.tar.gz")
[ "$FOUND" = "$EXPECTED" ] || die "the kit is not the one that this script was made for (SHA-256 $FOUND); fetch both again"

HOME_DIR=$PREFIX/opt/ops-scaffold
RELEASES=$HOME_DIR/releases
CONFIG=$PREFIX/etc/ops-scaffold
STATE=$PREFIX/var/lib/ops-scaffold/daemon
AGENT_STATE=$PREFIX/var/lib/ops-scaffold/agent
mkdir -p "$RELEASES" "$CONFIG/plugins" "$STATE" "$AGENT_STATE"
chmod 0700 "$STATE" "$AGENT_STATE"

# Unpacked beside its place and renamed into it, so that a release is there whole or not at all. The kit is laid out as
# the releases are: component, version.
NEW=$RELEASES/.new.$$
rm -rf "$NEW"; mkdir "$NEW"
trap 'rm -rf "$WORK" "$NEW"' EXIT
tar -xzf "$WORK/kit.tar.gz" -C "$NEW"
TAG=$("$PYTHON" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
[ -d "$NEW/daemon" ] && [ -d "$NEW/agent" ] || die "this kit holds no daemon or no agent"

is_fresh() { [ "$(cat "$RELEASES/$1/current/.kit" 2>/dev/null)" != "$EXPECTED" ]; }

place() {
    version=$(ls "$NEW/$1")
    release=$NEW/$1/$version
    [ -d "$release/lib/$TAG" ] || die "the kit has no libraries for $("$PYTHON" -V); name another Python with --python"
    # What is started again and again is compiled once; nobody writes there later.
    "$PYTHON" -m compileall -q -s "$NEW" -p "$RELEASES" "$release/$1" "$release/protocol" "$release/lib/$TAG/ruamel" \
        || die "the kit cannot be compiled"
    printf '%s\n' "$EXPECTED" > "$release/.kit"
    mkdir -p "$RELEASES/$1"
    old=$RELEASES/$1/.old.$$
    [ ! -d "$RELEASES/$1/$version" ] || { rm -rf "$old"; mv "$RELEASES/$1/$version" "$old"; }
    mv "$release" "$RELEASES/$1/$version"
    rm -rf "$old"
    ln -sfn "$version" "$RELEASES/$1/.current.$$"
    mv -T "$RELEASES/$1/.current.$$" "$RELEASES/$1/current"
}

is_new_agent=no
is_fresh agent && is_new_agent=yes
place daemon
place agent
rm -rf "$NEW"
sync

PYTHONPATH=$RELEASES/daemon/current:$RELEASES/daemon/current/lib/$TAG
export PYTHONPATH

if [ ! -e "$CONFIG/daemon.yaml" ]; then
    printf 'manager:\n  url: %s\nstate_dir: %s\n' "$SERVER" "$STATE" > "$CONFIG/daemon.yaml"
    chmod 0644 "$CONFIG/daemon.yaml"
fi
if ! grep -q '^task_agent:' "$CONFIG/daemon.yaml"; then
    cat >> "$CONFIG/daemon.yaml" <<TEXT

# The program that executes tasks here. With "config: null" this host runs none.
task_agent:
  config: $CONFIG/agent.yaml
  home: $RELEASES/agent/current
TEXT
fi
if [ ! -e "$CONFIG/agent.yaml" ]; then
    cat > "$CONFIG/agent.yaml" <<TEXT
# Settings of the task agent, as far as they are not the usual ones; all of them, with what they mean, stand in
# $RELEASES/agent/current/agent.example.yaml. A change needs a restart of the agent.
state_dir: $AGENT_STATE
plugins_dir: $CONFIG/plugins
TEXT
    chmod 0644 "$CONFIG/agent.yaml"
fi
if [ ! -e "$CONFIG/capabilities.yaml" ]; then
    cat > "$CONFIG/capabilities.yaml" <<'TEXT'
# What the Manager may do on this host. Only root can change it; the Manager cannot widen it.
allow:
  scripts: true
  run_as: ["*"]
  files: ["/**"]
  terminal: true
  packages: true
  config: true
TEXT
    chmod 0644 "$CONFIG/capabilities.yaml"
fi

set -- --server "$SERVER" --ca-fingerprint "$CA_FINGERPRINT" --config "$CONFIG/daemon.yaml" --wait "$WAIT"
if [ -n "$TOKEN" ]; then
    TOKEN_FILE=$WORK/token
    ( umask 077; printf '%s' "$TOKEN" > "$TOKEN_FILE" )
fi
[ -z "$TOKEN_FILE" ] || set -- "$@" --token-file "$TOKEN_FILE"
is_running=no
if [ -z "$PREFIX" ] && command -v systemctl >/dev/null 2>&1 && systemctl is-active -q ops-scaffold-daemon 2>/dev/null; then
    is_running=yes
    systemctl stop ops-scaffold-daemon
fi
say "enrolling at $SERVER"
"$PYTHON" -m daemon enroll "$@" || { [ $is_running = no ] || systemctl start ops-scaffold-daemon; die "this host was not let in"; }

# The Daemon starts it again, from the new release; what it executes just now is interrupted.
stop_old_agent() {
    read -r _ pid begun < "$STATE/agents/task/pid" || return 0
    fields=$(cat "/proc/$pid/stat" 2>/dev/null) || return 0
    # shellcheck disable=SC2086  # words are wanted
    set -- ${fields##*)}
    [ "${20}" != "$begun" ] || kill -TERM "$pid" 2>/dev/null || true
}
if [ $is_new_agent = yes ] && [ -e "$STATE/agents/task/pid" ]; then stop_old_agent; fi

RUN="$PYTHON -m daemon --config $CONFIG/daemon.yaml --capabilities $CONFIG/capabilities.yaml"
UNIT=$PREFIX/etc/systemd/system/ops-scaffold-daemon.service
mkdir -p "$(dirname "$UNIT")"
cat > "$UNIT" <<TEXT
[Unit]
Description=Ops Scaffold Daemon
After=network-online.target
Wants=network-online.target

[Service]
Type=notify
Environment=PYTHONPATH=$PYTHONPATH MALLOC_ARENA_MAX=2 PYTHONDONTWRITEBYTECODE=1
ExecStart=$RUN
ExecReload=/bin/kill -HUP \$MAINPID
Restart=always
RestartSec=2
WatchdogSec=120
KillMode=process
OOMPolicy=continue
TasksMax=infinity
Delegate=yes
UMask=0027

[Install]
WantedBy=multi-user.target
TEXT

cat > "$HOME_DIR/uninstall.sh" <<TEXT
#!/bin/sh
# Takes the Daemon, the task agent and every program that they keep running off this host. With --purge also identity,
# settings and data. The Manager goes on showing the host until it is deleted there.
set -eu
PYTHONPATH=$PYTHONPATH
export PYTHONPATH
if command -v systemctl >/dev/null 2>&1 && [ -z "$PREFIX" ] && [ -d /run/systemd/system ]; then
    systemctl disable -q --now ops-scaffold-daemon || true
fi
if [ -d "$RELEASES/daemon/current" ]; then
    "$PYTHON" -m daemon end-agents --config "$CONFIG/daemon.yaml"
fi
rm -f "$UNIT"
[ ! -d /run/systemd/system ] || [ -n "$PREFIX" ] || systemctl daemon-reload
[ "\${1:-}" != --purge ] || rm -rf "$CONFIG" "$PREFIX/var/lib/ops-scaffold"
[ -n "$PREFIX" ] || rm -rf /run/ops-scaffold
rm -rf "$HOME_DIR"
printf '%s\n' "ops-scaffold: removed"
TEXT
chmod 0755 "$HOME_DIR/uninstall.sh"

if [ "$SERVICE" = yes ] && [ -z "$PREFIX" ] && command -v systemctl >/dev/null 2>&1 && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl enable -q ops-scaffold-daemon
    systemctl restart ops-scaffold-daemon
    say "done: the Daemon runs as ops-scaffold-daemon"
else
    say "done. Start the Daemon with: PYTHONPATH=$PYTHONPATH $RUN"
fi
