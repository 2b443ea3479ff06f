"""The spec: the immutable result of `trace`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from .. import trees
from ..errors import ParamsError, TraceError, nearest
from ..frozen_dict import FrozenDict
from . import picture as drawn
from . import views
from .axis import Axis, einops_form, keep, leaves, size
from .branches import without
from .data import SpecData
from .domain import refusal
from .interface import interface_text
from .narrow import narrowed
from .notebook import in_notebook


class Spec(SpecData):
    """The result of `pf.trace`: the groups (axes that shrink together), the program and the costs of a model. Read-only."""

    # torch.compile of 2.11 would take a frozen dataclass apart, and not see that it is registered as a constant
    __dataclass_params__ = SimpleNamespace(frozen=False)

    def __repr__(self) -> str:
        kinds = [g.kind for g in self.groups.values()]
        counts = ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds))
        how = "" if self.capture == "exported" else f"; {self.capture}"
        return f"Spec({len(self.groups)} groups: {counts or 'none'}; {self.costs(self.sizes)}{how})"

    def __str__(self) -> str:
        lines = [
            repr(self),
            *self._recorded_lines(),
            "",
            "inputs",
            *(f"  {i.name}: {' '.join(self._input_axis_text(a) for a in i.axes) or '()'}" for i in self.program.inputs),
            *self._domain_lines(),
            *(line for g, i in self.program.interfaces.items() for line in interface_text(g, i, self.sizes[g])),
            "",
            "groups (label: name, kind, units, members, MACs that it takes part in)",
        ]
        for g in self.groups.values():
            share = self.macs_of(g.name) / max(self.costs.macs(self.sizes), 1)
            mixed = f"  [mixed by {', '.join(g.mixed_by)}]" if g.mixed_by else ""
            lines.append(f"  {g.label}: {g.name}  {g.kind}  {g.size}  {len(g.members)} members  {share:.1%}{mixed}")
        lines += ["", "tensors"]
        slots = self.slots
        lines += [f"  {t}: {self.einops(t) or '()'}" for t in self.axes if t not in slots]
        if self.unknown:
            lines += ["", "ops without a rule: all that they touch is frozen"]
            lines += [f"  {op}: {where}" for op, where in self.unknown.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return in_notebook(self)

    def _input_axis_text(self, axis: Axis) -> str:
        return einops_form(axis, {}) if any(True for _ in leaves(axis)) else str(size(axis, self.sizes))

    def _domain_lines(self) -> list[str]:
        """Return a line for each restriction of the input sizes for which the program represents the model."""
        domain = self.program.domain
        limits = [f"  {leaf} is {limit}" for leaf, limit in domain.limits.items()]
        counted = ", ".join(f"{name} = {n}" for name, n in self.input_sizes.items())
        sizes = [f"  costs are counted at {counted}"] if counted else []
        fixed = [f"  {dim} is fixed at {reason}" for dim, reason in domain.fixed.items()]
        return [*sizes, *fixed, *limits, *(f"  holds where {guard}" for guard in domain.guards)]

    def _recorded_lines(self) -> list[str]:
        """Return the notes on a recorded spec; none for an exported one."""
        if self.capture == "exported":
            return []
        lines = [f"recorded from one run on the example, whose costs these are: {first_sentence(self.capture_reason)}"]
        if unused := [t for t in self.axes if t in self.parameters and t not in self.program.tensors]:
            lines.append(f"parameters that this run did not use, and that stay as they are: {', '.join(unused)}")
        return lines

    def table(self) -> str:
        """Return a table with one line per group, for print.

        Its columns are name, kind, units, members, sites, the MACs and params that the group takes part in, and the ops that mix it.

        >>> import torch, prunefn as pf
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> print(pf.trace(model, (torch.randn(2, 4),)).table().splitlines()[-3])
        0      hidden      8        3      1  100.0 %  96.6 %
        """
        return views.table(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain data for `json.dumps`, for other tools; it suffices to prune without prunefn.

        An axis is the name of a group (or of a size of the inputs), a number (a frozen axis with this many positions),
        `{"size": expression}` (frozen, its size follows from those of the inputs), `{"product": [axis, …]}` (row-major) or
        `{"concat": [axis, …]}`. A position is kept iff all units on its path are kept. The keys:

        * `format`: 1, until keys change their meaning; `versions` of prunefn and torch; `capture` and `capture_reason`;
          `train`
        * `inputs`: name → axis of each dim; `free`: axis whose size may change → [input, dim] that has it; `batch`: those of them
          that count samples; `input_sizes`: the others → size at which costs are counted; `fixed`: dims that the export fixed →
          reason; `limits`: axis → `low`, `high`, `reason` of the sizes for which the program holds; `guards`: conditions on sizes
          under which it holds
        * `costs`: `macs`, `params`, `activations` of one sample; `polynomials`: cost → list of terms
          `{"times": int, "axes": […]}`; the sum of these products of sizes is the cost of any mask, at any sizes of the inputs
        * `interfaces`: group of an interface → `kept` (positions in the traced model), `inputs` whose integers are positions of it,
          `named` (positions that must stay → what names them)
        * `groups`: name → `kind`, `label` (in einops forms), `units`, `exact`, `mixed_by`, `members` (each `tensor`, `dim`,
          `role`, `size` of that dim), `sites`, and the `macs` and `params` that its units take part in
        * `sites`: name → `axis` that is summed over, `out`, `einops`, `weight` (None: computed from parameters), `pattern`
          (einops, weight → [groups, out, in, taps]), `bias`, `norm` (a running mean), `new_bias`, number of `calls`
        * `tensors`: name → `shape`, `axes`, `einops`, `parameter` (else a buffer), `tied_to`, `frozen` (reasons per dim)
        * `new_biases` that a compensation may create, and `constants` that no state dict contains: `shape`, `axes`, `einops`
        * `unknown_ops`: op without a rule → its place in the source

        >>> import torch, prunefn as pf
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> pf.trace(model, (torch.randn(2, 4),)).to_dict()["tensors"]["2.weight"]["axes"]
        [2, '0']
        """
        return views.to_dict(self)

    def picture(self, path: Path | str) -> None:
        """Draw the groups and the flows between them; the suffix of `path` is the format: `.svg`, `.png`, `.pdf` or `.html`.

        In a browser, a tooltip shows the members and sites of a group; the page follows the reader's light or dark theme.

        Raises:
            PruneError: matplotlib is not installed, or the suffix is not supported.
        """
        drawn.picture(self, path)

    def at(self, sizes: Mapping[str, int]) -> Spec:
        """Return the spec with other sizes of its inputs, at which costs, budgets, latency tables and profiles are then measured.

        Groups, sites and program are the same: masks carry over, and statistics merge.

        Args:
            sizes: name → size, as `print(spec)` names them; those that are not named keep theirs.

        Raises:
            TraceError: a size cannot change, or not to this number. A spec of `trace` at other inputs has the same groups, so that
                masks carry over and statistics merge, too.

        >>> import torch, prunefn as pf
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> spec = pf.trace(model, (torch.randn(2, 5, 4),))
        >>> dict(spec.input_sizes), pf.cost(spec).macs, pf.cost(spec.at({"length": 50})).macs
        ({'length': 5}, 240, 2400)
        """
        known = self.input_sizes
        for name, n in sizes.items():
            if name not in known:
                fixed = "; ".join(f"{dim} is fixed at {why}" for dim, why in self.program.domain.fixed.items())
                raise TraceError(
                    f"the spec has no size {name!r} of its inputs that may change{nearest(name, known)} (it has "
                    f"{', '.join(known) or 'none'}{'; ' + fixed if fixed else ''}); trace(…, dynamic=) lets more sizes vary, and "
                    "a spec traced at other inputs has the same groups: masks carry over, and statistics merge"
                )
            if not isinstance(n, int) or n < 1:
                raise TraceError(f"sizes[{name!r}] is {n!r}; it must be an int ≥ 1")
        domain = self.program.domain
        merged = FrozenDict({**known, **sizes})
        if reason := refusal({**domain.traced, **merged}, domain.limits.items(), domain.guards):
            raise TraceError(f"the program of this spec does not represent the model at these sizes: {reason}")
        return replace(self, input_sizes=merged, example=self.example.at(merged))

    def explain(self, name: str) -> str:
        """Return why each dim of a tensor is prunable or not, or where a group occurs; `name` may be a glob.

        Raises:
            ParamsError: no tensor or group has this name.
        """
        return views.explain(self, name)


