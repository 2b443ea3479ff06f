"""Training around pruning: pure losses, schedules and optimizer states; and the training loop on accelerate, loaded on first use.

`train`, `fine_tune` and `sparse_train` take plain data, or a `Setup` of data and options. `pat` runs `Phases` of pruning and training.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .._extras import needs
from . import losses as losses
from . import optimizer as optimizer
from . import regularizers as regularizers
from . import schedule as schedule
from .variances import site_variances as site_variances

if TYPE_CHECKING:
    from .aware import pat as pat
    from .loop import fine_tune as fine_tune
    from .loop import sparse_train as sparse_train
    from .loop import train as train
    from .measure import evaluate as evaluate
    from .objective import Distill as Distill
    from .phases import Phases as Phases
    from .recipe import Recipe as Recipe
    from .run import Result as Result
    from .setup import Setup as Setup
    from .state import Trained as Trained
    from .token_measures import token_metrics as token_metrics

__all__ = [
    "Distill",
    "Phases",
    "Recipe",
    "Result",
    "Setup",
    "Trained",
    "evaluate",
    "fine_tune",
    "losses",
    "optimizer",
    "pat",
    "regularizers",
    "schedule",
    "site_variances",
    "sparse_train",
    "token_metrics",
    "train",
]

_LOADED = {
    "Distill": "objective",
    "Phases": "phases",
    "Recipe": "recipe",
    "Result": "run",
    "Setup": "setup",
    "Trained": "state",
    "evaluate": "measure",
    "pat": "aware",
    "token_metrics": "token_measures",
    **dict.fromkeys(("fine_tune", "sparse_train", "train"), "loop"),
}
"""Name → file of what needs the extra `train`."""


if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these

    def __getattr__(name: str) -> Any:
        if name not in _LOADED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with needs("train", f"prunefn.train.{name}"):
            return getattr(import_module(f".{_LOADED[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
