"""The parameters that are weights of contractions, and the layout of each as the matrix that multiplies its inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ..doors import door
from ..errors import ParamsError, nearest, warn
from ..names import named
from ..parameters.effective import computed_weights, effective
from ..parameters.transforms import check_mask
from ..spec.axis import keep, size
from ..spec.parts import IN_OUT, OUT_IN
from ..spec.spec import Spec, take
from ..types import Mask

Masks = dict[str, Tensor]
"""Weight masks: parameter → bool of its shape, True = kept; an absent parameter is not pruned."""


class Weight(NamedTuple):
    """A parameter that is a contraction's weight."""

    name: str
    shape: tuple[int, ...]
    pattern: str
    """einops pattern from the parameter to [groups, out, in, taps]."""
    groups: int
    convolution: bool = False
    """Whether its dims are [filters, inputs, *kernel]; not of a transposed one."""
    site: str = ""
    """Site that measures its inputs; empty if there is none (inputs of the network, depthwise convolutions)."""

    @property
    def depthwise(self) -> bool:
        """Whether each filter reads one channel."""
        return self.groups > 1 and self.convolution and self.shape[1] == 1

    def split(self, t: Tensor) -> Tensor:
        """Return the parameter, or another tensor of its shape, as [groups, out, in, taps]."""
        return rearrange(t, self.pattern, **self._group_sizes())

    def joined(self, t: Tensor) -> Tensor:
        """Return the inverse of `split`: a tensor of the parameter's shape."""
        left, right = (side.strip() for side in self.pattern.split("->"))
        kernel = [c for c in left.split() if c.startswith("k")]
        kernel_sizes = dict(zip(kernel, self.shape[len(self.shape) - len(kernel) :], strict=True))
        return rearrange(t, f"{right} -> {left}", **self._group_sizes(), **kernel_sizes)

    def matrix(self, t: Tensor, *, taps_first: bool = False) -> Tensor:
        """Return the weight as [rows, columns]: a row for each output, whose columns are multiplied with its inputs.

        Columns run over inputs, then over the taps of a kernel, like `weight.flatten(1)` of a convolution and `unfold` of its
        inputs; with `taps_first`, over taps and then over inputs.
        """
        return rearrange(self.split(t), "g o i t -> (g o) (t i)" if taps_first else "g o i t -> (g o) (i t)")

    def weight(self, matrix: Tensor, *, taps_first: bool = False) -> Tensor:
        """Return the inverse of `matrix`: a tensor of the parameter's shape."""
        order = "(g o) (t i) -> g o i t" if taps_first else "(g o) (i t) -> g o i t"
        return self.joined(rearrange(matrix, order, g=self.groups, t=self.taps))

    @property
    def taps(self) -> int:
        """Number of positions in the kernel."""
        left = self.pattern.partition("->")[0].split()
        return prod(self.shape[d] for d in range(-sum(c.startswith("k") for c in left), 0))

    def _group_sizes(self) -> dict[str, int]:
        """Return the size of the axis g, if the pattern splits the outputs into groups."""
        return {"g": self.groups} if "g" in self.pattern.partition("->")[0] else {}


@door
def weights(spec: Spec, where: Sequence[str] | str | None = None) -> dict[str, Weight]:
    """Return the parameters that are weights of contractions, in the order of the program; tied ones once.

    They are the weights of linear layers, of matrix products and of convolutions of every kind, including recurrent ones.
    Embeddings and norms are left out. So are weights that are computed from parameters (weight norm, masks of
    `nn.utils.prune`), as a zero in the parameter is no zero in the weight; `left_dense` returns these.

    Args:
        spec: of the parameters.
        where: weights to return: names, module paths, or globs for either; None: all.

    Raises:
        ParamsError: a pattern matches no weight.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Conv1d(2, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8, 2))
    >>> for w in weights(pf.trace(model, (torch.randn(1, 2, 4),))).values():
    ...     print(w.name, w.shape, w.pattern, repr(w.site))
    0.weight (4, 2, 3) (g o) i k0 -> g o i (k0) ''
    3.weight (2, 8) o i -> 1 o i 1 '3'
    """
    # reversed, so that a weight with several sites gets its first
    sites = {s.weight: s.name for s in reversed(list(spec.sites.values()))}
    by_name: dict[str, Weight] = {}
    for name, pattern, groups, convolution in _find_layouts(spec):
        first = spec.tied.get(name, name)
        if first not in by_name:
            by_name[first] = Weight(first, spec.shape(first), pattern, groups, convolution, sites.get(name, ""))
    if where is None:
        return by_name
    first_names = {
        **{n: n for n in by_name},
        **{second: first for second, first in spec.tied.items() if first in by_name},
    }
    chosen = {first_names[n] for n in picked(where, first_names)}
    return {n: w for n, w in by_name.items() if n in chosen}


def warn_dense(what: str, left: Mapping[str, str], fix: str) -> None:
    """Warn of weights that stay dense, with the reasons.

    Args:
        what: function that leaves them dense.
        left: weight or module → reason; if empty, there is no warning.
        fix: what the user can do.
    """
    if left:
        why = "; ".join(f"{name!r}: {reason}" for name, reason in left.items())
        warn(f"{what} leaves some weights dense ({why}); {fix}")


