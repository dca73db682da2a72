"""Configuration templates: a small part of Jinja2 with a host's facts and an agent's secrets put in, and nothing else.

Templates come from people who may write files on hosts, but must not be able to stop or read the Manager. So only the
parts of the language that are named here are understood, loops and results are counted, and nothing can be called but
a few methods of texts and mappings.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, Final, NamedTuple

from flask_babel import gettext as _
from jinja2 import StrictUndefined, nodes
from jinja2.environment import Template
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.nodes.models import Node

LONGEST: Final = 192 * 1024
"""Characters of a template, and of what comes out of it."""
MOST_ROUNDS: Final = 20_000
MASK: Final = "••••••••"
UNDERSTOOD: Final = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem,
    nodes.Slice, nodes.If, nodes.CondExpr, nodes.For, nodes.Filter, nodes.Test, nodes.Compare, nodes.Operand,
    nodes.And, nodes.Or, nodes.Not, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Neg,
    nodes.Pos, nodes.Concat, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair, nodes.Keyword, nodes.Call,
)  # fmt: skip
FILTERS: Final = (
    "abs", "capitalize", "count", "d", "default", "first", "float", "int", "items", "join", "last", "length",
    "list", "lower", "max", "min", "replace", "reverse", "round", "sort", "string", "sum", "title", "tojson", "trim",
    "unique", "upper",
)  # fmt: skip
TESTS: Final = (
    "defined", "undefined", "none", "true", "false", "string", "number", "mapping", "sequence", "in", "eq", "ne", "lt",
    "le", "gt", "ge", "equalto", "odd", "even", "divisibleby",
)  # fmt: skip
METHODS: Final = ("items", "keys", "values", "get", "lower", "upper", "strip", "startswith", "endswith", "split")
MARKS: Final = ("{{", "{%", "{#")
_COUNTED: Final = "counted"


class TemplateProblem(Exception):
    """What is wrong with a template, and in which line of it."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message, self.line = message, line

    def __str__(self) -> str:
        return (
            self.message if self.line is None else _("Line %(line)s: %(problem)s", line=self.line, problem=self.message)
        )


