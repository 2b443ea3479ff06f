"""Confirm that a rebuilt module computes the same as `forward`, by running both."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import trees
from ..program.batches import device_of
from ..spec.axis import size
from ..spec.spec import Spec
from ..tracing.api import trace
from ..tracing.caches import without_caches
from ..tracing.capture import in_mode
from ..types import Params
from .expected import Expected, seeded
from .fold import Fold, example_inputs, fold
from .problem import ROUNDING, Problem, difference, failure
from .twin import dense_twin


def confirm(module: nn.Module, expected: Expected, folds: Sequence[Fold], *, train: bool) -> Problem | None:
    """Return the problem of a rebuilt module with the folds applied; None if it gives the expected outputs.

    The caller decides about a slight problem: it counts only if folds remove it. An error at sizes at which the traced model
    does not run either is no problem.
    """
    slight = None
    for args, kwargs, output, model_runs in expected.runs:
        with (  # restores the buffers for each run, because a module may write to them in any mode
            _with_values(module, expected.changed, folds),
            in_mode(module, train),
            without_caches(module),
            torch.no_grad(),
            seeded(),
        ):
            try:
                actual = module(*args, **kwargs)
            except Exception as e:  # the class's own code may raise anything at wrong sizes
                if model_runs():
                    return failure(e, module)
                continue
        problem = difference(actual, output)
        if problem is not None and not problem.slight:
            return problem
        slight = slight or problem
    return slight


def confirm_by_trace(module: nn.Module, spec: Spec) -> Problem | None:
    """Return the problem of a rebuilt module; None if it runs and its own trace has the axes and sizes of the spec.

    Serves specs that cannot be run, and tensors that another library wrote, whose scales are those of the class.
    """
    args, kwargs = spec.example.draw(device=next((t.device for t in module.parameters()), "cpu"))
    with torch.no_grad(), seeded(), in_mode(module, spec.train), without_caches(module):
        try:
            module(*args, **kwargs)
        except Exception as e:  # the class's own code may raise anything at wrong sizes
            return failure(e, module)
    return _size_difference(trace(module, args, kwargs, train=spec.train), spec)


def confirm_without_numbers(module: nn.Module, spec: Spec) -> Problem | None:
    """Return the problem of a rebuilt module on `meta`; None if its trace has the axes and sizes of the spec.

    Only the trace runs its code, because the code may read values, which do not exist on `meta`. The scales that the class
    computes must equal those of the spec's program, because no fold is applied to the tensors.
    """
    args, kwargs = spec.example.draw(device="meta")
    try:
        other = trace(module, args, kwargs, train=spec.train)
    except Exception as e:  # the class's own code may raise anything at wrong sizes
        return failure(e, module)
    if (problem := _scale_difference(other, spec)) is not None:
        return problem
    return _size_difference(other, spec)


def _scale_difference(other: Spec, spec: Spec) -> Problem | None:
    """Return a problem for the first scale that a class computes from its sizes and that is not the spec's, or None."""
    of_class, of_spec = _floats_of(other), _floats_of(spec)
    if [x[:2] for x in of_class] == [x[:2] for x in of_spec]:
        return None
    missing = [x for x in of_spec if x not in of_class]
    op, value, module = next((x for x in of_class if x not in of_spec), of_class[0] if of_class else of_spec[0])
    before = next((f"{v:.6g}" for o, v, m in missing if (o, m) == (op, module)), "no such number")
    where = f"in {module!r}" if module else "in its own forward"
    return Problem(
        f"the class computes {value:.6g} for {op} {where}, where the pruned network has {before}", of_scale=True
    )


def _floats_of(spec: Spec) -> list[tuple[str, float, str]]:
    """Return the floats among the arguments of a program, each as (op, float, path of the module)."""
    arguments = [(i.op, x, i.module) for i in spec.program.instructions for x in trees.leaves((i.args, i.kwargs))]
    return [found for found in arguments if isinstance(found[1], float)]


def _size_difference(other: Spec, spec: Spec) -> Problem | None:
    """Return a problem for the first tensor or group whose size differs in the trace of a rebuilt module, or None."""
    for name, axes in spec.axes.items():
        expected = tuple(size(a, spec.sizes) for a in axes)
        actual = tuple(size(a, other.sizes) for a in other.axes.get(name, ()))
        if name in other.axes and actual != expected:
            return Problem(f"{name!r} has shape {actual} instead of {expected}")
    for g in spec.groups.values():  # matched by kind and members: if a group has one unit left, others may get its name
        alike = [h for h in spec.groups.values() if (h.kind, h.members) == (g.kind, g.members)]
        expected = {spec.sizes[h.name] for h in alike} - {1}  # a trace of one unit has no group
        sizes = {h.size for h in other.groups.values() if (h.kind, h.members) == (g.kind, g.members)} - {1}
        if sizes and (not expected or not expected <= sizes):
            return Problem(f"group {g.name!r} has {min(sizes)} units instead of {spec.sizes[g.name]}")
    return None


