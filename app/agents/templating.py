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
from jinja2 import StrictUndefined, nodes, pass_context
from jinja2.environment import Template
from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from app.nodes.models import Node

LONGEST: Final = 192 * 1024
"""Characters of a template, and of what comes out of it."""
MOST_PARTS: Final = 20_000
"""Words, signs and spaces between them that the language of one template may have: reading them takes time too."""
MOST_ROUNDS: Final = 20_000
MOST_WORK: Final = 3_000_000
"""Of one rendering: characters and items of all values that it makes, and parts of loops that it goes through."""
DEEPEST_LOOPS: Final = 8
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
_COUNTED, _MADE, _JOINED, _ADDED = "counted", "made", "joined", "added"
"""Filters that only we put into a template: nothing in it may be called like this."""
_WITH_NUMBERS: Final = ("round", "sum", "tojson")
"""Filters that numbers make expensive, so that only small ones may stand there."""
LARGEST: Final = 2**64


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


class _Budget:
    """What one rendering may still do, all together. Its methods are the filters that only we put in."""

    def __init__(self) -> None:
        self._rounds, self._work = MOST_ROUNDS, MOST_WORK

    def filters(self) -> dict[str, Any]:
        return {_COUNTED: self._counted, _MADE: self._made, _JOINED: self._joined, _ADDED: self._added}

    @pass_context
    def _counted(self, _context: Context, items: Iterable[Any], parts: int) -> Iterator[Any]:
        for item in items:
            self._rounds -= 1
            if self._rounds < 0:
                raise TemplateProblem(_("The loops go round too often."))
            self._spend(parts)
            yield item

    @pass_context
    def _made(self, _context: Context, value: Any) -> Any:
        self._weigh(value)
        return value

    @pass_context
    def _joined(self, _context: Context, parts: Sequence[Any]) -> str:
        self._weigh(parts)
        return "".join(map(str, parts))

    @pass_context
    def _added(self, _context: Context, pair: Sequence[Any]) -> Any:
        self._weigh(pair)
        return pair[0] + pair[1]

    def _weigh(self, value: Any) -> None:
        """What is in a value, counted as often as it is in there; before it is put together, as it may be too long."""
        left, waiting = LONGEST, [value]
        while waiting:
            one = waiting.pop()
            weight = 1 + len(one) if isinstance(one, str | Sequence | Mapping) else 1
            left -= weight
            if left < 0:
                raise TemplateProblem(_("This would become too long."))
            self._spend(weight)
            if isinstance(one, Mapping):
                waiting += one.values()
            elif isinstance(one, Sequence) and not isinstance(one, str):
                waiting += one

    def _spend(self, weight: int) -> None:
        self._work -= weight
        if self._work < 0:
            raise TemplateProblem(_("This is too much work."))


