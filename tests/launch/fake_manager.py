"""The launcher's supervisor with small shell scripts instead of the Manager: a program for tests.

Called with a JSON list of [name, stage, shell script]; the directory to work in comes from the environment.
"""

import json
import os
import sys

from app.launch import supervisor
from app.launch.output import Output
from app.launch.processes import Process, Stage
from app.launch.supervisor import StartFailedError, StopRequestedError, Supervisor

supervisor.QUIET_S = float(os.environ.get("QUIET_S", supervisor.QUIET_S))


def main(table: str) -> int:
    processes = [
        Process(name, ("/bin/sh", "-c", script), Stage[stage], grace_s=2.0, hidden=("small talk",))
        for name, stage, script in json.loads(table)
    ]
    output = Output(sys.stdout)
    try:
        with Supervisor(output, os.environ) as running:
            running.start(processes)
            if "STEP" in os.environ:
                code, text = running.run_step("step", ("/bin/sh", "-c", os.environ["STEP"]))
                output.say(f"step gave {code} {text.decode()!r}")
            output.say("ready")
            running.keep_running()
    except StopRequestedError:
        output.say("stopped")
        return 0
    except StartFailedError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
