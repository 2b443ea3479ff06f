"""params + spec + the traced model → the original class at the new sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import ParamsError, PruneError
from ..parameters.transforms import check_names
from ..spec.axis import leaves, size
from ..spec.spec import Spec
from ..types import Params
from .attributes import settings, table, ways
from .confirm import Problem, confirm, confirm_by_twin, expect
from .fold import Fold, find_folds, fold
from .graph import copies
from .hf_config import settle_config
from .plan import remember
from .twin import copied, recompute

TRIES = 48
"""How many ways to set the attributes are run before giving up."""
TRACES = 2
"""How many of them are traced, because they run, but not rightly: a scale may have to be folded."""

Judge = Callable[[nn.Module], Problem | None]


def rebuild(params: Params, spec: Spec, model: nn.Module) -> nn.Module:
    """A copy of the module tree that computes what `forward` does; see `to_module`."""
    check_names(params, spec)
    if spec.capture != "exported":
        return resized(copies(params, spec), spec, model, lambda m: confirm_by_twin(m, params, spec, model))
    expected, folds, traces = expect(params, spec), list[Fold](), itertools.count()

    def judge(module: nn.Module) -> Problem | None:
        folds.clear()
        problem = confirm(module, expected, folds, train=spec.train)
        if problem is not None and not problem.owner and next(traces) < TRACES:
            folds.extend(find_folds(module, params, spec))
            folded = confirm(module, expected, folds, train=spec.train) if folds else problem
            if problem.slight and folded is not None and not folded.slight:
                folds.clear()  # it was rounding
            else:
                problem = folded
        return None if problem is not None and problem.slight else problem

    new = resized(copies(params, spec), spec, model, judge)
    fold(new, folds)
    return new


def resized(tensors: Mapping[str, Tensor], spec: Spec, model: nn.Module, judge: Judge) -> nn.Module:
    """The traced model with other tensors, and the likeliest attributes in which the judge finds nothing wrong.

    Raises:
        ParamsError: the model is not the one that was traced.
        PruneError: nothing works; says what was wrong with the likeliest.
    """
    check_model(model, spec)
    found = settings(model, spec)
    new = with_tensors(model, tensors, _constants(model, spec))

    def attempt(ranks: Mapping[str, int]) -> Problem | None:
        settle(new, [(c.path, c.attribute, c.ranked(ranks)) for c in found])
        return judge(new)

    limits: dict[str, int] = {}
    for c in found:
        limits[c.kind] = max(limits.get(c.kind, 1), len(c.values))
    ranks, problem = _search(limits, attempt)
    if problem is not None:
        raise PruneError(
            f"{type(model).__name__} cannot be rebuilt at these sizes: {problem.text}. Its code may tie sizes together: prune "
            "fewer kinds, such as where=pf.kind('hidden'). Without model=, to_module gives a graph module, which runs at any size"
        )
    chosen = {(c.path, c.attribute): c.ranked(ranks) for c in found if c.ranked(ranks) != c.now}
    chosen |= {(path, name): value for path, name, value in settle_config(new, spec, judge)}
    remember(new, [(path, name, value) for (path, name), value in chosen.items()])
    return new


def _search(
    limits: Mapping[str, int], attempt: Callable[[Mapping[str, int]], Problem | None]
) -> tuple[dict[str, int], Problem | None]:
    """Ranks of all kinds of settings that work, or the first problem.

    Where a class fails, its own attributes are varied until it does not; then what fails next. The likeliest come first.
    """
    ranks, tries = dict.fromkeys(limits, 0), 1
    first = problem = attempt(ranks)
    while problem is not None:
        kinds = [k for k in limits if not problem.owner or k.startswith(f"{problem.owner}.")]
        for row in ways([limits[k] for k in kinds]):
            other = {**ranks, **dict(zip(kinds, row, strict=True))}
            if other == ranks:
                continue
            if (tries := tries + 1) > TRIES:
                return ranks, first
            found = attempt(other)
            if found is None or (problem.owner and found.owner != problem.owner):
                ranks, problem = other, found
                break
        else:
            return ranks, first
    return ranks, None


def check_model(model: nn.Module, spec: Spec) -> None:
    """The model is the one that was traced.

    Raises:
        ParamsError: names the tensor and both shapes.
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
    """Parameters and all buffers by name, tied ones under every name."""
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


# ---- a copy with other tensors and attributes


def with_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], constants: Iterable[tuple[Tensor, Tensor]] = ()
) -> nn.Module:
    """A copy of the module tree with other tensors in the place of the old, wherever they are referred to.

    Args:
        model: what is copied; none of its own tensors is, if it has another.
        tensors: by name; parameters are `nn.Parameter`s. They are taken as they are.
        constants: (tensor of the model, what replaces it), for tensors that are in no state dict.

    Raises:
        PruneError: the class has no room for a tensor.
    """
    memo: dict[int, Any] = {id(old): new for old, new in constants}
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
                "without model=, to_module gives a graph module, which has"
            )
        if getattr(owner, leaf) is not t:
            setattr(owner, leaf, t)
    recompute(module)
    return module


def _constants(model: nn.Module, spec: Spec) -> list[tuple[Tensor, Tensor]]:
    """Tensors of the model that are in no state dict and lost units, with what is left of them."""
    modules, out = dict(model.named_modules(remove_duplicate=False)), []
    for name, path in spec.constants.sources.items():
        lost = any(spec.sizes[g] != spec.traced[g] for a in spec.constants.axes[name] for g in leaves(a))
        owner, _, leaf = path.rpartition(".")
        t = getattr(modules.get(owner), leaf, None)  # None: made in `forward`
        if lost and isinstance(t, Tensor):
            out.append((t, spec.constants.tensors[name].to(t.device).clone()))
    return out


def settle(module: nn.Module, values: Iterable[tuple[str, str, Any]]) -> None:
    """Set attributes (path, name, value), then those of torch.nn's layers by their tensors."""
    modules = dict(module.named_modules(remove_duplicate=False))
    for path, name, value in values:
        setattr(modules[path], name, value)
    for m in module.modules():
        for name, value in table(m).items():
            setattr(m, name, value)
