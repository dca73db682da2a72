"""XML by ElementTree's subset of XPath, `server/port` or `server/@name`. Comments stay; document types are refused."""

from __future__ import annotations

import io
import re
from typing import Any
from xml.etree import ElementTree as ET  # nosec B405

from agent.formats.problem import FormatProblem, shown

# What stands before and after the root element, which ElementTree does not keep.
_BEFORE = re.compile(r"(?:\s+|<\?.*?\?>|<!--.*?-->)*", re.DOTALL)
_AFTER = re.compile(r">((?:\s+|<\?(?:(?!\?>).)*\?>|<!--(?:(?!-->).)*-->)*)\Z", re.DOTALL)
_SPACES = re.compile(r'\sxmlns(?::([\w.-]+))?\s*=\s*["\']([^"\']*)["\']')
_PLAIN_STEP = re.compile(r"[\w.{}:/-]+")


def read(text: str, key: str) -> str | None:
    """Text of the first element that fits, or of its attribute."""
    element, attribute = _find(_load(text), key)
    if element is None:
        return None
    return element.get(attribute) if attribute else (element.text or "")


def change(text: str, key: str, value: Any) -> str:
    """Set it; a plain path that is not there is made below what is."""
    root, words = _load(text), shown(value)
    element, attribute = _find(root, key)
    if element is None:
        element = _make(root, key.rpartition("/@")[0] if attribute else key)
    if attribute:
        element.set(attribute, words)
    else:
        element.text = words
    return _dump(root, text)


def unset(text: str, key: str) -> str:
    """Take the element or the attribute out."""
    root = _load(text)
    element, attribute = _find(root, key)
    if element is None or (attribute and element.get(attribute) is None):
        return text
    if attribute:
        del element.attrib[attribute]
        return _dump(root, text)
    for parent in root.iter():
        if element in list(parent):
            parent.remove(element)
            return _dump(root, text)
    raise FormatProblem("the root cannot be taken out")


def _load(text: str) -> ET.Element:
    if re.search(r"<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise FormatProblem("has a document type, which is refused")
    for prefix, uri in _SPACES.findall(text):
        if not re.fullmatch(r"ns\d+", prefix):
            ET.register_namespace(prefix, uri)
    builder = ET.TreeBuilder(insert_comments=True, insert_pis=True)
    parser = ET.XMLParser(target=builder)  # noqa: S314  # nosec B314
    try:
        parser.feed(text)
        root: ET.Element = parser.close()
    except ET.ParseError as error:
        raise FormatProblem(f"is not XML: {error}") from None
    return root


def _dump(root: ET.Element, text: str) -> str:
    out = io.BytesIO()
    ET.ElementTree(root).write(out, encoding="utf-8", xml_declaration=False)
    before, after = _BEFORE.match(text), _AFTER.search(text)
    head, tail = before.group() if before else "", after.group(1) if after else ""
    return head + out.getvalue().decode("utf-8").strip() + tail


def _find(root: ET.Element, key: str) -> tuple[ET.Element | None, str]:
    path, _, attribute = key.rpartition("/@") if "/@" in key else (key, "", "")
    try:
        element = root if path in ("", ".") else root.find(_below(root, path), _spaces(root))
    except (SyntaxError, KeyError) as error:
        raise FormatProblem(f"{key} is not a path: {error}") from None
    return element, attribute


def _below(root: ET.Element, path: str) -> str:
    """A path from the top may name the root itself."""
    if not path.startswith("/") or path.startswith("//"):
        return f".{path}" if path.startswith("//") else path
    first, _, rest = path[1:].partition("/")
    if first != root.tag:
        raise FormatProblem(f"the root is {root.tag}")
    return rest or "."


def _spaces(root: ET.Element) -> dict[str, str]:
    found = re.match(r"\{(.*)\}", root.tag)
    return {"": found.group(1)} if found else {}


def _make(root: ET.Element, path: str) -> ET.Element:
    path = _below(root, path)
    if _PLAIN_STEP.fullmatch(path) is None or "//" in path:
        raise FormatProblem(f"{path} is not there, and only a plain path can be made")
    for name in path.split("/"):
        inner = root.find(name, _spaces(root))
        if inner is None:
            inner = ET.SubElement(root, name)
        root = inner
    return root
