"""The step from statistics to scores."""

from __future__ import annotations

import torch

from ..doors import door
from ..errors import StatsError
from ..program.sharded import Gathering, is_sharded
from ..stats import check_stats
from ..types import Criterion, Scores, Stats, Where
from ..where import matches
from ._variance import variance
from .base import spec_of


@door
def score(stats: Stats, *, criterion: Criterion | None = None, where: Where | str | None = None) -> Scores:
    """Score every unit that the statistics cover; higher = keep.

    Args:
        stats: of `collect_stats`.
        criterion: that scores the units; default: `criteria.variance()`.
        where: groups to score, such as `pf.kind("vocabulary")`; default: all but whole blocks and interfaces (vocabularies, classes,
            …), unless the criterion is meant for these, as `criteria.frequency()` is.

    Returns:
        Group → float [units]. Groups without a site (such as query and key widths) have no activation score: the result lacks
        them, and they are not pruned.

    Raises:
        StatsError: statistics that the criterion needs were not collected, or a score is not finite.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1))
    >>> model[0].weight.data = torch.tensor([[1.0], [3.0]])
    >>> spec = pf.trace(model, (torch.randn(2, 1),))
    >>> stats = pf.collect_stats(pf.params(model), [torch.tensor([[-1.0], [0.0], [1.0]])], spec=spec)
    >>> pf.score(stats)
    {'0': tensor([1., 9.], dtype=torch.float64)}
    """
    criterion = variance() if criterion is None else criterion
    check_stats(stats, spec_of(stats))
    sharded = any(is_sharded(t) for t in stats.params.values())
    scores = criterion.score(stats._replace(params=Gathering(stats.params)) if sharded else stats)
    if where is not None or not criterion.on_request:
        groups = spec_of(stats).groups
        scores = {g: s for g, s in scores.items() if g not in groups or matches(where, groups[g])}
    for name, s in scores.items():
        if not bool(torch.isfinite(s).all()):
            raise StatsError(
                f"criterion {criterion.name!r} gives group {name!r} scores that are not finite; look for NaN in the statistics or weights"
            )
    return scores
