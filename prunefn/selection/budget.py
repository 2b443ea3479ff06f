"""Budgets: upper bounds on the fraction of a cost that is kept, and numbers of layers and experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from ..doors import door
from ..errors import BudgetError, PruneError
from ..spec.kv_cache import cached_elements
from ..spec.parts import Cost
from ..spec.spec import Spec
from ..types import Budget, Count, Predictor, Where
from ..where import matches
from .counts import EXPERTS, LAYERS
from .meeting import at_least, fewest
from .polynomial_roots import degrees, root

__all__ = ["activations", "custom", "experts", "latency", "layers", "macs", "memory", "params", "uniform_ratio"]


@door
def macs(keep: float) -> Budget:
    """Limit the MACs to this fraction of the whole network's.

    >>> macs(0.65).keep
    0.65
    """
    return _budget("macs", keep, _macs, soft=_macs)


@door
def params(keep: float) -> Budget:
    """Limit the number of parameters to this fraction of the whole network's."""
    return _budget("params", keep, _params, soft=_params)


@door
def activations(keep: float) -> Budget:
    """Limit the activations to this fraction of the whole network's.

    Activations are the elements that all ops write for one sample, which training keeps in memory.
    """
    return _budget("activations", keep, _activations, soft=_activations)


@door
def memory(
    keep: float,
    *,
    batch: int = 1,
    length: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    cache_dtype: torch.dtype | None = None,
) -> Budget:
    """Limit the bytes of parameters and of the cache of keys and values to this fraction of the whole network's.

    The cache has the keys and values of all attention layers (`scaled_dot_product_attention` in the program) for each position of
    each sequence. Keys that several queries share count once. It is an exact polynomial in the sizes of groups; `pf.memory` returns it.

    Args:
        keep: fraction of the bytes.
        batch: sequences in the cache.
        length: positions of each sequence in the cache; None: there is no cache.
        dtype: of the parameters.
        cache_dtype: of the cache; None: that of the parameters.

    Raises:
        BudgetError: (when used) there is a length, but the program has no attention whose keys and values are known.

    >>> memory(0.75, batch=8, length=4096).quantity
    'memory'
    """
    cost = partial(_memory, cache=cache_size(batch, length), widths=(dtype.itemsize, (cache_dtype or dtype).itemsize))
    return _budget("memory", keep, cost, soft=cost)


@door
def latency(keep: float | Predictor, table: Predictor | None = None, *, ms: float | None = None) -> Budget:
    """Limit the latency to this fraction of the whole network's, or to some milliseconds, as a table predicts it.

    Latency need not fall with each removed unit, nor with many. Along the order of removal, up to 512 evenly spaced points are
    tried until one meets the budget; between it and the previous point, bisection finds where the budget is first met. The
    table must be of the spec that is passed to `select`.

    Args:
        keep: fraction of the prediction for the spec's sizes; or the table, with `ms`.
        table: any object with `predict(sizes) → float`, such as a table by `pf.latency_table`. With a method `interpolate` for
            sizes that need not be whole, as that table has, gates can be learned under the budget.
        ms: milliseconds of a forward of the table's batch, instead of a fraction; the table must be one by `pf.latency_table`.

    Raises:
        BudgetError: there is no table, both or neither of a fraction and milliseconds, or one out of range.

    >>> class Table:
    ...     def predict(self, sizes):
    ...         return 1e-3 + 1e-5 * sum(-(-n // 8) for n in sizes.values())  # in steps of eight units
    >>> latency(0.8, Table()).quantity
    'latency'
    """
    if isinstance(keep, Predictor):
        if table is not None or ms is None:
            raise BudgetError(
                "keep is a table: write budget.latency(table, ms=8), or budget.latency(0.5, table) for a fraction"
            )
        table, keep = keep, _fraction(keep, ms)
    elif table is None or ms is not None:
        raise BudgetError(
            f"keep is {keep}, table {'given' if table is not None else 'missing'}, ms {ms}: write budget.latency(0.5, table) for a "
            "fraction, or budget.latency(table, ms=8)"
        )
    soft = partial(_interpolate, table) if callable(getattr(table, "interpolate", None)) else None
    return _budget("latency", keep, partial(_predict, table), falls=False, soft=soft)


