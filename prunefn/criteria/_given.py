from __future__ import annotations

from ..doors import door
from ..errors import MaskError, nearest
from ..types import Criterion, Scores, Stats
from .base import spec_of


@door
def given(scores: Scores) -> Criterion:
    """Score = the given scores, such as those that `gates.learn` returned; no batch is needed.

    Args:
        scores: group → [units].

    Raises:
        MaskError: (when called) the scores do not fit the groups.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> prune = pf.pipeline(criterion=given({"0": torch.tensor([1.0, 2.0])}), ratio=0.5, compensation="none")
    >>> prune(pf.params(model), None, spec=spec).mask
    {'0': tensor([False,  True])}
    """

    def score(stats: Stats) -> Scores:
        spec = spec_of(stats)
        for g, s in scores.items():
            if g not in spec.groups:
                raise MaskError(f"the spec has no group {g!r}, but scores has one{nearest(g, spec.groups)}")
            if tuple(s.shape) != (spec.sizes[g],):
                raise MaskError(f"scores[{g!r}] has shape {tuple(s.shape)}, but the group has {spec.sizes[g]} units")
        return dict(scores)

    return Criterion("given", score, needs=(), on_request=True)