class Facts(dict[str, Any]):
    """A mapping with a name, so that what it lacks can be told by the words that the template used."""

    def __init__(self, title: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.title = title


class _Lacking(StrictUndefined):
    """Complains in the words of the template."""

    @property
    def _undefined_message(self) -> str:
        if isinstance(self._undefined_obj, Facts):
            return str(
                _("%(name)s is not set for this host.", name=f"{self._undefined_obj.title}.{self._undefined_name}")
            )
        return str(_("There is nothing called %(name)s.", name=self._undefined_name))


class _Rounds:
    """How often loops of one rendering have gone round, all together."""

    def __init__(self) -> None:
        self.left = MOST_ROUNDS

    def __call__(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.left -= 1
            if self.left < 0:
                raise TemplateProblem(_("The loops go round too often."))
            yield item


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`*` and `%` of numbers only: of texts they make long ones out of nothing."""
        if not all(isinstance(value, int | float) for value in (left, right)):
            raise SecurityError(_("%(operator)s is for numbers only.", operator=operator))
        return super().call_binop(context, operator, left, right)


def _replace(text: Any, old: Any, new: Any) -> str:
    before, wanted, given = str(text), str(old), str(new)
    if not wanted or before.count(wanted) * len(given) > LONGEST:
        raise TemplateProblem(_("This would become too long."))
    return before.replace(wanted, given)


def _environment() -> _Environment:
    made = _Environment(undefined=_Lacking, autoescape=False, keep_trailing_newline=True, cache_size=0)
    made.filters = {name: made.filters[name] for name in FILTERS if name in made.filters}
    made.filters |= {"join": _short_join, "replace": _replace, _COUNTED: iter}
    made.tests = {name: made.tests[name] for name in TESTS}
    made.globals = {}
    return made


def _short_join(values: Iterable[Any], d: str = "") -> str:
    """Refuses before it builds what would be too long."""
    parts = [str(value) for value in islice(values, MOST_ROUNDS)]
    if sum(map(len, parts)) + len(parts) * len(str(d)) > LONGEST:
        raise TemplateProblem(_("This would become too long."))
    return str(d).join(parts)


_ENVIRONMENT: Final = _environment()


class Compiled(NamedTuple):
    """A template that may be rendered, and the secrets that it names."""

    code: Any
    secrets: tuple[str, ...]


@lru_cache(maxsize=256)
def _compiled(text: str) -> Compiled:
    tree = _ENVIRONMENT.parse(text)
    secrets: set[str] = set()
    _look_through(tree, secrets)
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
    return Compiled(_ENVIRONMENT.compile(tree), tuple(sorted(secrets)))


def _look_through(tree: nodes.Node, secrets: set[str]) -> None:
    """Raise for the first thing that is not part of our language; collect the secrets that are named."""
    for child in (tree, *tree.find_all(nodes.Node)):
        if not isinstance(child, UNDERSTOOD) and not isinstance(child, nodes.EvalContextModifier):
            raise TemplateProblem(_("%(what)s cannot be used here.", what=type(child).__name__), child.lineno)
        if isinstance(child, nodes.Filter) and child.name not in FILTERS:
            raise TemplateProblem(_("There is no filter %(name)s here.", name=child.name), child.lineno)
        if isinstance(child, nodes.Test) and child.name not in TESTS:
            raise TemplateProblem(_("There is no test %(name)s here.", name=child.name), child.lineno)
        if isinstance(child, nodes.For) and child.recursive:
            raise TemplateProblem(_("Loops cannot be recursive here."), child.lineno)
        if isinstance(child, nodes.Call):
            _look_at_call(child)
        if isinstance(child, nodes.Getattr | nodes.Getitem) and _is_secret(child.node):
            secrets.add(_secret_name(child))


def _look_at_call(call: nodes.Call) -> None:
    is_method = isinstance(call.node, nodes.Getattr) and call.node.attr in METHODS
    if not is_method or call.dyn_args is not None or call.dyn_kwargs is not None:
        raise TemplateProblem(_("Only these can be called: %(names)s.", names=", ".join(METHODS)), call.lineno)


def _is_secret(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "secret"


def _secret_name(node: nodes.Getattr | nodes.Getitem) -> str:
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
        return node.arg.value
    raise TemplateProblem(_("A secret is named as such: {{ secret.NAME }}."), node.lineno)


def secrets_named(text: str) -> tuple[str, ...]:
    """The secrets that a template asks for. Raises TemplateProblem if it cannot be read."""
    return _read(text).secrets


def render(text: str, facts: Mapping[str, Any]) -> str:
    """What a template becomes with these facts. Raises TemplateProblem, with the line where that is known."""
    environment = _ENVIRONMENT.overlay()
    environment.filters = {**_ENVIRONMENT.filters, _COUNTED: _Rounds()}
    template, pieces, length = Template.from_code(environment, _read(text).code, {}), [], 0
    try:
        for piece in template.generate(facts):
            length += len(piece)
            if length > LONGEST:
                raise TemplateProblem(_("This would become too long."))
            pieces.append(piece)
    except TemplateProblem:
        raise
    except UndefinedError as error:
        raise TemplateProblem(str(error.message), _line_of(error)) from None
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise TemplateProblem(str(error) or type(error).__name__, _line_of(error)) from None
    return "".join(pieces)


def _read(text: str) -> Compiled:
    if len(text) > LONGEST:
        raise TemplateProblem(_("At most %(max)s characters are allowed.", max=LONGEST))
    try:
        return _compiled(text)
    except TemplateSyntaxError as error:
        raise TemplateProblem(str(error.message), error.lineno) from None
    except RecursionError:
        raise TemplateProblem(_("This is nested too deeply.")) from None


def _line_of(error: BaseException) -> int | None:
    """The line of the template in which it happened: Jinja puts it into the trace under the template's name."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def facts_of(node: Node, agent_name: str, secrets: Mapping[str, str]) -> dict[str, Any]:
    """What templates may ask for. Needs the node's names to be loaded."""
    return {
        "hostname": node.hostname,
        "ip": node.ip,
        "ips": list(node.ips),
        "os": node.os,
        "arch": node.arch,
        "uuid": node.uuid,
        "cpu_cores": node.cpu_cores,
        "memory_total": node.memory_total,
        "group": node.group.path if node.group else "",
        "tags": node.tags,
        "labels": Facts("labels", node.labels),
        "agent": agent_name,
        "secret": Facts("secret", secrets),
    }


def masked(text: str, secrets: Iterable[str]) -> str:
    """A text in which no secret can be read."""
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, MASK)
    return text


def as_template(text: str, secrets: Mapping[str, str]) -> str:
    """A file from a host as a template that makes it again: what looks like our language is quoted, secrets named."""
    for name, value in sorted(secrets.items(), key=lambda pair: -len(pair[1])):
        text = text.replace(value, f"\0{name}\0")
    for mark in MARKS:
        text = text.replace(mark, f"\1{mark}\1")
    parts: Sequence[str] = text.split("\1")
    quoted = "".join(f"{{{{ '{part}' }}}}" if number % 2 else part for number, part in enumerate(parts))
    pieces = quoted.split("\0")
    return "".join(f"{{{{ secret.{piece} }}}}" if number % 2 else piece for number, piece in enumerate(pieces))
