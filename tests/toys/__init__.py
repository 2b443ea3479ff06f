"""Small modules, one for each way in which channels can be wired, and `CASES`: name → how to build one and feed it."""

from __future__ import annotations

from . import attention, conv, dense, wiring
from .base import Case

CASES: dict[str, Case] = {**conv.CASES, **attention.CASES, **dense.CASES, **wiring.CASES}
