"""Scores of weights → weight masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..doors import door
from ..errors import PruneError
from ..parameters.transforms import check_mask
from ..parameters.transforms import shrink as shrink_spec
from ..spec.spec import Spec
from ..types import Mask
from . import pattern as patterns
from . import scope as scopes
from .layouts import Masks, Weight, check_weights, grow, picked, shrink, warn_dense
from .layouts import weights as weights_of
from .pattern import Pattern
from .scope import WeightScope, asked

Ratio = float | Mapping[str, float]


@door
def select(
    scores: Mapping[str, Tensor],
    ratio: Ratio | None = None,
    *,
    spec: Spec,
    pattern: Pattern | None = None,
    scope: WeightScope | None = None,
    mask: Mask | None = None,
    within: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Mask the weights of lowest score: exactly so many, ties by the order of the program, then by index.

    Args:
        scores: parameter → tensor of its shape, of `sparse.score`.
        ratio: share of the pattern's pieces that is removed, in [0, 1), rounded down; or name, module path or glob → ratio,
            where each pattern is a selection of its own, a weight goes with the first that matches it, and those that none
            matches stay whole. `n_m` needs none.
        spec: of the scores.
        pattern: of `sparse.pattern`: `unstructured()` (the default), `n_m(2, 4)`, `blocks(h, w)`, `slices(block)`.
        scope: of `sparse.scope`: `layerwise()` (the default), `rows()`, `global_()`, `by(…)`, `lamp()` or `erk()`.
        mask: group → bool [units], channels that are removed, too (before or after): their weights do not count, and
            pieces are formed of what is left, so that they are aligned after `pf.apply(params, mask)`. Bring the masks
            along by `sparse.shrink(masks, mask, spec=spec)`.
        within: weight masks; what they have removed stays removed, and counts.

    Returns:
        Weight masks, parameter → bool of its shape, True = kept: for every weight that has scores and that the pattern can
        divide, also where nothing goes. What is absent is whole; a warning names the scored weights that the pattern cannot divide.

    Raises:
        PruneError: a bad ratio, a layer that would lose everything, scores that are not finite, or a pattern that does not fit.
        ParamsError, MaskError: something does not fit the spec.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 2),))
    >>> scores = {"0.weight": torch.tensor([[1.0, 4.0], [2.0, 4.0]]), "2.weight": torch.tensor([[6.0, 5.0], [9.0, 5.0]])}
    >>> {n: m.int().tolist() for n, m in select(scores, 0.5, spec=spec).items()}
    {'0.weight': [[0, 1], [0, 1]], '2.weight': [[1, 0], [1, 0]]}
    >>> {n: m.int().tolist() for n, m in select(scores, 0.5, spec=spec, scope=scopes.global_()).items()}
    {'0.weight': [[0, 0], [0, 1]], '2.weight': [[1, 0], [1, 1]]}
    """
    if mask:
        small = shrink(scores, mask, spec=spec)
        before = None if within is None else shrink(within, mask, spec=spec)
        found = select(small, ratio, spec=shrink_spec(spec, mask), pattern=pattern, scope=scope, within=before)
        return grow(found, mask, spec=spec)
    check_mask(mask or {}, spec)
    known, within = weights_of(spec), within or {}
    check_weights(scores, known, "scores")
    check_weights(within, known, "weight masks")
    for name, s in scores.items():
        if not bool(torch.isfinite(s).all()):
            raise PruneError(f"the scores of {name!r} are not finite; look for NaN in the statistics or weights")
    ordered = [known[n] for n in known if n in scores]
    pattern = patterns.unstructured() if pattern is None else pattern
    scope = scopes.layerwise() if scope is None else scope
    found: Masks = {}
    whole: dict[str, str] = {}
    for share, some in _shares(ratio, pattern, ordered):
        own = {w.name: _live(scores[w.name].detach(), within.get(w.name)) for w in some}
        found |= _masks(own, some, share, pattern, scope)
        whole |= {w.name: f"{pattern.name} cannot divide it" for w in some if share and w.name not in found}
    warn_dense("sparse.select", whole, "leave them out of the scores, or select them with pattern.unstructured()")
    kept = {n: m & within[n].to(m.device) if n in within else m for n, m in found.items()}
    return {w.name: kept[w.name] for w in ordered if w.name in kept}


