"""Small modules in the ways in which people keep sizes, each with what becomes of its class when all groups are halved."""

from __future__ import annotations

from . import attention, containers, dense, images, odd, touched
from .case import Case

CASES: dict[str, Case] = {
    case.name: case for part in (attention, containers, dense, images, odd, touched) for case in part.CASES
}
