"""The vocabulary of the library; read this file first.

Params, scores and masks are plain dicts. Every choice of the user (a criterion, a scope, a budget, a compensation) is a small
value: a NamedTuple of pure functions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import inf
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from .display import html
from .display.calls import choice_text, noted
from .errors import StatsError
from .frozen_dict import FrozenDict
from .spec.parts import Cost, Group
from .spec.spec import Spec

Params = dict[str, Tensor]
"""Name → parameter or buffer, with the names of `state_dict`."""
Scores = dict[str, Tensor]
"""Group → float [units]; units with higher scores are kept."""
Mask = dict[str, Tensor]
"""Group → bool [units], True = kept; a group that is absent from a mask keeps all units."""
Batch = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""A tensor; a tuple or list whose first n elements are the model's inputs, nested as it takes them; or a dict by input name."""


class Moments(NamedTuple):
    """The statistics of a site's input, in float64; merged by Chan's formula."""

    count: float
    """Number of positions, or the sum of their weights."""
    mean: Tensor
    """[d]"""
    m2: Tensor
    """[d], sum of squared deviations from the mean"""
    taps: Tensor | None = None
    """[d, taps]: mean of the zero-padded input over output positions, for convolutions where it differs from `mean`"""
    tap_count: float = 0
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
            StatsError: the covariance was not collected.
        """
        return self._scatter() / max(self.count - 1, 1)

    @property
    def gram(self) -> Tensor:
        """Mean of the outer products of the inputs [d, d].

        Raises:
            StatsError: the covariance was not collected.
        """
        return self._scatter() / self.count + self.mean[:, None] * self.mean

    def __repr__(self) -> str:
        extra = {"taps": self.taps, "absolute": self.absolute, "covariance": self.scatter}
        more = "".join(f", {name}" for name, t in extra.items() if t is not None)
        return f"Moments({len(self.mean)} inputs over {self.count:g} positions{more})"

    def _scatter(self) -> Tensor:
        if self.scatter is None:
            raise StatsError("there is no covariance: use collect_stats(…, covariance=True)")
        return self.scatter


class Stats(NamedTuple):
    """The collected statistics. The empty `Stats()` is the identity of `merge_stats`."""

    spec: Spec | None = None
    params: Mapping[str, Tensor] = FrozenDict()
    """The parameters that were measured; criteria on weights read them."""
    sites: Mapping[str, Moments] = FrozenDict()
    """Site → moments of its input, [size of the site's axis]."""
    sums: Mapping[str, Mapping[str, Tensor]] = FrozenDict()
    """Collector → group or tensor → collected tensor, summed over batches."""
    batches: int = 0
    samples: int = 0
    """Number of samples: the sum of the sizes of all batches."""
    fingerprints: Mapping[str, str] = FrozenDict()
    """Parameter → fingerprint at the time of collection; `params` are the live tensors, which training changes."""

    def __repr__(self) -> str:
        covariances = sum(m.scatter is not None for m in self.sites.values())
        parts = [f"{len(self.sites)} sites", f"{self.samples} samples, {self.batches} batches"]
        parts += [f"covariances of {covariances}"] * bool(covariances) + list(self.sums)
        return f"Stats({', '.join(parts)})"

    def _repr_html_(self) -> str:
        columns = ["site", "inputs", "positions", "mean |mean|", "mean variance", "covariance"]
        numbers = {n: (m.count, float(m.mean.abs().mean()), float(m.variance.mean())) for n, m in self.sites.items()}
        texts = {n: (f"{count:g}", f"{mean:.3g}", f"{variance:.3g}") for n, (count, mean, variance) in numbers.items()}
        known = {n: "no" if m.scatter is None else "yes" for n, m in self.sites.items()}
        rows = [[n, str(len(m.mean)), *texts[n], known[n]] for n, m in self.sites.items()]
        return html.table(columns, rows, repr(self))


class Collector(NamedTuple):
    """A quantity that a criterion collects from batches besides the statistics of sites; the name identifies it."""

    name: str
    """Key in `stats.sums`."""
    collect: Callable[[Params, Batch, Spec], Mapping[str, Tensor]]
    """(params, batch, spec) → name of a group or tensor → tensor, summed over batches."""


class Criterion(NamedTuple):
    """A rule that scores units: the statistics to collect, and a pure function of them."""

    name: str
    score: Callable[[Stats], Scores]
    needs: tuple[str, ...] = ("moments",)
    """Statistics to collect at sites: "moments", "absolute", "covariance"; empty for criteria on weights."""
    collectors: tuple[Collector, ...] = ()
    increments: bool = False
    """Whether scores are what removing units costs, in one unit of measure for all groups, so that their sums mean something."""
    on_request: bool = False
    """Whether it is meant for whole blocks or interfaces, such as a vocabulary; the scores of others leave these out."""

    is_choice = True

    def __repr__(self) -> str:
        return choice_text(self.name, self.score)

    @property
    def data(self) -> bool:
        """Whether the criterion needs batches."""
        return bool(self.needs or self.collectors)


class Scope(NamedTuple):
    """The classes of groups whose units are ranked together; units compete only within their class.

    A ratio removes this fraction of each class's units, rounded down; under a budget, all classes shrink by about the same fraction.
    """

    name: str
    classes: Callable[[Sequence[str], Spec | None], Sequence[Hashable]] | None = None
    """(groups, spec) → class of each group; None: all groups form one class."""
    normalize: Callable[[Tensor], Tensor] | None = None
    """Scores of a group [units] → scores that are comparable between groups [units]; None: unchanged."""
    per: str | None = None
    """Rank by score divided by what removing the unit saves of this cost, a field of `Cost`; None: rank by score."""
    uniform: bool = False
    """Whether all groups of a class keep the same number of units; `normalize` then gives each unit its place in its group."""
    is_choice = True

    def __repr__(self) -> str:
        return choice_text(self.name, quantity=self.per, normalize=self.normalize)


class Budget(NamedTuple):
    """An upper bound on a cost, as a fraction of the spec's current cost."""

    quantity: str
    """A field of `Cost`, `latency`, or any other name."""
    keep: float
    cost: Callable[[Mapping[str, int], Spec], float]
    """(size of each group, spec) → cost."""
    falls: bool = True
    """Whether the cost never rises when a unit is removed; if False, the whole removal order is searched."""
    soft: Callable[[Mapping[str, Any], Spec], Any] | None = None
    """The cost at sizes that need not be whole: floats, or tensors that carry gradients; None: there is none."""
    is_choice = True

    def __repr__(self) -> str:
        return f"{self.quantity}({self.keep:g})"


class Count(NamedTuple):
    """The number of whole layers, or of experts in each mixture, that stay."""

    what: str
    """`layers` or `experts`."""
    number: int | Mapping[str, int]
    """Of all, or of those that a glob matches."""
    is_choice = True

    def __repr__(self) -> str:
        return f"{self.what}({self.number})"


class Among(NamedTuple):
    """Whole layers, and how many of them stay."""

    groups: tuple[str, ...]
    kept: int


class TargetSizes(NamedTuple):
    """The exact number of units that groups keep, as `pf.target` reads them from the numbers of a config."""

    sizes: Mapping[str, int]
    """Group → units; other groups keep all."""
    layers: tuple[Among, ...] = ()
    """Layers of which the best stay."""


@runtime_checkable
class Predictor(Protocol):
    """A predictor of a network's cost from the sizes of its groups, such as a table of latencies."""

    def predict(self, sizes: Mapping[str, int]) -> float:
        """Return the cost for the given group sizes."""
        ...


class Inputs(NamedTuple):
    """The statistics of a contraction's inputs before some of them are removed; float64, over the measured samples."""

    kept: Tensor
    """bool [g, i]: groups of the contraction, inputs of each"""
    mean: Tensor
    """[g, i, taps or 1]"""
    variance: Tensor | None
    """[g, i, taps or 1]"""
    covariance: Tensor | None
    """[g, i, i], the same at every tap, with taps uncorrelated; or that of all taps of all inputs, [g, i·taps, i·taps]"""
    count: float = inf
    """Number of samples, or the sum of their weights."""
    lacking: Lacking | None = None
    """What the kept inputs do not give of the outputs to reproduce; always there when a compensation is called."""
    halves: tuple[Inputs, ...] = ()
    """The same statistics of either half of the samples, where they are known."""
    may_shift: bool = True
    """Whether the class of the model has room for a shift of the outputs: a bias, a BatchNorm that follows, or a new bias."""


class Lacking(NamedTuple):
    """The outputs that a contraction must reproduce, less what the weight at hand gives for the kept inputs."""

    mean: Tensor
    """[g, o]"""
    variance: Tensor
    """[g, o]"""
    cross: Tensor | None
    """[g, o, i, taps], covariance with the inputs"""
    signal: Tensor
    """[g, o], variance of the outputs to reproduce"""
    given: Tensor
    """[g, o], variance of what the weight at hand gives"""


class Repair(NamedTuple):
    """The changes that a compensation makes to a contraction."""

    weight: Tensor | None
    """The new weight [g, out, in, taps]; None: unchanged. Its values at removed inputs do not matter."""
    shift: Tensor | None
    """[g, out], added to the output; None: nothing is added."""
    expected: float | None = None
    """Estimate of the squared error on new samples; None: that on the measured ones, as nothing was fitted."""


class Compensation(NamedTuple):
    """A method by which a contraction compensates for removed inputs."""

    name: str
    repair: Callable[[Tensor, Inputs], Repair] | None
    """(weight [g, out, in, taps], inputs) → repair, in float64; None: no compensation."""
    needs: tuple[str, ...] = ("moments",)
    """Statistics to collect at sites, as for a criterion; the sequential mode gives the covariance of all taps."""
    fallback: Compensation | None = None
    """Fallback where the weight cannot be rewritten (it is computed, or shared with others); None: raise an error."""
    is_choice = True

    def __repr__(self) -> str:
        return choice_text(self.name, self.repair, fallback=self.fallback)


class Residual(NamedTuple):
    """The error of a site's output, summed over the outputs."""

    error: float
    """Mean squared difference from the dense output, on the measured samples."""
    signal: float
    """Variance of the dense output that the site contributes."""
    expected: float
    """Estimate of the mean squared difference on new samples: larger where weights were fitted to few."""

    @property
    def relative(self) -> float:
        """Expected error as a fraction of the variance; 0 if the variance is 0."""
        return self.expected / self.signal if self.signal else 0.0


@runtime_checkable
class Where(Protocol):
    """A predicate on groups."""

    def __call__(self, group: Group) -> bool: ...


class Info(NamedTuple):
    """The effects of a pipeline step."""

    before: Cost
    after: Cost
    removed: Mapping[str, tuple[int, int]]
    """Group → (units removed, units)."""
    residuals: Mapping[str, Residual] = FrozenDict()
    """Site that lost inputs → error of its output, as predicted from the statistics used for its compensation."""
    scores: Mapping[str, Tensor] = FrozenDict()
    """Group that was allowed to lose units → its scores [units], from which the mask was chosen."""
    notes: tuple[str, ...] = ()
    """Reasons why the result may be worth less than it looks: weights that look untrained, few samples."""

    def __repr__(self) -> str:
        lost, units = (sum(n) for n in zip(*self.removed.values(), strict=True)) if self.removed else (0, 0)
        removed = f"{lost} of {units} units removed from {len(self.removed)} groups{noted(self.notes)}"
        return f"Info({self.before} → {self.after}; {removed})"

    def _repr_html_(self) -> str:
        return html.effects(tuple(self.before), tuple(self.after), self.removed, self.notes)


class Pruned(NamedTuple):
    """The result of a pipeline."""

    params: Params
    spec: Spec
    mask: Mask
    info: Info

    def __repr__(self) -> str:
        lost = sum(n for n, _ in self.info.removed.values())
        removed = f"{lost} units removed from {len(self.mask)} groups{noted(self.info.notes)}"
        return f"Pruned({len(self.params)} tensors, {self.spec!r}, {removed})"

    def _repr_html_(self) -> str:
        return self.info._repr_html_()
