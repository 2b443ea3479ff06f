"""The vocabulary: whoever has read this file can read everything else.

Params, scores and masks are plain dicts. Everything that is chosen (a criterion, a scope, a budget, a compensation) is a
small value: a NamedTuple of pure functions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from .errors import StatsError
from .frozen_dict import FrozenDict
from .spec.parts import Cost, Group
from .spec.spec import Spec

Params = dict[str, Tensor]
"""Name → tensor, parameters and buffers, names as in `state_dict`."""
Scores = dict[str, Tensor]
"""Group → float [units]; higher = keep."""
Mask = dict[str, Tensor]
"""Group → bool [units], True = kept; a group absent from a mask is kept whole."""
Batch = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""A tensor; a tuple whose first n elements are the model's inputs; or a dict by input name."""


class Moments(NamedTuple):
    """What was measured at a site, in float64; merged by Chan's formula."""

    count: int
    mean: Tensor
    """[d]"""
    m2: Tensor
    """[d], sum of squared deviations from the mean"""
    taps: Tensor | None = None
    """[d, taps]: mean of the zero-padded input over output positions, for convolutions where it differs from the mean"""
    tap_count: int = 0
    absolute: Tensor | None = None
    """[d], mean of |x|"""
    scatter: Tensor | None = None
    """[d, d], sum of outer products of deviations from the mean; sites that read the same value share it"""

    @property
    def variance(self) -> Tensor:
        """Unbiased variance [d]; zero for a single sample."""
        return self.m2 / max(self.count - 1, 1)

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance [d, d]; zero for a single sample.

        Raises:
            StatsError: it was not collected.
        """
        return self._scatter() / max(self.count - 1, 1)

    @property
    def gram(self) -> Tensor:
        """Mean of the outer products of the inputs, [d, d].

        Raises:
            StatsError: the covariance was not collected.
        """
        return self._scatter() / self.count + self.mean[:, None] * self.mean

    def _scatter(self) -> Tensor:
        if self.scatter is None:
            raise StatsError("there is no covariance: use collect_stats(…, covariance=True)")
        return self.scatter


class Paired(NamedTuple):
    """A site in the dense network beside the same site after others lost units."""

    small: Moments
    dense: Moments
    cross: Tensor | None = None
    """[d, d], sum of outer products of deviations: dense (rows) with small (columns)"""


class Stats(NamedTuple):
    """What was measured. The empty `Stats()` is the identity of `merge_stats`."""

    spec: Spec | None = None
    params: Mapping[str, Tensor] = FrozenDict()
    """The parameters that were measured; criteria on weights read them."""
    sites: Mapping[str, Moments] = FrozenDict()
    """Site → moments of its input, [size of the site's axis]."""
    sums: Mapping[str, Mapping[str, Tensor]] = FrozenDict()
    """Collector → group or tensor → what it collected, summed over batches."""
    batches: int = 0
    samples: int = 0
    """Of all batches: the sum of their sizes."""
    fingerprints: Mapping[str, str] = FrozenDict()
    """Parameter → fingerprint at the time when it was measured; `params` are the live tensors, which training changes."""


class Collector(NamedTuple):
    """What a criterion gathers from a batch beyond what is measured at sites; the same name means the same thing."""

    name: str
    """Key in `stats.sums`."""
    collect: Callable[[Params, Batch, Spec], Mapping[str, Tensor]]
    """(params, batch, spec) → name of a group or tensor → tensor, summed over batches."""


class Criterion(NamedTuple):
    """How units are scored: what to gather, and a pure function of what was gathered."""

    name: str
    score: Callable[[Stats], Scores]
    needs: tuple[str, ...] = ("moments",)
    """What is measured at sites: "moments", "absolute", "covariance"; nothing for criteria on weights."""
    collectors: tuple[Collector, ...] = ()

    @property
    def data(self) -> bool:
        """Whether it needs batches at all."""
        return bool(self.needs or self.collectors)


class Scope(NamedTuple):
    """What is ranked against what. The scored groups fall into classes; units are ranked within their class.

    A ratio is a share of each class's units, rounded down; under a budget, the classes shrink alike.
    """

    name: str
    classes: Callable[[Sequence[str], Spec | None], Sequence[Hashable]] | None = None
    """(groups, spec) → the class of each; None: all are one class."""
    normalize: Callable[[Tensor], Tensor] | None = None
    """Scores of a group [units] → scores that can be compared with those of other groups [units]; None: as they are."""
    per: str | None = None
    """Not the lowest score goes next, but the lowest score per saved unit of this quantity, a field of `Cost`."""


class Budget(NamedTuple):
    """An upper bound on a cost, as a share of what the spec costs now."""

    quantity: str
    """A field of `Cost`, `latency`, or any other name."""
    keep: float
    cost: Callable[[Mapping[str, int], Spec], float]
    """(size of each group, spec) → cost."""
    falls: bool = True
    """Whether the cost never rises when a unit goes; else the whole order is searched for where the budget is met."""


@runtime_checkable
class Predictor(Protocol):
    """What predicts the cost of a network from the sizes of its groups, such as a table of latencies."""

    def predict(self, sizes: Mapping[str, int]) -> float:
        """Size of each group → cost."""
        ...


class Inputs(NamedTuple):
    """What is known of the inputs of a contraction of which some are about to go; float64, over the samples that were measured."""

    kept: Tensor
    """bool [g, i]: groups of the contraction, inputs of each"""
    mean: Tensor
    """[g, i, taps or 1]"""
    variance: Tensor | None
    """[g, i]"""
    covariance: Tensor | None
    """[g, i, i]"""
    dense: Dense | None = None
    """The same inputs in the dense network, where others were removed before; None: nothing was."""


class Dense(NamedTuple):
    """Inputs in the dense network, beside what they have become."""

    mean: Tensor
    """[g, i, taps or 1]"""
    covariance: Tensor | None = None
    """[g, i, i]"""
    cross: Tensor | None = None
    """[g, i, i], covariance of dense inputs (rows) with what they have become (columns)"""


class Repair(NamedTuple):
    """What a compensation does to a contraction."""

    weight: Tensor | None
    """The new weight [g, out, in, taps]; None: as it was. What it has at removed inputs does not matter."""
    shift: Tensor | None
    """[g, out], added to the output; None: nothing is."""


class Compensation(NamedTuple):
    """How a contraction makes up for removed inputs."""

    name: str
    repair: Callable[[Tensor, Inputs], Repair] | None
    """(weight [g, out, in, taps], inputs) → repair; float64. None: nothing is done."""
    needs: tuple[str, ...] = ("moments",)
    """What must have been measured at the site, as for a criterion."""
    otherwise: Compensation | None = None
    """What to do where the weight cannot be rewritten (it is computed, or serves others, too); None: an error."""


class Residual(NamedTuple):
    """What a site's output loses, summed over the outputs."""

    error: float
    """Mean squared difference to the dense output."""
    signal: float
    """Variance of the dense output that comes through the site."""

    @property
    def relative(self) -> float:
        """Share of the variance that is lost; 0 where there is none."""
        return self.error / self.signal if self.signal else 0.0


@runtime_checkable
class Where(Protocol):
    """A predicate on groups."""

    def __call__(self, group: Group) -> bool: ...


class Info(NamedTuple):
    """What a pipeline step did."""

    before: Cost
    after: Cost
    removed: Mapping[str, tuple[int, int]]
    """Group → (units removed, units)."""
    residuals: Mapping[str, Residual] = FrozenDict()
    """Site that lost inputs → what its output loses, as predicted from the statistics that it was compensated with."""
    scores: Mapping[str, Tensor] = FrozenDict()
    """Group that could lose units → its scores [units], of which the mask was chosen."""


class Pruned(NamedTuple):
    """What a pipeline returns."""

    params: Params
    spec: Spec
    mask: Mask
    info: Info

    def __repr__(self) -> str:
        gone = sum(lost for lost, _ in self.info.removed.values())
        return f"Pruned({len(self.params)} tensors, {self.spec!r}, {gone} units removed from {len(self.mask)} groups)"
