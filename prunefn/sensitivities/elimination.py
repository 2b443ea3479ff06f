"""Backward elimination: whole blocks are removed one at a time, and the network is measured without each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf, nextafter
from typing import NamedTuple

import torch
from tqdm import tqdm

from ..display.progress import progress_bar
from ..distances import Distance
from ..doors import door
from ..errors import PruneError
from ..parameters.transforms import apply, check_names, shrink
from ..program.sharded import check_plain
from ..spec.spec import Spec
from ..types import Batch, Params, Scores, Where
from ..where import check_matches, kind, matches
from .meter import Loss, Meter, Network, meter


class Eliminated(NamedTuple):
    """The result of a backward elimination."""

    scores: Scores
    """Group → [1], float64: what has gone when the group goes costs this much; groups that stayed to the end score highest."""
    order: tuple[str, ...]
    """The groups in the order in which they went."""
    costs: tuple[float, ...]
    """Rise of the metric, or distance from the dense outputs, after each of them."""
    evaluations: int
    """Number of networks that were measured."""


@door
def eliminate(
    params: Params,
    batches: Iterable[Batch],
    *,
    spec: Spec,
    metric: Loss | None = None,
    distance: Distance | None = None,
    maximize: bool = False,
    where: Where | str | None = None,
    greedy: bool = True,
    evaluations: int | None = None,
    max_batches: int | None = None,
    progress: bool = False,
) -> Eliminated:
    """Score layers by removing them one at a time and measuring the network.

    In each round, the network is measured without each layer that is left, and the one that costs least goes: for n layers
    down to one, about n²/2 networks. The scores keep this order for `select` and `criteria.given`.

    Args:
        params: of the spec.
        batches: kept in memory; all of them are read for each network.
        spec: of the params; traced in eval mode.
        metric: (output, *rest of the batch) → mean over the batch, such as a loss of labels or a perplexity; lower is better.
        distance: (output, dense output) → scalar, without labels. Default, without a metric: `distances.auto()`.
        maximize: whether a higher metric is better, as of an accuracy.
        where: layers and branches to remove; default: `pf.kind("layer")`.
        greedy: measure again after each removal. If False, each layer is only removed alone.
        evaluations: most networks to measure. When another round would exceed it, layers that are left keep the order of the
            last round.
        max_batches: measure on this many batches.
        progress: show a progress bar.

    Returns:
        `Eliminated(scores, order, costs, evaluations)`.

    Raises:
        PruneError: `where` chooses other groups than branches and layers, or none; evaluations is too small for one round.
        BatchError, ParamsError, TraceError: as in `sensitivity`.

    Source: Zhong et al., "BlockPruner", 2024 (arXiv 2406.10594), and Song et al., "SLEB", ICML 2024 (arXiv 2402.09025), remove
    blocks of language models in this way.

    >>> import torch, prunefn as pf
    >>> _ = torch.manual_seed(0)
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).eval()
    >>> spec, x = pf.trace(model, (torch.randn(2, 5, 8),)), torch.randn(16, 5, 8)
    >>> found = pf.eliminate(pf.params(model), [x], spec=spec)
    >>> len(found.order), found.evaluations, list(found.costs) == sorted(found.costs)
    (3, 9, True)
    >>> mask = pf.select(found.scores, 0.5, spec=spec)
    >>> {g for g, m in mask.items() if not m.all()} == set(found.order[:2])
    True
    """
    check_names(params, spec)
    check_plain(params, "eliminate", "gather the parameters first")
    where = kind("layer") if where is None else where
    check_matches(where, spec)
    groups = [g.name for g in spec.groups.values() if matches(where, g)]
    if wide := [g for g in groups if g not in spec.branches]:
        raise PruneError(
            f"where= chooses {wide[0]!r}, which has units; only whole branches and layers are removed one at a time"
        )
    if evaluations is not None and evaluations < len(groups):
        raise PruneError(f"evaluations is {evaluations}, but one round measures {len(groups)} networks; give as many")
    gauge = meter((params, spec), batches, metric=metric, distance=distance, max_batches=max_batches)
    if gauge is None:
        raise PruneError("batches is None; eliminate measures the network on batches")
    most = len(groups) * (len(groups) + 1) // 2 if greedy else len(groups)
    limit = most if evaluations is None else min(evaluations, most)
    search = _Search(gauge, -1.0 if maximize else 1.0, groups, 1 if not greedy else max(len(groups) - 1, 1), limit)
    with torch.no_grad(), progress_bar(total=search.passes(), text="elimination", show=progress) as bar:
        return search.run(bar)


class _Search(NamedTuple):
    """A greedy search for the order in which groups go."""

    gauge: Meter
    sign: float
    groups: Sequence[str]
    rounds: int
    limit: int
    """Most networks to measure."""

    def passes(self) -> int:
        """Return the number of passes over a batch, each for all networks of a round."""
        rounds, measured, n = 0, 0, len(self.groups)
        while rounds < self.rounds and measured + n <= self.limit:
            rounds, measured, n = rounds + 1, measured + n, n - 1
        return rounds * len(self.gauge.batches)

    def run(self, bar: tqdm) -> Eliminated:
        dense = self.gauge.reference() or 0.0
        left, order, costs, last = list(self.groups), list[str](), list[float](), dict[str, float]()
        measured = 0
        for _ in range(self.rounds):
            if measured + len(left) > self.limit:
                break
            means = self.gauge.means([self._without([*order, g]) for g in left], bar.update)
            measured += len(left)
            last = {g: self.sign * (m - dense) for g, m in zip(left, means, strict=True)}
            if self.rounds > 1:
                best = min(left, key=last.__getitem__)
                left.remove(best)
                order.append(best)
                costs.append(last[best])
        return Eliminated(self._scores(order, costs, {g: last[g] for g in left}), tuple(order), tuple(costs), measured)

    def _without(self, removed: Sequence[str]) -> Network:
        params, spec = self.gauge.dense
        mask = {g: torch.tensor([False]) for g in removed}
        return apply(params, mask, spec=spec), shrink(spec, mask)

    def _scores(self, order: Sequence[str], costs: Sequence[float], left: dict[str, float]) -> Scores:
        """Return scores that rise in the order; those of groups that are left rise with what they cost last."""
        scores, highest = dict[str, float](), -inf
        for g, c in [*zip(order, costs, strict=True), *sorted(left.items(), key=lambda item: item[1])]:
            highest = max(nextafter(highest, inf), c)  # strictly, so that ties keep the order
            scores[g] = highest
        return {g: torch.tensor([scores[g]], dtype=torch.float64) for g in self.groups}
