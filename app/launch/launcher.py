"""The start and the end of a Manager, step by step."""

import json
import os
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from app.launch.checks import NotPossibleError, check_ports, claim_data_directory
from app.launch.output import Output
from app.launch.processes import (
    COUNTERS_VARIABLE,
    READY,
    TERMINAL_VARIABLE,
    UNHEALTHY,
    Plan,
    Stage,
    init_command,
    manager_processes,
    plan_command,
    ready_command,
)
from app.launch.supervisor import StartFailedError, StopRequestedError, Supervisor

PROJECT = Path(__file__).resolve().parents[2]
ADMIN_VARIABLES = ("OPS_ADMIN_PASSWORD", "OPS_ADMIN_PASSWORD_FILE")
FOREIGN_SETTINGS = ("FLASK_", "GUNICORN_", "RQ_", "SCRIPT_NAME", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS")
REDIS_START_S = 10.0
WRONG_SETTINGS = 2


class Admin(NamedTuple):
    """What `init` said about the first administrator."""

    username: str
    is_new: bool
    password: str | None
    """Only if it was made up, and only now."""


class WrongSettingsError(Exception):
    """Problems with the settings, one line each."""


def main(arguments: Sequence[str]) -> int:
    """Run a Manager until a signal comes. 0: stopped as asked; 1: could not start; 2: wrong settings."""
    os.umask(0o077)
    output = Output(sys.stdout)
    try:
        with Supervisor(output, _environment(output)) as supervisor:
            _run(supervisor, output, list(arguments))
    except StopRequestedError:
        output.say("stopped")
        return 0
    except WrongSettingsError as error:
        sys.stderr.write(f"{error}\n")
        return WRONG_SETTINGS
    except (NotPossibleError, StartFailedError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _run(supervisor: Supervisor, output: Output, arguments: list[str]) -> NoReturn:
    plan = _make_plan(supervisor, arguments)
    lock = claim_data_directory(Path(plan.data_path))
    try:
        check_ports(plan.addresses)
        _run_manager(supervisor, output, plan)
    finally:
        # Not before everything has ended: see Supervisor.stop.
        supervisor.stop()
        os.close(lock)


def _run_manager(supervisor: Supervisor, output: Output, plan: Plan) -> NoReturn:
    processes = manager_processes(plan)
    _empty_directory(Path(plan.environment[COUNTERS_VARIABLE]))
    supervisor.environment.update(plan.environment)
    supervisor.start(process for process in processes if process.stage == Stage.REDIS)
    if plan.redis:
        supervisor.wait_until(lambda: _redis_answers(plan.redis_socket), REDIS_START_S, "Redis does not answer")
    admin = _initialise(supervisor, output)
    for variable in ADMIN_VARIABLES:
        supervisor.environment.pop(variable, None)
    try:
        supervisor.start(process for process in processes if Stage.REDIS < process.stage < Stage.HOST)
        warning = _wait_for_answer(supervisor, plan)
        supervisor.start(process for process in processes if process.stage == Stage.HOST)
    except (StartFailedError, StopRequestedError):
        if admin.password:
            output.say(f"The first administrator is {admin.username}, the password is {admin.password}")
        raise
    output.say(_banner(output, plan, admin))
    if warning:
        output.say(f"Not everything is well: {warning}", is_bad=True)
    supervisor.keep_running()


def _empty_directory(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def _environment(output: Output) -> dict[str, str]:
    """What every child gets: ours, without what would configure servers and libraries past our settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_SETTINGS)}
    paths = [str(PROJECT), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    if output.is_terminal:
        environment[TERMINAL_VARIABLE] = "1"
    return environment


def _make_plan(supervisor: Supervisor, arguments: list[str]) -> Plan:
    code, text = supervisor.run_step("settings", plan_command(arguments))
    answer = _last_json(text)
    if "problems" in answer:
        raise WrongSettingsError("\n".join(answer["problems"]))
    if code != 0 or "data_path" not in answer:
        raise StartFailedError("the settings could not be read; the lines above say why")
    addresses: Mapping[str, Sequence[Any]] = answer["addresses"]
    answer["addresses"] = {plane: (host, port) for plane, (host, port) in addresses.items()}
    return Plan(**answer | {"redis": tuple(answer["redis"])})


def _initialise(supervisor: Supervisor, output: Output) -> Admin:
    code, text = supervisor.run_step("init", init_command())
    answer = _last_json(text)
    if code != 0 or "admin_created" not in answer:
        raise StartFailedError("the database and the keys could not be prepared; the lines above say why")
    for warning in answer.get("warnings", []):
        output.say(warning, is_bad=True)
    return Admin(answer["username"], answer["admin_created"], answer.get("password"))


def _wait_for_answer(supervisor: Supervisor, plan: Plan) -> str:
    """Returns what is not well although the Manager answers, for instance an external Redis."""
    code, text = supervisor.run_step("ready", ready_command(plan))
    why = text.decode("utf-8", "replace").strip()
    if code not in (READY, UNHEALTHY):
        raise StartFailedError(why or "the Manager does not answer")
    return why


def _last_json(text: bytes) -> dict[str, Any]:
    """The last line, if it is a JSON object; libraries may have written others before."""
    for line in reversed(text.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        return found if isinstance(found, dict) else {}
    return {}


def _redis_answers(path: str) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1.0)
            client.connect(path)
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _banner(output: Output, plan: Plan, admin: Admin) -> str:
    if admin.password:
        sign_in = f"{admin.username} with password {output.bold(admin.password)} (shown only this once)"
    elif admin.is_new:
        sign_in = f"{admin.username} with the password from {ADMIN_VARIABLES[0]}"
    else:
        sign_in = "as before"
    return "\n".join(
        [
            "",
            output.bold("Ops Scaffold is running."),
            f"  Web       {output.bold(plan.web_url)}",
            f"  Gateway   {plan.gateway_url}",
            f"  Sign in   {sign_in}",
            f"  Data      {plan.data_path}",
            f"  Stop      {'Ctrl-C' if output.is_terminal else f'kill -TERM {os.getpid()}'}",
            "",
        ]
    )
