"""How commands end: a line on stderr and an exit code, no traceback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import NoReturn

import torch
import typer

from ..errors import PruneError
from .streams import complain

FAILED = 1
"""The run failed: too little accuracy, a file that cannot be written, something to install."""
MISUSED = 2
"""The command was called wrongly: an unknown option, a device that is not there."""

DEVICES = ("cpu", "cuda")


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Say what is wrong and exit."""
    complain(f"error: {message}")
    raise typer.Exit(code)


def need(packages: Mapping[str, str]) -> None:
    """Exit unless all modules can be imported.

    Args:
        packages: module → what pip calls it.
    """
    if missing := [package for module, package in packages.items() if find_spec(module) is None]:
        fail(f"this command needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def device_of(name: str) -> torch.device:
    """The device of this name, once it has been tried; exits if it cannot be used."""
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


@contextmanager
def reported(*expected: type[Exception]) -> Iterator[None]:
    """Turn errors that are meant for the reader into a message and exit code 1."""
    try:
        yield
    except (PruneError, OSError, *expected) as error:
        fail(str(error))
