"""Scopes: how many weights each layer loses, by a common ranking of layers or by a rule for each layer's density.

Within a layer, the lowest scores are removed, whatever the scope. At least one piece of each layer is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from math import floor
from typing import NamedTuple

import torch
from torch import Tensor

from ..criteria._lamp import lamp_shares
from ..criteria.normalizer import Normalizer
from ..display.calls import choice_text
from ..doors import door
from ..errors import PruneError
from .layouts import Weight

__all__ = ["WeightScope", "by", "erk", "global_", "lamp", "layerwise", "rows"]


TINY = 1e-9
"""Added before rounding down, so that 0.29 of 100 is 29."""


class WeightScope(NamedTuple):
    """Rule for the number of pieces that each weight loses."""

    name: str
    lost: Callable[[Sequence[Tensor], float, Sequence[Weight]], list[int]]
    """(scores of each weight's pieces, −inf if already removed; ratio; weights) → number of removed pieces of each weight."""
    rows: bool = False
    """Whether the weights of each output are ranked separately."""
    is_choice = True

    def __repr__(self) -> str:
        return choice_text(self.name, self.lost)


def layerwise() -> WeightScope:
    """Remove the same fraction of each layer, rounded down (uniform density)."""
    return WeightScope("layerwise", _count_uniform)


def rows() -> WeightScope:
    """Remove the same fraction of each output's weights, rounded down: Wanda's comparison groups.

    Each piece of the pattern must lie in one row.
    """
    return layerwise()._replace(name="rows", rows=True)


@door
def global_(*, normalize: Normalizer | None = None) -> WeightScope:
    """Rank all layers together, and remove exactly the ratio of all pieces, rounded down.

    Pieces of equal scores are removed in the order of the program.

    Args:
        normalize: function that makes layers of different scale comparable: one of `prunefn.criteria.normalizer`, or any increasing
            function of a layer's scores [pieces]; None: scores are compared directly.
    """
    return by(_common_key, name="global", normalize=normalize)


@door
def by(key: Callable[[Weight], Hashable], *, name: str = "by", normalize: Normalizer | None = None) -> WeightScope:
    """Rank all layers with the same `key(weight)` together.

    Args:
        key: weight → any hashable value.
        name: for messages.
        normalize: as in `global_`.

    >>> mlps_apart = by(lambda weight: ".mlp." in weight.name)
    """
    return WeightScope(name, partial(_count_by_rank, key=key, normalize=normalize))


def lamp() -> WeightScope:
    """Rank all layers together by s_i / Σ_{s_j ≥ s_i} s_j within the layer: Lee et al., ICLR 2021 (arXiv 2010.07611), s = w².

    Each layer's largest weight scores 1, so that the ranking yields a density for each layer. Use it with
    `criteria.magnitude(2)`; other scores replace w², and must not be below zero.
    """
    return global_(normalize=_lamp_scores)._replace(name="lamp")


def erk() -> WeightScope:
    """Set each layer's density in proportion to (Σ of its weight's sizes) / (their product), so that small layers are denser.

    This is the Erdős–Rényi-Kernel of Evci et al., "Rigging the Lottery", ICML 2020 (arXiv 1911.11134). Layers whose density
    would be above 1 are not pruned, and the others lose more instead. The total is exact: the largest remainders are rounded up.
    """
    return WeightScope("erk", _count_erk)


# ---- counts


def _count_uniform(scores: Sequence[Tensor], ratio: float, _: Sequence[Weight]) -> list[int]:
    return [asked(ratio, len(s)) for s in scores]


def _common_key(_: Weight) -> Hashable:
    return None


def _lamp_scores(s: Tensor) -> Tensor:
    if bool((s < 0).any()):
        raise PruneError("scope.lamp() needs scores that are not below zero, such as those of criteria.magnitude()")
    return lamp_shares(s)


def asked(ratio: float, n: int) -> int:
    """Return the number of pieces that a ratio removes of n, rounded down."""
    return int(ratio * n + TINY)


def _count_by_rank(
    scores: Sequence[Tensor],
    ratio: float,
    weights: Sequence[Weight],
    *,
    key: Callable[[Weight], Hashable],
    normalize: Normalizer | None,
) -> list[int]:
    """Return the number of removed pieces of each weight, by a ranking over each class of weights."""
    classes: dict[Hashable, list[int]] = {}
    for i, w in enumerate(weights):
        classes.setdefault(key(w), []).append(i)
    out = [0] * len(scores)
    for members in classes.values():
        comparable = [_normalize_scores(scores[i], normalize) for i in members]
        count = _count_removed(ratio, [len(s) for s in comparable])
        for i, n in zip(members, _count_lowest(comparable, count), strict=True):
            out[i] = n
    return out


def _normalize_scores(s: Tensor, normalize: Normalizer | None) -> Tensor:
    """Return normalised scores; removed pieces keep −inf, and are not part of the normalisation."""
    remaining = torch.isfinite(s)
    if normalize is None or not bool(remaining.any()):
        return s
    return s.masked_scatter(remaining, normalize(s[remaining]).to(s.dtype))


def _count_lowest(scores: Sequence[Tensor], count: int) -> list[int]:
    """Return how many scores of each tensor are among the `count` lowest of all, if the best of each is kept.

    Of equal scores, those of the first tensors count.
    """
    if not count:
        return [0] * len(scores)
    rest = [_without_best(s) for s in scores]
    limit = torch.cat([r.to(rest[0].device) for r in rest]).kthvalue(count).values
    lower = [int((r < limit.to(r.device)).sum()) for r in rest]
    spare = count - sum(lower)  # to be taken from the scores that equal the limit
    out = []
    for r, n in zip(rest, lower, strict=True):
        equal = min(spare, int((r == limit.to(r.device)).sum()))
        spare -= equal
        out.append(n + equal)
    return out


def _without_best(s: Tensor) -> Tensor:
    """Return the scores without the best one; of equal scores, the last counts as the best."""
    if not len(s):
        return s
    best = len(s) - 1 - int(s.flip(0).argmax())
    return torch.cat([s[:best], s[best + 1 :]])


def _count_removed(ratio: float, sizes: Sequence[int]) -> int:
    """Return the number of pieces of all weights together that a ratio removes.

    Raises:
        PruneError: a layer would have to lose all its pieces.
    """
    count, most = asked(ratio, sum(sizes)), sum(max(n - 1, 0) for n in sizes)
    if count > most:
        raise PruneError(
            f"a ratio of {ratio} removes {count} of {sum(sizes)} pieces, but one must stay in each of {len(sizes)} weights; "
            f"a ratio up to {floor(1e4 * most / max(sum(sizes), 1)) / 1e4} works"
        )
    return count


def _count_erk(scores: Sequence[Tensor], ratio: float, weights: Sequence[Weight]) -> list[int]:
    """Return the number of removed pieces of each weight by the Erdős–Rényi-Kernel rule."""
    sizes = [len(s) for s in scores]
    count = _count_removed(ratio, sizes)
    proportions = [sum(w.shape) / torch.Size(w.shape).numel() for w in weights]
    dense: set[int] = set()
    while True:  # a layer found too dense raises the scale of the others, which may become too dense in turn
        free = [i for i in range(len(sizes)) if i not in dense]
        kept = sum(sizes) - count - sum(sizes[i] for i in dense)
        scale = kept / max(sum(proportions[i] * sizes[i] for i in free), TINY)
        too_dense = {i for i in free if scale * proportions[i] > 1}
        if not too_dense:
            break
        dense |= too_dense
    lost = [0.0 if i in dense else n * (1 - scale * proportions[i]) for i, n in enumerate(sizes)]
    return apportioned(lost, [max(n - 1, 0) for n in sizes], count)


def apportioned(wanted: Sequence[float], most: Sequence[int], total: int) -> list[int]:
    """Round numbers to integers that add up to the total: the largest remainders are rounded up, none above its bound.

    >>> apportioned([1.5, 2.25, 0.25], [9, 9, 0], 4)
    [2, 2, 0]
    """
    out = [min(int(x + TINY), m) for x, m in zip(wanted, most, strict=True)]
    while (short := total - sum(out)) > 0:
        below_bound = [i for i in range(len(out)) if out[i] < most[i]]
        for i in sorted(below_bound, key=lambda i: out[i] - wanted[i])[:short]:
            out[i] += 1
    return out


def __dir__() -> list[str]:
    return __all__
