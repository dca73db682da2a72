"""Settings as the API takes and shows them."""

from pydantic import Field

from app.kernel.api import In, Out

Value = str | int | float | bool | None


class SettingOut(Out):
    key: str
    value: Value
    configured: Value
    is_changed: bool
    allowed: str
    description: str


class SettingsOut(Out):
    items: list[SettingOut]


class SettingsChange(In):
    """Dotted names with their new values; null goes back to what is configured."""

    values: dict[str, Value] = Field(min_length=1, max_length=200)
