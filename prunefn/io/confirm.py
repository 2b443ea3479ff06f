"""Is a rebuilt module what `forward` computes? Found out by running both."""

from __future__ import annotations

import contextlib
import copy
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..batches import device_of
from ..forward import forward, forward_train
from ..params import tied_names
from ..trace.api import trace
from ..trace.capture import in_mode
from ..trace.expr import size
from ..trace.spec import Spec
from ..types import Params
from .fold import Fold, fold
from .twin import dense_twin


class Problem(NamedTuple):
    """What is wrong with a rebuilt module."""

    text: str
    owner: str = ""
    """Class of the module whose code failed; empty where it runs, but not rightly."""
    slight: bool = False
    """Whether it may be rounding, though more than usual: a scale that hardly shows in outputs may be wrong."""


ROUNDING = 256
"""Times the precision and the largest output: differences below that are rounding and nothing else."""


class Expected(NamedTuple):
    """What a rebuilt module has to give."""

    changed: Params
    """Random values for tensors that are constant (fresh norms, branches that start at zero): nothing hides behind a zero."""
    runs: tuple[tuple[Any, Any, Any], ...]
    """(args, kwargs, output of `forward`), at two batch sizes."""


def expect(params: Params, spec: Spec) -> Expected:
    """Run `forward` on random inputs like the traced ones."""
    generator, first = torch.Generator().manual_seed(0), tied_names(params, spec)
    changed = {n: t + _noise(t, generator) for n, t in params.items() if n not in first and _constant(t)}
    values = {**params, **changed}
    values |= {second: values[name] for second, name in first.items()}
    runs = []
    for batch in (2, 1):
        args, kwargs = spec.example.draw(batch=batch, device=device_of(params))
        with torch.no_grad(), _seeded():
            run = forward_train if spec.train else forward
            y = run(values, *args, spec=spec, **kwargs)
        runs.append((args, kwargs, y[0] if spec.train else y))
    return Expected(changed, tuple(runs))


def confirm(module: nn.Module, expected: Expected, folds: Sequence[Fold], *, train: bool) -> Problem | None:
    """What is wrong with a rebuilt module in which the folds are in force; None if it gives what is expected.

    A slight problem is one only if the folds can mend it.
    """
    slight = None
    with _exercised(module, expected.changed, folds), in_mode(module, train):
        for args, kwargs, output in expected.runs:
            with torch.no_grad(), _seeded():
                try:
                    got = module(*args, **kwargs)
                except Exception as e:  # the class's own code may raise anything at wrong sizes
                    return _failure(e)
            problem = _difference(got, output)
            if problem is not None and not problem.slight:
                return problem
            slight = slight or problem
    return slight


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def confirm_by_trace(module: nn.Module, spec: Spec) -> Problem | None:
    """What is wrong with a rebuilt module; None if it runs, and its own trace has the axes and sizes of the spec.

    For specs that cannot be run, and for tensors that were not made by this library, whose scales are the class's own.
    """
    args, kwargs = spec.example.draw(device=next((t.device for t in module.parameters()), "cpu"))
    with torch.no_grad(), _seeded(), in_mode(module, spec.train):
        try:
            module(*args, **kwargs)
        except Exception as e:  # the class's own code may raise anything at wrong sizes
            return _failure(e)
    return _other_sizes(trace(module, args, kwargs, train=spec.train), spec)


def confirm_without_numbers(module: nn.Module, spec: Spec) -> Problem | None:
    """The same for a module on `meta`: its code is run by the trace only, since it may look at numbers where it runs freely.

    Scales that the class computes must be those of the spec's program, too: the tensors are as `apply` leaves them.
    """
    args, kwargs = spec.example.draw(device="meta")
    try:
        other = trace(module, args, kwargs, train=spec.train)
    except Exception as e:  # the class's own code may raise anything at wrong sizes
        return _failure(e)
    if (mine := _scales(other)) != (theirs := _scales(spec)):
        op, value = next(x for x in (*mine, *theirs) if mine.count(x) != theirs.count(x))
        return Problem(f"the class computes {value:.6g} for {op} in one of its sizes, and another number in the other")
    return _other_sizes(other, spec)


