"""Builds the kits that new hosts get: Daemon and task agent with their libraries, one archive for each architecture.

A kit is laid out as a host is, `<component>/<version>/`, since either may be updated without the other. The libraries
are the pinned wheels of requirements-host.txt, unpacked for every Python that hosts may have, so that a host needs
neither pip nor the internet. The same input gives the same bytes.
"""

import argparse
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Set
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

import agent.version
import daemon.version
from app import __version__

ROOT = Path(__file__).resolve().parent.parent


class Component(NamedTuple):
    """What is released as one. `libraries` null: all that hosts get."""

    name: str
    version: str
    packages: tuple[str, ...]
    libraries: Set[str] | None
    examples: tuple[str, ...]

    @property
    def place(self) -> Path:
        return Path(self.name) / self.version


COMPONENTS = (
    Component("daemon", daemon.version.VERSION, ("daemon", "protocol"), None, ("daemon.example.yaml",)),
    Component("agent", agent.version.VERSION, ("agent", "protocol"), {"ruamel-yaml"}, ("agent.example.yaml",)),
)
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
PLATFORMS = {
    "amd64": ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
    "arm64": ("manylinux_2_34_aarch64", "manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"),
}
EPOCH = 315532800


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "kit")
    parser.add_argument("--arch", choices=[*PLATFORMS, "all"], default="all")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    architectures = list(PLATFORMS) if given.arch == "all" else [given.arch]
    for arch in architectures:
        path = build(arch, given.output)
        print(f"{path.name}  {path.stat().st_size / 1e6:.1f} MB")
    write_index(given.output)
    return 0


def build(arch: str, output: Path) -> Path:
    """One archive, with directories of libraries for each Python."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        for component in COMPONENTS:
            copy_sources(component, tree)
        for version in PYTHONS:
            wheels = Path(scratch) / f"wheels-{version}"
            download(arch, version, wheels)
            for component in COMPONENTS:
                unpack_libraries(component, wheels, tree / component.place / "lib" / f"cp{version.replace('.', '')}")
        path = output / f"ops-scaffold-{__version__}-linux-{arch}.tar.gz"
        pack(tree, path)
        return path


def copy_sources(component: Component, tree: Path) -> None:
    """Our own part of a component."""
    place = tree / component.place
    for package in component.packages:
        shutil.copytree(ROOT / package, place / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for example in component.examples:
        shutil.copy(ROOT / "configs" / example, place / example)


def unpack_libraries(component: Component, wheels: Path, place: Path) -> None:
    """Those of the wheels that the component needs."""
    for wheel in sorted(wheels.glob("*.whl")):
        if component.libraries is None or canonicalize_name(parse_wheel_filename(wheel.name)[0]) in component.libraries:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(place)  # noqa: S202  # nosec B202: a zip, pinned by hash; zipfile stays below the place


def download(arch: str, version: str, wheels: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--only-binary", ":all:"]
    command += ["--python-version", full(version), "--implementation", "cp", "--dest", str(wheels)]
    for abi in (f"cp{version.replace('.', '')}", "abi3", "none"):
        command += ["--abi", abi]
    for platform in PLATFORMS[arch]:
        command += ["--platform", platform]
    subprocess.run([*command, "-r", str(host_pins(version, wheels.parent))], check=True)


def full(version: str) -> str:
    """Some libraries shun a Python's very first patch releases, which nobody runs any more."""
    return f"{version}.9"


def host_pins(version: str, scratch: Path) -> Path:
    """The pins that hold for this Python: pip judges markers by the Python it runs on, not by the one asked for."""
    lines, keep = [], False
    environment = {"python_version": version, "python_full_version": full(version), "sys_platform": "linux"}
    environment |= {"platform_python_implementation": "CPython", "implementation_name": "cpython"}
    for line in (ROOT / "requirements-host.txt").read_text("utf-8").splitlines():
        if line and not line[0].isspace() and not line.startswith("#"):
            found = Requirement(line.rstrip("\\ "))
            keep = found.marker is None or found.marker.evaluate(environment)
            if keep:
                lines.append(f"{found.name}{found.specifier} \\")
        elif keep:
            lines.append(line)
    path = scratch / f"pins-{version}.txt"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def pack(tree: Path, path: Path) -> None:
    """Sorted, with fixed owners and times, and renamed into place. What stands there twice is a link to the first."""
    temporary = path.with_suffix(".part")
    seen: dict[str, str] = {}
    with (
        temporary.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as squeezed,
        tarfile.open(fileobj=squeezed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for item in sorted(tree.rglob("*")):
            entry = _plain(archive.gettarinfo(item, str(item.relative_to(tree))))
            content = item.read_bytes() if item.is_file() else b""
            first = seen.setdefault(hashlib.sha256(content).hexdigest(), entry.name) if content else entry.name
            if first != entry.name:
                entry.type, entry.linkname, entry.size = tarfile.LNKTYPE, first, 0
            archive.addfile(entry, io.BytesIO(content) if entry.isreg() else None)
    temporary.rename(path)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mtime = EPOCH
    entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
    return entry


def write_index(output: Path) -> None:
    """What the gateway serves: architecture → file and digest."""
    kits = {
        path.name.rpartition("-")[2].removesuffix(".tar.gz"): {
            "file": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(output.glob(f"ops-scaffold-{__version__}-linux-*.tar.gz"))
    }
    index = {"version": __version__, "kits": kits}
    (output / "index.json").write_text(json.dumps(index, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