def _fraction(table: Any, ms: float) -> float:
    """Return milliseconds as a fraction of the prediction for the dense network; 1 if it is faster."""
    spec = getattr(table, "spec", None)
    if spec is None:
        raise BudgetError(
            f"ms={ms} needs a table by pf.latency_table, which knows the dense network; or give a fraction"
        )
    dense = float(table.predict(spec.sizes))
    if not ms > 0 or not dense > 0:
        raise BudgetError(
            f"budget.latency(table, ms={ms}): milliseconds must be above 0; the dense network takes {1e3 * dense:.4g}"
        )
    return min(1.0, ms / 1e3 / dense)


@door
def custom(
    keep: float,
    cost: Callable[[Mapping[str, int], Spec], float],
    *,
    name: str = "custom",
    falls: bool = False,
    soft: Callable[[Mapping[str, Any], Spec], Any] | None = None,
) -> Budget:
    """Limit any cost to this fraction of the whole network's.

    Args:
        keep: fraction of `cost` at the spec's sizes.
        cost: (size of each group, spec) → a non-negative number.
        name: for messages; not the name of a field of `Cost`.
        falls: whether the cost never rises when a unit is removed. If so, bisection finds the fewest units; otherwise the
            search of `latency` is used.
        soft: the same cost at sizes that need not be whole, floats or scalar tensors, by which it can be differentiated; gates can
            be learned under the budget with it.

    Raises:
        BudgetError: keep is not in (0, 1].
        PruneError: the name is that of a field of `Cost`.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    >>> spec = pf.trace(model, (torch.randn(2, 1),))
    >>> weights = custom(0.5, lambda sizes, spec: 2 * sizes["0"], name="weights", falls=True)
    >>> pf.select({"0": torch.tensor([3.0, 1.0, 2.0, 4.0])}, weights, spec=spec)
    {'0': tensor([ True, False, False,  True])}
    """
    if name in Cost._fields:
        raise PruneError(
            f"budget.custom(name={name!r}): this is the name of a cost of the spec; use budget.{name}({keep})"
        )
    return _budget(name, keep, cost, falls=falls, soft=soft)


@door
def layers(number: int | Mapping[str, int]) -> Count:
    """Keep this number of whole layers: those of the best scores.

    Layers are the children of a container of layers, those that cannot go included, as a config counts them. Score them by
    `criteria.block_influence`, `branch_error` or `pf.eliminate`. `pf.target` states the number by the name in a config.

    Args:
        number: of all containers together; or {glob on containers: number of their layers}, as `{"encoder.*": 4, "decoder.*": 6}`.

    Raises:
        BudgetError: the number is below 1; or (when used) there are fewer layers, or some of them cannot go.
        PruneError: (when used) the model has no layers, or a layer has no score.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3).eval()
    >>> x, influence = torch.randn(4, 5, 8), pf.criteria.block_influence()
    >>> prune = pf.pipeline(criterion=influence, where=pf.kind("layer"), ratio=layers(2))
    >>> sum(int(m.sum()) for m in prune(pf.params(model), [x], spec=pf.trace(model, (x,))).mask.values())
    2
    """
    return _count(LAYERS, number)


@door
def experts(number: int | Mapping[str, int]) -> Count:
    """Keep this number of experts in each mixture: those of the best scores.

    Score them by `criteria.reap` or `expert_frequency`, or `magnitude` without data. Where a router chooses groups of experts first,
    every group keeps as many.

    Args:
        number: of the experts of each mixture; or {glob on groups: number}.

    Raises:
        BudgetError: the number is below 1; or (when used) a mixture has fewer experts, or a token chooses more.
        PruneError: (when used) the model has no groups of experts.

    >>> experts(96)
    experts(96)
    """
    return _count(EXPERTS, number)


def _count(what: str, number: int | Mapping[str, int]) -> Count:
    for n in number.values() if isinstance(number, Mapping) else [number]:
        if n < 1:
            raise BudgetError(f"budget.{what}({number}): it is the number that stays, at least 1")
    return Count(what, number)


def _budget(
    quantity: str,
    keep: float,
    cost: Callable[[Mapping[str, int], Spec], float],
    *,
    falls: bool = True,
    soft: Callable[[Mapping[str, Any], Spec], Any] | None = None,
) -> Budget:
    if not 0 < keep <= 1:
        raise BudgetError(
            f"budget.{quantity}({keep}): the fraction that is kept must be above 0 and at most 1, such as 0.65"
        )
    return Budget(quantity, keep, cost, falls, soft)


def _macs(sizes: Mapping[str, Any], spec: Spec) -> Any:
    return spec.costs.macs(sizes)


def _params(sizes: Mapping[str, Any], spec: Spec) -> Any:
    return spec.costs.params(sizes)


