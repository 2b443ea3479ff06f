"""The distance of a pruned network from the dense one on a batch: of outputs, of values inside, or of both."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import distances
from ..distances import Distance
from ..errors import PruneError
from ..program.batches import Split, device_of, split
from ..spec.spec import Spec, check_eval_mode, check_runnable
from ..stats.weights import PositionWeights, position_weights
from ..tokens.positions import positions_of
from ..types import Batch, Mask, Params
from .dense_logits import DenseLogits
from .inner import Fit, Pair, check_leads, pairs, run_with_values
from .objective import check_scalar

Dense = tuple[Params, Spec] | DenseLogits
"""The dense network, or its largest logits on disk."""


class Term(NamedTuple):
    """A part of a distance."""

    weight: float
    distance: Distance
    pairs: tuple[Pair, ...] = ()
    """Values inside that it compares; empty: it compares the outputs."""
    needs_map: tuple[bool, ...] = ()
    """Which of the values need a map."""


class Values(NamedTuple):
    """What a batch gives in the pruned and in the dense network."""

    output: Any
    dense: Any
    inner: dict[tuple[str, str], tuple[Tensor, Tensor]]
    """(name, name in the dense network) → values."""
    weights: PositionWeights | None


class Comparison(NamedTuple):
    """The distance of a pruned network from the dense one, as a sum of terms."""

    dense: Dense
    terms: tuple[Term, ...]

    def __call__(self, params: Params, spec: Spec, batch: Batch) -> Tensor:
        """Return the distance on a batch.

        Raises:
            BatchError: the batch does not fit, or the distance is not finite.
        """
        found = split(batch, spec=spec, device=device_of(params))
        positions = positions_of(batch, found, spec)
        values = self._values(params, spec, found, batch)
        total = []
        for term in self.terms:
            if term.pairs:
                both = [p.compared(*values.inner[p.name, p.dense], values.weights) for p in term.pairs]
                value = term.distance(*map(tuple, zip(*both, strict=True)))
            else:
                value = distances.compare(term.distance, values.output, values.dense, positions)
            total.append(value if term.weight == 1 else term.weight * check_scalar(value))
        return check_scalar(total[0] if len(total) == 1 else torch.stack(total).sum())

    def fitted(self, params: Params, spec: Spec, batches: Iterable[Batch]) -> Comparison:
        """Return the comparison with the maps of narrower values, fitted on batches."""
        narrower = [p for t in self.terms for p, needed in zip(t.pairs, t.needs_map, strict=True) if needed]
        if not narrower:
            return self
        fits = {(p.name, p.dense): Fit() for p in narrower}
        for batch in batches:
            found = split(batch, spec=spec, device=device_of(params))
            with torch.no_grad():
                values = self._values(params, spec, found, batch)
            for p in narrower:
                fits[p.name, p.dense].add(*p.compared(*values.inner[p.name, p.dense], values.weights))
        maps = {names: fit.solve() for names, fit in fits.items()}
        fit_of = lambda p: p._replace(fitted=maps.get((p.name, p.dense)))  # noqa: E731
        return self._replace(terms=tuple(t._replace(pairs=tuple(map(fit_of, t.pairs))) for t in self.terms))

    def _values(self, params: Params, spec: Spec, found: Split, batch: Batch) -> Values:
        """Run both networks, or read what is on disk of the dense one."""
        both = dict.fromkeys((p.name, p.dense) for p in chain(*(t.pairs for t in self.terms)))
        output = any(not t.pairs for t in self.terms)
        names = tuple(name for name, _ in both)
        out, inside = run_with_values(params, spec, found.inputs, names, output=output)
        if isinstance(self.dense, DenseLogits):
            inputs = dict(zip((i.name for i in spec.program.inputs), found.inputs, strict=True))
            return Values(out, self.dense.read(inputs, positions_of(batch, found, spec)), {}, None)
        dense_names = tuple(dense for _, dense in both)
        with torch.no_grad():
            dense, whole = run_with_values(*self.dense, found.inputs, dense_names, output=output)
        weights = position_weights(spec, found.inputs, batch, True) if both else None
        return Values(out, dense, dict(zip(both, zip(inside, whole, strict=True), strict=True)), weights)


def comparison(dense: Dense, spec: Spec, distance: Distance | None, mask: Mask | None) -> Comparison:
    """Return the comparison of a pruned network with the dense one.

    Args:
        dense: params and spec of the dense network, or its logits on disk.
        spec: of the pruned network.
        distance: None: `distances.auto()`, or `distances.tokens()` of logits on disk.
        mask: units that it lost, for values inside; None: unknown.

    Raises:
        MaskError: the mask does not lead from the dense network to this one.
        PruneError: logits on disk are compared by another distance than of tokens, or values inside cannot be compared.
        ParamsError, TraceError: the spec was traced in train mode, or recorded.
    """
    if isinstance(dense, DenseLogits):
        distance = distance or distances.tokens(dense.temperature)
        if any(not isinstance(d, distances.Tokens) for _, d in distances.terms(distance)):
            raise PruneError(
                "logits on disk are compared by distances.tokens alone; give dense=(params, spec) for other distances"
            )
        return Comparison(dense, tuple(Term(w, d) for w, d in distances.terms(distance)))
    params, whole = dense
    check_eval_mode(whole, "recover")
    check_runnable(whole)
    check_leads(mask, whole, spec)
    out = []
    for weight, part in distances.terms(distance or distances.auto()):
        inside = pairs(part.values, whole, spec, mask, part.project) if isinstance(part, distances.Inner) else ((), ())
        out.append(Term(weight, part, *inside))
    return Comparison(({n: t.detach() for n, t in params.items()}, whole), tuple(out))