trees.register_constant(Spec)  # torch.compile treats a spec as a constant, and guards on it


def resize(spec: Spec, mask: Mapping[str, Tensor]) -> Spec:
    """Return the spec after a mask: sizes shrink, branches go, constants that contain a group are sliced, all else is shared."""
    spec = without(spec, removed_branches(spec, mask))
    mask = {g: m for g, m in mask.items() if g in spec.groups}
    sizes = FrozenDict({g: int(mask[g].sum()) if g in mask else n for g, n in spec.sizes.items()})
    groups = FrozenDict({n: g._replace(size=sizes[n]) for n, g in spec.groups.items()})
    tensors = {n: take(t, spec.constants.axes[n], mask, spec.sizes) for n, t in spec.constants.tensors.items()}
    constants = replace(spec.constants, tensors=FrozenDict(tensors))
    program, example = narrowed(spec.program, spec.example, mask, sizes)
    return replace(spec, sizes=sizes, groups=groups, constants=constants, program=program, example=example)


def removed_branches(spec: SpecData, mask: Mapping[str, Tensor]) -> frozenset[str]:
    """Return the branches and layers that a mask removes."""
    return frozenset(g for g in spec.branches if g in mask and not bool(mask[g].any()))


def take(t: Tensor, axes: tuple[Axis, ...], mask: Mapping[str, Tensor], sizes: Mapping[str, int]) -> Tensor:
    """Return the kept part of a tensor; the tensor itself if all of it is kept."""
    for d, axis in enumerate(axes):
        if any(leaf in mask for leaf in leaves(axis)):
            kept = keep(axis, mask, sizes)
            if not bool(kept.all()):
                t = t.index_select(d, kept.nonzero()[:, 0].to(t.device))
    return t


