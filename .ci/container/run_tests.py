"""Run tests with the image's own interpreter: `run_tests.py SUITE MODULE CLASS`.

The image lacks what the tests need (unittest, to begin with), so the rest of the standard
library lies in SUITE/stdlib. It serves the tests only: an import on behalf of the fake
finds what is in the image or fails, and so a module missing from the image shows.
"""

# ruff: noqa: D102, D103 - a script that nobody imports

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType, ModuleType

FAKE = "customerio_fake"


def modules_of(frame: FrameType | None) -> Iterator[str]:
    """The names of the modules on the stack, innermost first."""
    while frame:
        yield frame.f_globals.get("__name__", "")
        frame = frame.f_back


class RestOfTheLibrary:
    """The last finder asked: only for what the image does not hold."""

    def __init__(self, tests: str, stdlib: str) -> None:
        self.tests = tests
        self.stdlib = stdlib

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if self.for_the_fake():
            return None
        package = os.path.join(self.stdlib, *name.split(".")[:-1])
        places = [package, os.path.join(package, "lib-dynload")]
        return PathFinder.find_spec(name, places, target)

    def for_the_fake(self) -> bool:
        callers = modules_of(sys._getframe())
        askers = (name for name in callers if name in (FAKE, self.tests))
        return next(askers, self.tests) == FAKE


def main() -> None:
    suite, tests, case = sys.argv[1:]
    sys.path.append(suite)
    sys.meta_path.append(RestOfTheLibrary(tests, os.path.join(suite, "stdlib")))
    unittest = importlib.import_module("unittest")
    sys.argv[1:] = [case]
    unittest.main(module=tests, verbosity=1)


if __name__ == "__main__":
    main()
