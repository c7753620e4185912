"""Collect the root file system of the image: `collect.py TARGET`.

Runs in the build stage of the Dockerfile. TARGET receives the interpreter, the modules
that probe.py saw in use (compiled, without their sources), the shared libraries, their
licences, time zones, and the fake. A module that only a rare request needs must be there
too, so every import statement of the fake is carried out, wherever in the file it stands.
"""

# ruff: noqa: D102, D103 - a script that nobody imports

from __future__ import annotations

import ast
import os
import py_compile
import shutil
import site
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
FAKE = HERE / "customerio_fake.py"
PROBE = HERE / "probe.py"
LISTING = HERE / "loaded.txt"

#: What the standard library imports at the moment of need, where no statement in the fake
#: shows it: for `-m`, strptime(), host names, character sets and tracebacks.
LATE_IMPORTS = (
    "_strptime",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.utf_8_sig",
    "linecache",
    "runpy",
    "traceback",
)

#: Read by the C library when it looks for shared libraries and for host names.
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/nsswitch.conf")

#: Directories which are links on a merged-/usr system, and through which the loader goes.
TOP_LEVEL = ("/lib", "/lib64")

#: What `{{ … | timezone: "Europe/Paris" }}` and people's time zones need; not its other spellings.
ZONES = Path("/usr/share/zoneinfo")
OTHER_ZONES = ("posix", "right")

DEBIAN_LISTINGS = Path("/var/lib/dpkg/info")
DEBIAN_DOCUMENTS = Path("/usr/share/doc")


# ==== What the fake needs


def imported_names(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def exercise(url: str) -> None:
    with urllib.request.urlopen(f"{url}/__parlel/ca.pem") as answer:
        trust = ssl.create_default_context(cadata=answer.read().decode())
    secure_url = url.replace("http://", "https://")
    urllib.request.urlopen(f"{secure_url}/health", context=trust).close()


def loaded_files() -> list[Path]:
    names = {*imported_names(FAKE), *LATE_IMPORTS}
    child = [sys.executable, "-B", str(PROBE), str(LISTING), *sorted(names)]
    with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as probe:
        assert probe.stdout
        exercise(probe.stdout.readline().strip())
        probe.communicate("enough\n")
    if probe.returncode:
        sys.exit("the fake does not run here")
    paths = map(Path, LISTING.read_text(encoding="utf-8").splitlines())
    return [path for path in paths if path.parent != HERE]


def links_to(files: set[Path]) -> Iterator[Path]:
    """Other names of the files: sonames, `python3`, where programs expect the loader."""
    directories = {path.parent for path in files}
    directories |= {Path(name).resolve() for name in TOP_LEVEL if Path(name).exists()}
    for directory in directories:
        for path in directory.iterdir():
            if path.is_symlink() and path.resolve() in files:
                yield path


def licences(files: set[Path]) -> Iterator[Path]:
    yield from Path(os.__file__).parent.glob("LICENSE*")
    for listing in DEBIAN_LISTINGS.glob("*.list"):
        owned = listing.read_text(encoding="utf-8").splitlines()
        if any(".so" in path and Path(path).resolve() in files for path in owned):
            package = listing.stem.partition(":")[0]
            yield from DEBIAN_DOCUMENTS.glob(f"{package}/copyright")


# ==== Where it goes


class Root:
    """The tree in the making. Paths are given as they will be in the image."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def place(self, path: Path) -> Path:
        place = self.target / path.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def copy(self, path: Path) -> None:
        shutil.copy2(path, self.place(path))

    def link(self, path: Path) -> None:
        self.place(path).symlink_to(path.readlink())

    def compile(self, source: Path, compiled: Path, level: int = 2) -> None:
        """At level 2 without docstrings, which only the fake's own routes show."""
        py_compile.compile(
            str(source),
            cfile=str(self.place(compiled)),
            dfile=str(source),
            doraise=True,
            optimize=level,
            # Time stamps may change on the way into a layer; the files do not.
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )

    def copy_zones(self) -> None:
        """One file for each zone, and links where it has several names."""
        seen: dict[bytes, Path] = {}
        for path in sorted(path for path in ZONES.rglob("*") if path.is_file()):
            content = path.read_bytes()
            if content[:4] != b"TZif" or path.relative_to(ZONES).parts[0] in OTHER_ZONES:
                continue
            first = seen.setdefault(content, path)
            if first is path:
                self.copy(path)
            else:
                self.place(path).symlink_to(os.path.relpath(first, path.parent))


def main() -> None:
    root = Root(Path(sys.argv[1]))
    files = loaded_files()
    binaries = {path.resolve() for path in files if path.suffix != ".py"}
    for path in filter(Path.is_symlink, map(Path, TOP_LEVEL)):
        root.link(path)
    for path in (path for path in files if path.suffix == ".py"):
        root.compile(path, path.with_suffix(".pyc"))
    for path in {*binaries, *licences(binaries), *map(Path, SYSTEM_FILES)}:
        if path.exists():
            root.copy(path)
    for path in links_to(binaries):
        root.link(path)
    root.copy_zones()
    root.compile(FAKE, Path(site.getsitepackages()[0]) / f"{FAKE.stem}.pyc", level=0)


if __name__ == "__main__":
    main()
