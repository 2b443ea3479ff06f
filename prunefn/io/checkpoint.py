"""Pruned tensors on disk, and back into the original class."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..errors import ParamsError, nearest
from ..trace.expr import leaves
from ..trace.spec import Spec
from ..types import FrozenDict
from .confirm import confirm_by_trace
from .infer import infer_sizes
from .plan import Plan, plan_of, remember
from .rebuild import own_tensors, resized, settle, with_tensors

FORMAT = "1"


def save(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a rebuilt module's tensors as safetensors, with the attributes that `load` needs, to a new file or over an old one.

    Args:
        module: of `to_module(params, spec=spec, model=model)`; any module whose class has its sizes is fine, too.
        path: written elsewhere first and then renamed, so that it is never half-written.

    >>> import torch, prunefn as pf, tempfile
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> mask = {"0": torch.tensor([True, False, True])}
    >>> small = pf.to_module(pf.apply(pf.params(model), mask, spec=spec), spec=pf.shrink(spec, mask), model=model)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pf.save(small, f"{folder}/small.safetensors")
    ...     again = pf.load(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), f"{folder}/small.safetensors")
    >>> again[0].out_features, torch.equal(again[2].weight, small[2].weight)
    (2, True)
    """
    state = module.state_dict()
    first: dict[tuple[Any, ...], str] = {}
    tied = {}
    for name, t in state.items():
        other = first.setdefault((t.data_ptr(), t.shape, t.stride()) if t.numel() else (name,), name)
        if other != name:
            tied[name] = other
    metadata = {"prunefn": FORMAT, "plan": json.dumps(plan_of(state) or []), "tied": json.dumps(tied)}
    data = to_bytes({n: t.detach().cpu().contiguous() for n, t in state.items() if n not in tied}, metadata)
    target = Path(path)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.name, suffix=".part", delete=False) as f:
        f.write(data)
    os.chmod(f.name, 0o644)
    os.replace(f.name, target)


def load(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    spec: Spec | None = None,
    sizes: Mapping[str, int] | None = None,
    strict: bool = True,
) -> nn.Module:
    """A pruned state dict in its original class.

    Args:
        model: freshly built, at its dense sizes; it is not changed.
        source: a state dict, or a file: safetensors, or what `torch.save` wrote (read with `weights_only=True`). Files of
            `save` and state dicts of rebuilt modules say the sizes; for others (a plain dict of tensors) a spec is needed.
        spec: `trace(model, args)`, for state dicts that do not say the sizes; they are inferred from the shapes.
        sizes: group → number of units, where the shapes leave several open.
        strict: every tensor of the model must be there, and every tensor that is there must have a place. A bias that a
            compensation created has one where the class allows a bias.

    Returns:
        A copy of the model with the tensors, in the model's mode.

    Raises:
        ParamsError: keys or shapes do not fit; names them.
        PruneError: the class cannot run at these sizes.
    """
    state, plan, tied = _read(source)
    state.update({name: state[first] for name, first in tied.items() if first in state})
    state = _fitting_keys(model, state, strict)
    own = own_tensors(model)
    tensors = {n: _like(t, own.get(n)) for n, t in state.items()}
    same = {n: tensors[first] for n, first in _ties(model).items() if first in tensors and n in tensors}
    tensors |= {n: t for n, t in same.items() if torch.equal(state[n], t)}
    if plan is None and any(n in own and own[n].shape != t.shape for n, t in state.items()):
        if spec is None:
            name = next(n for n, t in state.items() if n in own and own[n].shape != t.shape)
            raise ParamsError(
                f"{name!r} has shape {tuple(state[name].shape)} instead of {tuple(own[name].shape)}, and the state dict does "
                "not say the sizes of the heads and groups: give spec=pf.trace(model, args)"
            )
        small = _with_sizes(spec, infer_sizes(_shapes(state, spec), spec, sizes))
        return resized(tensors, small, model, lambda module: confirm_by_trace(module, small))
    new = with_tensors(model, tensors)
    settle(new, plan or [])
    remember(new, plan or [])
    return new