def first_sentence(text: str) -> str:
    """Return the first sentence of a text, at most 300 characters, since torch's messages are long.

    >>> first_sentence("It cannot be. Please consider 1. this, 2. that")
    'It cannot be'
    """
    return text.partition(". ")[0][:300]


def check_runnable(spec: Spec) -> None:
    """Check that the spec's program can be run on any input.

    Raises:
        TraceError: the model was recorded, not exported.
    """
    if spec.capture == "recorded":
        raise TraceError(
            "this spec was recorded from one run, because the model cannot be exported "
            f"({first_sentence(spec.capture_reason)}); such a program cannot be run on other inputs: use "
            "to_module(params, spec=spec, model=model), the original class at the spec's sizes, and criteria on weights"
        )


def check_replayable(spec: Spec) -> None:
    """Check that the spec's program can be run on inputs like those of the trace: it was exported, or its run can be replayed.

    Raises:
        TraceError: it was recorded in train mode, or its run cannot be replayed; says why.
    """
    flow = spec.program.recorded
    if flow is None:
        return
    if spec.train or flow.refusal:
        why = flow.refusal or "it updates buffers in train mode"
        raise TraceError(
            f"this spec was recorded from one run, which cannot be replayed on other inputs: {why} (the model cannot be exported: "
            f"{first_sentence(spec.capture_reason)}); use to_module(params, spec=spec, model=model), the original class at the "
            "spec's sizes, and criteria on weights"
        )


def check_eval_mode(spec: Spec, purpose: str) -> None:
    """Check that the spec was traced in eval mode.

    Raises:
        ParamsError: it was traced in train mode; names the purpose.
    """
    if spec.train:
        raise ParamsError(f"{purpose} needs a spec that was traced in eval mode: trace(model, args)")


def check_params(params: Mapping[str, Tensor], spec: Spec, names: tuple[str, ...]) -> None:
    """Check that every named tensor is present and has the spec's shape.

    Raises:
        ParamsError: a tensor is missing or has another shape; the text names it and both shapes.
    """
    for n in names:
        if n not in params:
            raise ParamsError(f"the parameters lack {n!r}{nearest(n, params)}")
        if tuple(params[n].shape) != spec.shape(n):
            raise ParamsError(
                f"{n!r} has shape {tuple(params[n].shape)}, but the spec says {spec.shape(n)} = {spec.einops(n)}; "
                "pruned parameters need the spec pf.shrink(spec, mask)"
            )
