"""An agent's configuration as a transaction: validated, placed, tried for a while, then kept or taken back.

Each step is on disk before the next begins, so a Daemon that is killed anywhere ends with the old or the new files,
never with a mixture, and says which. How a file gets into its place is the business of `config_files`, what is kept of
it afterwards of `config_kept`.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Callable, NamedTuple

from daemon import config_files
from daemon.commands import Call, Failed, Later
from daemon.config_files import Placed, words_of
from daemon.config_kept import KeptConfigs, files_now
from daemon.disk import read_json, write_file
from daemon.errands import Errands
from daemon.logs import redact
from daemon.measure import Logbook
from daemon.probation import BrokenOff, Probation, Supervising
from daemon.system import System
from protocol.checkin import Health
from protocol.codec import encode
from protocol.errors import AGENT_BUSY, FORBIDDEN_BY_HOST, INTERRUPTED, ROLLED_BACK, TASK_FAILED, ProtocolError
from protocol.fields import Fields
from protocol.limits import BIG, PAYLOAD_CHARS
from protocol.manifests import CONFIG_FILES, CONFIG_PLACEHOLDER, NAME, Manifest
from protocol.states import INTERRUPTED as INTERRUPTED_STATE

APPLY = ("reload", "restart", "none")
KEPT, REVERTED, REFUSED = "kept", "reverted", "refused"

# Until PLACING no target is touched; from APPLYING on all of them are new, and the agent may know.
PREPARED, PLACING, APPLYING, REVERTING = STAGES = ("prepared", "placing", "applying", "reverting")

PROBATION_MAX_S = 3600
VALIDATE_S = 60.0
UNKNOWN_S = 10.0
DETAIL_CHARS = 1500
AT_ONCE = 4
WAITING = 200

# The stage is part of the file's name, since a rename succeeds on a full disk too.
_OUTCOME, _TRANSACTION = "outcome", "transaction-"

log = logging.getLogger("daemon.agent_config")


class NewFile(NamedTuple):
    """A file as the Manager wants it."""

    path: str
    content: bytes


class Order(NamedTuple):
    """Payload of `agent.configure`."""

    name: str
    version: int
    files: tuple[NewFile, ...]
    probation_s: float
    apply: str


class Transaction(NamedTuple):
    """What the journal holds of a transaction. `was_sound`: the agent was well before it."""

    command: str
    agent: str
    version: int
    apply: str
    probation_s: float
    was_sound: bool
    files: tuple[Placed, ...]


class Outcome(NamedTuple):
    """How a transaction ended. `in_force`: the version whose files are there now."""

    command: str
    version: int
    outcome: str
    detail: str
    checks: tuple[Health, ...]
    in_force: int | None
    was_touched: bool


def parse_order(payload: Fields) -> Order:
    """Read the payload; ProtocolError names what is wrong."""
    probation_s = payload.number_or_none("probation_s", 0, PROBATION_MAX_S)
    files = payload.each("files", CONFIG_FILES, _parse_file)
    if not files:
        raise payload.refuse("files", "must have at least one file")
    if len({file.path for file in files}) < len(files):
        raise payload.refuse("files", "must not name a path twice")
    return Order(
        name=payload.text("name", 64, 1, NAME),
        version=payload.integer("version", 1, BIG),
        files=files,
        probation_s=10.0 if probation_s is None else probation_s,
        apply=payload.choice("apply", APPLY) if payload.has("apply") else "reload",
    )


def _parse_file(fields: Fields) -> NewFile:
    return NewFile(fields.text("path", 1024), fields.text("content", PAYLOAD_CHARS, 0).encode("utf-8"))


class AgentConfigs:
    """One transaction for each agent at a time, each in a short-lived thread. Drift is looked for from any thread."""

    def __init__(
        self,
        system: System,
        directory: str,
        supervising: Supervising,
        logbook: Logbook,
        is_allowed: Callable[[], bool],
        on_change: Callable[[], None] = lambda: None,
        forbids_command: Callable[[str | None], str | None] = lambda _: None,
        forbids_file: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self._system = system
        self._directory = directory
        self._supervising = supervising
        self._logbook = logbook
        self._is_allowed = is_allowed
        self._on_change = on_change
        self._forbids_command = forbids_command
        self._forbids_file = forbids_file
        self._errands = Errands("config", AT_ONCE, WAITING)
        self._probation = Probation(system, supervising, self._errands.stopping)
        self._lock = threading.Lock()
        self._open: dict[str, Transaction] = {}
        self._stages: dict[str, str] = {}
        self._calls: dict[str, Call] = {}
        self._doubts: dict[str, str] = {}
        self._known: set[str] = set()
        system.make_dir(directory)
        self._kept = KeptConfigs(system, directory, logbook)

    # ---- start and stop

    def settle(self) -> None:
        """Before any agent is started: files that a crash left half placed go back to what they were."""
        for name in self._system.names(self._directory):
            self._settle_agent(name)

    def resume(self) -> None:
        """With the agents running: go on with what a crash cut short."""
        for name in list(self._open):
            self._errands.start(lambda cut=name: self._go_on(cut))  # type: ignore[misc]

    def stop(self, timeout_s: float) -> None:
        """Transactions under way stay in the journal; the next Daemon goes on with them."""
        self._errands.stop(timeout_s)

    # ---- commands

    def configure(self, payload: Fields) -> Later:
        """Handler of `agent.configure`."""
        order = parse_order(payload)
        if self._supervising.manifest(order.name) is None:
            return self._errands.later(lambda call: self._begin_when_known(order, call))
        return Later(lambda call: self._begin(order, call))

    def read(self, payload: Fields) -> Later:
        """Handler of `agent.read_config`."""
        name = payload.text("name", 64, 1, NAME)
        return self._errands.later(lambda call: self._read(name, call))

    # ---- for the check-in

    def version(self, name: str) -> int | None:
        """The version in force; None if the Manager never configured this agent."""
        return self._kept.version(name)

    def is_drifted(self, name: str) -> bool:
        """Whether a file was found to be another than the one that was applied last."""
        return self._kept.is_drifted(name)

    def look(self) -> bool:
        """Compare files with what was applied last, before each check-in; True if what is to be told changed."""
        names = set(self._supervising.names())
        for name in self._known - names:
            self._forget(name)
        is_changed = False
        for name in names - set(self._open):
            manifest = self._supervising.manifest(name)
            if manifest is None or self._kept.version(name) is None:
                continue
            if name not in self._known:
                self._supervising.config_changed(name, self._kept.version(name))
            if self._kept.look(manifest):
                self._supervising.set_drifted(name, self._kept.is_drifted(name))
                is_changed = True
        self._known = names
        return is_changed

    def _forget(self, name: str) -> None:
        """The agent was taken off this host; its files stay where they are."""
        if name not in self._open:
            try:
                self._kept.forget(name)
            except OSError as error:
                log.warning("cannot forget the configuration of %s: %s", name, error)

    # ---- a transaction, in a thread of its own

    def _begin_when_known(self, order: Order, call: Call) -> None:
        """The agent may be so new that the settings which declare it are still on their way."""
        deadline = self._system.boottime() + UNKNOWN_S
        while not call.is_resumed and self._system.boottime() < deadline:
            self._on_change()
            if self._errands.stopping.wait(0.25):
                return
            if self._supervising.manifest(order.name) is not None:
                break
        self._begin(order, call)

    def _begin(self, order: Order, call: Call) -> None:
        if call.is_resumed:
            self._attach(order.name, call)
            return
        manifest = self._admit(order)
        transaction = Transaction(
            call.id, order.name, order.version, order.apply, order.probation_s, was_sound=True, files=()
        )
        with self._lock:
            if order.name in self._open:
                raise Failed(AGENT_BUSY, "another configuration of this agent is under way")
            self._open[order.name] = transaction
            self._calls[call.id] = call
        if not self._errands.start(lambda: self._guarded(order.name, lambda: self._change(order, manifest))):
            self._close(transaction)
            raise Failed(AGENT_BUSY, "too many configurations are under way; try again")

    def _read(self, name: str, call: Call) -> None:
        self._check_allowed()
        manifest = self._manifest(name)
        self._check_files(name, [file.path for file in manifest.config])
        call.succeed({"files": files_now(self._system, manifest)})

    def _check_allowed(self) -> None:
        if not self._is_allowed():
            raise Failed(FORBIDDEN_BY_HOST, "this host's capability file does not allow configuration")

    def _check_files(self, name: str, paths: list[str]) -> None:
        """The Manager wrote the manifest and its paths, unless the host did."""
        if self._supervising.is_local(name):
            return
        for path in paths:
            words = self._forbids_file(path)
            if words is not None:
                raise Failed(FORBIDDEN_BY_HOST, words)

    def _admit(self, order: Order) -> Manifest:
        self._check_allowed()
        manifest = self._manifest(order.name)
        if self._supervising.is_local(order.name):
            raise Failed(FORBIDDEN_BY_HOST, "this agent is declared on the host; its configuration is the host's")
        # The Manager wrote the validate command, too: it is no way around the capability file.
        words = self._forbids_command(manifest.user) if manifest.validate else None
        if words is not None:
            raise Failed(FORBIDDEN_BY_HOST, words)
        known = {file.path for file in manifest.config}
        for index, file in enumerate(order.files):
            if file.path not in known:
                raise ProtocolError(f"payload.files.{index}.path", "is not a configuration file of the manifest")
        self._check_files(order.name, [file.path for file in order.files])
        return manifest

    def _attach(self, name: str, call: Call) -> None:
        """A command that an earlier Daemon began: answer it when its transaction is over, or if it is already."""
        with self._lock:
            transaction = self._open.get(name)
            is_open = transaction is not None and transaction.command == call.id
            words = self._doubts.get(call.id)
            if is_open and words is None:
                self._calls[call.id] = call
                return
        if is_open and words is not None:
            # Nothing more is done for it until the next start.
            _answer_doubt(call, words)
            return
        outcome = self._load_outcome(name)
        if outcome is not None and outcome.command == call.id:
            _answer(call, outcome)
            return
        call.fail(INTERRUPTED, "the Daemon or the machine died before anything was changed", status=INTERRUPTED_STATE)

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except BrokenOff:
            return
        except (OSError, KeyError) as error:
            self._give_up(name, words_of(error))
        except Exception as error:
            # Whatever it was, the agent must not be left with half a configuration.
            log.exception("the configuration of %s stumbled", name)
            self._give_up(name, f"{type(error).__name__}: {error}")

    def _change(self, order: Order, manifest: Manifest) -> None:
        name = order.name
        specs = {file.path: file for file in manifest.config}
        planned = [
            (config_files.plan_file(self._system, specs[file.path], manifest.user, file.content), file.content)
            for file in order.files
        ]
        changed = tuple(placed for placed, _ in planned if not config_files.is_in_place(self._system, placed))
        self._system.make_dir(self._folder(name))
        self._kept.prepare(name, order.version, planned)
        transaction = self._open[name]._replace(was_sound=self._probation.is_sound(name), files=changed)
        self._note(transaction)
        if not changed:
            self._finish(transaction, KEPT, "nothing had to be changed")
            return
        for placed, content in planned:
            if placed in changed:
                config_files.write_candidate(self._system, placed, content)
        problem = self._validate(transaction, manifest, are_placed=False)
        if problem is not None:
            self._finish(transaction, REFUSED, problem)
            return
        self._enter(name, PLACING)
        for placed in changed:
            config_files.place(self._system, placed)
        problem = self._validate(transaction, manifest, are_placed=True)
        if problem is not None:
            self._put_back(transaction)
            self._finish(transaction, REFUSED, problem)
            return
        self._enter(name, APPLYING)
        self._try_out(transaction)

    def _validate(self, transaction: Transaction, manifest: Manifest, are_placed: bool) -> str | None:
        """What the agent's own command has against it. The placeholder stands for the manifest's first file.

        A command without the placeholder, or one whose file may name others, is asked when all are in their places.
        """
        names_it = any(CONFIG_PLACEHOLDER in argument for argument in manifest.validate)
        is_asked_now = not names_it or len(manifest.config) > 1 if are_placed else names_it
        if not manifest.validate or not is_asked_now:
            return None
        main = manifest.config[0].path
        is_new = any(placed.path == main for placed in transaction.files)
        shown = config_files.candidate_path(main) if is_new and not are_placed else main
        argv = [argument.replace(CONFIG_PLACEHOLDER, shown) for argument in manifest.validate]
        finished = self._supervising.run(transaction.agent, argv, VALIDATE_S)
        said = finished.out.decode("utf-8", "replace").replace("\0", "\ufffd").strip().replace(shown, main)
        said = redact(said[-4 * DETAIL_CHARS :])[-DETAIL_CHARS:]
        if finished.timed_out:
            return f"the validate command did not end within {VALIDATE_S:g} s. {said}"
        return f"the validate command says no ({finished.code}): {said}" if finished.code != 0 else None

    def _try_out(self, transaction: Transaction) -> None:
        """Tell the agent, then watch it. Also where a crash of the Daemon is picked up again."""
        checks: tuple[Health, ...] = ()
        problem = self._apply(transaction)
        if problem is None:
            problem, checks = self._probation.watch(transaction.agent, transaction.probation_s)
        if problem is not None:
            log.warning("configuration %d of %s is taken back: %s", transaction.version, transaction.agent, problem)
            self._revert(transaction, problem, checks)
            return
        detail = f"in force, and well for {transaction.probation_s:g} s"
        if not self._probation.is_wanted(transaction.agent):
            detail = "in force; the agent is not meant to run, so it was not tried"
        self._finish(transaction, KEPT, detail, checks)

    def _apply(self, transaction: Transaction) -> str | None:
        name, how = transaction.agent, transaction.apply
        condition, manifest = self._supervising.condition(name), self._supervising.manifest(name)
        if how == "none" or condition is None or manifest is None or not condition.is_wanted:
            return None
        if how == "reload" and manifest.reload is not None and condition.is_running:
            problem = self._supervising.reload(name)
        else:
            problem = self._supervising.restart(name)
        return None if problem is None else f"{how} failed: {problem}"

    def _revert(self, transaction: Transaction, problem: str, checks: tuple[Health, ...] = ()) -> None:
        """Back to what was there; if the agent was not well with that either, to the last version that it was with."""
        name = transaction.agent
        self._enter(name, REVERTING)
        self._put_back(transaction)
        words = "what was there before is in force again"
        version = None if transaction.was_sound else self._kept.overwrite(name)
        if version is not None:
            words = f"the last healthy version, {version}, is in force again"
        told = self._apply(transaction)
        if told is not None:
            words += f", but {told}"
        self._finish(transaction, REVERTED, f"{problem}; {words}", checks)

    def _put_back(self, transaction: Transaction) -> None:
        for placed in transaction.files:
            config_files.put_back(self._system, placed)

    def _give_up(self, name: str, problem: str) -> None:
        """Something went wrong that is nobody's verdict: a full disk, a missing directory, no such user."""
        transaction = self._open[name]
        try:
            if self._stages.get(name, PREPARED) == PREPARED:
                self._finish(transaction, REFUSED, problem)
            else:
                self._revert(transaction, problem)
        except (OSError, ValueError) as error:
            self._doubt(transaction, f"{problem}; and the old files could not be put back: {words_of(error)}")

    def _doubt(self, transaction: Transaction, words: str) -> None:
        """It stays in the journal, and the next start tries again; until then nothing else can be configured."""
        log.error("the configuration of %s is in doubt: %s", transaction.agent, words)
        data = {"agent": transaction.agent, "version": transaction.version, "detail": words[:DETAIL_CHARS]}
        self._logbook.add_event("agent.config_reverted", "critical", f"{transaction.agent}: {words}", data)
        with self._lock:
            self._doubts[transaction.command] = words
            call = self._calls.pop(transaction.command, None)
        if call is not None:
            _answer_doubt(call, words)

    # ---- the end of it

    def _finish(self, transaction: Transaction, outcome: str, detail: str, checks: tuple[Health, ...] = ()) -> None:
        """Keep, write down how it ended, tell it, clear away: in this order, so that no crash keeps it untold."""
        name = transaction.agent
        if outcome == KEPT:
            self._kept.keep(name)
        in_force = self._kept.version(name)
        was_touched = self._stages.get(name, PREPARED) != PREPARED or outcome == KEPT
        ended = Outcome(
            transaction.command, transaction.version, outcome, detail[:DETAIL_CHARS], checks, in_force, was_touched
        )
        try:
            self._system.make_dir(self._folder(name))
            write_file(self._system, self._folder(name), _OUTCOME, encode(ended))
        except OSError as error:
            # A full disk costs the memory of it, not the order of things.
            log.warning("cannot write down how the configuration of %s ended: %s", name, error)
        self._conclude(transaction, ended)

    def _conclude(self, transaction: Transaction, ended: Outcome) -> None:
        name = transaction.agent
        self._tell(transaction, ended)
        for placed in transaction.files:
            config_files.clean(self._system, placed.path)
        # First durably the journal, then the copies that it may still need.
        for stage in STAGES:
            self._system.remove(f"{self._folder(name)}/{_TRANSACTION}{stage}")
        self._system.sync_dir(self._folder(name))
        self._kept.sweep(name, (_OUTCOME,))
        if ended.was_touched:
            self._supervising.config_changed(name, ended.in_force)
            self._supervising.set_drifted(name, self._kept.is_drifted(name))
        call = self._close(transaction)
        if call is not None:
            _answer(call, ended)
        self._on_change()

    def _tell(self, transaction: Transaction, ended: Outcome) -> None:
        if not ended.was_touched:
            # Nothing happened on this host; the command's own result says all of it.
            return
        name, version = transaction.agent, transaction.version
        data = {
            "agent": name,
            "version": version,
            "in_force": ended.in_force,
            "detail": ended.detail,
            "command": ended.command,
        }
        if ended.outcome == KEPT:
            self._logbook.add_event("agent.configured", "info", f"{name}: configuration {version} is in force", data)
        else:
            words = f"{name}: configuration {version} was taken back: {ended.detail}"
            self._logbook.add_event("agent.config_reverted", "warning", words, data)

    def _close(self, transaction: Transaction) -> Call | None:
        with self._lock:
            self._open.pop(transaction.agent, None)
            self._stages.pop(transaction.agent, None)
            return self._calls.pop(transaction.command, None)

    def _note(self, transaction: Transaction) -> None:
        """Into the journal, before anything is done."""
        name = transaction.agent
        write_file(self._system, self._folder(name), _TRANSACTION + PREPARED, encode(transaction))
        self._open[name], self._stages[name] = transaction, PREPARED

    def _enter(self, name: str, stage: str) -> None:
        """The next stage, on the disk before it is begun."""
        known = self._stages[name]
        if known != stage:
            folder = self._folder(name)
            self._system.replace(f"{folder}/{_TRANSACTION}{known}", f"{folder}/{_TRANSACTION}{stage}")
            self._system.sync_dir(folder)
            self._stages[name] = stage

    # ---- after a crash

    def _settle_agent(self, name: str) -> None:
        folder = self._folder(name)
        try:
            self._kept.load(name)
            stage = next((stage for stage in STAGES if self._system.exists(f"{folder}/{_TRANSACTION}{stage}")), None)
            if stage is None:
                self._kept.sweep(name, (_OUTCOME,))
                return
            stored = read_json(self._system, f"{folder}/{_TRANSACTION}{stage}")
            files = tuple(Placed(**file) for file in stored["files"])
            transaction = Transaction(**{**stored, "files": files})
            self._open[name], self._stages[name] = transaction, stage
            if stage in (PLACING, REVERTING) and not self._is_over(transaction):
                self._put_back(transaction)
        except (OSError, ValueError, TypeError, KeyError) as error:
            # One agent's damaged journal must not keep the others from running.
            log.error("the configuration of %s cannot be settled: %s", name, error)  # noqa: TRY400

    def _go_on(self, name: str) -> None:
        self._guarded(name, lambda: self._take_up(self._open[name], self._stages[name]))

    def _take_up(self, transaction: Transaction, stage: str) -> None:
        died = "the Daemon or the machine died"
        ended = self._load_outcome(transaction.agent)
        if ended is not None and ended.command == transaction.command:
            self._conclude(transaction, ended)
        elif stage == PREPARED:
            self._finish(transaction, REFUSED, f"{died} before anything was changed")
        elif stage == PLACING:
            self._put_back(transaction)
            self._finish(transaction, REVERTED, f"{died} in the middle; what was there before is in force")
        elif stage == REVERTING:
            self._probation.await_agent(transaction.agent)
            self._revert(transaction, f"{died} while it was taken back")
        else:
            self._probation.await_agent(transaction.agent)
            self._try_out(transaction)

    def _is_over(self, transaction: Transaction) -> bool:
        ended = self._load_outcome(transaction.agent)
        return ended is not None and ended.command == transaction.command

    def _load_outcome(self, name: str) -> Outcome | None:
        try:
            stored = read_json(self._system, f"{self._folder(name)}/{_OUTCOME}")
            if stored is None:
                return None
            return Outcome(**{**stored, "checks": tuple(Health(**check) for check in stored["checks"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    # ---- what is there

    def _manifest(self, name: str) -> Manifest:
        manifest = self._supervising.manifest(name)
        if manifest is None:
            raise Failed(TASK_FAILED, f"there is no agent {name} on this host")
        return manifest

    def _folder(self, name: str) -> str:
        return f"{self._directory}/{name}"


def _answer_doubt(call: Call, words: str) -> None:
    call.fail(ROLLED_BACK, words, {"outcome": REVERTED, "detail": words, "checks": [], "version": None})


def _answer(call: Call, ended: Outcome) -> None:
    data: dict[str, Any] = {
        "outcome": ended.outcome,
        "detail": ended.detail,
        "checks": [check._asdict() for check in ended.checks],
        "version": ended.in_force,
    }
    if ended.outcome == KEPT:
        call.succeed(data)
    else:
        call.fail(ROLLED_BACK if ended.outcome == REVERTED else TASK_FAILED, ended.detail, data)
