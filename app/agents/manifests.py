"""Manifests as people write them, in YAML or JSON: read, checked, and written out again for an editor."""

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent

from app.agents.schemas import ManifestIn
from app.kernel.errors import BadParameter, FieldError
from app.kernel.validation import field_errors
from protocol.codec import canonical
from protocol.errors import ProtocolError
from protocol.fields import Fields
from protocol.manifests import Manifest, parse_manifest

LONGEST = 64 * 1024
LONGEST_KEPT = 16 * 1024
"""So that all agents that a host may have fit into one answer to it."""
RESERVED = frozenset({"daemon"})
"""Names that mean something else where an agent is named: the Daemon's own log."""
WORDS = {
    "is required": _l("This is needed."),
    "is required unless the program is adopted": _l("This is needed, unless the program is only adopted."),
    "must be given, or command, but not both": _l("A signal or a command is expected, not both."),
    "must not name a path twice": _l("The same path stands here twice."),
    "must be a plain absolute path of a file": _l("The plain path of a file is expected."),
    "or process or command_line is required": _l("pid_file, process or command_line is needed."),
    "must name a program": _l("The name of a program is expected."),
}
"""What the wire says of a manifest, for people."""
ORDER = tuple(ManifestIn.model_json_schema(by_alias=True)["properties"])


def read_text(text: str, field: str = "manifest") -> dict[str, Any]:
    """The mapping that somebody wrote. Raises BadParameter that says in which line it cannot be read."""
    if len(text) > LONGEST:
        raise _wrong(field, _("At most %(max)s characters are allowed.", max=LONGEST))
    try:
        # A few lines of references to references would become gigabytes.
        if any(isinstance(event, AliasEvent) for event in YAML(typ="safe", pure=True).parse(text)):
            raise _wrong(field, _("References (*name) are not understood here."))
        found = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = str(error.problem or error.context or _("This is neither YAML nor JSON."))
        if mark is None:
            raise _wrong(field, problem) from None
        place = _(
            "Line %(line)s, column %(column)s: %(problem)s", line=mark.line + 1, column=mark.column + 1, problem=problem
        )
        raise _wrong(field, place) from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise _wrong(field, str(error)[:200] or _("This is neither YAML nor JSON.")) from None
    if not isinstance(found, dict):
        raise _wrong(field, _("Names with values are expected here, such as “name: nginx”."))
    return found


def checked(given: Mapping[str, Any], name: str | None = None) -> Manifest:
    """The manifest that this makes. Raises BadParameter that names every wrong field, in the reader's language."""
    try:
        ManifestIn.model_validate(given)
    except ValidationError as error:
        raise BadParameter(errors=field_errors(error)) from None
    try:
        manifest = parse_manifest(Fields(dict(given)), is_strict=True)
    except ProtocolError as error:
        said = str(WORDS.get(error.message, error.message))
        raise BadParameter(errors=[FieldError(error.field or "manifest", said)]) from None
    if name is not None and manifest.name != name:
        raise _wrong("name", _("An agent keeps its name: %(name)s.", name=name))
    if len(canonical(dict(given))) > LONGEST_KEPT:
        raise _wrong("manifest", _("At most %(max)s characters are allowed.", max=LONGEST_KEPT))
    if manifest.name in RESERVED:
        raise _wrong("name", _("%(name)s is the Daemon itself.", name=manifest.name))
    return manifest


def written(manifest: Mapping[str, Any]) -> str:
    """As YAML, in the order in which the manual describes it."""
    ordered = {key: manifest[key] for key in ORDER if key in manifest}
    ordered |= {key: value for key, value in manifest.items() if key not in ordered}
    yaml, stream = YAML(typ="safe", pure=True), StringIO()
    yaml.default_flow_style, yaml.width = None, 110
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # its first value is None
    yaml.dump(ordered, stream)
    return stream.getvalue()


def config_paths(manifest: Mapping[str, Any] | None) -> Sequence[str]:
    """The files that the Manager may manage."""
    return [str(file["path"]) for file in (manifest or {}).get("config") or ()]


def _wrong(field: str, message: str) -> BadParameter:
    return BadParameter(errors=[FieldError(field, message)])