def _shares(ratio: Ratio | None, pattern: Pattern, known: Sequence[Weight]) -> list[tuple[float, list[Weight]]]:
    """(ratio, the weights that it is of)

    Raises:
        PruneError: a bad ratio.
        ParamsError: a pattern of names matches nothing.
    """
    if pattern.ratio is not None and ratio is None:
        return [(pattern.ratio, list(known))]
    if ratio is None:
        raise PruneError(f"{pattern.name} needs a ratio: sparse.select(scores, 0.5, …)")
    ratios = dict(ratio) if isinstance(ratio, Mapping) else {"": ratio}
    left, out = {w.name: w for w in known}, []
    for names, share in ratios.items():
        of = f" of {names!r}" if names else ""
        if not isinstance(share, int | float) or not 0 <= share < 1:
            raise PruneError(f"the ratio{of} is {share!r}; it is the share of weights removed and must be in [0, 1)")
        if pattern.ratio is not None and abs(share - pattern.ratio) > scopes.TINY:
            raise PruneError(
                f"the ratio{of} is {share}, but the pattern {pattern.name} removes {pattern.ratio:.4g}; leave the ratio out"
            )
        matched = picked(names, [w.name for w in known]) if names else list(left)
        out.append((share, [left.pop(n) for n in matched if n in left]))
    return out


def _live(scores: Tensor, within: Tensor | None) -> Tensor:
    """What is gone already scores below all else."""
    return scores if within is None else scores.where(within.to(scores.device), -torch.inf)


def _masks(
    scores: Mapping[str, Tensor], weights: Sequence[Weight], ratio: float, pattern: Pattern, scope: WeightScope
) -> Masks:
    if pattern.keep is not None:
        return {w.name: pattern.keep(scores[w.name], w) for w in weights}
    assert pattern.pieces is not None
    numbers = {w.name: pattern.pieces(w) for w in weights}
    divided = [w for w in weights if numbers[w.name] is not None]
    pieces = [_pieces(scores[w.name], numbers[w.name], pattern) for w in divided]  # type: ignore[arg-type]
    out: Masks = {}
    for w, s, count in zip(divided, pieces, scope.lost(pieces, ratio, divided), strict=True):
        at = numbers[w.name]
        assert at is not None
        kept = _of_rows(s, _rows(w, at, len(s), pattern), ratio) if scope.rows else ~lowest(s, count)
        every = torch.cat([kept, kept.new_ones(1)])  # the last, -1, is what has no piece
        out[w.name] = every[at.to(kept.device)]
    return out


def _pieces(scores: Tensor, numbers: Tensor, pattern: Pattern) -> Tensor:
    """The score of each piece: of what is left of it, -inf where nothing is."""
    flat, at = scores.flatten(), numbers.flatten().to(scores.device)
    count = int(at.max()) + 1 if len(at) else 0
    live = (at >= 0) & (flat != -torch.inf)
    sums = flat.new_zeros(count).index_add(0, at[live], flat[live])
    members = torch.bincount(at[live], minlength=count)
    return (sums / members.clamp_min(1) if pattern.mean else sums).masked_fill(members == 0, -torch.inf)


def lowest(scores: Tensor, count: int) -> Tensor:
    """The `count` lowest of scores [n]: bool [n]; of equals, those that come first.

    >>> lowest(torch.tensor([2.0, 1.0, 2.0, 3.0]), 2).tolist()
    [True, True, False, False]
    """
    if not count:
        return torch.zeros_like(scores, dtype=torch.bool)
    limit = scores.kthvalue(count).values
    below, equal = scores < limit, (scores == limit).nonzero()[:, 0]
    return below.index_fill(0, equal[: count - int(below.sum())], True)


def _rows(w: Weight, numbers: Tensor, count: int, pattern: Pattern) -> Tensor:
    """The row that each piece lies in: int64 [pieces].

    Raises:
        PruneError: a piece lies in several.
    """
    matrix = w.matrix(numbers)
    at = torch.arange(len(matrix))[:, None].expand_as(matrix)[matrix >= 0]
    own = matrix[matrix >= 0]
    first = torch.full((count,), len(matrix)).scatter_reduce(0, own, at, "amin")
    if not torch.equal(first[own], at):
        raise PruneError(
            f"scope.rows() ranks within each row, but {pattern.name} go over several rows of {w.name!r}; use pattern.unstructured() "
            "or pattern.blocks(1, w), or another scope"
        )
    return first


def _of_rows(scores: Tensor, rows: Tensor, ratio: float) -> Tensor:
    """What stays if each row loses that share of its pieces."""
    rows = rows.to(scores.device)
    order = scores.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    sizes = torch.bincount(rows)
    rank = torch.arange(len(rows), device=rows.device) - (sizes.cumsum(0) - sizes)[rows[order]]
    lost = torch.tensor([asked(ratio, n) for n in sizes.tolist()], device=rows.device)
    return torch.ones_like(scores, dtype=torch.bool).index_fill(0, order[rank < lost[rows[order]]], False)
