"""Build the pipeline of a config's section."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

from ..by_name.tables import RECIPES, compensation_of, criterion_of, scope_of, where_of
from ..costs.timing import LatencyTable, latency_table
from ..errors import PruneError, nearest
from ..plans import Prune as Pruner
from ..selection import budget
from ..spec.spec import Spec
from ..types import Budget, Params
from .sections import Pat, Prune

ROUND_TO = 16
"""Default multiple of the sizes under a latency: kernels fill up other numbers."""
COUNTED = ("layers", "experts")
"""Options of `prune` for numbers of groups that stay."""


def options_of(section: Prune) -> dict[str, Any]:
    """Return the options of `pipeline` in the section."""
    read: dict[str, Callable[[str], Any]] = {
        "criterion": criterion_of,
        "compensation": compensation_of,
        "scope": scope_of,
        "where": where_of,
    }
    options = {key: make(text) for key, make in read.items() if (text := getattr(section, key)) is not None}
    names = ("round_to", "max_ratio", "min_units", "sequential", "recalibrate", "recover_steps")
    default = Prune()
    options |= {n: getattr(section, n) for n in names if getattr(section, n) != getattr(default, n)}
    return options | ({"freeze": section.freeze} if section.freeze else {})


def maker_of(section: Prune, default: str) -> Callable[[Any], Pruner]:
    """Return the function from a ratio or budget to the pipeline, of the section's recipe or the default one.

    Raises:
        PruneError: a name is unknown.
    """
    name = section.recipe or default
    if name not in RECIPES:
        raise PruneError(f"there is no recipe {name!r}{nearest(name, RECIPES)}")
    return partial(RECIPES[name], **options_of(section))


def amount_of(section: Prune) -> Any:
    """Return the amount to remove: a ratio, a budget, or several budgets.

    Raises:
        PruneError: the section has both a ratio and a budget; or a latency, layers or experts, which `latency_budget` and
            `stages_of` read.
    """
    if section.latency is not None:
        raise PruneError(
            f"prune.latency is {section.latency!r}, which is for `prunefn prune` and `prunefn pat`; give --macs or --params"
        )
    for name in COUNTED:
        if (value := getattr(section, name)) is not None:
            raise PruneError(f"prune.{name} is {value!r}, which only `prunefn prune` takes; give --macs or --params")
    kept = {n: k for n in ("macs", "params", "activations") if (k := getattr(section, n)) is not None}
    if kept and section.ratio is not None:
        raise PruneError(
            f"prune.ratio is {section.ratio}, and prune.{next(iter(kept))} is a budget; give one of the two"
        )
    budgets: list[Budget] = [getattr(budget, n)(k) for n, k in kept.items()]
    if not budgets:
        return 0.5 if section.ratio is None else section.ratio
    return budgets[0] if len(budgets) == 1 else budgets


def latency_of(section: Prune) -> tuple[float, bool] | None:
    """Return the latency of the section and whether it is in milliseconds (else a fraction); None if there is none.

    Raises:
        PruneError: it is no number, or the section has another amount, too; or it has a runtime without a latency.
    """
    text = section.latency
    if text is None:
        if section.runtime is not None:
            raise PruneError(
                f"prune.runtime is {section.runtime!r}, and there is no latency to measure; give --latency"
            )
        return None
    others = [n for n in ("ratio", "macs", "params", "activations", *COUNTED) if getattr(section, n) is not None]
    if others:
        raise PruneError(f"prune.latency is {text!r}, and prune.{others[0]} is another amount; give one of the two")
    in_ms = text.strip().lower().endswith("ms")
    try:
        value = float(text.strip().lower().removesuffix("ms"))
    except ValueError:
        value = 0.0
    if not (0 < value < inf if in_ms else 0 < value <= 1):
        raise PruneError(
            f"prune.latency is {text!r}; write a fraction to keep, such as 0.5, or milliseconds, such as 8ms"
        )
    return value, in_ms


def aligned(section: Prune) -> Prune:
    """Return the section with sizes that suit the kernels, if it has a latency and no multiple of its own."""
    timed = section.latency is not None and section.round_to == 1
    return section.model_copy(update={"round_to": ROUND_TO}) if timed else section


def latency_budget(section: Prune, params: Params, spec: Spec, progress: bool) -> tuple[Budget, LatencyTable]:
    """Return the budget of the section's latency and the table that was measured for it, on the device of the params."""
    asked = latency_of(section)
    assert asked is not None
    table = latency_table(params, spec=spec, runtime=section.runtime or "eager", progress=progress)
    value, in_ms = asked
    return (budget.latency(table, ms=value) if in_ms else budget.latency(value, table)), table


def ratio_of(section: Pat, prune: Prune) -> tuple[float, str]:
    """Return the fraction that a schedule removes in the end, and its quantity: those of `pat`, or else those of `prune`.

    Raises:
        PruneError: these are no single fraction of units, MACs or params.
    """
    if section.ratio is not None:
        if prune.latency is not None:
            raise PruneError(
                f"pat.ratio is {section.ratio}, and prune.latency {prune.latency!r} is another amount; give one of the two"
            )
        return section.ratio, section.of
    amount = amount_of(prune)
    if isinstance(amount, float):
        return amount, "units"
    if isinstance(amount, Budget) and amount.quantity in ("macs", "params"):
        return 1 - amount.keep, amount.quantity
    raise PruneError(
        "a schedule removes one fraction of units, MACs or params: give --ratio, and --of macs or --of params"
    )


def check_processes(section: Prune) -> None:
    """Raise a PruneError for a latency where several processes run: each would measure another table, and prune by it."""
    if section.latency is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise PruneError(
            f"prune.latency is {section.latency!r}, which one process measures, but {os.environ['WORLD_SIZE']} run; "
            "give --macs, or run without torchrun"
        )


def budget_of(quantity: str) -> Callable[[float], Budget] | None:
    """Return the budget for a quantity of `ratio_of`; None for units."""
    return {"units": None, "macs": budget.macs, "params": budget.params}[quantity]
