"""The step from statistics to scores of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..criteria.base import spec_of
from ..doors import door
from ..errors import PruneError, StatsError
from ..frozen_dict import FrozenDict
from ..parameters.transforms import check_names
from ..program.sharded import check_plain
from ..spec.spec import Spec
from ..types import Criterion, Params, Stats
from . import criteria
from .layouts import UNFOLD, left_dense, warn_dense
from .layouts import weights as weights_of

Scores = dict[str, Tensor]
"""Parameter → float64 of its shape; higher = keep."""


@door
def score(
    stats: Stats | Params,
    *,
    criterion: Criterion | None = None,
    spec: Spec | None = None,
    weights: Sequence[str] | str | None = None,
) -> Scores:
    """Score every single weight of the contractions; higher = keep.

    Args:
        stats: of `collect_stats(…, criterion=…)` with the same criterion; or params, for criteria that need no data.
        criterion: of `sparse.criteria`; default: `sparse.criteria.magnitude()`.
        spec: of the params; not needed with stats.
        weights: weights to score: names, module paths, or globs for either; default: all. Tied weights have their first name.

    Returns:
        Parameter → float64 of its shape, in the order of the program. A warning names the weights without a score, which stay
        dense: those whose inputs are not measured (see `Weight.site`), if the criterion needs that, and those that are computed
        from parameters.

    Raises:
        PruneError: params without a spec, or a criterion that does not score weights.
        StatsError: statistics that the criterion needs were not collected, no weight has a score, or a score is not finite.
        ParamsError: the params do not fit the spec, or `weights` matches nothing.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> model[2].weight.data = torch.tensor([[3.0, -1.0]])
    >>> spec = pf.trace(model, (torch.randn(2, 2),))
    >>> score(pf.params(model), spec=spec, weights="2")
    {'2.weight': tensor([[9., 1.]], dtype=torch.float64)}
    """
    criterion = criteria.magnitude() if criterion is None else criterion
    if not isinstance(stats, Stats):
        if spec is None:
            raise PruneError("to score params, give their spec: sparse.score(params, spec=spec)")
        check_names(stats, spec)
        stats = Stats(spec, FrozenDict(stats))
    check_plain(stats.params, "sparse.score", "score before the params are sharded")
    names = weights_of(spec_of(stats), weights)
    scores = criterion.score(stats)
    _check_scores(scores, stats.params, criterion)
    _warn_missing([n for n in names if n not in scores], len(names), criterion)
    if weights is None:
        warn_dense("sparse.score", left_dense(spec_of(stats)), UNFOLD)
    return {n: scores[n] for n in names if n in scores}


def _warn_missing(missing: Sequence[str], of: int, criterion: Criterion) -> None:
    """Warn of weights without a score.

    Raises:
        StatsError: none of them has one.
    """
    names = ", ".join(map(repr, missing))
    if missing and len(missing) == of:
        raise StatsError(
            f"criterion {criterion.name!r} has no score for {names}: their inputs are not measured; score them by "
            "sparse.criteria.magnitude(), which needs no data"
        )
    reason = f"criterion {criterion.name!r} needs statistics of its inputs, and there are none"
    fix = "score them by sparse.criteria.magnitude(), or choose the others with weights="
    warn_dense("sparse.score", dict.fromkeys(missing, reason), fix)


def _check_scores(scores: Scores, params: Mapping[str, Tensor], criterion: Criterion) -> None:
    """Check that scores are finite and have the shapes of parameters; raise PruneError if not."""
    for name, s in scores.items():
        if name not in params or s.shape != params[name].shape:
            raise PruneError(
                f"criterion {criterion.name!r} scores units of groups, not weights; use one of sparse.criteria"
            )
        if not bool(torch.isfinite(s).all()):
            raise StatsError(
                f"criterion {criterion.name!r} gives {name!r} scores that are not finite; look for NaN in the statistics or weights"
            )
