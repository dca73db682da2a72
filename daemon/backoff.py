"""How long to wait before the next try: full jitter, and the Manager's `Retry-After` above all."""

from __future__ import annotations

import random

FIRST_S = 1.0
MOST_S = 60.0
LEAST_S = 0.1


class Backoff:
    """Failures in a row make the range wider; one success narrows it again."""

    def __init__(self, draw: random.Random | None = None) -> None:
        self._draw = draw or random.Random()  # noqa: S311 - spreads hosts, guards nothing
        self._failures = 0

    def success(self) -> None:
        """The link works."""
        self._failures = 0

    def delay(self, retry_after_s: float | None = None) -> float:
        """Seconds to wait after one more failure."""
        reach = min(MOST_S, FIRST_S * 2.0 ** min(self._failures, 10))
        self._failures += 1
        if retry_after_s is not None:
            return retry_after_s * (1.0 + 0.1 * self._draw.random())
        return max(LEAST_S, reach * self._draw.random())

    def spread(self, seconds: float, share: float) -> float:
        """A time, more or less, so that hosts do not march in step."""
        return seconds * (1.0 + share * (2.0 * self._draw.random() - 1.0))
