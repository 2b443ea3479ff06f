"""Which attributes of a module follow which axis, so that the original class runs at the new sizes.

For layers of `torch.nn` a table states them. For other classes the program states which module owns each static size, with its
traced and its new value; the attribute of the owner is found by its value. If a value fits several sizes, the candidates are
ordered by the name of the attribute and the nearness of the evidence, and the rebuilt module is run to find the right one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import singledispatch
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ..spec.axis import Axis, Concat, Derived, Fixed, Leaf, Product, bound, leaves, size
from ..spec.program import Size
from ..spec.spec import Spec
from .interface_sizes import following_size
from .places import Place, places

OTHER = re.compile(
    r"kernel|window|stride|pad|patch|img|image|grid|resolution|classes|labels|dilation|depth|layers|vocab|position"
)
"""Names of attributes that count something other than channels: they change only if nothing else works."""
CHANNELS = re.compile(
    r"dim|feat|chan|chs|width|hidden|size|embed|planes|head|inner|group|planes|filters|expan|_c$|^c$|^c\d$|split"
)
"""Names of attributes that count channels."""


MANY = 40
"""A module with more modules below its children counts as a network, not as a block."""
MANY_PARTS = 6
"""Sums of neighbouring parts are sizes only in concatenations with at most this many parts."""
STRONG = 2
"""Levels of evidence that suffice to change a number of any name: the module's own ops."""
MOST_VALUES = 5
"""Maximal number of values of one setting."""


class Resized(NamedTuple):
    """A size that an attribute may follow: its traced value, its new value and its axis."""

    old: int
    new: int
    axis: Axis


class Setting(NamedTuple):
    """A number in the attributes of one module with its candidate values, the likeliest first."""

    path: str
    place: Place
    kind: str
    """Class of the module, name of the attribute and evidence: settings of one kind get the same rank."""
    values: tuple[int, ...]
    level: int
    """Of the nearest evidence; see `_Nearby.levels`."""

    def ranked(self, ranks: Mapping[str, int]) -> int:
        """Return the value at the rank of its kind."""
        return self.values[min(ranks[self.kind], len(self.values) - 1)]


def settings(model: nn.Module, spec: Spec) -> list[Setting]:
    """Return every number in attributes of the traced model that may have to change. The model has its traced sizes."""
    nearby = _Nearby(model, spec)
    out = []
    for module, names in nearby.paths.items():
        levels, fixed = nearby.levels(module, names), table(module)
        sizes = {r.old for level in levels for r in level}
        for place in places(module):
            name = place.names[0]
            if (new := following_size(place, spec)) is not None and name not in fixed:
                kind = f"{type(module).__qualname__}.{place} of an interface"
                out.append(Setting(names[0], place, kind, (new, place.value), 0))
                continue
            if place.value not in sizes or name in fixed or (fixed and OTHER.search(name)):
                continue
            values, evidence = candidates(place, levels, spec)
            if len(values) > 1:
                attribute = ".".join(n.lstrip("_") for n in place.names)
                kind = f"{type(module).__qualname__}.{attribute} {' '.join(evidence)}"
                out.append(Setting(names[0], place, kind, values, int(evidence[0].partition(":")[0])))
    return out