@contextlib.contextmanager
def _with_values(module: nn.Module, changed: Params, folds: Sequence[Fold]) -> Iterator[None]:
    """Set other values and apply the folds for the block, and restore all values afterwards, buffers included."""
    own = dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])
    touched = {*(own[n] for n in changed), *(own[f.tensor] for f in folds)}
    saved = {t: t.detach().clone() for t in {*touched, *module.buffers()} if not t.is_meta}
    try:
        with torch.no_grad():
            for name, value in changed.items():
                own[name].copy_(value)
        fold(module, folds)
        yield
    finally:
        with torch.no_grad():
            for t, value in saved.items():
                t.copy_(value)


def confirm_fresh(module: nn.Module, config: Any, spec: Spec) -> Problem | None:
    """Return the problem of a fresh model of a transformers config; None if it is the same as the module.

    The fresh model must load the module's tensors strictly. Both run on the example inputs with random weights, whose scale is
    such that attention and routers tell tokens apart.
    """
    cls: Any = type(module)
    own = dict(module.state_dict())
    dtype = next((t.dtype for t in own.values() if t.is_floating_point()), torch.float32)
    try:
        with seeded(), silent_transformers():
            fresh, info = cls.from_pretrained(
                None, config=copy.deepcopy(config), state_dict=own, dtype=dtype, output_loading_info=True
            )
    except Exception as e:  # the class and the loader of transformers may raise anything
        return failure(e, module)
    if refused := [f"{k}: {sorted(map(str, v))[:3]}" for k, v in info.items() if v]:
        return Problem(f"it does not load strictly ({'; '.join(refused)})")
    return confirm_same_code(fresh.to(device_of(own)), module, spec)


def confirm_same_code(fresh: nn.Module, module: nn.Module, spec: Spec) -> Problem | None:
    """Return the problem of a module of the same class and sizes; None if it computes the same with the same random weights."""
    args, kwargs = example_inputs(dict(module.state_dict()), spec)
    expected: Any = _run_random(module, module, args, kwargs, spec)
    if isinstance(expected, Problem):
        return expected
    return _difference_of_same_code(_run_random(fresh, module, args, kwargs, spec), expected)


def _run_random(module: nn.Module, like: nn.Module, args: Any, kwargs: Any, spec: Spec) -> Any:
    """Return the output of a module with random values for the float parameters of `like`; a problem if it fails."""
    generator = torch.Generator().manual_seed(0)
    values = {n: _random_like(t, generator) for n, t in like.named_parameters() if t.is_floating_point()}
    values |= {n: t.clone() for n, t in module.named_buffers()}  # copies, because the module may write to its buffers
    with torch.no_grad(), seeded(), in_mode(module, spec.train), without_caches(module):
        try:
            return functional_call(module, values, args, kwargs)
        except Exception as e:  # the class's own code may raise anything at wrong sizes
            return failure(e, module)


def _difference_of_same_code(actual: Any, expected: Any) -> Problem | None:
    """Return how two outputs of the same code at the same sizes differ; None within rounding, or 1 % in low precision."""
    if isinstance(actual, Problem) or (problem := difference(actual, expected)) is not None:
        return actual if isinstance(actual, Problem) else problem
    xs, ys = (
        [t for t in trees.leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
        for output in (actual, expected)
    )
    for x, y in zip(xs, ys, strict=True):
        if not bool(y.isfinite().any()):
            return Problem("its output with random weights is not finite, so that nothing can be compared")
        gap, largest = (float(t.abs().nan_to_num(0, 0, 0).max()) for t in (x - y, y))
        if gap > min(ROUNDING * torch.finfo(x.dtype).eps, 0.01) * largest:
            return Problem(f"its output differs by {gap:.3g}")
    return None


def _random_like(t: Tensor, generator: torch.Generator) -> Tensor:
    """Return random values of the shape: a vector plus uniform noise in [0, 1/4), else Gaussian with variance 3 / columns."""
    if t.ndim < 2:
        return (t.detach().float().cpu() + torch.rand(t.shape, generator=generator) / 4).to(t)
    return (torch.randn(t.shape, generator=generator) * (3 / t.shape[-1]) ** 0.5).to(t)


@contextlib.contextmanager
def silent_transformers() -> Iterator[None]:
    """Turn off the log lines and progress bars of transformers for the block."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def confirm_by_twin(module: nn.Module, params: Params, spec: Spec, model: nn.Module) -> Problem | None:
    """Return the problem of a rebuilt module; None if it gives the outputs of the traced model with zeros for removed units.

    Serves recorded specs, which have no `forward`. Both run in float64, because rounding decides what a detector picks. If a
    group that lost units is not exact, the module has to run, and its own trace has to have the sizes of the spec.
    """
    if (twin := dense_twin(model, params, spec)) is None:
        return confirm_by_trace(module, spec)
    args, kwargs = trees.map_tensors(_to_double, spec.example.draw(device=device_of(params)))
    results = []
    for m in (module, twin):
        wide = copy.deepcopy(m).double()
        with torch.no_grad(), seeded(), in_mode(wide, spec.train), without_caches(wide):
            try:
                results.append(wide(*args, **kwargs))
            except Exception as e:  # the class's own code may raise anything at wrong sizes
                return failure(e, wide)
    problem = difference(*results)
    return None if problem is not None and problem.slight else problem


def _to_double(t: Tensor) -> Tensor:
    """Return floats in float64, other tensors unchanged."""
    return t.double() if t.is_floating_point() else t
