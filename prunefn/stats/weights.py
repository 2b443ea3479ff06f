"""Weights of positions: padding does not count.

The axes of every value say which of its dims are samples and which are positions of a sequence, so that the weights of an
input's positions are those of all values over the same axes, however the program reshapes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import BatchError, StatsError
from ..program.inputs import signature
from ..spec.axis import Axis, Concat, Derived, Leaf, Product, leaves, size
from ..spec.expressions import names, value
from ..spec.program import Input
from ..spec.spec import Spec
from ..types import Batch

Weights = str | Callable[[Batch], Tensor] | bool
"""Name of an input, a function of the batch → [positions], or whether masks and lengths among the inputs count."""
KEPT = ("attention_mask", "decoder_attention_mask", "encoder_attention_mask")
"""Inputs that are true, or 1, where a position counts."""
PADDED = ("src_key_padding_mask", "tgt_key_padding_mask", "memory_key_padding_mask", "key_padding_mask", "padding_mask")
"""Inputs that are true where a position is padding."""
IGNORED = -100
"""Label of a position that a loss ignores, torch's default."""
LENGTHS = ("lengths", "input_lengths", "src_lengths")
"""Inputs that hold the number of positions of each sample that count, from the first on."""


def weights_name(weights: Weights) -> str:
    """Return the name of weights, which identifies them in a file."""
    return getattr(weights, "__qualname__", None) or str(weights)


class Weighting(NamedTuple):
    """The weights of the positions of one axis of sequences, for one batch."""

    samples: str
    """Axis of the samples."""
    positions: str
    """Axis of the positions; empty if samples are weighted as a whole."""
    weights: Tensor
    """[samples, positions], or [samples]; ≥ 0."""


class PositionWeights:
    """The weights of all positions of one batch, for the values of a program."""

    def __init__(self, spec: Spec, sizes: Mapping[str, int], weightings: Sequence[Weighting]) -> None:
        self.spec, self.sizes, self.weightings = spec, {**spec.sizes, **sizes}, tuple(weightings)
        self.known: dict[tuple[Axis, ...], Tensor | None] = {}

    def of(self, name: str, dim: int, shape: Sequence[int]) -> Tensor | None:
        """Return the weights of a value's positions, of its shape without `dim`; None if all count once.

        Raises:
            StatsError: the positions of the value do not follow those of the inputs.
        """
        axes = self._axes_of(name)
        if axes is None or len(axes) != len(shape):
            raise self._unknown(name, "its axes are not known")
        axes = tuple(a for d, a in enumerate(axes) if d != dim % len(axes))
        if axes not in self.known:
            self.known[axes] = self._of_axes(name, axes)
        weights = self.known[axes]
        return None if weights is None else weights.expand([n for d, n in enumerate(shape) if d != dim % len(shape)])

    def _axes_of(self, name: str) -> tuple[Axis, ...] | None:
        if name in self.spec.program.axes:
            return self.spec.program.axes[name]
        return next((i.axes for i in self.spec.program.inputs if i.name == name), self.spec.axes.get(name))

    def _of_axes(self, name: str, axes: tuple[Axis, ...]) -> Tensor | None:
        factors = [f for w in self.weightings if (f := self._factor(name, axes, w)) is not None]
        return prod(factors[1:], start=factors[0]) if factors else None

    def _factor(self, name: str, axes: tuple[Axis, ...], w: Weighting) -> Tensor | None:
        """Return one weighting along these axes, [… positions of each axis], with size 1 where it does not vary."""
        keys = {k for a in axes for k in _atoms(a) if w.positions in leaves(k)} if w.positions else set[Axis]()
        places = [_positions(a, {Leaf(w.samples), *keys}, self.sizes) for a in axes]
        samples = _along(places, Leaf(w.samples))
        if not samples:
            if keys:
                raise self._unknown(name, f"they are shared by all samples, whose {w.positions} differ")
            return None
        sample = samples[0]
        if not keys:
            whole = w.weights if w.weights.ndim == 1 else (w.weights > 0).any(1).to(w.weights.dtype)
            return whole[sample]
        factor = None
        for key in keys:
            table = w.weights if key == Leaf(w.positions) else self._derived(name, key, w)
            for position in _along(places, key):
                here = torch.where(position >= 0, table[sample, position.clamp_min(0)], 1.0)
                factor = here if factor is None else factor * here
        return factor

    def _derived(self, name: str, key: Axis, w: Weighting) -> Tensor:
        """Return the weights [samples, positions] of an axis whose size follows from that of the sequences.

        A sample whose first n positions count has as many positions here as a sequence of n positions.
        """
        assert isinstance(key, Derived)
        counts = w.weights.sum(1).round().long()
        n = torch.arange(w.weights.shape[1], device=counts.device)
        from_left, from_right = n < counts[:, None], n >= len(n) - counts[:, None]
        left = bool((w.weights == from_left).all())
        if set(names(key.expr)) != {w.positions} or not (left or bool((w.weights == from_right).all())):
            raise self._unknown(
                name, f"there are {size(key, self.sizes)} for each {w.positions} = {self.sizes[w.positions]}"
            )
        own = [max(0, int(value(key.expr, {w.positions: c}))) if c else 0 for c in counts.tolist()]
        total = size(key, self.sizes)
        m, kept = torch.arange(total, device=counts.device), torch.tensor(own, device=counts.device)[:, None]
        return ((m < kept) if left else (m >= total - kept)).to(w.weights.dtype)

    def _unknown(self, name: str, why: str) -> StatsError:
        return StatsError(
            f"the weights of positions cannot be followed to value {name!r}: {why}; weights=False counts all positions alike"
        )


