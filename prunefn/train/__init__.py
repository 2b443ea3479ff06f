"""Training around pruning: pure losses, schedules and states of optimizers; and the loop, on accelerate, which is loaded when used."""

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
    from .loop import train as train
    from .measure import evaluate as evaluate
    from .objective import Distill as Distill
    from .phases import fine_tune as fine_tune
    from .phases import pat as pat
    from .phases import sparse_train as sparse_train
    from .recipe import Recipe as Recipe
    from .run import Result as Result
    from .stage import Trained as Trained

__all__ = [
    "Distill",
    "Recipe",
    "Result",
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
    "train",
]

_LOADED = {
    "evaluate": "measure",
    "train": "loop",
    "Trained": "stage",
    **dict.fromkeys(("fine_tune", "pat", "sparse_train"), "phases"),
    "Distill": "objective",
    "Recipe": "recipe",
    "Result": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _LOADED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs("train", f"prunefn.train.{name}"):
        return getattr(import_module(f".{_LOADED[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
