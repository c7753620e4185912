"""Run the fake once and write down every file that took: `probe.py LIST MODULE...`.

A process apart from collect.py, so that nothing but the fake's own needs shows. It runs
the server, the health check and `--help`, imports the modules named, and then asks the
interpreter and the kernel what has been loaded.
"""

# ruff: noqa: D103 - a script that nobody imports

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.machinery import PathFinder

#: What the fake asks for only where it does without, or in tests of its users: compressions that
#: tempfile's neighbours offer, the mix-in's mocks, and the C library's own memory.
UNREACHED = ("_bz2", "_lzma", "bz2", "lzma", "ctypes", "unittest", "unittest.mock")
for unreached in UNREACHED:
    sys.modules[unreached] = None  # type: ignore[assignment]

import customerio_fake  # noqa: E402


def serve() -> None:
    """Answer collect.py, plain and TLS, until it says that it has seen enough."""
    with customerio_fake.CustomerioServer(port=0) as server:
        print(server.url, flush=True)
        sys.stdin.readline()
        os.environ["PORT"] = server.url.rpartition(":")[2]
        if customerio_fake.main(["healthcheck"]):
            sys.exit("the health check fails")


def show_help() -> None:
    with suppress(SystemExit):
        customerio_fake.main(["--help"])


def import_all(names: Iterable[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            print(f"not in this Python, left out: {name}", file=sys.stderr)


def module_files() -> Iterator[str]:
    """By name, not by `__file__`: `collections.abc` is another module in disguise."""
    for name in [name for name, module in sys.modules.items() if module is not None]:
        parent = name.rpartition(".")[0]
        path = getattr(sys.modules[parent], "__path__", ()) if parent else None
        spec = PathFinder.find_spec(name, path)
        if spec and spec.has_location and spec.origin:
            yield spec.origin


def mapped_files() -> Iterator[str]:
    """The executable and the shared libraries, the loader among them."""
    executable = os.path.realpath(sys.executable)
    with open("/proc/self/maps") as maps:
        paths = {line[line.index("/") :].rstrip("\n") for line in maps if "/" in line}
    yield from (path for path in paths if ".so" in path or path == executable)


def main() -> None:
    listing, *names = sys.argv[1:]
    serve()
    show_help()
    import_all(names)
    with open(listing, "w") as output:
        print(*sorted({*module_files(), *mapped_files()}), sep="\n", file=output)


if __name__ == "__main__":
    main()
