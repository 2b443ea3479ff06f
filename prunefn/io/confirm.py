"""Is a rebuilt module what `forward` computes? Found out by running both."""

from __future__ import annotations

import contextlib
import copy
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..batches import device_of
from ..forward import forward, forward_train
from ..trace.api import trace
from ..trace.capture import in_mode
from ..trace.expr import size
from ..trace.spec import Spec
from ..types import Params
from .fold import Fold, fold
from .twin import dense_twin

DIFFERS = "its output differs from forward's"


def confirm(module: nn.Module, params: Params, spec: Spec, folds: Sequence[Fold]) -> str | None:
    """What is wrong with a rebuilt module; None if it gives `forward`'s output on random inputs of two batch sizes.

    Meanwhile the folds are in force, and tensors that are constant (fresh norms, branches that start at zero) have random
    values, so that nothing hides behind a zero.
    """
    with _exercised(module, params, folds) as values:
        for batch in (2, 1):
            if (problem := _compare(module, values, spec, batch)) is not None:
                return problem
    return None


def confirm_by_trace(module: nn.Module, spec: Spec) -> str | None:
    """What is wrong with a rebuilt module; None if it runs, and its own trace has the axes and sizes of the spec.

    For specs that cannot be run, and for tensors that were not made by this library, whose scales are the class's own.
    """
    args, kwargs = spec.example.draw(device=next((t.device for t in module.parameters()), "cpu"))
    with torch.no_grad(), torch.random.fork_rng(devices=[]), in_mode(module, spec.train):
        try:
            module(*args, **kwargs)
        except Exception as e:  # the class's own code may raise anything at wrong sizes
            return f"{type(e).__name__} at {_source(e)}: {str(e)[:300]}"
    other = trace(module, args, kwargs, train=spec.train)
    for name, axes in spec.axes.items():
        mine = tuple(size(a, spec.sizes) for a in axes)
        theirs = tuple(size(a, other.sizes) for a in other.axes.get(name, ()))
        if name in other.axes and mine != theirs:
            return f"{name!r} has shape {theirs} instead of {mine}"
    wrong = [g for g, n in spec.sizes.items() if other.sizes.get(g, n) != n]  # groups of one unit are groups no more
    return f"group {wrong[0]!r} has {other.sizes[wrong[0]]} units instead of {spec.sizes[wrong[0]]}" if wrong else None


@contextlib.contextmanager
def _exercised(module: nn.Module, params: Params, folds: Sequence[Fold]) -> Iterator[Params]:
    """Params without constant tensors, also in the module, which is put back afterwards, buffers included."""
    own = dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])
    values, once = dict(params), dict[Tensor, Tensor]()
    generator = torch.Generator().manual_seed(0)
    for name, t in params.items():
        if t.is_floating_point() and not t.is_meta and t.numel() > 1 and bool((t == t.flatten()[0]).all()):
            if own[name] not in once:
                once[own[name]] = t + _noise(t, generator)
            values[name] = once[own[name]]
    folded = [own[f.tensor] for f in folds]
    buffers = [t for t in module.buffers() if not t.is_meta]
    saved = {t: t.detach().clone() for t in {*once, *folded, *buffers}}
    try:
        with torch.no_grad():
            for t, value in once.items():
                t.copy_(value)
        fold(module, folds)
        yield values
    finally:
        with torch.no_grad():
            for t, value in saved.items():
                t.copy_(value)


def _noise(t: Tensor, generator: torch.Generator) -> Tensor:
    if t.ndim < 2:
        return (torch.rand(t.shape, generator=generator) / 4).to(t)
    return (torch.randn(t.shape, generator=generator) / t[0].numel() ** 0.5).to(t)


def _compare(module: nn.Module, params: Params, spec: Spec, batch: int | None) -> str | None:
    args, kwargs = spec.example.draw(batch=batch, device=device_of(params))
    run = forward_train if spec.train else forward
    with torch.no_grad(), torch.random.fork_rng(devices=[]), in_mode(module, spec.train):
        torch.manual_seed(0)
        expected = run(params, *args, spec=spec, **kwargs)
        torch.manual_seed(0)
        try:
            got = module(*args, **kwargs)
        except Exception as e:  # the class's own code may raise anything at wrong sizes
            return f"{type(e).__name__} at {_source(e)}: {str(e)[:300]}"
    return _difference(got, expected[0] if spec.train else expected)


def confirm_by_twin(module: nn.Module, params: Params, spec: Spec, model: nn.Module) -> str | None:
    """What is wrong with a rebuilt module; None if it gives what the traced model gives with zeros for what was removed.

    For recorded specs, which have no `forward`. In float64, because rounding decides what a detector picks. Where a group
    that lost units is not exact, it has to run, and its own trace has to have the sizes of the spec.
    """
    if (twin := dense_twin(model, params, spec)) is None:
        return confirm_by_trace(module, spec)
    args, kwargs = pytree.tree_map_only(Tensor, _widened, spec.example.draw(device=device_of(params)))
    results = []
    for m in (module, twin):
        wide = copy.deepcopy(m).double()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), in_mode(wide, spec.train):
            torch.manual_seed(0)
            try:
                results.append(wide(*args, **kwargs))
            except Exception as e:  # the class's own code may raise anything at wrong sizes
                return f"{type(e).__name__} at {_source(e)}: {str(e)[:300]}"
    return _difference(*results)


def _widened(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t


def _source(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/torch/" not in f.filename and "/prunefn/" not in f.filename]
    frame = (own or frames)[-1]
    return f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno}"


def _difference(got: Any, expected: Any) -> str | None:
    a, b = ([x for x in pytree.tree_leaves(y) if isinstance(x, Tensor)] for y in (got, expected))
    if [tuple(x.shape) for x in a] != [tuple(x.shape) for x in b]:
        return f"its outputs have shapes {[tuple(x.shape) for x in a]} instead of {[tuple(x.shape) for x in b]}"
    for x, y in zip(a, b, strict=True):
        if x.is_meta or not x.numel() or not (x.is_floating_point() or x.is_complex()):
            continue
        limit = torch.finfo(x.dtype).eps ** 0.5 * max(1.0, float(y.abs().nan_to_num(0, 0).max()))
        gap = (x - y).abs().nan_to_num(0.0 if torch.equal(x.isnan(), y.isnan()) else float("inf"))
        if float(gap.max()) > limit:
            return f"{DIFFERS} by {float(gap.max()):.3g}"
    return None