def _read(source: Any) -> tuple[dict[str, Tensor], Plan | None, dict[str, str]]:
    """(tensors, plan, second name → first name of tied tensors)"""
    if isinstance(source, Mapping):
        return dict(source), plan_of(source), {}
    path = Path(source)
    if path.suffix != ".safetensors":
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
            raise ParamsError(f"{path} holds no state dict (name → tensor); pass the state dict that is in it")
        return dict(state), plan_of(state), {}
    with safetensors.safe_open(path, "pt") as f:
        metadata = f.metadata() or {}
        tensors = {n: f.get_tensor(n) for n in f.keys()}  # noqa: SIM118 (not a dict)
    if "prunefn" not in metadata:
        return tensors, None, {}
    if metadata["prunefn"] != FORMAT:
        raise ParamsError(f"{path} has format {metadata['prunefn']!r}; this version reads format {FORMAT!r}")
    plan = [(p, a, tuple(v) if isinstance(v, list) else v) for p, a, v in json.loads(metadata["plan"])]
    return tensors, plan, json.loads(metadata["tied"])


def _fitting_keys(model: nn.Module, state: dict[str, Tensor], strict: bool) -> dict[str, Tensor]:
    """The state without keys that have no place; in strict mode, there are none, and none is missing."""
    own = model.state_dict()
    modules = dict(model.named_modules(remove_duplicate=False))

    def has_place(name: str) -> bool:
        path, _, leaf = name.rpartition(".")
        return name in own or (path in modules and leaf in modules[path]._parameters)

    missing = [n for n in own if n not in state]
    foreign = [n for n in state if not has_place(n)]
    if strict and (missing or foreign):
        lacks = f"lacks {', '.join(missing[:5])}" if missing else ""
        extra = f"has {', '.join(foreign[:5])}, for which {type(model).__name__} has no place" if foreign else ""
        hint = nearest((missing or foreign)[0], own if foreign and not missing else state)
        raise ParamsError(f"the state dict {' and '.join(filter(None, (lacks, extra)))}{hint}")
    return {n: t for n, t in state.items() if n not in foreign}


def _like(t: Tensor, old: Tensor | None) -> Tensor:
    """A parameter or buffer with the values of `t`, of the type and on the device of what it replaces."""
    copy = t.detach().clone() if old is None else t.detach().to(old.device, old.dtype, copy=True)
    return (
        copy if old is not None and not isinstance(old, nn.Parameter) else nn.Parameter(copy, copy.is_floating_point())
    )


def _ties(model: nn.Module) -> dict[str, str]:
    """Second name → first name of tied tensors."""
    first: dict[int, str] = {}
    return {n: first[id(t)] for n, t in own_tensors(model).items() if first.setdefault(id(t), n) != n}


def _shapes(state: Mapping[str, Tensor], spec: Spec) -> dict[str, tuple[int, ...]]:
    if foreign := [n for n, t in state.items() if n not in spec.axes or len(spec.axes[n]) != t.ndim]:
        raise ParamsError(
            f"the spec has no tensor {foreign[0]!r} of {state[foreign[0]].ndim} dims; is it of this model?"
        )
    return {n: tuple(t.shape) for n, t in state.items()}


def _with_sizes(spec: Spec, sizes: Mapping[str, int]) -> Spec:
    """The spec at other sizes, without knowing which units are gone."""
    for name, axes in spec.constants.axes.items():
        if lost := [g for a in axes for g in leaves(a) if sizes[g] != spec.sizes[g]]:
            raise ParamsError(
                f"group {lost[0]!r} also runs through {spec.constants.sources.get(name, name)}, which is in no state dict, "
                "so that the shapes do not say which of its values to keep; use pf.save on the rebuilt module"
            )
    groups = FrozenDict({n: g._replace(size=sizes[n]) for n, g in spec.groups.items()})
    return replace(spec, sizes=FrozenDict(sizes), groups=groups)
