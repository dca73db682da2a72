"""Graphics cards, when `nvidia-smi` answers: a child started early and collected late, so that nobody waits."""

from __future__ import annotations

import logging

from daemon.system import Child, System
from protocol.limits import GPUS
from protocol.metrics import Gpu

PATIENCE_S = 5.0
RETRY_S = 3600.0

_FIELDS = "index,name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw"
_MIB = 1024 * 1024

log = logging.getLogger("daemon.gpu")


class GpuReader:
    """`start` some time before a measurement, `collect` at it. A host without the program is asked again hourly."""

    def __init__(self, system: System, is_wanted: bool, program: str = "nvidia-smi") -> None:
        self._system = system
        self._argv = [program, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
        self._child: Child | None = None
        self._asleep_until = 0.0 if is_wanted else float("inf")

    def start(self) -> None:
        """Set the program going, unless it still runs or is known not to answer."""
        if self._child is not None or self._system.boottime() < self._asleep_until:
            return
        try:
            self._child = self._system.start(self._argv, b"")
        except OSError:
            self._asleep_until = self._system.boottime() + RETRY_S

    def collect(self) -> tuple[Gpu, ...] | None:
        """The cards; None if there are none, or the program has not answered yet."""
        if self._child is None:
            return None
        finished = self._child.wait(0.0)
        if finished is None:
            if self._system.boottime() - self._child.started > PATIENCE_S:
                log.warning("%s does not answer; asking again in an hour", self._argv[0])
                self._child.kill()
                self._child = None
                self._asleep_until = self._system.boottime() + RETRY_S
            return None
        self._child = None
        if finished.code != 0:
            self._asleep_until = self._system.boottime() + RETRY_S
            return None
        return parse_gpus(finished.out.decode("utf-8", "replace"))

    def close(self) -> None:
        """End the program if it still runs."""
        if self._child is not None:
            self._child.kill()
            self._child = None


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """Lines of the query; what a card cannot tell (`[N/A]`) is null, and a line that makes no sense is left out."""
    cards = []
    for line in text.splitlines()[:GPUS]:
        words = [word.strip() for word in line.split(",")]
        if len(words) != 7 or not words[0].isdigit() or not words[1]:
            continue
        usage, used, total, temperature, power = (_number(word) for word in words[2:])
        cards.append(
            Gpu(
                card=int(words[0]) % 256,
                name=words[1][:128],
                usage=None if usage is None else min(usage, 100.0),
                memory_used=None if used is None else int(used) * _MIB,
                memory_total=None if total is None else int(total) * _MIB,
                temperature=temperature,
                power=power,
            )
        )
    return tuple(cards)


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if 0 <= value < 1e6 else None
