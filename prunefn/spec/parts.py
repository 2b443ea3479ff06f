"""The parts of a spec: groups with their members, sites, costs."""

from __future__ import annotations

from typing import NamedTuple

from .axis import Axis


class Member(NamedTuple):
    """One (tensor, dim) where a group occurs."""

    tensor: str
    dim: int
    role: str
    """`out`: rows of a contraction's weight or bias; `in`: the dim that is summed over; `along`: norms, embeddings, tables."""


class Group(NamedTuple):
    """A prunable leaf axis, with every place where it occurs."""

    name: str
    kind: str
    """`hidden` (inside a block), `residual` (x of x + f(x)), `heads`, `head_dim` or `groups` (of a convolution)."""
    size: int
    """Number of units."""
    members: tuple[Member, ...]
    sites: tuple[str, ...]
    """Where activations over this axis enter a contraction with parameters."""
    mixed_by: tuple[str, ...] = ()
    """Ops that run over the units (norms, means): where there are any, removing a unit changes the others."""
    label: str = ""
    """Short name in einops notation."""

    @property
    def exact(self) -> bool:
        """Whether removing a unit leaves the others as they are."""
        return not self.mixed_by


class Geometry(NamedTuple):
    """How a convolution walks over its spatial dims."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    transposed: bool = False
    output_padding: tuple[int, ...] = ()


OUT_IN = "o i -> 1 o i 1"
"""Layout of a weight [out, in]."""
IN_OUT = "i o -> 1 o i 1"
"""Layout of a weight [in, out], such as GPT-2's."""


class Layout(NamedTuple):
    """How a value is laid out as the weight of a contraction."""

    weight: str
    """A parameter, or a value of the program (`%name`) that is computed from parameters."""
    pattern: str
    """einops pattern from the weight to [groups, out, in, taps]."""
    groups: Axis
    convolution: bool
    """Whether its dims are [filters, inputs, *kernel]; not of a transposed one."""


class Site(NamedTuple):
    """The input of a contraction over an axis: where activations are measured and compensated."""

    name: str
    axis: Axis
    """The axis that is summed over."""
    values: tuple[tuple[str, int], ...]
    """(value, dim) of the program, one for each call of the contraction."""
    calls: tuple[str, ...]
    """The calls: instructions of the program."""
    weight: str
    """The program's value that holds the weight; a parameter, or computed from parameters."""
    pattern: str
    """einops pattern from the weight to [groups, out, in, taps]."""
    groups: Axis
    out: Axis
    bias: str | None
    """The parameter that is added to the output, if the contraction has one."""
    norm: str | None
    """Running mean of a BatchNorm that follows directly."""
    slot: str
    """Name of a bias that a compensation may create; empty where the contraction has one."""
    geometry: Geometry | None = None

    @property
    def taps(self) -> bool:
        """Whether the mean differs from tap to tap of the kernel (padding, strides, windows)."""
        g = self.geometry
        return g is not None and not (set(g.kernel) <= {1} and set(g.stride) <= {1} and set(sum(g.padding, ())) <= {0})


class Cost(NamedTuple):
    """What one sample costs."""

    macs: int
    """Multiply-accumulates of all contractions, attention's two products included."""
    params: int
    """Elements of all parameters; tied ones count once, buffers do not."""
    activations: int
    """Elements written by all ops that are not views."""

    def __str__(self) -> str:
        return (
            f"{self.macs / 1e9:.4g} GMACs, {self.params / 1e6:.4g} M params, {self.activations / 1e6:.4g} M activations"
        )
