"""Scopes: how many weights each layer loses. What is ranked against what, or a rule that gives each layer its density.

Within a layer, the lowest scores go, whatever the scope. At least one piece of each layer stays.
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
from ..doors import door
from ..errors import PruneError
from .layouts import Weight

__all__ = ["WeightScope", "by", "erk", "global_", "lamp", "layerwise", "rows"]


TINY = 1e-9
"""Added before rounding down, so that 0.29 of 100 is 29."""


class WeightScope(NamedTuple):
    """How many pieces each weight loses."""

    name: str
    lost: Callable[[Sequence[Tensor], float, Sequence[Weight]], list[int]]
    """(scores of each weight's pieces, −inf where they are gone already; share that goes; weights) → how many go of each."""
    rows: bool = False
    """Whether each output has a ranking of its own."""


def layerwise() -> WeightScope:
    """The same share of each layer, rounded down (uniform density)."""
    return WeightScope("layerwise", _uniform)


def rows() -> WeightScope:
    """The same share of each output's weights, rounded down: Wanda's comparison groups. For pieces that lie in one row."""
    return layerwise()._replace(name="rows", rows=True)


@door
def global_(*, normalize: Normalizer | None = None) -> WeightScope:
    """One ranking over all layers; exactly the share of all pieces, rounded down. Equal scores go in the order of the program.

    Args:
        normalize: makes layers of different scale comparable: one of `prunefn.criteria.normalizer`, or any increasing function of a
            layer's scores [pieces].
    """
    return by(_together, name="global", normalize=normalize)


@door
def by(key: Callable[[Weight], Hashable], *, name: str = "by", normalize: Normalizer | None = None) -> WeightScope:
    """A ranking over all layers for which `key(weight)` is the same.

    Args:
        key: anything that can be hashed.
        name: for messages.
        normalize: as for `global_`.

    >>> mlps_apart = by(lambda weight: ".mlp." in weight.name)
    """
    return WeightScope(name, partial(_ranked, key=key, normalize=normalize))


def lamp() -> WeightScope:
    """One ranking of s_i / Σ_{s_j ≥ s_i} s_j within each layer: Lee et al., ICLR 2021 (arXiv 2010.07611), with s = w².

    Each layer's largest weight counts 1, so that the ranking finds a density for each. For `criteria.magnitude(2)`; other
    scores stand for w², and must not be below zero.
    """
    return global_(normalize=_lamp)._replace(name="lamp")


def erk() -> WeightScope:
    """Erdős–Rényi-Kernel: a layer's density in proportion to (Σ of its weight's sizes) / (their product), so that small layers are denser.

    Evci et al., "Rigging the Lottery", ICML 2020 (arXiv 1911.11134). Layers that would be denser than 1 are whole, and the
    others make up for it; the total is exact, with the largest remainders rounded up.
    """
    return WeightScope("erk", _erk)


# ---- counts


def _uniform(scores: Sequence[Tensor], ratio: float, _: Sequence[Weight]) -> list[int]:
    return [asked(ratio, len(s)) for s in scores]


def _together(_: Weight) -> Hashable:
    return None


def _lamp(s: Tensor) -> Tensor:
    if bool((s < 0).any()):
        raise PruneError("scope.lamp() needs scores that are not below zero, such as those of criteria.magnitude()")
    return lamp_shares(s)


def asked(ratio: float, n: int) -> int:
    """That share of n, rounded down."""
    return int(ratio * n + TINY)


def _ranked(
    scores: Sequence[Tensor],
    ratio: float,
    weights: Sequence[Weight],
    *,
    key: Callable[[Weight], Hashable],
    normalize: Normalizer | None,
) -> list[int]:
    classes: dict[Hashable, list[int]] = {}
    for i, w in enumerate(weights):
        classes.setdefault(key(w), []).append(i)
    out = [0] * len(scores)
    for members in classes.values():
        comparable = [_normalized(scores[i], normalize) for i in members]
        count = _possible(ratio, [len(s) for s in comparable])
        for i, n in zip(members, _below(comparable, count), strict=True):
            out[i] = n
    return out


def _normalized(s: Tensor, normalize: Normalizer | None) -> Tensor:
    """What is gone already stays so."""
    live = torch.isfinite(s)
    if normalize is None or not bool(live.any()):
        return s
    return s.masked_scatter(live, normalize(s[live]).to(s.dtype))


def _below(scores: Sequence[Tensor], count: int) -> list[int]:
    """How many of each are among the `count` lowest of all, if the best of each stays; of equals, the first go."""
    if not count:
        return [0] * len(scores)
    rest = [_without_best(s) for s in scores]
    limit = torch.cat([r.to(rest[0].device) for r in rest]).kthvalue(count).values
    lower = [int((r < limit.to(r.device)).sum()) for r in rest]
    spare = count - sum(lower)
    out = []
    for r, n in zip(rest, lower, strict=True):
        equal = min(spare, int((r == limit.to(r.device)).sum()))
        spare -= equal
        out.append(n + equal)
    return out


def _without_best(s: Tensor) -> Tensor:
    """Of equals, the last is the best."""
    if not len(s):
        return s
    best = len(s) - 1 - int(s.flip(0).argmax())
    return torch.cat([s[:best], s[best + 1 :]])


def _possible(ratio: float, sizes: Sequence[int]) -> int:
    """How many pieces that share is.

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


def _erk(scores: Sequence[Tensor], ratio: float, weights: Sequence[Weight]) -> list[int]:
    sizes = [len(s) for s in scores]
    count = _possible(ratio, sizes)
    raw = [sum(w.shape) / torch.Size(w.shape).numel() for w in weights]
    whole: set[int] = set()
    while True:
        free = [i for i in range(len(sizes)) if i not in whole]
        left = sum(sizes) - count - sum(sizes[i] for i in whole)
        share = left / max(sum(raw[i] * sizes[i] for i in free), TINY)
        more = {i for i in free if share * raw[i] > 1}
        if not more:
            break
        whole |= more
    lost = [0.0 if i in whole else n * (1 - share * raw[i]) for i, n in enumerate(sizes)]
    return apportioned(lost, [max(n - 1, 0) for n in sizes], count)


def apportioned(wanted: Sequence[float], most: Sequence[int], total: int) -> list[int]:
    """Whole numbers near those wanted that add up to the total: largest remainders are rounded up, none is above its bound.

    >>> apportioned([1.5, 2.25, 0.25], [9, 9, 0], 4)
    [2, 2, 0]
    """
    out = [min(int(x + TINY), m) for x, m in zip(wanted, most, strict=True)]
    while (short := total - sum(out)) > 0:
        open_ = [i for i in range(len(out)) if out[i] < most[i]]
        for i in sorted(open_, key=lambda i: out[i] - wanted[i])[:short]:
            out[i] += 1
    return out


def __dir__() -> list[str]:
    return __all__
