"""Measure pruned networks against the dense one: a metric of the outputs and labels, or a distance of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

from torch import Tensor

from .. import distances, trees
from ..distances import Distance
from ..errors import PruneError
from ..program.batches import device_of, each, split
from ..program.inputs import samples
from ..program.run import forward_flat
from ..spec.spec import Spec, check_eval_mode, check_runnable
from ..tokens.positions import positions_of
from ..types import Batch, Params

Loss = Callable[..., Any]
"""(output, *rest of the batch) → scalar, a mean over samples."""
Network = tuple[Params, Spec]


class Meter(NamedTuple):
    """What is measured, and on which batches."""

    dense: Network
    batches: Sequence[Batch]
    metric: Loss | None
    distance: Distance
    name: str
    """Of the metric or distance."""

    def reference(self) -> float | None:
        """Return the metric of the dense network; None for a distance."""
        return self.means([self.dense], lambda: None)[0] if self.metric is not None else None

    def means(self, networks: Sequence[Network], advance: Callable[[], object]) -> list[float]:
        """Return the mean of the metric or distance over all samples, for each network.

        Args:
            networks: pruned networks; the dense one is run once a batch for all of them.
            advance: called after each batch.
        """
        params, spec = self.dense
        sums, count = [0.0] * len(networks), 0
        for batch in self.batches:
            data = split(batch, spec=spec, device=device_of(params))
            if self.metric is None:
                rest: Sequence[Any] = [forward_flat(params, data.inputs, spec)] if networks else []
                measure: Loss = partial(distances.compare, self.distance, positions=positions_of(batch, data, spec))
            else:
                rest, measure = trees.map_tensors(lambda t: t.to(device_of(params)), data.rest), self.metric
            n = samples(spec, data.inputs)
            for i, (pruned, current) in enumerate(networks):
                sums[i] += n * self._number(measure(forward_flat(pruned, data.inputs, current), *rest))
            count += n
            advance()
        return [total / count for total in sums]

    def _number(self, value: Any) -> float:
        """Return a scalar as a number; raise PruneError if it is none."""
        if isinstance(value, Real):
            return float(value)
        if isinstance(value, Tensor) and value.ndim == 0:
            return float(value)
        which = "distance" if self.metric is None else "metric"
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        hint = (
            f", such as lambda *given: {which}(*given)[{next(iter(value))!r}]"
            if isinstance(value, dict) and value
            else ""
        )
        raise PruneError(f"what {which}= returns has {what}; it must be one number: a scalar tensor{hint}")


def meter(
    dense: Network,
    batches: Iterable[Batch] | None,
    *,
    metric: Loss | None,
    distance: Distance | None,
    max_batches: int | None,
) -> Meter | None:
    """Return a meter; None without batches.

    Raises:
        PruneError: there are both a metric and a distance, or one of them without batches.
        BatchError: there are no batches.
        ParamsError, TraceError: the spec was traced in train mode, or recorded.
    """
    given = [f"{name}=" for name, value in (("metric", metric), ("distance", distance)) if value is not None]
    if len(given) > 1:
        raise PruneError(
            "metric= is of outputs and labels, and distance= of outputs and dense outputs; give one of the two"
        )
    if batches is None:
        if given or max_batches is not None:
            raise PruneError(f"{(given or ['max_batches='])[0]} needs batches= to measure on")
        return None
    if distance is not None and any(isinstance(d, distances.Inner) for _, d in distances.terms(distance)):
        raise PruneError(f"sensitivity: distances.inner compares values inside of networks, {distances.ONLY_RECOVER}")
    check_eval_mode(dense[1], "sensitivity")
    check_runnable(dense[1])
    function = metric or distance
    name = "distance of the outputs from the dense ones" if function is None else _name(function)
    return Meter(dense, list(each(batches, max_batches=max_batches)), metric, distance or distances.auto(), name)


def _name(function: Callable[..., Any]) -> str:
    """Return the name of a function; `metric` if it has none of its own."""
    name = getattr(function, "__name__", type(function).__name__)
    return "metric" if name == "<lambda>" else name
