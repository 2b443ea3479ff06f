"""params + spec + the traced model → the original class at the new sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..errors import ParamsError, PruneError
from ..parameters.transforms import check_names
from ..parameters.transforms import params as dense_params
from ..spec.axis import leaves, size
from ..spec.spec import Spec
from ..types import Params
from .advice import advise
from .attributes import settings, table
from .confirm import confirm, confirm_by_twin
from .expected import expect
from .fold import Fold, find_folds, fold
from .graph import copies
from .hf_config import Lost, settle_config
from .layers import Carved, carve, counts
from .places import Place, write_number
from .plan import remember
from .problem import Problem
from .renumber import is_token_name, renumber
from .scales import compare_scales
from .search import Ranks, search
from .twin import copied, recompute

TRIES, FEW_TRIES = 64, 8
"""Maximal number of ways to set the attributes that are run: before giving up, and for each advice after that."""
TRACES = 3
"""Maximal number of them that are traced, because they run but give other outputs and scale by other numbers: a fold may help."""

Judge = Callable[[nn.Module], Problem | None]
"""Returns the problem of a rebuilt module; None if it has none."""


def rebuild(params: Params, spec: Spec, model: nn.Module) -> nn.Module:
    """Return a copy of the module tree that computes the same as `forward`; see `to_module`."""
    check_names(params, spec)
    refusal = None
    for carved in carve(model, spec, params):
        try:
            module = _rebuild_carved(carved)
        except PruneError as error:
            refusal = refusal or error
            continue
        if carved.plan:
            remember(module, carved.plan)
        return module
    assert refusal is not None
    raise refusal


def _rebuild_carved(carved: Carved) -> nn.Module:
    """Return the rebuilt module of a model without the layers that the spec has lost."""
    model, spec = carved.model, carved.spec

    def advice(problem: Problem) -> str:
        if spec.removed:
            return " Whole layers (pf.kind('layer')) leave a container, whatever the code of the blocks."
        return advise(problem, dense_params(model), spec, lambda p, s: _rebuild(Carved(model, s, p, []), FEW_TRIES))

    return _rebuild(carved, TRIES, advice)


def _rebuild(carved: Carved, tries: int, advice: Callable[[Problem], str] = lambda _: "") -> nn.Module:
    """Return the rebuilt module after at most this many tries; a refusal ends with the advice."""
    model, spec, params, plan = carved
    attempts = Attempts(tries, advice, list(counts(plan, model)))
    if spec.capture != "exported":
        return resized(copies(params, spec), spec, model, lambda m: confirm_by_twin(m, params, spec, model), attempts)
    expected, folds, traces = expect(params, spec, model), list[Fold](), itertools.count()
    scales_may_differ = compare_scales(model, params, spec)

    def judge(module: nn.Module) -> Problem | None:
        folds.clear()
        problem = confirm(module, expected, folds, train=spec.train)
        if problem is None or problem.frames:
            return problem
        may_fold = scales_may_differ(module) and next(traces) < TRACES
        for way in find_folds(module, params, spec) if may_fold else []:
            folded = confirm(module, expected, way, train=spec.train)
            if folded is None or folded.slight:
                folds.extend(way)
                return None
        return None if problem.slight else problem  # without folds, a slight difference is rounding

    module = resized(copies(params, spec), spec, model, judge, attempts)
    fold(module, folds)
    return module


class Attempts(NamedTuple):
    """How a module is rebuilt."""

    tries: int = TRIES
    """Maximal number of ways to set the attributes that are run."""
    advice: Callable[[Problem], str] = lambda _: ""
    """Problem → the end of the refusal."""
    lost: Sequence[Lost] = ()
    """Layers that have gone from the model."""


def resized(
    tensors: Mapping[str, Tensor], spec: Spec, model: nn.Module, judge: Judge, attempts: Attempts | None = None
) -> nn.Module:
    """Return the traced model with other tensors and the likeliest attributes that the judge accepts.

    Raises:
        ParamsError: the model is not the one that was traced.
        PruneError: the judge accepts no attributes; states the problem of the likeliest, and the advice about it.
    """
    attempts = Attempts() if attempts is None else attempts
    check_model(model, spec)
    possible = [s for s in settings(model, spec) if not (spec.program.interfaces and is_token_name(s.place))]
    module = with_tensors(model, tensors, _replaced_constants(model, spec))
    renumbered = renumber(module, spec)

    def attempt(ranks: Ranks) -> Problem | None:
        settle(module, [(s.path, s.place, s.ranked(ranks)) for s in possible])
        return judge(module)

    ranks, problem = search(possible, spec.program, attempt, attempts.tries)
    if problem is not None:
        raise PruneError(
            f"{type(model).__name__} cannot be rebuilt at these sizes: {problem.text}. No numbers in its attributes make it run."
            f"{attempts.advice(problem)} Without model=, to_module gives a graph module, which runs at any size"
        )
    changed = {(s.path, str(s.place)): s.ranked(ranks) for s in possible if s.ranked(ranks) != s.place.value}
    changed |= {(path, name): value for path, name, value in settle_config(module, spec, judge, attempts.lost)}
    remember(module, [*((path, name, value) for (path, name), value in changed.items()), *renumbered])
    return module


def check_model(model: nn.Module, spec: Spec) -> None:
    """Check that the model is the one that was traced.

    Raises:
        ParamsError: a tensor is missing or has another shape; names the tensor and both shapes.
    """
    tensors = own_tensors(model)
    slots = spec.slots
    for name, axes in spec.axes.items():
        shape = tuple(size(a, spec.traced) for a in axes)
        if name not in slots and (name not in tensors or tuple(tensors[name].shape) != shape):
            has = "no such tensor" if name not in tensors else f"shape {tuple(tensors[name].shape)}"
            raise ParamsError(
                f"{name!r} was traced with shape {shape}, but {type(model).__name__} has {has}; "
                "model= takes the model that was traced"
            )


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and all buffers by name, tied ones under every name."""
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


