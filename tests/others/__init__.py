"""Small networks of kinds that are not in the zoo, in the style of well-known code: each a class, with inputs for any batch."""

from __future__ import annotations

from ..toys.base import Case
from .detectors import CASES as DETECTORS
from .generators import CASES as GENERATORS
from .graphs import CASES as GRAPHS
from .signals import CASES as SIGNALS

CASES: dict[str, Case] = {**DETECTORS, **GENERATORS, **GRAPHS, **SIGNALS}
