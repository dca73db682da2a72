"""What a simulated fleet saw, added up."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counters of one process; merged by `merge` where several simulate."""

    enrolled: int = 0
    polls: int = 0
    handshakes: int = 0
    checkins: list[tuple[float, float]] = field(default_factory=list)
    """When each began, and the seconds it took."""
    acknowledged: list[tuple[int, int]] = field(default_factory=list)
    arrivals: dict[str, list[float]] = field(default_factory=dict)
    tasks: list[tuple[int, float]] = field(default_factory=list)
    """Node and moment of each task's arrival."""
    errors: Counter[str] = field(default_factory=Counter)

    def error(self, what: str) -> None:
        self.errors[what] += 1

    def received(self, uuid: str, at: float) -> None:
        self.arrivals.setdefault(uuid, []).append(at)


def percentile(values: list[float], share: float) -> float:
    """The value below which this share of all lies; 0 for none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
