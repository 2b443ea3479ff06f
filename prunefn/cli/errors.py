"""End commands with a line on stderr and an exit code instead of a traceback."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import NoReturn

import torch
import typer

from .streams import complain

FAILED = 1
"""The run failed: too low accuracy, a file that cannot be written, a missing package."""
MISUSED = 2
"""The call is wrong: an unknown option, a device that does not exist."""

DEVICES = ("cpu", "cuda")


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


def device_of(name: str) -> torch.device:
    """Return the device of this name after a try; exit if it cannot be used."""
    if name.partition(":")[0] not in DEVICES:
        fail(f"there is no device {name!r}: use {' or '.join(DEVICES)}", MISUSED)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
    else:
        return device
    fail(f"device {name!r} cannot be used here ({reason}); --device cpu always works", MISUSED)
