"""Prints the coverage of the last test run per room, so that a thin one shows."""

import sys
from collections import defaultdict
from pathlib import Path

from coverage import Coverage
from coverage.exceptions import NoSource

ROOT = Path(__file__).resolve().parent.parent


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:2]) if parts[0] == "app" and len(parts) > 2 else parts[0]


def main() -> int:
    coverage = Coverage(config_file=str(ROOT / "pyproject.toml"))
    coverage.load()
    statements: defaultdict[str, int] = defaultdict(int)
    missing: defaultdict[str, int] = defaultdict(int)
    for filename in coverage.get_data().measured_files():
        path = Path(filename)
        if not path.is_relative_to(ROOT):
            continue
        try:
            _, lines, _, absent, _ = coverage.analysis2(filename)
        except NoSource:
            continue
        room = room_of(path)
        statements[room] += len(lines)
        missing[room] += len(absent)
    print(f"{'room':<24}{'lines':>8}{'covered':>10}")
    for room in sorted(statements):
        if statements[room]:
            print(f"{room:<24}{statements[room]:>8}{100 - 100 * missing[room] / statements[room]:>9.1f}%")
    return 0


if __name__ == "__main__":
    sys.exit(main())
