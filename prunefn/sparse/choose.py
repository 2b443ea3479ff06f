"""The step from scores of weights to weight masks."""

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
    """Mask the weights of lowest score: exact counts, ties broken by the order of the program, then by index.

    Args:
        scores: parameter → tensor of its shape, of `sparse.score`.
        ratio: fraction of the pattern's pieces to remove, in [0, 1), rounded down; or a mapping from name, module path or glob
            to ratio: the weights of each key are selected separately, a weight belongs to the first key that matches it, and
            weights that match none are not pruned. `n_m` needs no ratio.
        spec: of the scores.
        pattern: of `sparse.pattern`: `unstructured()` (the default), `n_m(2, 4)`, `blocks(h, w)`, `slices(block)`.
        scope: of `sparse.scope`: `layerwise()` (the default), `rows()`, `global_()`, `by(…)`, `lamp()` or `erk()`.
        mask: group → bool [units], channels that are removed as well (before or after): their weights do not count, and pieces
            are formed of the remaining weights, so that they are aligned after `pf.apply(params, mask)`. Shrink the result by
            `sparse.shrink(masks, mask, spec=spec)`.
        within: weight masks; weights that they remove stay removed, and count as removed.

    Returns:
        Weight masks, parameter → bool of its shape, True = kept, for every weight that has scores and that the pattern can
        divide, even if none of it is removed. A warning names the scored weights that the pattern cannot divide.

    Raises:
        PruneError: a bad ratio, a layer that would lose all its weights, scores that are not finite, or a pattern that does not fit.
        ParamsError, MaskError: scores, `within` or `mask` do not fit the spec.

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
        masks = select(small, ratio, spec=shrink_spec(spec, mask), pattern=pattern, scope=scope, within=before)
        return grow(masks, mask, spec=spec)
    check_mask(mask or {}, spec)
    by_name, within = weights_of(spec), within or {}
    check_weights(scores, by_name, "scores")
    check_weights(within, by_name, "weight masks")
    for name, s in scores.items():
        if not bool(torch.isfinite(s).all()):
            raise PruneError(f"the scores of {name!r} are not finite; look for NaN in the statistics or weights")
    ordered = [w for n, w in by_name.items() if n in scores]
    pattern = patterns.unstructured() if pattern is None else pattern
    scope = scopes.layerwise() if scope is None else scope
    masks: Masks = {}
    undivided: dict[str, str] = {}
    for group_ratio, group in _group_by_ratio(ratio, pattern, ordered):
        removable = {w.name: _mark_removed(scores[w.name].detach(), within.get(w.name)) for w in group}
        masks |= _select_masks(removable, group, group_ratio, pattern, scope)
        undivided |= {w.name: f"{pattern.name} cannot divide it" for w in group if group_ratio and w.name not in masks}
    warn_dense("sparse.select", undivided, "leave them out of the scores, or select them with pattern.unstructured()")
    kept = {n: m & within[n].to(m.device) if n in within else m for n, m in masks.items()}
    return {w.name: kept[w.name] for w in ordered if w.name in kept}


def _group_by_ratio(
    ratio: Ratio | None, pattern: Pattern, weights: Sequence[Weight]
) -> list[tuple[float, list[Weight]]]:
    """Return pairs of a ratio and the weights that it is for.

    Raises:
        PruneError: a bad ratio.
        ParamsError: a pattern of names matches nothing.
    """
    if pattern.ratio is not None and ratio is None:
        return [(pattern.ratio, list(weights))]
    if ratio is None:
        raise PruneError(f"{pattern.name} needs a ratio: sparse.select(scores, 0.5, …)")
    ratios = dict(ratio) if isinstance(ratio, Mapping) else {"": ratio}
    unassigned, out = {w.name: w for w in weights}, []
    for names, group_ratio in ratios.items():
        of = f" of {names!r}" if names else ""
        if not isinstance(group_ratio, int | float) or not 0 <= group_ratio < 1:
            raise PruneError(
                f"the ratio{of} is {group_ratio!r}; it is the fraction of weights removed and must be in [0, 1)"
            )
        if pattern.ratio is not None and abs(group_ratio - pattern.ratio) > scopes.TINY:
            raise PruneError(
                f"the ratio{of} is {group_ratio}, but the pattern {pattern.name} removes {pattern.ratio:.4g}; leave the ratio out"
            )
        matched = picked(names, [w.name for w in weights]) if names else list(unassigned)
        out.append((group_ratio, [unassigned.pop(n) for n in matched if n in unassigned]))
    return out


def _mark_removed(scores: Tensor, within: Tensor | None) -> Tensor:
    """Return the scores with −inf at removed weights, so that they are the first to be removed again."""
    return scores if within is None else scores.where(within.to(scores.device), -torch.inf)


def _select_masks(
    scores: Mapping[str, Tensor], weights: Sequence[Weight], ratio: float, pattern: Pattern, scope: WeightScope
) -> Masks:
    """Return the masks of the weights that the pattern can divide, for one ratio."""
    if pattern.keep is not None:
        return {w.name: pattern.keep(scores[w.name], w) for w in weights}
    assert pattern.pieces is not None
    numbers = {w.name: pattern.pieces(w) for w in weights}
    divided = [w for w in weights if numbers[w.name] is not None]
    pieces = [_piece_scores(scores[w.name], numbers[w.name], pattern) for w in divided]  # type: ignore[arg-type]
    out: Masks = {}
    for w, s, count in zip(divided, pieces, scope.lost(pieces, ratio, divided), strict=True):
        piece = numbers[w.name]
        assert piece is not None
        kept = _keep_by_row(s, _piece_rows(w, piece, len(s), pattern), ratio) if scope.rows else ~lowest(s, count)
        # Elements of no piece have number −1: they take the last entry, True.
        padded = torch.cat([kept, kept.new_ones(1)])
        out[w.name] = padded[piece.to(kept.device)]
    return out


def _piece_scores(scores: Tensor, numbers: Tensor, pattern: Pattern) -> Tensor:
    """Return the score of each piece, over its elements that are not yet removed; −inf if all are."""
    flat, piece = scores.flatten(), numbers.flatten().to(scores.device)
    count = int(piece.max()) + 1 if len(piece) else 0
    counted = (piece >= 0) & (flat != -torch.inf)
    sums = flat.new_zeros(count).index_add(0, piece[counted], flat[counted])
    members = torch.bincount(piece[counted], minlength=count)
    return (sums / members.clamp_min(1) if pattern.mean else sums).masked_fill(members == 0, -torch.inf)


def lowest(scores: Tensor, count: int) -> Tensor:
    """Return which of the scores [n] are the `count` lowest, bool [n]; of equal scores, those that come first.

    >>> lowest(torch.tensor([2.0, 1.0, 2.0, 3.0]), 2).tolist()
    [True, True, False, False]
    """
    if not count:
        return torch.zeros_like(scores, dtype=torch.bool)
    limit = scores.kthvalue(count).values
    below, equal = scores < limit, (scores == limit).nonzero()[:, 0]
    return below.index_fill(0, equal[: count - int(below.sum())], True)


def _piece_rows(w: Weight, numbers: Tensor, count: int, pattern: Pattern) -> Tensor:
    """Return the row of each piece: int64 [pieces].

    Raises:
        PruneError: a piece lies in several rows.
    """
    matrix = w.matrix(numbers)
    row = torch.arange(len(matrix))[:, None].expand_as(matrix)[matrix >= 0]
    piece = matrix[matrix >= 0]
    first = torch.full((count,), len(matrix)).scatter_reduce(0, piece, row, "amin")
    if not torch.equal(first[piece], row):
        raise PruneError(
            f"scope.rows() ranks within each row, but {pattern.name} go over several rows of {w.name!r}; use pattern.unstructured() "
            "or pattern.blocks(1, w), or another scope"
        )
    return first


def _keep_by_row(scores: Tensor, rows: Tensor, ratio: float) -> Tensor:
    """Return which pieces are kept if each row loses this fraction of its pieces: bool [pieces]."""
    rows = rows.to(scores.device)
    order = scores.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    sizes = torch.bincount(rows)
    rank = torch.arange(len(rows), device=rows.device) - (sizes.cumsum(0) - sizes)[rows[order]]
    lost = torch.tensor([asked(ratio, n) for n in sizes.tolist()], device=rows.device)
    return torch.ones_like(scores, dtype=torch.bool).index_fill(0, order[rank < lost[rows[order]]], False)