def left_dense(spec: Spec, *, convolutions: bool = False) -> dict[str, str]:
    """Return module → the reason why its weights stay dense: they are computed, so that no single one can be removed.

    Args:
        spec: of the network.
        convolutions: only those of convolutions.
    """
    computed = computed_weights(spec, convolutions)
    return {m: f"its weight is computed from {', '.join(of)}" for m, of in computed.items()}


UNFOLD = (
    "make these weights parameters before the trace (torch.nn.utils.prune.remove, "
    "torch.nn.utils.parametrize.remove_parametrizations)"
)


def picked(patterns: Sequence[str] | str, known: Collection[str]) -> list[str]:
    """Return the names that match: each pattern is a name, the path of a module around it, or a glob for either.

    Raises:
        ParamsError: a pattern matches none of them.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for p in patterns:
        if not any(named(n, p) for n in known):
            some = f"{', '.join(list(known)[:5])}{' …' if len(known) > 5 else ''}"
            raise ParamsError(f"{p!r} matches none of {some}{nearest(p, known)}")
    return [n for n in known if any(named(n, p) for p in patterns)]


def check_weights(given: Mapping[str, Tensor], known: Mapping[str, Weight], what: str) -> None:
    """Check that every tensor has the name and shape of a weight.

    Raises:
        ParamsError: a tensor does not; names it.
    """
    for name, t in given.items():
        if name not in known:
            raise ParamsError(
                f"the {what} have {name!r}, which is no weight of a contraction that is a parameter{nearest(name, known)}"
            )
        if tuple(t.shape) != known[name].shape:
            raise ParamsError(
                f"the {what} of {name!r} have shape {tuple(t.shape)}, but the spec says {known[name].shape}; what belongs to "
                "the network before channels were removed is brought along by sparse.shrink"
            )


# ---- together with channel pruning


@door
def shrink(masks: Mapping[str, Tensor], mask: Mask, *, spec: Spec) -> Masks:
    """Remove channels from weight masks, scores or other tensors of the parameters' shapes, as `pf.apply` does from parameters.

    Args:
        masks: parameter → tensor of its shape.
        mask: group → bool [units], as in `pf.apply`.
        spec: before it is shrunk.

    Raises:
        MaskError, ParamsError: the mask or a tensor does not fit the spec.

    >>> import prunefn as pf
    >>> spec = pf.trace(torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Linear(3, 1)), (torch.randn(2, 1),))
    >>> masks = {"1.weight": torch.tensor([[True, False, False]])}
    >>> shrink(masks, {"0": torch.tensor([True, False, True])}, spec=spec)
    {'1.weight': tensor([[ True, False]])}
    """
    check_mask(mask, spec)
    check_shapes(masks, spec)
    return {n: take(t, spec.axes[n], mask, spec.sizes) for n, t in masks.items()}


def grow(masks: Mapping[str, Tensor], mask: Mask, *, spec: Spec) -> Masks:
    """Return the inverse of `shrink` for weight masks: weights of removed channels count as kept."""
    out: Masks = {}
    for n, small in masks.items():
        kept = [keep(a, mask, spec.sizes).to(small.device).nonzero()[:, 0] for a in spec.axes[n]]
        whole = torch.ones(spec.shape(n), dtype=torch.bool, device=small.device)
        whole[torch.meshgrid(*kept, indexing="ij")] = small
        out[n] = whole
    return out


def check_shapes(masks: Mapping[str, Tensor], spec: Spec) -> None:
    """Check that every mask has the shape of its parameter.

    Raises:
        ParamsError: a mask does not; names the parameter.
    """
    for n, m in masks.items():
        if n not in spec.parameters:
            raise ParamsError(f"the spec has no parameter {n!r}{nearest(n, sorted(spec.parameters))}")
        if tuple(m.shape) != spec.shape(n):
            raise ParamsError(f"the weight mask of {n!r} has shape {tuple(m.shape)}, but the spec says {spec.shape(n)}")


# ---- in the program


def _find_layouts(spec: Spec) -> Iterator[tuple[str, str, int, bool]]:
    """Yield (parameter, pattern, groups, whether it is a convolution); a parameter may come more than once."""
    active = spec.program.activations()
    for i in spec.program.instructions:
        if f"%{i.name}" not in active:
            continue  # a product of parameters computes a weight, and its factors are no weights
        for layout in spec.layouts.get(i.name, ()):
            if layout.weight in spec.parameters:
                yield layout.weight, layout.pattern, size(layout.groups, spec.sizes), layout.convolution
    for s in spec.sites.values():
        if s.weight in spec.parameters:
            yield s.weight, s.pattern, size(s.groups, spec.sizes), False
    used = {e.name for e in effective(spec)}
    for g in spec.groups.values():
        for tensor, dim, role in g.members:
            is_used = tensor in spec.parameters and spec.tied.get(tensor, tensor) in used
            if role in ("in", "out") and is_used and len(spec.axes[tensor]) == 2:
                yield tensor, OUT_IN if (role == "out") == (dim == 0) else IN_OUT, 1, False
