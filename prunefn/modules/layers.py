"""Layers and branches that a model has lost: children leave their containers, and dead modules are replaced.

A layer leaves its `nn.ModuleList` or `nn.Sequential`, and those behind it move up, as in a fresh model of fewer layers. Where
only a part of a block goes, its module returns zeros, and the other modules that lost all tensors pass their input on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from inspect import Parameter, signature
from itertools import count, islice
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ..errors import PruneError
from ..frozen_dict import FrozenDict
from ..spec.parts import BRANCH, LAYER
from ..spec.spec import Spec
from ..types import Params
from .layer_fields import lists_of, shortened
from .plan import ABSENT, REMOVED, Plan
from .twin import copied

OWN = f"{__name__.partition('.')[0]}."
"""What the names of the modules of this package begin with; data of other packages hold no names."""
IDENTITY, ZERO, ZERO_AND_NONE = "identity", "zero", "zero and none"
"""What a module is replaced by."""


class Carved(NamedTuple):
    """A model without what a spec has lost, with the spec and params under the names of this model."""

    model: nn.Module
    spec: Spec
    params: Params
    plan: Plan


def carve(model: nn.Module, spec: Spec, params: Params) -> Iterator[Carved]:
    """Yield the ways to take what the spec has lost from the traced model; only the model itself if it has lost nothing.

    Raises:
        PruneError: a layer is in no container of this model.
    """
    if not spec.removed:
        yield Carved(model, spec, params, [])
        return
    removed = _removed_children(model, spec)
    absent = {what: _absent(model, spec, what) for what in (ZERO, ZERO_AND_NONE)}
    for plan in (removed + absent[what] for what in (ZERO, ZERO_AND_NONE) if what == ZERO or absent[what]):
        rename = _Renumbering(model, plan)
        smaller = copied(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
        follow(smaller, plan)
        yield Carved(smaller, renamed(spec, rename), {rename(n): t for n, t in params.items()}, plan)


def follow(model: nn.Module, plan: Plan) -> None:
    """Remove children from containers and replace modules in place, as a plan says; its paths are those of the whole model.

    Raises:
        PruneError: the model has no such module.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    steps = [(path, name, value) for path, name, value in plan if name in (REMOVED, ABSENT)]
    if unknown := next((path for path, *_ in steps if path not in modules), None):
        raise PruneError(
            f"{type(model).__name__} has no module {unknown!r}, of which the plan removes parts; is it of this class?"
        )
    for path, name, value in steps:
        if name == ABSENT:
            parent, _, child = path.rpartition(".")
            setattr(modules[parent], child, _replacement(modules[path], value).train(modules[path].training))
    for path, name, value in steps:
        if name == REMOVED:
            _shorten_lists(model, len(modules[path]._modules), value)
            _remove_children(modules[path], list(value))


def _replacement(module: nn.Module, what: str) -> nn.Module:
    """Return a module that passes its input on, or returns zeros as a module does; it pickles without prunefn."""
    if what == IDENTITY:
        return nn.Identity()
    parameters = list(signature(module.forward).parameters.values())
    if what == ZERO and len(parameters) == 1:
        return nn.Threshold(inf, 0.0)  # x > inf never holds
    graph = fx.Graph()
    inputs = [graph.placeholder(_STARS.get(p.kind, "") + p.name, None, _default(p)) for p in parameters]
    zeros = graph.call_function(torch.zeros_like, (inputs[0],))
    graph.output((zeros, None) if what == ZERO_AND_NONE else zeros)
    return fx.GraphModule(nn.Module(), graph)


_STARS: dict[Any, str] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}


def _default(p: Parameter) -> Any:
    """Return the default that a placeholder has; a module without its parameters reads none of them but the first."""
    return p.default if p.default is None or p.default is Parameter.empty else None


def _remove_children(container: nn.Module, lost: Sequence[int]) -> None:
    """Remove children by position; numbered ones move up, together with their own index in attributes."""
    children = list(container._modules.items())
    numbered = [name for name, _ in children] == [str(n) for n in range(len(children))]
    indices = _index_attributes([m for _, m in children if m is not None]) if numbered else []
    left = [(name, m) for n, (name, m) in enumerate(children) if n not in lost]
    container._modules.clear()
    for n, (name, m) in enumerate(left):
        container._modules[str(n) if numbered else name] = m
        if m is not None:
            for path, attribute in indices:
                setattr(m.get_submodule(path), attribute, n)


def _shorten_lists(model: nn.Module, n: int, lost: Sequence[int]) -> None:
    """Shorten the lists with a value for each of n layers in the configs of a model, since its code may read them by index."""
    configs = {id(c): c for m in model.modules() if hasattr(c := getattr(m, "config", None), "to_dict")}
    for config in configs.values():
        for f in list(lists_of(config, n)):
            f.set(config, shortened(f.get(config), lost))