class _Nearby:
    """The axes of a spec by the module in which, or near which, they occur."""

    def __init__(self, model: nn.Module, spec: Spec) -> None:
        self.spec = spec
        self.paths: dict[nn.Module, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self.paths.setdefault(module, []).append(path)
        self.ops: dict[str, list[Axis]] = {}
        self.values: dict[str, list[Axis]] = {}
        for ins in spec.program.instructions:
            for axis in _sizes_in((ins.args, tuple(v for _, v in ins.kwargs))):
                self.ops.setdefault(ins.module, []).append(bound(axis, spec.sample))
            for value in (*ins.reads(), f"%{ins.name}"):
                self.values.setdefault(ins.module, []).extend(spec.program.axes.get(value, ()))
        self.tensors: dict[str, list[Axis]] = {}
        for name, axes in spec.axes.items():
            self.tensors.setdefault(name.rpartition(".")[0], []).extend(axes)
        self.inside: dict[str, list[str]] = {}
        for path in self.tensors:
            self.inside.setdefault(path.rpartition(".")[0], []).append(path)

    def levels(self, module: nn.Module, names: list[str]) -> list[list[Resized]]:
        """Return the sizes near a module in levels, the nearest first.

        The levels: the arguments of its own ops, their factors, its tensors, their factors, the values that its ops read and
        return, their factors, its children's tensors, their factors, the ops of children and parents, the tensors below its
        children, the tensors of its siblings. For a layer of torch, only its own ops and tensors.
        """
        children = [f"{n}.{c}" if n else c for n in names for c, _ in module.named_children()]
        parents = [n.rpartition(".")[0] for n in names if n]
        descendants = [f"{n}.{m}" if n else m for n in names for m in _below_children(module)]
        siblings = [s for p in parents for s in self.inside.get(p, ())]
        own_ops, near_ops = ([a for n in at for a in self.ops.get(n, ())] for at in (names, (*children, *parents)))
        own_tensors, child_tensors, deep_tensors, sibling_tensors = (
            [a for n in at for a in self.tensors.get(n, ())] for at in (names, children, descendants, siblings)
        )
        own = (own_ops, factors(own_ops), own_tensors, factors(own_tensors))
        if not children and type(module).__module__.startswith("torch.nn"):
            return [found(axes, self.spec) for axes in own]
        values = [a for n in names for a in self.values.get(n, ())]
        own = (*own, values, factors(values))
        others = (child_tensors, factors(child_tensors), near_ops, deep_tensors, sibling_tensors)
        return [found(axes, self.spec) for axes in (*own, *others)]


def _below_children(module: nn.Module) -> list[str]:
    """Return the paths of the modules below its children; none if there are more than `MANY`."""
    paths = [path for path, _ in module.named_modules() if "." in path]
    return paths if len(paths) <= MANY else []


def _sizes_in(args: Any) -> Iterable[Axis]:
    """Yield the axes of all sizes in nested arguments, and the concatenation of sizes that stand in one tuple."""
    if isinstance(args, Size):
        yield args.axis
    elif isinstance(args, tuple):
        if len(args) > 1 and all(isinstance(a, Size) for a in args):
            yield Concat(tuple(a.axis for a in args))  # the sizes of a split: their sum is the axis that is split
        for a in args:
            yield from _sizes_in(a)


def factors(axes: Iterable[Axis]) -> list[Axis]:
    """Return all runs of neighbouring factors of products, and all runs of neighbouring parts of concatenations."""
    out: list[Axis] = []
    for a in axes:
        if isinstance(a, Product):
            n = len(a.factors)
            out += [Product(a.factors[i:j]) for i in range(n) for j in range(i + 1, n + 1) if j - i < n]
        elif isinstance(a, Concat):
            n = len(a.parts) if len(a.parts) <= MANY_PARTS else 0
            out += [*a.parts, *factors(a.parts)]
            out += [Concat(a.parts[i:j]) for i in range(n) for j in range(i + 2, n + 1) if j - i < n]
    return out


def found(axes: Iterable[Axis], spec: Spec) -> list[Resized]:
    """Return the different axes that consist of groups of the spec, with their traced and new sizes."""
    groups = set(spec.sizes)
    sized = [a for a in dict.fromkeys(axes) if set(leaves(a)) <= groups]
    return [Resized(size(a, spec.traced), size(a, spec.sizes), a) for a in sized if not isinstance(a, Fixed | Derived)]


def candidates(place: Place, levels: list[list[Resized]], spec: Spec) -> tuple[tuple[int, ...], list[str]]:
    """Return the candidates for a number, the likeliest first, its present value among them; and the evidence for them.

    Without evidence in the module's own ops, a number changes only if it is named like a count of channels, or if nothing else
    works.
    """
    name = place.names[-1]
    fits = [(depth, r) for depth, level in enumerate(levels) for r in level if r.old == place.value]
    fits.sort(key=lambda fit: (max(fit[0], STRONG - 1), fit[0], -_rate_likeness(name, fit[1], spec)))
    strong = [r for depth, r in fits if depth < STRONG]
    weak = [r for depth, r in fits if depth == fits[0][0]] if not strong else []
    if place.is_shared or any(OTHER.search(n) for n in place.names) or not (strong or CHANNELS.search(name)):
        values = [place.value, *(r.new for _, r in fits)]
    else:
        values = [*(r.new for r in strong or weak), place.value, *(r.new for _, r in fits)]
    evidence = [f"{depth}:{_kinds_of(r, spec)}" for depth, r in fits[:MOST_VALUES]]
    return tuple(dict.fromkeys(values))[:MOST_VALUES], evidence


def _kinds_of(near: Resized, spec: Spec) -> str:
    """Return the kinds of the groups of an axis as a text."""
    return "*".join(spec.groups[g].kind for g in leaves(near.axis) if g in spec.groups)


def _rate_likeness(name: str, near: Resized, spec: Spec) -> int:
    """Return how well the name of an attribute fits an axis; a larger number fits better."""
    lone = near.axis.name if isinstance(near.axis, Leaf) else None
    kind = spec.groups[lone].kind if lone is not None else ""
    if re.search(r"head_?(dim|size)|(dim|size|width)_(per_)?head|key_dim|val_dim|^d_?[kv]$|d_kv|kv_?channels", name):
        return 2 * (kind == "head_dim")
    if re.search(r"heads?$|^n_?head|num_head", name):
        return 2 * (kind == "heads") + (lone is not None)
    if "group" in name:
        return 2 * (kind == "groups") + (kind == "heads") + (lone is not None)  # of queries, or of a convolution
    return int(kind in ("hidden", "residual")) + (kind not in ("heads", "head_dim"))


# ---- layers of torch.nn


@singledispatch
def table(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a layer that state sizes, with the values that follow from its present tensors."""
    return {}


@table.register
def _(m: nn.Linear) -> dict[str, Any]:
    return {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]}


@table.register
def _(m: nn.Bilinear) -> dict[str, Any]:
    return dict(zip(("out_features", "in1_features", "in2_features"), m.weight.shape, strict=True))


@table.register
def _(m: nn.Embedding) -> dict[str, Any]:
    return {"num_embeddings": m.weight.shape[0], "embedding_dim": m.weight.shape[1]}


@table.register
def _(m: _ConvNd) -> dict[str, Any]:
    whole, per_group = ("in_channels", "out_channels") if m.transposed else ("out_channels", "in_channels")
    return {whole: m.weight.shape[0], per_group: m.weight.shape[1] * m.groups}


@table.register
def _(m: _NormBase) -> dict[str, Any]:
    t = m.weight if m.weight is not None else m.running_mean
    return {} if t is None else {"num_features": len(t)}


@table.register
def _(m: nn.LayerNorm) -> dict[str, Any]:
    return {} if m.weight is None else {"normalized_shape": tuple(m.weight.shape)}


@table.register
def _(m: nn.RMSNorm) -> dict[str, Any]:
    return {} if m.weight is None else {"normalized_shape": tuple(m.weight.shape)}


@table.register
def _(m: nn.GroupNorm) -> dict[str, Any]:
    return {} if m.weight is None else {"num_channels": len(m.weight)}


@table.register
def _(m: nn.PReLU) -> dict[str, Any]:
    return {"num_parameters": len(m.weight)}


@table.register
def _(m: nn.RNNBase) -> dict[str, Any]:
    own, gates = dict(m.named_parameters(recurse=False)), {"LSTM": 4, "GRU": 3}.get(m.mode, 1)
    rows, inputs = own["weight_ih_l0"].shape
    projected = {"proj_size": own["weight_hr_l0"].shape[0]} if m.proj_size else {}
    return {"input_size": inputs, "hidden_size": rows // gates, **projected}


@table.register
def _(m: nn.MultiheadAttention) -> dict[str, Any]:
    own, e = dict(m.named_parameters(recurse=False)), m.out_proj.weight.shape[0]
    k, v = (own[n].shape[1] if n in own else e for n in ("k_proj_weight", "v_proj_weight"))
    return {"embed_dim": e, "kdim": k, "vdim": v}