def _scales(spec: Spec) -> list[tuple[str, float]]:
    """The floats of a program, with their ops."""
    found = [(i.op, x) for i in spec.program.instructions for x in pytree.tree_leaves((i.args, i.kwargs))]
    return [(op, x) for op, x in found if isinstance(x, float)]


def _other_sizes(other: Spec, spec: Spec) -> Problem | None:
    """The first tensor or group whose size differs in the trace of a rebuilt module."""
    for name, axes in spec.axes.items():
        mine = tuple(size(a, spec.sizes) for a in axes)
        theirs = tuple(size(a, other.sizes) for a in other.axes.get(name, ()))
        if name in other.axes and mine != theirs:
            return Problem(f"{name!r} has shape {theirs} instead of {mine}")
    wrong = [g for g, n in spec.sizes.items() if other.sizes.get(g, n) != n]  # groups of one unit are groups no more
    if wrong:
        return Problem(f"group {wrong[0]!r} has {other.sizes[wrong[0]]} units instead of {spec.sizes[wrong[0]]}")
    return None


@contextlib.contextmanager
def _exercised(module: nn.Module, changed: Params, folds: Sequence[Fold]) -> Iterator[None]:
    """The module with other values and the folds, and afterwards as it was, buffers included."""
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


def _constant(t: Tensor) -> bool:
    return t.is_floating_point() and not t.is_meta and t.numel() > 1 and bool((t == t.flatten()[0]).all())


def _noise(t: Tensor, generator: torch.Generator) -> Tensor:
    if t.ndim < 2:
        return (torch.rand(t.shape, generator=generator) / 4).to(t)
    return (torch.randn(t.shape, generator=generator) / t[0].numel() ** 0.5).to(t)


def confirm_by_twin(module: nn.Module, params: Params, spec: Spec, model: nn.Module) -> Problem | None:
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
        with torch.no_grad(), _seeded(), in_mode(wide, spec.train):
            try:
                results.append(wide(*args, **kwargs))
            except Exception as e:  # the class's own code may raise anything at wrong sizes
                return _failure(e)
    problem = _difference(*results)
    return None if problem is not None and problem.slight else problem


def _widened(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t


def _failure(error: Exception) -> Problem:
    """The innermost line outside of torch, and the class of the module that it belongs to."""
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [f for f in frames if not {"torch", "prunefn"}.intersection(f[0].f_code.co_filename.split("/"))] or frames
    frame, line = own[-1]
    owners = [type(m).__qualname__ for f, _ in own if isinstance(m := f.f_locals.get("self"), nn.Module)]
    source = f"{frame.f_code.co_filename.rpartition('site-packages/')[2]}:{line}"
    text = f"{type(error).__name__} at {source}: {str(error)[:300]}"
    return Problem(text, owners[-1] if owners else "")


def _difference(got: Any, expected: Any) -> Problem | None:
    a, b = ([x for x in pytree.tree_leaves(y) if isinstance(x, Tensor)] for y in (got, expected))
    if [tuple(x.shape) for x in a] != [tuple(x.shape) for x in b]:
        return Problem(
            f"its outputs have shapes {[tuple(x.shape) for x in a]} instead of {[tuple(x.shape) for x in b]}"
        )
    slight = None
    for x, y in zip(a, b, strict=True):
        if x.is_meta or not x.numel() or not (x.is_floating_point() or x.is_complex()):
            continue
        eps, largest = torch.finfo(x.dtype).eps, float(y.abs().nan_to_num(0, 0).max())
        limit = eps**0.5 * max(1.0, largest)
        gap = (x - y).abs().nan_to_num(0.0 if torch.equal(x.isnan(), y.isnan()) else float("inf"))
        if float(gap.max()) > limit:
            return Problem(f"its output differs by {float(gap.max()):.3g}")
        if float(gap.max()) > ROUNDING * eps * largest:
            slight = Problem(f"its output differs by {float(gap.max()):.3g}", slight=True)
    return slight