@torch.fx.wrap
def weights_at(weights: PositionWeights, name: str, dim: int, value: Tensor) -> Tensor | None:
    """Return the weights of a value's positions, as `PositionWeights.of` does."""
    return weights.of(name, dim, value.shape)


def _atoms(axis: Axis) -> list[Axis]:
    """Return the leaves and derived sizes of an axis."""
    match axis:
        case Leaf() | Derived():
            return [axis]
        case Product(children) | Concat(children):
            return [a for child in children for a in _atoms(child)]
        case _:
            return []


def _positions(axis: Axis, keys: set[Axis], sizes: Mapping[str, int]) -> dict[Axis, Tensor]:
    """Return key → its position at each position of an axis, -1 where it does not occur: int64 [size]."""
    if axis in keys:
        return {axis: torch.arange(size(axis, sizes))}
    match axis:
        case Product(factors):
            out: dict[Axis, Tensor] = {}
            total = size(axis, sizes)
            inner = total
            for f in factors:
                n = size(f, sizes)
                inner //= max(n, 1)
                for key, p in _positions(f, keys, sizes).items():
                    out[key] = p.repeat_interleave(inner).repeat(total // max(n * inner, 1))
            return out
        case Concat(parts):
            found = [(_positions(p, keys, sizes), size(p, sizes)) for p in parts]
            present = dict.fromkeys(k for positions, _ in found for k in positions)
            return {k: torch.cat([p[k] if k in p else torch.full((n,), -1) for p, n in found]) for k in present}
        case _:
            return {}


def _along(places: Sequence[Mapping[Axis, Tensor]], key: Axis) -> list[Tensor]:
    """Return the positions of a key in each dim that has it, with size 1 in all other dims."""
    rank = len(places)
    return [p[key].reshape([-1 if i == d else 1 for i in range(rank)]) for d, p in enumerate(places) if key in p]


# ---- from batches


def position_weights(spec: Spec, inputs: Sequence[Tensor], batch: Batch, weights: Weights) -> PositionWeights | None:
    """Return the weights of a batch's positions; None if all positions count once.

    Args:
        spec: of the network.
        inputs: of the program, in its order.
        batch: as the user gives it.
        weights: as for `collect_stats`.

    Raises:
        BatchError: the weights are negative, not finite, or fit no input.
    """
    if weights is False:
        return None
    tensors = dict(zip((i.name for i in spec.program.inputs), inputs, strict=True))
    sizes = {n: tensors[i].shape[d] for n, (i, d) in spec.program.free.items()}
    if weights is True:
        # of a nested input, its own key
        keys = [re.split(r"[\[\].\"]+", path.rstrip('"]'))[-1] for path in signature(spec).inputs]
        _check_untraced(batch, keys)
        named = zip(spec.program.inputs, keys, strict=True)
        found = [
            w for i, key in named if (w := _recognised(spec, i._replace(name=key), tensors[i.name], sizes)) is not None
        ]
    else:
        found = [_weighting(spec, _named(tensors, weights) if isinstance(weights, str) else weights(batch), weights)]
    for w in found:
        _check(w, sizes)
    if all(bool((w.weights == 1).all()) for w in found):
        return None
    return PositionWeights(spec, sizes, [w._replace(weights=w.weights.cpu()) for w in found])


def without_padding(labels: Tensor, spec: Spec, inputs: Sequence[Tensor]) -> Tensor:
    """Return labels of positions with `IGNORED` where the masks or lengths among the inputs say that there is padding.

    Labels of another shape than the positions stay.
    """
    weights = position_weights(spec, inputs, (), True)
    for w in weights.weightings if weights is not None else ():
        if w.weights.shape == labels.shape:
            labels = labels.masked_fill(w.weights.to(labels.device) == 0, IGNORED)
    return labels


def _recognised(spec: Spec, i: Input, x: Tensor, sizes: Mapping[str, int]) -> Weighting | None:
    """Return the weighting that an input is by its name: a mask over samples and positions, or lengths.

    Raises:
        BatchError: there is padding, but the spec does not follow the positions, because their number is fixed in it.
    """
    axes = [a.name if isinstance(a, Leaf) and a.name in spec.program.free else "" for a in i.axes]
    if x.ndim == 2 and i.name in (*KEPT, *PADDED):
        kept, positions = x == 0 if i.name in PADDED else x != 0, axes[1]
    elif x.ndim == 1 and i.name in LENGTHS:
        positions = "length" if "length" in sizes else ""
        kept = torch.arange(sizes.get("length", int(x.max())), device=x.device) < x[:, None]
    else:
        return None
    if axes[0] and positions:
        return Weighting(_samples_of(spec, positions) or axes[0], positions, kept.double())
    if not bool(kept.all()):
        raise BatchError(
            f"input {i.name!r} says that there is padding, but this spec has a fixed number of positions, which weights cannot "
            "follow; trace with lengths that may change (see print(spec)), or give weights=False to count all positions alike"
        )
    return None


def _check_untraced(batch: Batch, keys: Sequence[str]) -> None:
    """Check that a batch has no padding in a mask that the model was traced without.

    Raises:
        BatchError: it has.
    """
    if not isinstance(batch, Mapping):
        return
    for name in (*KEPT, *PADDED):
        x = batch.get(name)
        if name not in keys and isinstance(x, Tensor) and not bool((x == 0 if name in PADDED else x != 0).all()):
            raise BatchError(
                f"the batch has padding by {name!r}, which the spec was traced without, so that padding would count; trace the "
                f"model with {name!r} among its inputs, or give weights=False to count all positions alike"
            )


def _samples_of(spec: Spec, positions: str) -> str:
    """Return the axis of the samples whose sequences an axis of positions belongs to; empty if there is none."""
    shapes = (
        [a.name if isinstance(a, Leaf) and a.name in spec.program.free else "" for a in i.axes]
        for i in spec.program.inputs
    )
    return next((names[0] for names in shapes if positions in names[1:]), "")


def _named(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise BatchError(f"weights={name!r}: the spec has no input of this name (inputs: {', '.join(tensors)})")
    return (tensors[name] == 0 if name in PADDED else tensors[name]).double()


def _weighting(spec: Spec, weights: Any, source: Any) -> Weighting:
    """Return weights [samples] or [samples, positions] with their axes: the first ones that may change of an input."""
    if not isinstance(weights, Tensor) or weights.ndim not in (1, 2):
        raise BatchError(
            f"weights={source!r} gives {type(weights).__name__}; it must be a tensor [samples] or [samples, positions]"
        )
    for i in spec.program.inputs:
        axes = [a.name for a in i.axes if isinstance(a, Leaf) and a.name in spec.program.free]
        axes.sort(key=lambda name: name not in spec.program.domain.batch)
        if len(axes) >= weights.ndim:
            return Weighting(axes[0], axes[1] if weights.ndim == 2 else "", weights.double())
    raise BatchError(f"weights={source!r}: no input has {weights.ndim} dims that may change; see print(spec)")


def _check(w: Weighting, sizes: Mapping[str, int]) -> None:
    shape = (sizes[w.samples], *([sizes[w.positions]] if w.positions else []))
    if tuple(w.weights.shape) != shape:
        raise BatchError(
            f"the weights have shape {tuple(w.weights.shape)}, but the batch has {w.samples}, {w.positions} = {shape}"
        )
    if not bool((w.weights.isfinite() & (w.weights >= 0)).all()):
        raise BatchError("the weights of positions must be finite and ≥ 0")
