"""The selector language: text to a tree, with errors that point at the column. What words mean is for `nodes` to say.

env=prod role in (web,db) !legacy            group:prod/eu and (tag:canary or version<1.4)
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from flask_babel import gettext as _

from app.kernel.errors import BadParameter, FieldError

LONGEST = 4000
DEEPEST = 20
MOST_TERMS = 100
"""Each term is a condition of its own, and no database takes conditions without end."""
KINDS = ("node", "group", "tag")
COMPARED = ("version",)
TOKEN = re.compile(
    r"""\s*(?:(?P<open>\()|(?P<close>\))|(?P<comma>,)|(?P<op>!=|<=|>=|=|<|>)|(?P<bang>!)|(?P<colon>:)"""
    r"""|"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)'|(?P<word>[^\s()=,:!<>"']+))""",
    re.DOTALL,
)
WORDS = ("and", "or", "not", "in", "notin")
PLAIN = re.compile(r"""[^\s()=,:!<>"']+""")


class Token(NamedTuple):
    kind: str
    text: str
    column: int


@dataclass(frozen=True)
class Everything:
    """`all`"""


@dataclass(frozen=True)
class Match:
    """`node:web-*`, `group:prod/eu`, `tag:legacy`; a bare word is a tag."""

    kind: str
    pattern: str


@dataclass(frozen=True)
class Comparison:
    """`key op value`: of a label, or of one of the node's own facts (`status`, `os`, `arch`, `version`)."""

    key: str
    operator: str
    values: tuple[str, ...]
    columns: tuple[int, ...] = field(default=(), compare=False)
    """Where each value stands, for whoever finds that it makes no sense."""


@dataclass(frozen=True)
class Has:
    """`has(key)`"""

    key: str


@dataclass(frozen=True)
class Not:
    inner: "Tree"


@dataclass(frozen=True)
class And:
    parts: tuple["Tree", ...]


@dataclass(frozen=True)
class Or:
    parts: tuple["Tree", ...]


Tree = Everything | Match | Comparison | Has | Not | And | Or


def parse(text: str, field: str = "selector") -> Tree:
    """The tree of a selector. Raises BadParameter that says the column and what was expected there."""
    return _Parser(text, field).whole()


def quoted(text: str) -> str:
    """A word as it may stand in a selector."""
    if PLAIN.fullmatch(text) and text.lower() not in WORDS:
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def refusal(field: str, column: int, expected: str) -> BadParameter:
    """What is wrong with a selector, and where."""
    message = _("Column %(column)s: expected %(expected)s.", column=column, expected=expected)
    return BadParameter(errors=[FieldError(field, message)], data={"column": column})


class _Parser:
    """Recursive descent: or < and < not < atom."""

    def __init__(self, text: str, field: str) -> None:
        self._field = field
        if len(text) > LONGEST:
            raise BadParameter(
                errors=[FieldError(field, _("At most %(count)s characters are allowed.", count=LONGEST))]
            )
        self._tokens = self._split(text)
        self._at = 0
        self._depth = 0
        self._terms = 0

    def whole(self) -> Tree:
        tree = self._or()
        if self._next.kind != "end":
            self._refuse(_("the end, “and” or “or”"))
        return tree

    def _split(self, text: str) -> list[Token]:
        tokens, at = [], 0
        while text[at:].strip():
            match = TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                column = len(text) - len(text[at:].lstrip()) + 1
                self._refuse_at(column, _("a word; this quotation mark is never closed"))
            kind, value, column = match.lastgroup, match[match.lastgroup], match.start(match.lastgroup) + 1
            if kind in ("double", "single"):
                kind, value, column = "quoted", re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL), column - 1
            tokens.append(Token(kind, value, column))
            at = match.end()
        return [*tokens, Token("end", "", len(text.rstrip()) + 1)]

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _take(self) -> Token:
        token = self._next
        self._at += 1
        return token

    def _is_word(self, *words: str) -> bool:
        return self._next.kind == "word" and self._next.text.lower() in words

    def _or(self) -> Tree:
        self._depth += 1
        if self._depth > DEEPEST:
            self._refuse(_("fewer parentheses"))
        parts = [self._and()]
        while self._is_word("or"):
            self._take()
            parts.append(self._and())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _and(self) -> Tree:
        parts = [self._not()]
        while self._is_word("and") or (self._next.kind not in ("end", "close", "comma") and not self._is_word("or")):
            if self._is_word("and"):
                self._take()
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _not(self) -> Tree:
        is_negated = False
        while self._next.kind == "bang" or self._is_word("not"):
            self._take()
            is_negated = not is_negated
        tree = self._atom()
        return Not(tree) if is_negated else tree

    def _atom(self) -> Tree:
        if self._next.kind == "open":
            self._take()
            tree = self._or()
            self._expect("close", _("“)”"))
            return tree
        self._terms += 1
        if self._terms > MOST_TERMS:
            self._refuse(_("the end: more than %(count)s terms are too many", count=MOST_TERMS))
        first = self._name(_("a name, “(” or “!”"))
        follows = self._next.kind
        if follows == "colon":
            return self._match(first)
        if follows == "op":
            operator = self._take()
            if operator.text not in ("=", "!=") and first.text not in COMPARED:
                self._refuse_at(operator.column, _("= or != (only version can be compared by size)"))
            value = self._name(_("a value"))
            return Comparison(first.text, operator.text, (value.text,), (value.column,))
        if self._is_word("in", "notin"):
            operator = self._take()
            values = self._list()
            texts, columns = tuple(value.text for value in values), tuple(value.column for value in values)
            return Comparison(first.text, operator.text.lower(), texts, columns)
        if follows == "open" and first.text == "has" and first.kind == "word":
            self._take()
            key = self._name(_("a label's name")).text
            self._expect("close", _("“)”"))
            return Has(key)
        if first.text == "all" and first.kind == "word":
            return Everything()
        return Match("tag", first.text)

    def _match(self, kind: Token) -> Tree:
        if kind.text not in KINDS:
            self._refuse_at(kind.column, "node:, group:, tag:")
        self._take()
        return Match(kind.text, self._name(_("a name")).text)

    def _list(self) -> list[Token]:
        self._expect("open", _("“(”"))
        values = [self._name(_("a value"))]
        while self._next.kind == "comma":
            self._take()
            values.append(self._name(_("a value")))
        self._expect("close", _("“,” or “)”"))
        return values

    def _name(self, expected: str) -> Token:
        is_name = self._next.kind == "quoted" or (self._next.kind == "word" and not self._is_word(*WORDS))
        if not is_name:
            self._refuse(expected)
        return self._take()

    def _expect(self, kind: str, expected: str) -> None:
        if self._next.kind != kind:
            self._refuse(expected)
        self._take()

    def _refuse(self, expected: str) -> NoReturn:
        self._refuse_at(self._next.column, expected)

    def _refuse_at(self, column: int, expected: str) -> NoReturn:
        raise refusal(self._field, column, expected)
