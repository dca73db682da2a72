"""What documents say about settings is what the code says: both manuals and the example file."""

import re
from pathlib import Path

import pytest

from config import Settings, known_settings, load_settings
from tools import write_configuration
from tools.write_configuration import BEGIN, END, EXAMPLE, MANUALS, documents, main, with_unit


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_it_is_in_step_with_the_settings(path: Path) -> None:
    assert path.read_text("utf-8") == documents()[path], f"{path.name} is out of step: run `make documents`"


@pytest.mark.parametrize("language", MANUALS)
def test_a_manual_names_every_setting_and_its_variable(language: str) -> None:
    text = MANUALS[language].read_text("utf-8")
    assert [item.key for item in known_settings() if f"| `{item.key}`<br>" not in text] == []
    assert [item.variable for item in known_settings() if f"`{item.variable}`" not in text] == []


def test_the_example_file_changes_nothing() -> None:
    assert load_settings(["--config", str(EXAMPLE)], {}) == load_settings([], {})


def test_the_example_file_holds_every_default(tmp_path: Path) -> None:
    file = tmp_path / "manager.yaml"
    file.write_text(re.sub(r"^( *)#(\w+: )", r"\1\2", EXAMPLE.read_text("utf-8"), flags=re.MULTILINE), "utf-8")
    settings = load_settings(["--config", str(file)], {})
    assert settings == load_settings([], {})
    assert _given(settings) == {item.key for item in known_settings()}


def _given(tree: Settings) -> set[str]:
    """The names of what was set rather than left at its default."""

    def walk(branch: object, prefix: str) -> set[str]:
        names: set[str] = getattr(branch, "model_fields_set", set())
        found: set[str] = set()
        for name in names:
            value = getattr(branch, name)
            found |= walk(value, f"{prefix}{name}.") if hasattr(value, "model_fields_set") else {prefix + name}
        return found

    return walk(tree, "")


def test_a_meaning_that_is_translated_stands_in_the_chinese_manual() -> None:
    catalogue = write_configuration.read_catalogue()
    text = MANUALS["zh"].read_text("utf-8")
    for item in known_settings():
        message = catalogue.get(item.info.description or "")
        wanted = str(message.string) if message and message.string else item.info.description or ""
        assert wanted.replace("<", "&lt;").replace("|", "\\|") in text


@pytest.mark.parametrize(
    ("value", "kind", "shown"),
    [(90, "duration", "90s"), (86400 * 30, "duration", "30d"), (0, "duration", "0s"), (2**10, "size", "1KiB"),
     (10**7, "size", "10MB"), (1_000_000, "int", "1,000,000")],
)  # fmt: skip
def test_a_bound_is_written_as_people_write_it(value: float, kind: str, shown: str) -> None:
    assert with_unit(value, kind) == shown


def test_it_writes_what_is_out_of_step_and_keeps_the_words_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manuals = {language: tmp_path / f"{language}.md" for language in MANUALS}
    for path in manuals.values():
        path.write_text(f"before\n{BEGIN}\nSTALE\n{END}\nafter\n", "utf-8")
    monkeypatch.setattr(write_configuration, "MANUALS", manuals)
    monkeypatch.setattr(write_configuration, "EXAMPLE", tmp_path / "example.yaml")
    monkeypatch.setattr(write_configuration, "ROOT", tmp_path)
    assert main() == 0
    text = manuals["en"].read_text("utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "STALE" not in text
    assert all(path.read_text("utf-8") == wanted for path, wanted in documents().items())


def test_it_says_so_when_the_marks_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "en.md"
    path.write_text("no marks here\n", "utf-8")
    monkeypatch.setattr(write_configuration, "MANUALS", {"en": path})
    monkeypatch.setattr(write_configuration, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="marks"):
        write_configuration.manual("en")
