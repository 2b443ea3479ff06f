"""Devices by name."""

from __future__ import annotations

import torch

from .errors import MISUSED, fail

DEVICES = ("cpu", "cuda")


def device_of(name: str) -> torch.device:
    """Return the device of this name after a try; exit if it cannot be used."""
    if name.partition(":")[0] not in DEVICES:
        fail(f"there is no device {name!r}: use {' or '.join(DEVICES)}", MISUSED)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        fail(f"device {name!r} cannot be used here ({reason}); --device cpu always works", MISUSED)
    return device
