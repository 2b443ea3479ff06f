"""Gates on units, learned under budgets while the weights are frozen; and their parts, for those who train both.

params, batches, budget ─learn▶ scores
"""

from __future__ import annotations

from .concrete import expected_units as expected_units
from .concrete import sample as sample
from .learning import GateState as GateState
from .learning import Learned as Learned
from .learning import Learner as Learner
from .learning import learn as learn
from .learning import learner as learner

__all__ = ["GateState", "Learned", "Learner", "expected_units", "learn", "learner", "sample"]


def __dir__() -> list[str]:
    return __all__
