"""Translations: every text that the code shows is in the Chinese catalogue, every text of a template is translatable.

`--update` brings the catalogue up to date (new texts empty, gone ones dropped) for a translator to fill.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import DEFAULT_KEYWORDS, extract_from_dir, extract_from_file
from babel.messages.frontend import parse_keywords
from babel.messages.pofile import read_po, write_po
from jinja2 import Environment, nodes

ROOT = Path(__file__).resolve().parent.parent
CATALOGUE = ROOT / "app" / "translations" / "zh_Hans" / "LC_MESSAGES" / "messages.po"
TEMPLATES = ROOT / "templates"
DEVELOPERS_ONLY = TEMPLATES / "styleguide"

KEYWORDS = {
    **DEFAULT_KEYWORDS,
    **parse_keywords(["_l:1", "setting:2", "lazy_gettext:1", "lazy_pgettext:1c,2", "lazy_ngettext:1,2"]),
}
TRANSLATING = frozenset(KEYWORDS)
JINJA = {"silent": "false", "extensions": "jinja2.ext.do,jinja2.ext.loopcontrols"}
PLACEHOLDER = re.compile(r"%\(\w+\)[a-z]|%[sd]|\{\w*\}")
# Attributes that a macro writes on their own, with the tag around them in another place.
ATTRIBUTE = re.compile(r"""[\w-]+=("[^"]*"|'[^']*')\s*/?>?""")
LETTER = re.compile(r"[^\W\d_]")
# Names and abbreviations that are the same in every language, and the languages' own names in the switch.
SAME_EVERYWHERE = re.compile(
    r"\b(Ops Scaffold|English|API|CPU|CSV|HTTP|ID|IP|JSON|JSONL|OpenAPI|URL|UTC)\b|中文|简体中文"
)
READ_ALOUD = ("alt", "aria-description", "aria-label", "label", "placeholder", "title")
CODE_ELEMENTS = frozenset({"code", "kbd", "samp", "script", "style"})
VOID_ELEMENTS = frozenset(("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"))
PROSE = re.compile(r"[A-Z][a-z]+(\s.*)?", re.DOTALL)


def template_environment() -> Environment:
    return Environment(
        autoescape=True, extensions=["jinja2.ext.i18n", "jinja2.ext.do", "jinja2.ext.loopcontrols"], cache_size=0
    )


def extracted() -> Catalog:
    """Every text marked for translation in the Manager's code and templates."""
    catalogue = Catalog(locale="zh_Hans", domain="messages", charset="utf-8")
    for folder, method, options in (("app", "python", {}), ("templates", "jinja2", JINJA)):
        pattern = "**.py" if method == "python" else "**.html"
        found = extract_from_dir(
            ROOT / folder,
            [(pattern, method)],
            {pattern: options},
            KEYWORDS,
            comment_tags=("NOTE:",),
            directory_filter=lambda _path: True,  # babel's own passes over folders such as `_ui`
        )
        for filename, line, text, comments, context in found:
            catalogue.add(text, None, [(f"{folder}/{filename}", line)], auto_comments=comments, context=context)
    for line, text, comments, context in extract_from_file("python", ROOT / "config.py", KEYWORDS):
        catalogue.add(text, None, [("config.py", line)], auto_comments=comments, context=context)
    return catalogue


def read_catalogue() -> Catalog:
    if not CATALOGUE.exists():
        return Catalog(locale="zh_Hans", domain="messages", charset="utf-8")
    with CATALOGUE.open("rb") as file:
        return read_po(file, locale="zh_Hans", domain="messages")


def forms(value: object) -> list[str]:
    """Singular and plural forms of a text or of its translation."""
    if isinstance(value, list | tuple):
        return [str(form) for form in value]
    return [str(value or "")]


def complaints_about(message: Message, translation: Message | None) -> Iterator[str]:
    source = forms(message.id)
    place = f"{message.locations[0][0]}:{message.locations[0][1]}"
    if translation is None or not all(form.strip() for form in forms(translation.string)):
        yield f"{place}: not translated: {source[0]!r}"
        return
    if translation.fuzzy:
        yield f"{place}: translation is only a guess (fuzzy): {source[0]!r}"
    for form in forms(translation.string):
        if sorted(set(PLACEHOLDER.findall(form))) != sorted(set(PLACEHOLDER.findall(source[-1]))):
            yield f"{place}: placeholders differ: {source[-1]!r} and {form!r}"


