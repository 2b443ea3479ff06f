"""Training around pruning: pure losses, schedules and optimizer states; and the training loop on accelerate, loaded on first use.

`train`, `fine_tune` and `sparse_train` take plain data, or a `Setup` of data and options. `pat` runs `Phases` of pruning and training.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .._extras import needs

if TYPE_CHECKING:
    from . import losses as losses
    from . import optimizer as optimizer
    from . import regularizers as regularizers
    from . import schedule as schedule
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
    from .variances import site_variances as site_variances

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

_NAMESPACES = ("losses", "optimizer", "regularizers", "schedule")
_FILES = {
    "Distill": "objective",
    "Phases": "phases",
    "Recipe": "recipe",
    "Result": "run",
    "Setup": "setup",
    "Trained": "state",
    "evaluate": "measure",
    "pat": "aware",
    "site_variances": "variances",
    "token_metrics": "token_measures",
    **dict.fromkeys(("fine_tune", "sparse_train", "train"), "loop"),
}
"""Name → file that defines it, which is imported when it is first used: most need the extra `train`."""


if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these

    def __getattr__(name: str) -> Any:
        if name in _NAMESPACES:
            return import_module(f".{name}", __name__)
        if name not in _FILES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with needs("train", f"prunefn.train.{name}"):
            return getattr(import_module(f".{_FILES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
