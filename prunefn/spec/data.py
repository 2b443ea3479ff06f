"""The contents of a spec: the program, the axes of all tensors, the costs."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from ..frozen_dict import FrozenDict
from .axis import Axis, einops_form, size
from .constants import Constants
from .costs import Costs, Polynomial
from .example import Example
from .parts import Branch, Group, Layout, Site
from .program import Program


@dataclass(frozen=True, eq=False)
class SpecData:
    """The groups (axes that shrink together), the program and the costs of a model. Read-only."""

    program: Program
    axes: FrozenDict[str, tuple[Axis, ...]]
    """Tensor → axis of each dim, including biases that a compensation may create."""
    sizes: FrozenDict[str, int]
    """Group → current number of units."""
    traced: FrozenDict[str, int]
    """Group → number of units in the model that was traced, those of branches included that have gone."""
    groups: FrozenDict[str, Group]
    sites: FrozenDict[str, Site]
    constants: Constants
    formulas: Costs
    """Costs of one sample as polynomials in the sizes of groups and inputs."""
    parameters: frozenset[str]
    """Names of the parameters; all other tensors are buffers."""
    tied: FrozenDict[str, str]
    """Second name of a tensor → its first name."""
    frozen: FrozenDict[tuple[str, int], tuple[str, ...]] = field(repr=False)
    unknown: FrozenDict[str, str] = field(repr=False)
    """Op without a rule → its place in the source."""
    example: Example
    """Description of the inputs of the trace."""
    train: bool = False
    capture: str = "exported"
    """`exported`, or `recorded` from one real run; a recorded program cannot be run on other inputs."""
    capture_reason: str = ""
    """Why the model could not be exported."""
    layer_formulas: FrozenDict[str, Polynomial] = field(default=FrozenDict(), repr=False)
    """Module → MACs that use its parameters, or that multiply two activations inside it; the sum is `formulas.macs`."""
    input_sizes: FrozenDict[str, int] = field(default=FrozenDict(), repr=False)
    """Size of the inputs that may change → size at which costs are counted; the batch is not among them."""
    layouts: FrozenDict[str, tuple[Layout, ...]] = field(default=FrozenDict(), repr=False)
    """Instruction → layout of each weight of its contractions, as stated by the op's rule."""
    scales: tuple[str, ...] = field(default=(), repr=False)
    """Values that are the weight of a norm layer."""
    branches: FrozenDict[str, Branch] = field(default=FrozenDict(), repr=False)
    """Group of kind `branch` or `layer` → what its unit stands for."""
    removed: FrozenDict[str, str] = field(default=FrozenDict(), repr=False)
    """Module of the traced model that has gone → its kind, `branch` or `layer`."""
    unwritable: frozenset[str] = field(default=frozenset(), repr=False)
    """Tensors that no compensation writes to."""
    configured: tuple[str, ...] = ()
    """Paths of the modules that a library builds from a config, so that they have no room for new biases; "" is the model."""
    without_grad: frozenset[str] = field(default=frozenset(), repr=False)
    """Parameters of the traced model that do not require gradients, such as those of a frozen stem."""

    def _key(self) -> tuple[Any, ...]:
        return (
            self.program,
            self.axes,
            self.sizes,
            self.groups,
            self.sites,
            self.branches,
            self.constants,
            self.formulas,
            self.parameters,
            self.tied,
            self.train,
            self.capture,
        )

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, SpecData) and hash(self) == hash(other) and self._key() == other._key()

    def __hash__(self) -> int:
        # the spec is immutable, and a key of many caches: its hash is computed once
        cached = self.__dict__.get("_hash")
        if cached is None:
            cached = hash(
                (self.program.instructions, self.axes, self.sizes, self.constants, self.parameters, self.train)
            )
            object.__setattr__(self, "_hash", cached)
        return cached

    def fits(self, other: SpecData) -> bool:
        """Return whether the other spec is of the same network, perhaps traced at other inputs: groups, tensors and sites agree."""
        return self == other or (
            (self.sizes, self.groups, self.axes, self.tied, self.parameters)
            == (other.sizes, other.groups, other.axes, other.tied, other.parameters)
            and {n: s._replace(values=(), calls=()) for n, s in self.sites.items()}
            == {n: s._replace(values=(), calls=()) for n, s in other.sites.items()}
        )

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: self.__dict__[f.name] for f in fields(self)}  # nothing that is cached

    @property
    def sample(self) -> dict[str, int]:
        """Return the size of each input axis that may change for one sample at the spec's input sizes."""
        return {**dict.fromkeys(self.program.domain.batch, 1), **self.input_sizes}

    @cached_property
    def costs(self) -> Costs:
        """Return the costs of one sample at the spec's input sizes, as polynomials in the sizes of groups."""
        return self.formulas.bind(self.input_sizes)

    @cached_property
    def layers(self) -> FrozenDict[str, Polynomial]:
        """Return module → MACs that use its parameters, or that multiply two activations inside it, at the spec's input sizes."""
        return FrozenDict({name: p.bind(self.input_sizes) for name, p in self.layer_formulas.items()})

    @cached_property
    def widths(self) -> dict[str, Group]:
        """Return the groups whose units are positions of tensors: all but whole branches and layers."""
        return {n: g for n, g in self.groups.items() if n not in self.branches}

    @property
    def slots(self) -> frozenset[str]:
        """Return the names of the biases that a compensation may create."""
        return frozenset(s.tensor for s in self.program.slots)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape of a parameter or buffer."""
        return tuple(size(a, self.sizes) for a in self.axes[tensor])

    def labels(self) -> dict[str, str]:
        """Return group → its short name in einops notation."""
        return {g.name: g.label for g in self.groups.values()}

    def einops(self, tensor: str) -> str:
        """Return the axes of a tensor in einops notation, such as `(3 heads head_dim) residual`."""
        labels = self.labels()
        return " ".join(einops_form(a, labels) for a in self.axes[tensor])

    def macs_of(self, group: str) -> int:
        """Return the MACs of one sample in which the group's units take part."""
        return self.costs.macs(self.sizes) - self.costs.macs({**self.sizes, group: 0})
