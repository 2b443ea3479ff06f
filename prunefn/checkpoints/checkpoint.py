"""Save pruned tensors to disk, and load them into the original class or as params.

`save` writes a sealed safetensors file without pickle: any bit that changes later is an error (see `prunefn.files.tensors`).
Files of `torch.save`, which hold a pickle, are read with `weights_only=True` and never written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..doors import door
from ..errors import FormatError, ParamsError, SpecNeededError
from ..files import atomic
from ..files.tensors import save_sealed
from ..frozen_dict import FrozenDict
from ..modules.confirm import confirm_by_trace
from ..modules.infer import infer_sizes
from ..modules.layers import follow, traced_name
from ..modules.libraries import configured
from ..modules.places import Place, places
from ..modules.plan import ABSENT, REMOVED, Plan, plan_in, remember
from ..modules.pretrained import save_with_plan
from ..modules.pruned_file import KIND_MODULE, KIND_PARAMS, Content, check_masks, notes, read_content
from ..modules.rebuild import own_tensors, rebuild, resized, settle, with_tensors
from ..modules.twin import copied
from ..parameters.transforms import check_names, shrink, tied_names
from ..program.sharded import check_plain
from ..spec.axis import leaves
from ..spec.branches import lost_branches, without
from ..spec.spec import Spec
from ..types import Mask, Params
from .prefix import fitting, without_prefix


class Loaded(NamedTuple):
    """The result of `load_params`."""

    params: Params
    spec: Spec
    """The spec at the sizes of the params."""
    masks: tuple[Mask, ...]
    """The masks of every round, as they were saved."""


@door
def save(
    what: nn.Module | Params,
    path: str | os.PathLike[str],
    *,
    spec: Spec | None = None,
    masks: Mask | Sequence[Mask] = (),
) -> None:
    """Write a rebuilt module, or params, as safetensors, to a new file or over an existing one.

    The metadata hold the attributes that `load` needs (of a module), the sizes of all groups, the masks, the versions of
    prunefn and torch, and a hash of the whole file. The same content gives the same bytes.

    Args:
        what: the result of `to_module(params, spec=spec, model=model)`, or any module whose class builds it at its sizes; or
            params.
        path: the file. A temporary file is written first and then renamed, so `path` is never half-written.
        spec: the spec at the sizes of the tensors; required for params.
        masks: the masks that led from the traced sizes to these: one mask, or those of every round in order.

    Raises:
        ParamsError: the tensors, the spec and the masks do not fit each other; params come without a spec; a tensor is on meta.

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
    rounds = (masks,) if isinstance(masks, Mapping) else tuple(masks)
    if rounds and spec is None:
        raise ParamsError("masks can only be checked with a spec; give spec=, at the sizes of the tensors")
    state, tied = _module_state(what, spec) if isinstance(what, nn.Module) else _params_state(what, spec)
    if spec is not None:
        check_masks(rounds, spec.sizes, spec.traced) if rounds else None
    is_module = isinstance(what, nn.Module)
    metadata = notes(
        KIND_MODULE if is_module else KIND_PARAMS,
        plan=plan_in(what) if isinstance(what, nn.Module) else None,
        names=list(state),
        tied=tied,
        sizes=None if spec is None else spec.sizes,
        masks=rounds,
    )
    tensors = {n: t for n, t in state.items() if n not in tied}
    try:
        atomic.write(path, lambda name: save_sealed(name, tensors, metadata))
    except FormatError as error:
        raise ParamsError(f"{path} cannot be written: {error}") from error