class _Counting(NodeTransformer):
    """Puts our filters around everything that makes values out of others, and around what loops go through."""

    def visit_For(self, loop: nodes.For) -> nodes.For:  # noqa: N802 - called by this name
        parts = sum(1 for _part in loop.find_all(nodes.Node))
        self.generic_visit(loop)
        loop.iter = _through(_COUNTED, loop.iter, nodes.Const(parts, lineno=loop.lineno))
        return loop

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through(_JOINED, nodes.List(node.nodes, lineno=node.lineno))

    def visit_Add(self, node: nodes.Add) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through(_ADDED, nodes.List([node.left, node.right], lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through(_MADE, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through(_MADE, node) if node.ctx == "load" else node

    def _made(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _through(_MADE, node)

    visit_List = visit_Dict = visit_Filter = visit_Call = _made  # noqa: N815


def _through(name: str, node: nodes.Node, *given: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(given), [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`*` and `%` of numbers only: of texts they make long ones out of nothing."""
        if not all(isinstance(value, int | float) for value in (left, right)):
            raise SecurityError(_("%(operator)s is for numbers only.", operator=operator))
        if any(isinstance(value, int) and abs(value) > LARGEST for value in (left, right)):
            raise SecurityError(_("This number is too large."))
        return super().call_binop(context, operator, left, right)


def _replace(text: Any, old: Any, new: Any) -> str:
    before, wanted, given = str(text), str(old), str(new)
    if not wanted or before.count(wanted) * len(given) > LONGEST:
        raise TemplateProblem(_("This would become too long."))
    return before.replace(wanted, given)


def _environment() -> _Environment:
    made = _Environment(undefined=_Lacking, autoescape=False, keep_trailing_newline=True, cache_size=0)
    made.filters = {name: made.filters[name] for name in FILTERS if name in made.filters}
    made.filters |= {"join": _short_join, "replace": _replace} | _Budget().filters()
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
    if next(islice(_ENVIRONMENT.lex(text), MOST_PARTS, None), None) is not None:
        raise TemplateProblem(_("This is too much work."))
    tree = _ENVIRONMENT.parse(text)
    secrets: set[str] = set()
    _look_through(tree, secrets)
    _look_at_depth(tree, 0)
    _Counting().visit(tree)
    tree.set_environment(_ENVIRONMENT)
    return Compiled(_ENVIRONMENT.compile(tree), tuple(sorted(secrets)))


def _look_through(tree: nodes.Node, secrets: set[str]) -> None:
    """Raise for the first thing that is not part of our language; collect the secrets that are named."""
    for child in (tree, *tree.find_all(nodes.Node)):
        if not isinstance(child, UNDERSTOOD) and not isinstance(child, nodes.EvalContextModifier):
            raise TemplateProblem(_("%(what)s cannot be used here.", what=type(child).__name__), child.lineno)
        if isinstance(child, nodes.Filter) and child.name not in FILTERS:
            raise TemplateProblem(_("There is no filter %(name)s here.", name=child.name), child.lineno)
        if isinstance(child, nodes.Filter) and child.name in _WITH_NUMBERS and not _has_small_numbers(child):
            raise TemplateProblem(_("Only small numbers can be given to %(name)s.", name=child.name), child.lineno)
        if isinstance(child, nodes.Test) and child.name not in TESTS:
            raise TemplateProblem(_("There is no test %(name)s here.", name=child.name), child.lineno)
        if isinstance(child, nodes.For) and child.recursive:
            raise TemplateProblem(_("Loops cannot be recursive here."), child.lineno)
        if isinstance(child, nodes.Call):
            _look_at_call(child)
        if isinstance(child, nodes.Getattr | nodes.Getitem) and _is_secret(child.node):
            secrets.add(_secret_name(child))


def _has_small_numbers(child: nodes.Filter) -> bool:
    given = [*child.args, *(keyword.value for keyword in child.kwargs)]
    values = [one.value if isinstance(one, nodes.Const) else None for one in given]
    are_plain = child.dyn_args is None and child.dyn_kwargs is None
    return are_plain and all(isinstance(one, str) or (isinstance(one, int) and 0 <= one <= 16) for one in values)


def _look_at_depth(node: nodes.Node, depth: int) -> None:
    depth += isinstance(node, nodes.For)
    if depth > DEEPEST_LOOPS:
        raise TemplateProblem(_("This is nested too deeply."), node.lineno)
    for child in node.iter_child_nodes():
        _look_at_depth(child, depth)


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
    environment.filters = {**_ENVIRONMENT.filters, **_Budget().filters()}
    code, pieces, length = _read(text).code, list[str](), 0
    try:
        template = Template.from_code(environment, code, {})
        for piece in template.generate(facts):
            length += len(piece)
            if length > LONGEST:
                raise TemplateProblem(_("This would become too long."))
            pieces.append(piece)
    except TemplateProblem:
        raise
    except UndefinedError as error:
        raise TemplateProblem(str(error.message), _line_of(error)) from None
    except Exception as error:  # noqa: BLE001 - whatever it is, the template is to blame
        raise TemplateProblem(str(error) or type(error).__name__, _line_of(error)) from None
    return "".join(pieces)


def _read(text: str) -> Compiled:
    if len(text) > LONGEST:
        raise TemplateProblem(_("At most %(max)s characters are allowed.", max=LONGEST))
    try:
        return _compiled(text)
    except TemplateSyntaxError as error:
        raise TemplateProblem(str(error.message), error.lineno) from None
    except TemplateProblem:
        raise
    except RecursionError:
        raise TemplateProblem(_("This is nested too deeply.")) from None
    except Exception as error:  # noqa: BLE001 - such as Python's own SyntaxError, for what it cannot nest
        raise TemplateProblem(str(error) or type(error).__name__) from None


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
