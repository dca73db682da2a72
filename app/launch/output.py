"""What the launcher shows: the children's lines with their names before them, and its own messages."""

import os
from typing import TextIO

WIDTH = 9
NAME = "manager"
RESET, BOLD, RED = "\x1b[0m", "\x1b[1m", "\x1b[31m"
COLOURS = {
    NAME: "\x1b[1m", "redis": "\x1b[35m", "gateway": "\x1b[36m", "web": "\x1b[32m", "worker": "\x1b[33m",
    "scheduler": "\x1b[34m",
}  # fmt: skip


class Output:
    """A stream, coloured if it is a terminal. When nobody reads it any more, `is_lost` says so."""

    def __init__(self, stream: TextIO) -> None:
        self._descriptor = stream.fileno()
        self.is_terminal = stream.isatty()
        self._is_coloured = self.is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.is_lost = False

    def line(self, name: str, line: bytes) -> None:
        self._write(self._prefix(name).encode() + line + b"\n")

    def say(self, message: str, *, is_bad: bool = False) -> None:
        """A message of the launcher's own, maybe of several lines."""
        for line in message.splitlines():
            shown = f"{RED}{line}{RESET}" if is_bad and self._is_coloured else line
            self.line(NAME, shown.encode("utf-8", "backslashreplace"))

    def bold(self, text: str) -> str:
        return f"{BOLD}{text}{RESET}" if self._is_coloured else text

    def _prefix(self, name: str) -> str:
        label = f"{name:<{WIDTH}} | "
        if not self._is_coloured:
            return label
        return f"{COLOURS.get(name.partition('-')[0], '')}{label}{RESET}"

    def _write(self, data: bytes) -> None:
        while data and not self.is_lost:
            try:
                data = data[os.write(self._descriptor, data) :]
            except OSError:
                self.is_lost = True