def catalogue_complaints() -> Iterator[str]:
    wanted, present = extracted(), read_catalogue()
    known = {(message.id if isinstance(message.id, str) else message.id[0], message.context) for message in wanted}
    for message in wanted:
        if message.id:
            yield from complaints_about(message, present.get(message.id, message.context))
    for message in [*present, *present.obsolete.values()]:
        text = message.id if isinstance(message.id, str) else message.id[0]
        if text and (text, message.context) not in known:
            yield f"{CATALOGUE.relative_to(ROOT)}: nobody shows this text any more: {text!r}"


class LiteralText(HTMLParser):
    """Collects text with letters in it from a template whose expressions and blocks have been taken out.

    `translate="no"` on an element says that its text is a name or code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, str]] = []
        self._open: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        silent = self._is_silent or values.get("translate") == "no"
        if not silent:
            for name in READ_ALOUD:
                self._note(values.get(name, ""))
            if tag == "input" and values.get("type") in {"submit", "button", "reset"}:
                self._note(values.get("value", ""))
        if tag not in VOID_ELEMENTS:
            self._open.append((tag, silent or tag in CODE_ELEMENTS))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID_ELEMENTS:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        # Branches of a template may open an element twice; whatever stands above the one that closes is closed too.
        for position in range(len(self._open) - 1, -1, -1):
            if self._open[position][0] == tag:
                del self._open[position:]
                return

    def handle_data(self, data: str) -> None:
        if not self._is_silent:
            self._note(ATTRIBUTE.sub("", data))

    @property
    def _is_silent(self) -> bool:
        return bool(self._open) and self._open[-1][1]

    def _note(self, text: str) -> None:
        if LETTER.search(SAME_EVERYWHERE.sub("", text)):
            self.found.append((self.getpos()[0], " ".join(text.split())))


def without_expressions(environment: Environment, source: str) -> str:
    """The template's own HTML on its own lines; expressions, statements and `trans` blocks are gone."""
    text = ""
    in_translation = False
    block = ""
    for line, kind, value in environment.lex(source):
        if kind == "block_begin":
            block = ""
        elif kind == "name" and not block:
            block = value
            in_translation = block == "trans" or (in_translation and block != "endtrans")
        elif kind == "data" and not in_translation:
            text += "\n" * (line - 1 - text.count("\n")) + value
    return text


def untranslated_constants(node: nodes.Node) -> Iterator[tuple[int, str]]:
    """Texts handed to macros and filters that read like prose and pass no translating function."""
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name in TRANSLATING:
        return
    if isinstance(node, nodes.Compare | nodes.Test | nodes.Getitem | nodes.Include | nodes.Import | nodes.Extends):
        return
    if isinstance(node, nodes.Const) and isinstance(node.value, str):
        if PROSE.fullmatch(node.value) and LETTER.search(SAME_EVERYWHERE.sub("", node.value)):
            yield node.lineno, node.value
        return
    for child in node.iter_child_nodes():
        yield from untranslated_constants(child)


def template_complaints() -> Iterator[str]:
    environment = template_environment()
    for path in sorted(TEMPLATES.rglob("*.html")):
        if path.is_relative_to(DEVELOPERS_ONLY):
            continue
        source = path.read_text(encoding="utf-8")
        reader = LiteralText()
        reader.feed(without_expressions(environment, source))
        reader.close()
        found = [*reader.found, *untranslated_constants(environment.parse(source))]
        for line, text in sorted(found):
            yield f"{path.relative_to(ROOT)}:{line}: text outside of the translations: {text[:80]!r}"


def update() -> None:
    catalogue = read_catalogue()
    catalogue.update(extracted(), no_fuzzy_matching=True)
    catalogue.obsolete.clear()
    CATALOGUE.parent.mkdir(parents=True, exist_ok=True)
    with CATALOGUE.open("wb") as file:
        write_po(file, catalogue, width=120, include_lineno=False, ignore_obsolete=True, sort_by_file=True)
    missing = [message for message in catalogue if message.id and not all(forms(message.string))]
    print(f"{CATALOGUE.relative_to(ROOT)}: {len(catalogue)} texts, {len(missing)} to translate")


def main(arguments: list[str]) -> int:
    if arguments == ["--update"]:
        update()
        return 0
    complaints = [*catalogue_complaints(), *template_complaints()]
    print("\n".join(complaints))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
