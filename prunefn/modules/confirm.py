"""Is a rebuilt module what `forward` computes? Found out by running both."""

from __future__ import annotations

import contextlib
import copy
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import trees
from ..errors import PruneError
from ..parameters.transforms import tied_names
from ..program.batches import device_of
from ..program.run import forward, forward_train
from ..spec.axis import size
from ..spec.spec import Spec
from ..tracing.api import trace
from ..tracing.capture import in_mode
from ..tracing.unchanged import seed_torch
from ..types import Params
from .fold import Fold, example_inputs, fold
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
        args, kwargs = example_inputs(params, spec, batch=batch)
        with torch.no_grad(), _seeded():
            run = forward_train if spec.train else forward
            try:
                y = run(values, *args, spec=spec, **kwargs)
            except (RuntimeError, NotImplementedError, TypeError) as error:  # of the ops of the program
                raise PruneError(
                    f"the class cannot be confirmed, since forward fails on random inputs like the traced ones: {error!s:.300}; "
                    f"give params of the type and on the device that the model was traced with (they have {_types(params)})"
                ) from error
        runs.append((args, kwargs, y[0] if spec.train else y))
    return Expected(changed, tuple(runs))


def _types(params: Params) -> str:
    return ", ".join(sorted({f"{t.dtype} on {t.device}" for t in params.values()}))


def confirm(module: nn.Module, expected: Expected, folds: Sequence[Fold], *, train: bool) -> Problem | None:
    """What is wrong with a rebuilt module in which the folds are in force; None if it gives what is expected.

    A slight problem is one only if the folds can mend it.
    """
    slight = None
    for args, kwargs, output in expected.runs:
        with (  # for each run, since a module may write to its buffers, whatever its mode
            _exercised(module, expected.changed, folds),
            in_mode(module, train),
            torch.no_grad(),
            _seeded(),
        ):
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
        seed_torch(0)
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
    found = [(i.op, x) for i in spec.program.instructions for x in trees.leaves((i.args, i.kwargs))]
    return [(op, x) for op, x in found if isinstance(x, float)]


def _other_sizes(other: Spec, spec: Spec) -> Problem | None:
    """The first tensor or group whose size differs in the trace of a rebuilt module."""
    for name, axes in spec.axes.items():
        mine = tuple(size(a, spec.sizes) for a in axes)
        theirs = tuple(size(a, other.sizes) for a in other.axes.get(name, ()))
        if name in other.axes and mine != theirs:
            return Problem(f"{name!r} has shape {theirs} instead of {mine}")
    for g in spec.groups.values():  # by what they run through: where one is down to a unit, others get its name
        alike = [h.size for h in other.groups.values() if (h.kind, h.members) == (g.kind, g.members)]
        if alike and spec.sizes[g.name] not in alike:
            return Problem(f"group {g.name!r} has {alike[0]} units instead of {spec.sizes[g.name]}")
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


def confirm_fresh(module: nn.Module, config: Any, spec: Spec) -> Problem | None:
    """What is wrong with a fresh model of a transformers config; None if it loads the module's tensors strictly and is the module.

    Both run on the example inputs with random weights of such a scale that attention and routers do not treat all alike.
    """
    cls: Any = type(module)
    own = dict(module.state_dict())
    dtype = next((t.dtype for t in own.values() if t.is_floating_point()), torch.float32)
    try:
        with _seeded(), _unheard():
            fresh, info = cls.from_pretrained(
                None, config=copy.deepcopy(config), state_dict=own, dtype=dtype, output_loading_info=True
            )
    except Exception as e:  # the class and the loader of the library check in their own ways
        return _failure(e)
    if refused := [f"{k}: {sorted(map(str, v))[:3]}" for k, v in info.items() if v]:
        return Problem(f"it does not load strictly ({'; '.join(refused)})")
    args, kwargs = example_inputs(own, spec)
    mine: Any = _run_random(module, module, args, kwargs, spec)
    return (
        mine
        if isinstance(mine, Problem)
        else _same(_run_random(fresh.to(device_of(own)), module, args, kwargs, spec), mine)
    )


def _run_random(module: nn.Module, like: nn.Module, args: Any, kwargs: Any, spec: Spec) -> Any:
    """What a module gives with random numbers in the float parameters that it has as another has; a problem where it fails."""
    generator = torch.Generator().manual_seed(0)
    values = {n: _random(t, generator) for n, t in like.named_parameters() if t.is_floating_point()}
    values |= {n: t.clone() for n, t in module.named_buffers()}  # which it may write to
    with torch.no_grad(), _seeded(), in_mode(module, spec.train):
        try:
            return functional_call(module, values, args, kwargs)
        except Exception as e:  # the class's own code may raise anything at wrong sizes
            return _failure(e)


def _same(got: Any, expected: Any) -> Problem | None:
    """The same code at the same sizes differs by less than rounding, whatever the precision."""
    if isinstance(got, Problem) or (problem := _difference(got, expected)) is not None:
        return got if isinstance(got, Problem) else problem
    a, b = ([x for x in trees.leaves(y) if isinstance(x, Tensor) and x.is_floating_point()] for y in (got, expected))
    for x, y in zip(a, b, strict=True):
        if not bool(y.isfinite().any()):
            return Problem("its output with random weights is not finite, so that nothing can be compared")
        gap, largest = (float(t.abs().nan_to_num(0, 0, 0).max()) for t in (x - y, y))
        if gap > min(ROUNDING * torch.finfo(x.dtype).eps, 0.01) * largest:
            return Problem(f"its output differs by {gap:.3g}")
    return None


def _random(t: Tensor, generator: torch.Generator) -> Tensor:
    if t.ndim < 2:
        return (t.detach().float().cpu() + torch.rand(t.shape, generator=generator) / 4).to(t)
    return (torch.randn(t.shape, generator=generator) * (3 / t.shape[-1]) ** 0.5).to(t)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Without the lines and bars of the transformers library."""
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
    """What is wrong with a rebuilt module; None if it gives what the traced model gives with zeros for what was removed.

    For recorded specs, which have no `forward`. In float64, because rounding decides what a detector picks. Where a group
    that lost units is not exact, it has to run, and its own trace has to have the sizes of the spec.
    """
    if (twin := dense_twin(model, params, spec)) is None:
        return confirm_by_trace(module, spec)
    args, kwargs = trees.map_tensors(_widened, spec.example.draw(device=device_of(params)))
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
    a, b = (trees.tensors(y) for y in (got, expected))
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