# ---- a copy with other tensors and attributes


def with_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], constants: Iterable[tuple[Tensor, Tensor]] = ()
) -> nn.Module:
    """Return a copy of the module tree in which other tensors replace the old ones wherever they are referred to.

    Args:
        model: the module tree; a tensor that is replaced is not copied.
        tensors: name → replacement; parameters are `nn.Parameter`s. They are not copied.
        constants: (tensor of the model, its replacement), for tensors that are in no state dict.

    Raises:
        PruneError: the class has no room for a tensor.
    """
    memo: dict[int, Any] = {id(t): replacement for t, replacement in constants}
    for name, t in own_tensors(model).items():
        if name in tensors:
            memo[id(t)] = tensors[name].requires_grad_(t.requires_grad)
    module = copied(model, memo)
    modules = dict(module.named_modules(remove_duplicate=False))
    for name, t in tensors.items():
        path, _, leaf = name.rpartition(".")
        owner = modules.get(path)
        if owner is None or not (leaf in owner._parameters or leaf in owner._buffers):
            raise PruneError(
                f"{type(module).__name__} has no room for {name!r}, such as a bias that a compensation created; "
                "without model=, to_module gives a graph module, which has a place for every tensor"
            )
        if getattr(owner, leaf) is not t:
            setattr(owner, leaf, t)
    recompute(module)
    return module


def _replaced_constants(model: nn.Module, spec: Spec) -> list[tuple[Tensor, Tensor]]:
    """Return the tensors of the model that are in no state dict and lost units, each with its smaller replacement."""
    modules, out = dict(model.named_modules(remove_duplicate=False)), []
    for name, path in spec.constants.sources.items():
        is_smaller = any(spec.sizes[g] != spec.traced[g] for a in spec.constants.axes[name] for g in leaves(a))
        owner, _, leaf = path.rpartition(".")
        t = getattr(modules.get(owner), leaf, None)  # None: `forward` creates the tensor
        if is_smaller and isinstance(t, Tensor):
            out.append((t, spec.constants.tensors[name].to(t.device).clone()))
    return out


def settle(module: nn.Module, values: Iterable[tuple[str, Place, int]]) -> None:
    """Set numbers (path, place, value), then the sizes of `torch.nn` layers from the shapes of their tensors."""
    modules = dict(module.named_modules(remove_duplicate=False))
    for path, place, value in values:
        write_number(modules[path], place, value)
    for m in module.modules():
        for name, value in table(m).items():
            setattr(m, name, value)