def _activations(sizes: Mapping[str, Any], spec: Spec) -> Any:
    return spec.costs.activations(sizes)


def _memory(sizes: Mapping[str, Any], spec: Spec, *, cache: int, widths: tuple[int, int]) -> Any:
    return sum(memory_bytes(sizes, spec, cache=cache, widths=widths))


def cache_size(batch: int, length: int | None) -> int:
    """Return the number of positions of all sequences; 0 without a length."""
    return batch * (length or 0)


def memory_bytes(sizes: Mapping[str, Any], spec: Spec, *, cache: int, widths: tuple[int, int]) -> tuple[Any, Any]:
    """Return the bytes of the parameters and of the cache.

    Args:
        sizes: of the groups.
        spec: of the network.
        cache: positions of all sequences.
        widths: bytes of an element of the parameters, and of the cache.

    Raises:
        BudgetError: there is a cache, but no attention.
    """
    parameters = widths[0] * spec.costs.params(sizes)
    if not cache:
        return parameters, 0
    elements = cached_elements(spec)
    if not elements.terms:
        raise BudgetError(
            "length= asks for a cache of keys and values, but the program has no scaled_dot_product_attention; load the model with "
            'attn_implementation="sdpa", or leave length out'
        )
    return parameters, widths[1] * cache * elements(sizes)


def _predict(table: Predictor, sizes: Mapping[str, int], _: Spec) -> float:
    return float(table.predict(sizes))


def _interpolate(table: Any, sizes: Mapping[str, Any], _: Spec) -> Any:
    return table.interpolate(sizes)


# ---- one ratio for all groups, in closed form


@door
def uniform_ratio(spec: Spec, budget: Budget, where: Where | str | None = None) -> float:
    """Return the ratio that just meets a budget when it is removed from every chosen group; sizes are continuous.

    When every chosen size n becomes q·n, a cost of the spec is a polynomial in q. Up to degree two, it is solved in closed
    form: `keep·T = U + S₁q + S₂q²`, with T the total cost, U the part that does not shrink, and S₁ and S₂ the parts where
    one side and both sides shrink. Higher degrees (grouped attention, products of three axes) are solved by bisection.
    Other costs are searched like `budget.latency`, at the sizes that `scope.local()` keeps.

    Args:
        spec: of the network.
        budget: such as `budget.macs(0.65)`.
        where: groups that shrink: `pf.kind("hidden")`, a glob, any predicate; default: all.

    Returns:
        The ratio removed, 1 − q, in [0, 1): with `scope.local()`, it meets the budget up to the rounding of sizes. As a ratio
        rounds what it removes down, the cost may stay a little above the budget; `select(scores, budget, spec=spec,
        scope=scope.uniform())` meets it.

    Raises:
        PruneError: `where` matches no group.
        BudgetError: the budget cannot be met; the message states the nearest one that can.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 1))
    >>> spec = pf.trace(model, (torch.randn(2, 1),))
    >>> round(uniform_ratio(spec, pf.budget.macs(0.3)), 6)  # 24 of 80 = 8 q + 64 q² + 8 q
    0.5
    """
    names = [g for g, group in spec.groups.items() if matches(where, group)]
    if not names:
        raise PruneError(f"no group matches {where!r}: there is nothing to remove")
    if budget.quantity not in Cost._fields:
        return _search_ratio(spec, budget, names)
    coefficients = degrees(getattr(spec.costs, budget.quantity), spec.sizes, names)
    total, rest = sum(coefficients), coefficients[0]
    if rest >= budget.keep * total and budget.keep < 1:
        least = min(at_least(rest / total + 1e-5), 1.0)
        raise BudgetError(
            f"budget.{budget.quantity}({budget.keep}) cannot be met: {rest / total:.4f} of the {budget.quantity} are "
            f"outside the {len(names)} chosen groups; choose more groups, or allow at least {least}"
        )
    return min(max(1 - root(coefficients, budget.keep * total), 0.0), 1.0)


def _search_ratio(spec: Spec, budget: Budget, names: list[str]) -> float:
    """Return the lowest ratio of six digits that meets the budget, as far as `fewest` finds it."""
    digits = 1_000_000

    def sizes(step: int) -> Mapping[str, int]:
        return {**spec.sizes, **{g: spec.sizes[g] - spec.sizes[g] * step // digits for g in names}}

    return fewest([budget], spec, sizes, digits - 1) / digits


def __dir__() -> list[str]:
    return __all__
