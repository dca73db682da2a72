"""Runs the import contracts of pyproject.toml on the packages that exist today; they name those to come too."""

import json
import os
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parent.parent


def exists(module: str) -> bool:
    path = ROOT / module.replace(".", "/")
    return (path / "__init__.py").exists() or path.with_suffix(".py").exists()


def present(contract: dict[str, Any]) -> dict[str, Any] | None:
    """The contract without modules that do not exist, or None if nothing is left for it to say."""
    kept = dict(contract)
    for key in ("modules", "containers", "source_modules", "forbidden_modules"):
        if key in kept:
            kept[key] = [module for module in kept[key] if exists(module)]
            if not kept[key]:
                return None
    return kept


def as_toml(table: dict[str, Any]) -> str:
    """Strings, booleans and lists of strings are written alike in JSON and TOML."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())


def main() -> int:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    contracts = [kept for kept in map(present, config.pop("contracts")) if kept is not None]
    config["root_packages"] = [package for package in config["root_packages"] if exists(package)]
    if not config["root_packages"]:
        return 0
    text = "[tool.importlinter]\n" + as_toml(config)
    text += "".join("\n[[tool.importlinter.contracts]]\n" + as_toml(contract) for contract in contracts)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    cache = ROOT / ".cache" / "import-linter"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        return int(lint_imports(config_filename=file.name, cache_dir=str(cache), no_logo=True))


if __name__ == "__main__":
    sys.exit(main())
