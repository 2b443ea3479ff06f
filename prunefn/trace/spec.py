"""The spec: the immutable result of `trace`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import ParamsError, TraceError, nearest
from ..types import FrozenDict, Group, Params, Site
from .constants import Constants
from .cost import Costs, Polynomial
from .example import Example
from .expr import Axis, Leaf, einops_form, keep, leaves, size
from .program import Program


@dataclass(frozen=True, eq=False)
class Spec:
    """Which axes of which tensors belong together, the program, and the costs. Read-only; made by `pf.trace`."""

    program: Program
    axes: FrozenDict[str, tuple[Axis, ...]]
    """Tensor → axis of each dim; biases that a compensation may create are included."""
    sizes: FrozenDict[str, int]
    """Group → number of units now."""
    traced: FrozenDict[str, int]
    """Group → number of units in the model that was traced."""
    groups: FrozenDict[str, Group]
    sites: FrozenDict[str, Site]
    constants: Constants
    costs: Costs
    parameters: frozenset[str]
    """Names of the parameters; all other tensors are buffers."""
    tied: FrozenDict[str, str]
    """Second name of a tensor → its first name."""
    frozen: FrozenDict[tuple[str, int], tuple[str, ...]] = field(repr=False)
    unknown: FrozenDict[str, str] = field(repr=False)
    """Op without a rule → where it stands in the source."""
    example: Example
    """Stands for the inputs of the trace."""
    train: bool = False
    capture: str = "exported"
    """`exported`, or `recorded`: known from one real run, so that the program cannot be run on other inputs."""
    capture_reason: str = ""
    """Why the model could not be exported."""
    layers: FrozenDict[str, Polynomial] = field(default=FrozenDict(), repr=False)
    """Module → the MACs that are done with its parameters, or in it where two activations meet; together, `costs.macs`."""

    def _key(self) -> tuple[Any, ...]:
        return (
            self.program,
            self.axes,
            self.sizes,
            self.groups,
            self.sites,
            self.constants,
            self.costs,
            self.parameters,
            self.tied,
            self.train,
            self.capture,
        )

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Spec) and hash(self) == hash(other) and self._key() == other._key()

    def __hash__(self) -> int:
        cached = self.__dict__.get("_hash")
        if cached is None:
            cached = hash(
                (self.program.instructions, self.axes, self.sizes, self.constants, self.parameters, self.train)
            )
            object.__setattr__(self, "_hash", cached)
        return cached

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_")}

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape of a parameter or buffer."""
        return tuple(size(a, self.sizes) for a in self.axes[tensor])

    def labels(self) -> dict[str, str]:
        """Group → its short name in einops notation."""
        return {g.name: g.label for g in self.groups.values()}

    def einops(self, tensor: str) -> str:
        """The axes of a tensor in einops notation, such as `(3 heads head_dim) residual`."""
        labels = self.labels()
        return " ".join(einops_form(a, labels) for a in self.axes[tensor])

    def macs_of(self, group: str) -> int:
        """MACs of one sample in which the group's units take part."""
        return self.costs.macs(self.sizes) - self.costs.macs({**self.sizes, group: 0})

    def __repr__(self) -> str:
        kinds = [g.kind for g in self.groups.values()]
        counts = ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds))
        how = "" if self.capture == "exported" else f"; {self.capture}"
        return f"Spec({len(self.groups)} groups: {counts or 'none'}; {self.costs(self.sizes)}{how})"

    def __str__(self) -> str:
        lines = [
            repr(self),
            *self._recorded(),
            "",
            "inputs",
            *(f"  {i.name}: {' '.join(self._input_axis(a) for a in i.axes) or '()'}" for i in self.program.inputs),
            *self._domain(),
            "",
            "groups (label: name, kind, units, members, MACs that it takes part in)",
        ]
        for g in self.groups.values():
            share = self.macs_of(g.name) / max(self.costs.macs(self.sizes), 1)
            mixed = f"  [mixed by {', '.join(g.mixed_by)}]" if g.mixed_by else ""
            lines.append(f"  {g.label}: {g.name}  {g.kind}  {g.size}  {len(g.members)} members  {share:.1%}{mixed}")
        lines += ["", "tensors"]
        lines += [f"  {t}: {self.einops(t) or '()'}" for t in self.axes if t not in self._slots()]
        if self.unknown:
            lines += ["", "ops without a rule: all that they touch is frozen"]
            lines += [f"  {op}: {where}" for op, where in self.unknown.items()]
        return "\n".join(lines)

    def _input_axis(self, axis: Axis) -> str:
        return axis.name if isinstance(axis, Leaf) else str(size(axis, self.sizes))

    def _domain(self) -> list[str]:
        """Sizes of inputs for which the program stands for the model, where those are not all."""
        domain = self.program.domain
        limits = [f"  {leaf} is {limit}" for leaf, limit in domain.limits.items()]
        return [*limits, *(f"  holds where {guard}" for guard in domain.guards)]

    def _recorded(self) -> list[str]:
        """What a reader should know of a recorded spec."""
        if self.capture == "exported":
            return []
        lines = [f"recorded from one run on the example, whose costs these are: {first_sentence(self.capture_reason)}"]
        if idle := [t for t in self.axes if t in self.parameters and t not in self.program.tensors]:
            lines.append(f"parameters that this run did not use, and that stay as they are: {', '.join(idle)}")
        return lines

    def _slots(self) -> set[str]:
        return {s.tensor for s in self.program.slots}

    def table(self) -> str:
        """One line per group, for print: name, kind, units, members, sites, the MACs and params it takes part in, what mixes it.

        >>> import torch, prunefn as pf
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> print(pf.trace(model, (torch.randn(2, 4),)).table().splitlines()[-3])
        0      hidden      8        3      1  100.0 %  96.6 %
        """
        from ..report.spec_table import table

        return table(self)

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain data that `json.dumps` takes, for other tools; what it takes to prune without prunefn.

        An axis is the name of a group (or of the batch), a number (frozen, so many positions), `{"product": [axis, …]}`
        (row-major) or `{"concat": [axis, …]}`. A position is kept iff all the units on its path are. The keys:

        * `format`: 1, until keys change their meaning; `versions` of prunefn and torch; `capture` and `capture_reason`;
          `train`
        * `inputs`: name → axis of each dim; `batch`: axis → [input, dim] whose size it has; `limits`: axis → `low`, `high`, `reason`
          of the sizes for which the program holds; `guards`: conditions on sizes under which it does
        * `costs`: `macs`, `params`, `activations` of one sample; `polynomials`: for each of them a list of terms
          `{"times": int, "axes": […]}`, whose sum of products of sizes is the cost of any mask
        * `groups`: name → `kind`, `label` (in einops forms), `units`, `exact`, `mixed_by`, `members` (each `tensor`, `dim`,
          `role`, `size` of that dim), `sites`, and the `macs` and `params` that its units take part in
        * `sites`: name → `axis` that is summed over, `out`, `einops`, `weight` (None: computed from parameters), `pattern`
          (einops, weight → [groups, out, in, taps]), `bias`, `norm` (a running mean), `new_bias`, number of `calls`
        * `tensors`: name → `shape`, `axes`, `einops`, `parameter` (else a buffer), `tied_to`, `frozen` (reasons for each dim)
        * `new_biases` that a compensation may create, and `constants` that are in no state dict: `shape`, `axes`, `einops`
        * `unknown_ops`: op without a rule → where it stands in the source

        >>> import torch, prunefn as pf
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> pf.trace(model, (torch.randn(2, 4),)).to_dict()["tensors"]["2.weight"]["axes"]
        [2, '0']
        """
        from ..report.spec_table import to_dict

        return to_dict(self)

    def picture(self, path: Path | str) -> None:
        """Draw the groups and what flows between them; the ending of `path` says how: `.svg`, `.png`, `.pdf` or `.html`.

        In a browser, members and sites of a group show where the pointer rests; the page is light or dark, as the reader's is.

        Raises:
            PruneError: matplotlib is not there, or it cannot write such a file.
        """
        from ..report.spec_picture import picture

        picture(self, path)

    def explain(self, name: str) -> str:
        """Why each dim of a tensor is prunable or not, or where a group occurs; `name` may be a glob.

        Raises:
            ParamsError: no tensor or group has this name.
        """
        if name in self.groups:  # a bare parameter may have the name of its group
            return "\n".join(
                [*self._explain_group(self.groups[name]), *(self._explain(name) if name in self.axes else [])]
            )
        tensors = [
            t
            for t in self.axes
            if t not in self._slots() and (t == name or t.startswith(f"{name}.") or fnmatch(t, name))
        ]
        if not tensors:
            raise ParamsError(f"no tensor or group is called {name!r}{nearest(name, [*self.groups, *self.axes])}")
        return "\n".join(line for t in tensors for line in self._explain(t))

    def _explain_group(self, g: Group) -> list[str]:
        head = f"{g.name}: {g.size} units, {g.kind}" + (f", mixed by {', '.join(g.mixed_by)}" if g.mixed_by else "")
        members = [f"  {m.tensor} dim {m.dim} ({m.role}): {self.einops(m.tensor)}" for m in g.members]
        return [head, *members, *(f"  measured at {s}" for s in g.sites)]

    def _explain(self, tensor: str) -> list[str]:
        lines = [f"{tensor}: {self.einops(tensor) or '()'}"]
        for d, axis in enumerate(self.axes[tensor]):
            groups = list(dict.fromkeys(leaves(axis)))
            why = list(self.frozen.get((tensor, d), ()))
            text = [f"{g} ({self.groups[g].kind})" for g in groups if g in self.groups]
            text += [f"frozen: {w}" for w in why]
            lines.append(
                f"  dim {d}, size {size(axis, self.sizes)}: {'; '.join(text) or 'frozen: it has one position, or meets no other tensor'}"
            )
        return lines


pytree.register_constant(Spec)  # torch.compile takes a spec as a constant, and guards on it


def resize(spec: Spec, mask: Mapping[str, Tensor]) -> Spec:
    """The spec of what a mask leaves: sizes shrink, constants that carry a group are sliced, all else is shared."""
    sizes = FrozenDict({g: int(mask[g].sum()) if g in mask else n for g, n in spec.sizes.items()})
    groups = FrozenDict({n: g._replace(size=sizes[n]) for n, g in spec.groups.items()})
    tensors = {n: take(t, spec.constants.axes[n], mask, spec.sizes) for n, t in spec.constants.tensors.items()}
    return replace(spec, sizes=sizes, groups=groups, constants=replace(spec.constants, tensors=FrozenDict(tensors)))


def take(t: Tensor, axes: tuple[Axis, ...], mask: Mapping[str, Tensor], sizes: Mapping[str, int]) -> Tensor:
    """The kept part of a tensor; the tensor itself if all of it is kept."""
    for d, axis in enumerate(axes):
        if any(leaf in mask for leaf in leaves(axis)):
            kept = keep(axis, mask, sizes)
            if not bool(kept.all()):
                t = t.index_select(d, kept.nonzero()[:, 0].to(t.device))
    return t


def first_sentence(text: str) -> str:
    """torch's messages go on for long.

    >>> first_sentence("It cannot be. Please consider 1. this, 2. that")
    'It cannot be'
    """
    return text.partition(". ")[0][:300]


def check_runnable(spec: Spec) -> None:
    """The spec's program stands for the model on any input.

    Raises:
        TraceError: the model was recorded, not exported.
    """
    if spec.capture == "recorded":
        cache = "; model.config.use_cache = False helps" if "Cache" in spec.capture_reason else ""
        raise TraceError(
            "this spec was recorded from one run, because the model cannot be exported "
            f"({first_sentence(spec.capture_reason)}{cache}); such a program cannot be run on other inputs: use "
            "to_module(params, spec=spec, model=model), the original class at the spec's sizes, and criteria on weights"
        )


def check_params(params: Params, spec: Spec, names: tuple[str, ...]) -> None:
    """Every named tensor is there and has the spec's shape.

    Raises:
        ParamsError: names the tensor and both shapes.
    """
    for n in names:
        if n not in params:
            raise ParamsError(f"the parameters lack {n!r}{nearest(n, params)}")
        if tuple(params[n].shape) != spec.shape(n):
            raise ParamsError(
                f"{n!r} has shape {tuple(params[n].shape)}, but the spec says {spec.shape(n)} = {spec.einops(n)}; "
                "pruned parameters go with pf.shrink(spec, mask)"
            )
