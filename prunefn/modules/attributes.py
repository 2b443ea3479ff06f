"""Which attributes of a module follow which axis, so that the original class runs at the new sizes.

For layers of `torch.nn` a table states them. For other classes the program states which module owns each static size, with its
traced and its new value; the attribute of the owner is found by its value. If a value fits several sizes, the candidates are
ordered by the name of the attribute and the nearness of the evidence, and the rebuilt module is run to find the right one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ..spec.axis import Axis, Concat, Fixed, Leaf, Product, bound, leaves, size
from ..spec.program import Size
from ..spec.spec import Spec

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


class Resized(NamedTuple):
    """A size that an attribute may follow: its traced value, its new value and its axis."""

    old: int
    new: int
    axis: Axis


class Setting(NamedTuple):
    """An attribute of one module with its candidate values, the likeliest first."""

    path: str
    attribute: str
    now: Any
    kind: str
    """Class of the module and name of the attribute: all modules of one class get the same rank."""
    values: tuple[Any, ...]

    def ranked(self, ranks: Mapping[str, int]) -> Any:
        """Return the value at the rank of its kind."""
        return self.values[min(ranks[self.kind], len(self.values) - 1)]


def settings(model: nn.Module, spec: Spec) -> list[Setting]:
    """Return every attribute of the traced model that may have to change. The model has its traced sizes."""
    nearby = _Nearby(model, spec)
    out = []
    for module, names in nearby.paths.items():
        levels, fixed = nearby.levels(module, names), table(module)
        for name, value in vars(module).items():
            if name.startswith("_") or name in ("training", *fixed) or (fixed and OTHER.search(name)):
                continue
            values = candidates(name, value, levels, spec)
            if len(values) > 1:
                out.append(Setting(names[0], name, value, f"{type(module).__qualname__}.{name}", values))
    return out


class _Nearby:
    """The axes of a spec by the module in which, or near which, they occur."""

    def __init__(self, model: nn.Module, spec: Spec) -> None:
        self.spec = spec
        self.paths: dict[nn.Module, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self.paths.setdefault(module, []).append(path)
        self.ops: dict[str, list[Axis]] = {}
        for ins in spec.program.instructions:
            for axis in _sizes_in((ins.args, tuple(v for _, v in ins.kwargs))):
                self.ops.setdefault(ins.module, []).append(bound(axis, spec.sample))
        self.tensors: dict[str, list[Axis]] = {}
        for name, axes in spec.axes.items():
            self.tensors.setdefault(name.rpartition(".")[0], []).extend(axes)
        self.inside: dict[str, list[str]] = {}
        for path in self.tensors:
            self.inside.setdefault(path.rpartition(".")[0], []).append(path)

    def levels(self, module: nn.Module, names: list[str]) -> list[list[Resized]]:
        """Return the sizes near a module in levels, the nearest first.

        The levels: its own ops, their factors, its tensors, their factors, its children's tensors, their factors, the ops
        of children and parents, the tensors below its children, the tensors of its siblings.
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
    """Return all runs of neighbouring factors of products, and all parts of concatenations with their factors."""
    out: list[Axis] = []
    for a in axes:
        if isinstance(a, Product):
            n = len(a.factors)
            out += [Product(a.factors[i:j]) for i in range(n) for j in range(i + 1, n + 1) if j - i < n]
        elif isinstance(a, Concat):
            out += [*a.parts, *factors(a.parts)]
    return out


def found(axes: Iterable[Axis], spec: Spec) -> list[Resized]:
    """Return the different axes that consist of groups of the spec, with their traced and new sizes."""
    groups = set(spec.sizes)
    sized = [a for a in dict.fromkeys(axes) if set(leaves(a)) <= groups]
    return [Resized(size(a, spec.traced), size(a, spec.sizes), a) for a in sized if not isinstance(a, Fixed)]


def candidates(name: str, value: Any, levels: list[list[Resized]], spec: Spec) -> tuple[Any, ...]:
    """Return the candidates for an attribute, the likeliest first, its present value among them; empty if no size fits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return _int_candidates(name, value, levels, spec)
    row: Any = value if type(value) in (list, tuple, torch.Size) else ()
    if row and all(type(v) is int for v in row):
        each = [_int_candidates(name, v, levels[:2], spec) or (v,) for v in row]
        rows = [[c[min(i, len(c) - 1)] for c in each] for i in range(max(map(len, each)))]
        return tuple(type(row)(r) for i, r in enumerate(rows) if r not in rows[:i])
    return ()


def _int_candidates(name: str, value: int, levels: list[list[Resized]], spec: Spec) -> tuple[int, ...]:
    """Return the candidates for an attribute that is a whole number; see `candidates`."""
    out: list[int] = []
    for depth, level in enumerate(levels):
        if depth > 1 and (out or not CHANNELS.search(name)):  # weak evidence serves only attributes named like channels
            break
        fits = [f for f in level if f.old == value]
        fits.sort(key=lambda f: _rate_likeness(name, f, spec), reverse=True)
        out += [f.new for f in fits]
    out = [value, *out] if OTHER.search(name) else [*out, value]
    return tuple(dict.fromkeys(out)) if len(set(out)) > 1 else ()


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


def ways(limits: list[int]) -> Iterator[tuple[int, ...]]:
    """Yield all rows of numbers below the limits, those with the smallest sum first.

    >>> list(ways([2, 2]))
    [(0, 0), (0, 1), (1, 0), (1, 1)]
    """
    for total in range(sum(limits) - len(limits) + 1):
        yield from _rows_of_sum(limits, total)


def _rows_of_sum(limits: list[int], total: int) -> Iterator[tuple[int, ...]]:
    """Yield all rows of numbers below the limits with this sum."""
    if not limits:
        if total == 0:
            yield ()
        return
    for n in range(min(limits[0] - 1, total) + 1):
        for rest in _rows_of_sum(limits[1:], total - n):
            yield (n, *rest)


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
