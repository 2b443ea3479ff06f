"""The parts of a spec: groups with their members, sites, costs."""

from __future__ import annotations

from typing import NamedTuple

from ..display import html
from ..display.units import quantity
from .axis import Axis

EXPERTS = "experts"
"""Kind of groups of whole experts, one unit each."""
BRANCH, LAYER = DEPTH = ("branch", "layer")
"""Kinds of groups whose only unit is a whole block."""


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
    """`hidden` (inside a block), `residual` (x of x + f(x)), `heads`, `head_dim` or `groups` (of a convolution); `branch` (what a
    block adds to its stream) and `layer` (all that a child of a container adds) have one unit, which may go; `experts`: whole
    experts, with their rows of the router."""
    size: int
    """Number of units."""
    members: tuple[Member, ...]
    sites: tuple[str, ...]
    """Sites where activations over this axis enter a contraction with parameters."""
    mixed_by: tuple[str, ...] = ()
    """Ops that combine the units (norms, means); if there are any, removing a unit changes the others."""
    label: str = ""
    """Short name in einops notation."""
    chosen: int = 1
    """How many units are chosen at a time, as a router chooses experts; as many must stay."""

    @property
    def exact(self) -> bool:
        """Whether removing a unit leaves the others unchanged."""
        return not self.mixed_by

    @property
    def floor(self) -> int:
        """Least number of units that must stay."""
        return 0 if self.kind in DEPTH else self.chosen


class Term(NamedTuple):
    """A summand: an operand of an addition of the program."""

    addition: str
    """Instruction."""
    operand: int
    """0 or 1"""


class Branch(NamedTuple):
    """What the one unit of a group of kind `branch` or `layer` stands for: summands that are added to a stream."""

    terms: tuple[Term, ...]
    """They go together."""
    module: str
    """Path of the module that computes them."""
    input: str
    """Value of the program: the stream before the first of them is added."""
    output: str
    """Value of the program: the stream after all of them are added."""
    bypass: str = ""
    """Instruction whose result becomes `input`, for a layer that ends in a norm, say; it has no terms."""
    shift: str = ""
    """Bias of the output that a compensation may create for what is added in the mean; empty if no dim holds channels."""


class Geometry(NamedTuple):
    """The geometry of a convolution over its spatial dims."""

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
    """The layout of a value that is the weight of a contraction."""

    weight: str
    """Name of a parameter, or of a value of the program (`%name`) that is computed from parameters."""
    pattern: str
    """einops pattern from the weight to [groups, out, in, taps]."""
    groups: Axis
    convolution: bool
    """Whether its dims are [filters, inputs, *kernel]; False for a transposed convolution."""


class Site(NamedTuple):
    """The input of a contraction over an axis; activations are measured and compensated there."""

    name: str
    axis: Axis
    """The axis that is summed over."""
    values: tuple[tuple[str, int], ...]
    """(value, dim) of the program, one per call of the contraction."""
    calls: tuple[str, ...]
    """Instructions of the program that call the contraction."""
    weight: str
    """Value of the program that holds the weight: a parameter, or computed from parameters."""
    pattern: str
    """einops pattern from the weight to [groups, out, in, taps]."""
    groups: Axis
    out: Axis
    bias: str | None
    """Parameter that is added to the output, if the contraction has one."""
    norm: str | None
    """Running mean of a BatchNorm that follows directly."""
    slot: str
    """Name of a bias that a compensation may create; empty if the contraction already has a bias."""
    geometry: Geometry | None = None
    expert: int | None = None
    """Position of an expert, whose slice of the stacked weight it is; None: the whole weight."""

    @property
    def taps(self) -> bool:
        """Whether the mean differs from tap to tap of the kernel (padding, strides, windows)."""
        g = self.geometry
        return g is not None and not (set(g.kernel) <= {1} and set(g.stride) <= {1} and set(sum(g.padding, ())) <= {0})


class Cost(NamedTuple):
    """The cost of one sample."""

    macs: int
    """Multiply-accumulates of all contractions, including attention's two products."""
    params: int
    """Elements of all parameters; tied parameters count once, buffers do not count."""
    activations: int
    """Elements written by all ops that are not views."""

    def __str__(self) -> str:
        return ", ".join(self.texts())

    def texts(self) -> list[str]:
        """Return each cost with the unit that fits, such as `545.9 kMACs`."""
        units = ("MACs", "params", "activations")
        return [quantity(n, unit) for n, unit in zip(self, units, strict=True)]

    def _repr_html_(self) -> str:
        rows = [[name.replace("macs", "MACs"), f"{n:,}"] for name, n in self._asdict().items()]
        return html.table(["", "of one sample"], rows)