def _module_state(module: nn.Module, spec: Spec | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state dict of a module, and second name → first name of tied tensors; check devices and shapes."""
    state = module.state_dict()
    check_plain(state, "save", "gather the state dict first")
    for name, t in state.items():
        if t.is_meta:
            raise ParamsError(f"what= has {name!r} on meta, without numbers to write; load its weights first")
        traced = name if spec is None else traced_name(name, spec)
        if spec is not None and traced in spec.axes and tuple(t.shape) != spec.shape(traced):
            raise ParamsError(
                f"{name!r} has shape {tuple(t.shape)}, but the spec says {spec.shape(traced)}; give the spec at the module's sizes, "
                "pf.shrink(spec, mask)"
            )
    first_names: dict[tuple[Any, ...], str] = {}
    tied = {}
    for name, t in state.items():
        # tied tensors share their memory; tensors without elements all have address 0, so they are told apart by name
        first = first_names.setdefault((t.data_ptr(), t.shape, t.stride()) if t.numel() else (name,), name)
        if first != name:
            tied[name] = first
    return state, tied


def _params_state(params: Params, spec: Spec | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of params, and second name → first name of tied tensors; check them by the spec."""
    if spec is None:
        raise ParamsError("params are saved with their spec; give spec=, at their sizes")
    check_plain(params, "save", "gather them first")
    check_names(params, spec)
    return dict(params), tied_names(params, spec)


@door
def load_params(path: str | os.PathLike[str], *, spec: Spec, verify: bool = True) -> Loaded:
    """Load params with the spec at their sizes, ready for `forward`, `to_module` or another round of pruning.

    Args:
        path: a file of `save(params, …)`, or a folder of `apply_checkpoint`; also a file of another program whose shapes
            determine the sizes. Prefixes of wrappers are dropped as by `load`.
        spec: the traced spec, before any `shrink`; in another process, trace the dense model again.
        verify: whether to check the hash of a file that prunefn wrote; turn it off only if reading twice takes too long.

    Returns:
        Params on the CPU, the shrunk spec, and the masks of every round.

    Raises:
        ParamsError: the file is damaged, or does not fit the spec (names file, tensor and shapes); or it holds a pruned module,
            which `load` reads.

    >>> import tempfile, prunefn as pf
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> spec, mask = pf.trace(model, (torch.randn(2, 4),)), {"0": torch.tensor([True, False, True])}
    >>> small = pf.apply(pf.params(model), mask, spec=spec)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pf.save(small, f"{folder}/a.safetensors", spec=pf.shrink(spec, mask), masks=mask)
    ...     again = pf.load_params(f"{folder}/a.safetensors", spec=spec)
    >>> torch.equal(again.params["2.weight"], small["2.weight"]), again.spec == pf.shrink(spec, mask), again.masks
    (True, True, ({'0': tensor([ True, False,  True])},))
    """
    content = without_prefix(read_content(path, check=verify), spec.axes.__contains__)
    small = _sized_spec(content, spec)
    if content.kind == KIND_MODULE and small.sizes != small.traced:
        raise ParamsError(
            f"{path} holds a pruned module, whose class may compute scales from its sizes, while the spec has those of the traced "
            "sizes; use pf.load(model, path), and trace what it returns; or pf.save the params"
        )
    params = with_ties(content.tensors, spec)
    try:
        check_names(params, small)
    except ParamsError as error:
        raise ParamsError(f"{path}: {error}") from error
    return Loaded(params, small, content.masks)


def with_ties(tensors: Mapping[str, Tensor], spec: Spec) -> Params:
    """Return the tensors with tied ones under both names, also if the file has only one of them."""
    out = dict(tensors)
    for second, first in spec.tied.items():
        if (second in out) != (first in out):
            out[second] = out[first] = out[first if first in out else second]
    return out


def _sized_spec(content: Content, spec: Spec, sizes: Mapping[str, int] | None = None) -> Spec:
    """Return the spec at the sizes of tensors.

    Raises:
        ParamsError: no pruning of this spec, or more than one, gives these sizes.
    """
    whole, spec = spec, without(spec, lost_branches(content.tensors, spec))
    shapes = _shapes(content.tensors, spec)
    if content.sizes is not None and set(content.sizes) != set(spec.sizes):
        name = next(g for g in {**content.sizes, **spec.sizes} if (g in content.sizes) != (g in spec.sizes))
        raise ParamsError(
            f"{content.where} is of another spec: only one of them has a group {name!r}; is it this model?"
        )
    try:
        if content.masks:
            assert content.sizes is not None
            check_masks(content.masks, content.sizes, whole.sizes)
            small = shrink(whole, content.mask)
        else:
            inferred = infer_sizes(shapes, spec, {**(content.sizes or {}), **(sizes or {})})
            small = spec if inferred == dict(spec.sizes) else _resized_spec(spec, inferred)
    except ParamsError as error:
        raise ParamsError(f"{content.where}: {error}") from error
    for name, shape in shapes.items():
        if shape != small.shape(name):
            raise ParamsError(f"{content.where}: {name!r} has shape {shape}, but its masks say {small.shape(name)}")
    return small


@door
def load(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    spec: Spec | None = None,
    sizes: Mapping[str, int] | None = None,
    strict: bool = True,
    verify: bool = True,
) -> nn.Module:
    """Load a pruned state dict into its original class.

    Args:
        model: a freshly built model at its dense sizes; it is not changed.
        source: a state dict, or a file: safetensors (or a folder of them, with an index), or a file of `torch.save` (read with
            `weights_only=True`). Files of `save(module, …)` and state dicts of rebuilt modules state the sizes; for others
            (params, a plain dict of tensors) `spec` is required. Names that a wrapper saved load as well: parts that torch
            inserts (`_orig_mod.`) and a prefix that all names share (`module.`, `ema_model.module.`, `model.`) are dropped if then
            every name has a place in the model.
        spec: `trace(model, args)`, for those; sizes that the file does not state are inferred from the shapes.
        sizes: group → number of units, for sizes that the shapes do not determine.
        strict: whether the source must have every tensor of the model, and the model must have a place for every tensor of the
            source. A bias that a compensation created has a place if the class allows a bias.
        verify: whether to check the hash of a file that prunefn wrote; turn it off only if reading twice takes too long.

    Returns:
        A copy of the model with the tensors, in the model's mode.

    Raises:
        ParamsError: keys or shapes do not fit (names them); the file is damaged or of another kind (names it).
        PruneError: the class cannot run at these sizes.
    """
    content = read_content(source, check=verify)
    model = _without_layers(model, content.plan or [])
    content = fitting(content, model, strict)
    state, plan = content.tensors, content.plan
    own = own_tensors(model)
    tensors = {n: _replacement(t, own.get(n)) for n, t in state.items()}
    tied = {n: tensors[first] for n, first in _ties(model).items() if first in tensors and n in tensors}
    tensors |= {n: t for n, t in tied.items() if torch.equal(state[n], t)}  # stay tied only if the values are equal
    if plan is None and any(n in own and own[n].shape != t.shape for n, t in state.items()):
        if spec is None:
            name = next(n for n, t in state.items() if n in own and own[n].shape != t.shape)
            raise SpecNeededError(
                f"{name!r} has shape {tuple(state[name].shape)} instead of {tuple(own[name].shape)}, and the state dict does "
                "not say the sizes of the heads and groups: give spec=pf.trace(model, args)"
            )
        small = _sized_spec(content._replace(tensors=state), spec, sizes)
        if content.kind == KIND_PARAMS:
            return rebuild({n: t.detach() for n, t in tensors.items()}, small, model)
        return resized(tensors, small, model, lambda module: confirm_by_trace(module, small))
    module = with_tensors(model, tensors)
    numbers = _placed(module, [e for e in plan or () if e[1] not in (REMOVED, ABSENT)], content.where)
    shapes = [n for n, t in tensors.items() if n not in own or own[n].shape != t.shape]
    changed = [*shapes, *(path for path, place, value in numbers if place.value != value)]
    for path, part, library in configured(module):
        if any(not path or f"{n}.".startswith(f"{path}.") for n in changed):
            save_with_plan(
                part, library, "its config is that of the model that pf.load was given, which has other sizes"
            )
    settle(module, numbers)
    remember(module, plan or [])
    return module


def _without_layers(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of a model without the layers that a plan removes; the model itself if there are none."""
    if not any(name in (REMOVED, ABSENT) for _, name, _ in plan):
        return model
    smaller = copied(model, {})
    follow(smaller, plan)
    return smaller


def _placed(model: nn.Module, plan: Plan, where: str) -> list[tuple[str, Place, int]]:
    """Return the entries of a plan with their places in a model.

    Raises:
        ParamsError: the plan sets something else than an existing whole number; names it.
    """
    modules, numbers, out = dict(model.named_modules(remove_duplicate=False)), dict[str, dict[str, Place]](), []
    for path, name, value in plan:
        if path not in numbers:
            numbers[path] = {str(p): p for p in places(modules[path])} if path in modules else {}
        if name not in numbers[path] or type(value) is not int:
            now = type(getattr(modules.get(path), name, None)).__name__
            raise ParamsError(
                f"{where} would set {f'{path}.{name}'.lstrip('.')!r}, which is {now}, to {str(value)[:60]!r}; only sizes can be "
                "set: is it of this class?"
            )
        out.append((path, numbers[path][name], value))
    return out


def _replacement(t: Tensor, replaced: Tensor | None) -> Tensor:
    """Return a parameter or buffer with the values of `t`, of the type and on the device of the replaced tensor."""
    copy = t.detach().clone() if replaced is None else t.detach().to(replaced.device, replaced.dtype, copy=True)
    is_buffer = replaced is not None and not isinstance(replaced, nn.Parameter)
    return copy if is_buffer else nn.Parameter(copy, copy.is_floating_point())


def _ties(model: nn.Module) -> dict[str, str]:
    """Return second name → first name of tied tensors."""
    first_names: dict[int, str] = {}
    return {n: first_names[id(t)] for n, t in own_tensors(model).items() if first_names.setdefault(id(t), n) != n}


def _shapes(state: Mapping[str, Tensor], spec: Spec) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor; raise a ParamsError for a tensor that the spec does not have."""
    if foreign := [n for n, t in state.items() if n not in spec.axes or len(spec.axes[n]) != t.ndim]:
        raise ParamsError(
            f"the spec has no tensor {foreign[0]!r} of {state[foreign[0]].ndim} dims; is it of this model?"
        )
    return {n: tuple(t.shape) for n, t in state.items()}


def _resized_spec(spec: Spec, sizes: Mapping[str, int]) -> Spec:
    """Return the spec at other sizes, without knowing which units were removed."""
    if lost := [g for g in spec.program.interfaces if sizes[g] != spec.sizes[g]]:
        raise ParamsError(
            f"group {lost[0]!r} is an interface, and the shapes do not say which of its units to keep; use pf.save on the rebuilt "
            "module, or on params with their spec and mask"
        )
    for name, axes in spec.constants.axes.items():
        if lost := [g for a in axes for g in leaves(a) if sizes[g] != spec.sizes[g]]:
            raise ParamsError(
                f"group {lost[0]!r} also runs through {spec.constants.sources.get(name, name)}, which is in no state dict, "
                "so that the shapes do not say which of its values to keep; use pf.save on the rebuilt module"
            )
    groups = FrozenDict({n: g._replace(size=sizes[n]) for n, g in spec.groups.items()})
    return replace(spec, sizes=FrozenDict(sizes), groups=groups)
