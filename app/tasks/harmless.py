"""What programs write, made fit to be shown: no escape sequence, no control character, nothing that turns text round.

HTML needs no care here: everything is shown as text.
"""

import re

ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]{0,2000}(?:\x07|\x1b\\)|[PX^_][^\x1b]{0,2000}\x1b\\|[ -/]*[0-~])"
)
"""Colours, movements of the cursor, titles of windows: of no use in a page."""
LINE_ENDS = re.compile(r"\r*\n|\r+")
STRANGE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")


def harmless(text: str) -> str:
    """Also for what draws progress over one line again and again: each state gets a line of its own."""
    return STRANGE.sub(_visible, LINE_ENDS.sub("\n", ESCAPES.sub("", text)))


def _visible(found: re.Match[str]) -> str:
    code = ord(found.group())
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else f"\u2039{code:04X}\u203a"


def last_line(text: str, most: int = 200) -> str:
    """The last line that says something."""
    for line in reversed(harmless(text).splitlines()):
        if line.strip():
            return line.strip()[:most]
    return ""