def _index_attributes(children: Sequence[nn.Module]) -> list[tuple[str, str]]:
    """Return (path, attribute) of the numbers that are the index of a child in every child of a container."""
    if len(children) < 2:
        return []
    own = [{(p, a): v for p, m in c.named_modules() for a, v in vars(m).items() if type(v) is int} for c in children]
    return [key for key in own[0] if all(values.get(key) == n for n, values in enumerate(own))]


def _removed_children(model: nn.Module, spec: Spec) -> Plan:
    """Return container → the positions of the children that leave it."""
    lost: dict[str, list[int]] = {}
    layers = [path for path, kind in spec.removed.items() if kind == LAYER]
    for path in layers:
        if any(path.startswith(f"{other}.") for other in layers):
            continue
        parent, _, child = path.rpartition(".")
        try:
            container = model.get_submodule(parent)
        except AttributeError:
            container = None
        if not isinstance(container, nn.ModuleList | nn.Sequential) or child not in container._modules:
            raise PruneError(f"{type(model).__name__} has no layer {path!r}; model= takes the model that was traced")
        lost.setdefault(parent, []).append(list(container._modules).index(child))
    return [(parent, REMOVED, tuple(sorted(places))) for parent, places in lost.items()]


def _absent(model: nn.Module, spec: Spec, what: str) -> Plan:
    """Return the modules to replace where only a part of a layer goes: what the branch computes, and dead modules besides."""
    layers = [path for path, kind in spec.removed.items() if kind == LAYER]
    branches = [path for path, kind in spec.removed.items() if kind == BRANCH and not _inside(path, layers)]
    if not branches:
        return []
    names = [n for n, _ in (*model.named_parameters(), *model.named_buffers()) if not _inside(n, [*layers, *branches])]
    saved = model.state_dict(keep_vars=True).keys()
    dead = [n for n in names if n not in spec.axes and n in saved]
    modules = dict.fromkeys(n.rpartition(".")[0] for n in dead)
    whole = [m for m in modules if m and not any(n in spec.axes for n in names if _inside(n, [m]))]
    return [*((path, ABSENT, what) for path in branches), *((path, ABSENT, IDENTITY) for path in whole)]


def _inside(name: str, paths: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{p}.") for p in paths)


# ---- names


def renaming(model: nn.Module, spec: Spec) -> Callable[[str], str]:
    """Return the map from the names of the traced model's tensors to those of the model without the layers that a spec has lost."""
    return _Renumbering(model, _removed_children(model, spec))


class _Renumbering:
    """The map from names of the whole model to those of the model without some children of containers."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.places: dict[str, Mapping[str, str]] = {}
        for path, name, value in plan:
            if name == REMOVED:
                children = list(model.get_submodule(path)._modules)
                left = [c for n, c in enumerate(children) if n not in value]
                numbered = children == [str(n) for n in range(len(children))]
                self.places[path] = {c: str(n) if numbered else c for n, c in enumerate(left)}

    def __call__(self, name: str) -> str:
        parts, path, out = name.split("."), "", []
        for part in parts:
            out.append(self.places.get(path, {}).get(part, part))
            path = f"{path}.{part}".lstrip(".")
        return ".".join(out)


def traced_name(name: str, spec: Spec) -> str:
    """Return the name in the traced model of a tensor of a rebuilt module, whose layers moved up where others left.

    >>> from types import SimpleNamespace
    >>> traced_name("blocks.1.weight", SimpleNamespace(removed={"blocks.0": LAYER, "blocks.2": LAYER}))
    'blocks.3.weight'
    """
    lost: dict[str, set[str]] = {}
    for path, kind in spec.removed.items():
        parent, _, child = path.rpartition(".")
        if kind == LAYER and child.isdecimal():
            lost.setdefault(parent, set()).add(child)
    path = ""
    for part in name.split("."):
        gone = lost.get(path, set())
        if part.isdecimal() and gone:
            part = next(islice((str(n) for n in count() if str(n) not in gone), int(part), None))
        path = f"{path}.{part}".lstrip(".")
    return path


def renamed(value: Any, rename: Callable[[str], str]) -> Any:
    """Return plain data with all names renamed: a spec, or any nest of tuples, dicts and dataclasses in it."""
    if isinstance(value, str):
        return rename(value)
    if isinstance(value, Tensor) or value is None or isinstance(value, int | float | bool):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(renamed(v, rename) for v in value))
    if isinstance(value, tuple | list | frozenset):
        return type(value)(renamed(v, rename) for v in value)
    if isinstance(value, Mapping):
        return FrozenDict({renamed(k, rename): renamed(v, rename) for k, v in value.items()})
    if is_dataclass(value) and not isinstance(value, type) and type(value).__module__.startswith(OWN):
        return replace(value, **{f.name: renamed(getattr(value, f.name), rename) for f in fields(value) if f.init})
    return value


def counts(plan: Plan, model: nn.Module) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Yield (container, number of its children before, positions that left it) of a plan; the model is without them."""
    for path, name, value in plan:
        if name == REMOVED:
            yield path, len(model.get_submodule(path)._modules) + len(value), tuple(value)
