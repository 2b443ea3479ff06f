"""End commands with a line on stderr and an exit code instead of a traceback."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import NoReturn

import typer

from .streams import complain

FAILED = 1
"""The run failed: too low accuracy, a file that cannot be written, a missing package."""
MISUSED = 2
"""The call is wrong: an unknown option, a device that does not exist."""


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Print the error and exit."""
    complain(f"error: {message}")
    raise typer.Exit(code)


def need(packages: Mapping[str, str]) -> None:
    """Exit unless all modules can be imported.

    Args:
        packages: module → package.
    """
    if missing := [package for module, package in packages.items() if find_spec(module) is None]:
        fail(f"this command needs {' and '.join(missing)}: pip install {' '.join(missing)}")
