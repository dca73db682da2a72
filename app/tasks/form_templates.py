"""The form of a template: what it does, and rows of typed parameters that buttons add and take away."""

from collections.abc import Mapping, Sequence
from typing import Any

from flask_babel import gettext as _
from pydantic import ValidationError
from werkzeug.datastructures import MultiDict

from app.kernel.errors import BadParameter, FieldError
from app.kernel.forms import Form, row_numbers
from app.kernel.validation import field_errors
from app.tasks.contents import check_definitions
from app.tasks.form_contents import (
    DEFAULTS,
    content_field,
    content_values,
    plain,
    read_content,
    show_scalar,
    typed_scalar,
)
from app.tasks.models import TaskTemplate
from app.tasks.schemas import TemplateIn

TEXTS = ("name", "description", "type")
ROW = ("name", "type", "description", "required", "default", "switch", "choices", "pattern", "minimum", "maximum")
RULES = {
    "string": ("pattern", "default"),
    "integer": ("minimum", "maximum", "default"),
    "number": ("minimum", "maximum", "default"),
    "choice": ("choices", "default"),
}
"""What is asked of a type. Fields of the others stay filled in, but count for nothing."""
MOST_ROWS = 100


class TemplateForm(Form[TemplateIn]):
    """`values["rows"]` numbers the rows of parameters; the fields of row 2 are `parameters.2.name` and so on."""

    def add_errors(self, errors: Sequence[FieldError]) -> None:
        super().add_errors([FieldError(self._shown_at(error["field"]), error["message"]) for error in errors])

    def _shown_at(self, name: str) -> str:
        head, _dot, rest = name.partition(".")
        if head == "content":
            return content_field(str(self.values.get("type")), rest)
        return ".".join(name.split(".")[:3]) if head == "parameters" else head


def new_template_form() -> TemplateForm:
    return TemplateForm(DEFAULTS | {"rows": []})


def template_form_of(template: TaskTemplate) -> TemplateForm:
    form = new_template_form()
    form.values |= {name: getattr(template, name) for name in TEXTS} | content_values(template.type, template.content)
    for number, asked in enumerate(template.parameters):
        _show_row(form.values, number, asked)
    form.values["rows"] = list(range(len(template.parameters)))
    return form


def _show_row(values: dict[str, Any], number: int, asked: Mapping[str, Any]) -> None:
    for name in ROW:
        value = asked.get(name)
        if name == "choices":
            value = "\n".join(value or [])
        elif isinstance(value, float) and value.is_integer():
            value = int(value)
        elif name == "switch" and isinstance(asked.get("default"), bool):
            value = show_scalar(asked["default"])
        elif name == "default":
            value = None if value is None or isinstance(value, bool) else show_scalar(value)
        values[f"parameters.{number}.{name}"] = value


def template_received(data: MultiDict[str, str]) -> TemplateForm:
    """What was sent, with all that is wrong in it at once."""
    form = TemplateForm(data.to_dict())
    sent = row_numbers([data.get("rows", "")])
    form.values["rows"] = rows = list(range(min(sent[0] if sent else 0, MOST_ROWS)))
    for number in rows:
        form.values = {f"parameters.{number}.{name}": "" for name in ROW} | form.values
    content, errors = read_content(str(form.values.get("type", "")), form.values)
    given = {name: form.values[name] for name in TEXTS if str(form.values.get(name, "")).strip()}
    try:
        # The content is checked by itself; with something in its place the rest can be.
        form.value = TemplateIn.model_validate(
            given | {"content": content, "parameters": [_read_row(form.values, number) for number in rows]}
        )
        errors += _without_choices(form.value)
        check_definitions(form.value.parameters)
    except ValidationError as error:
        errors += [one for one in field_errors(error) if one["field"] != "type" or "type" in given]
    except BadParameter as error:
        errors += error.errors
    form.add_errors(errors)
    if form.errors:
        form.value = None
    return form


def _without_choices(values: TemplateIn) -> list[FieldError]:
    """Somebody who is to choose needs something to choose from."""
    return [
        FieldError(f"parameters.{number}.choices", _("This is needed."))
        for number, parameter in enumerate(values.parameters)
        if parameter.type == "choice" and not parameter.choices
    ]


def _read_row(values: Mapping[str, Any], number: int) -> dict[str, Any]:
    texts = {name: plain(values.get(f"parameters.{number}.{name}")).strip() for name in ROW}
    type_ = texts["type"]
    row: dict[str, Any] = {
        name: texts[name] for name in ("name", "type", "description", *RULES.get(type_, ())) if texts[name]
    }
    row["required"] = bool(texts["required"])
    default = texts["switch"] if type_ == "boolean" else row.get("default")
    if default:
        row["default"] = typed_scalar(type_, default)
    if "choices" in row:
        row["choices"] = [line.strip() for line in row["choices"].split("\n") if line.strip()]
    return row


def with_row(form: TemplateForm) -> TemplateForm:
    """One more, empty and at the end."""
    number = len(form.values["rows"])
    if number < MOST_ROWS:
        _show_row(form.values, number, {"type": "string"})
        form.values["rows"] = list(range(number + 1))
        form.values["newest"] = number
    return form


def without_row(form: TemplateForm, gone: int) -> TemplateForm:
    """Those after it move up."""
    rows = [
        {name: form.values.get(f"parameters.{number}.{name}") for name in ROW}
        for number in form.values["rows"]
        if number != gone
    ]
    for number, row in enumerate(rows):
        form.values |= {f"parameters.{number}.{name}": value for name, value in row.items()}
    form.values["rows"] = list(range(len(rows)))
    return form
