"""The outputs that a rebuilt module has to give: those of `forward`, on the traced inputs and at other sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import PruneError
from ..parameters.transforms import tied_names
from ..program.run import forward, forward_train
from ..spec.spec import Spec
from ..tracing.caches import without_caches
from ..tracing.capture import in_mode
from ..tracing.unchanged import Writes, buffer_copies, seed_torch, unchanged
from ..types import Params
from .fold import example_inputs

OTHER_SIZES = (2, 1)
"""Sizes to try besides the traced ones, where sizes may vary."""


class Run(NamedTuple):
    """A call, and its output."""

    args: Any
    kwargs: Any
    output: Any
    """Of `forward`."""
    model_runs: Callable[[], bool]
    """Whether the traced model accepts such a call: its code may refuse inputs that the program takes."""


class Expected(NamedTuple):
    """The outputs that a rebuilt module has to give."""

    changed: Params
    """Random values for constant tensors (fresh norms, branches that start at zero), so that no error hides behind a zero."""
    runs: tuple[Run, ...]
    """At the traced sizes, with the traced integers, then at other sizes."""


def expect(params: Params, spec: Spec, model: nn.Module) -> Expected:
    """Run `forward` on inputs like the traced ones, and return the expected outputs.

    Args:
        params, spec: of the pruned network.
        model: that was traced.

    Raises:
        PruneError: `forward` fails at the traced sizes.
    """
    generator, first_names = torch.Generator().manual_seed(0), tied_names(params, spec)
    changed = {n: t + _noise_like(t, generator) for n, t in params.items() if n not in first_names and _is_constant(t)}
    values = {**params, **changed}
    values |= {second: values[first] for second, first in first_names.items()}
    try:
        runs = [_run(params, values, spec, None, lambda: True)]
    except (RuntimeError, NotImplementedError, TypeError) as error:  # of the ops of the program
        raise PruneError(
            f"the class cannot be confirmed, since forward fails on inputs like the traced ones: {error!s:.300}; "
            f"give params of the type and on the device that the model was traced with (they have {_types_text(params)})"
        ) from error
    traced = spec.example.sizes
    for size in OTHER_SIZES:
        if spec.example.domain.nearest(size, traced) != traced:
            with contextlib.suppress(RuntimeError, IndexError, ValueError, NotImplementedError, PruneError):
                # a table may lack what an index that was traced with it says
                runs.append(_run(params, values, spec, size, cache(lambda size=size: _accepts(model, spec, size))))
    return Expected(changed, tuple(runs))


def _run(params: Params, values: Params, spec: Spec, size: int | None, model_runs: Callable[[], bool]) -> Run:
    """Return the output of `forward` with these values, on inputs of this size; None: the traced one."""
    args, kwargs = example_inputs(params, spec, batch=size)
    with torch.no_grad(), seeded():
        y = (forward_train if spec.train else forward)(values, *args, spec=spec, **kwargs)
    return Run(args, kwargs, y[0] if spec.train else y, model_runs)


def _accepts(model: nn.Module, spec: Spec, size: int) -> bool:
    """Return whether the traced model runs on inputs of this size; the model is left unchanged."""
    args, kwargs = example_inputs(dict(model.named_parameters()), spec, batch=size)
    try:
        with in_mode(model, spec.train), unchanged(model), without_caches(model), torch.no_grad(), Writes(model):
            functional_call(model, buffer_copies(model), args, kwargs)
    except Exception:  # the model's own code may raise anything
        return False
    return True


def _types_text(params: Params) -> str:
    """Return all types and devices of the params as a text."""
    return ", ".join(sorted({f"{t.dtype} on {t.device}" for t in params.values()}))


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Seed torch's generator of the CPU for the block, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        seed_torch(0)
        yield


def _is_constant(t: Tensor) -> bool:
    """Return whether all of several floats are equal; False on `meta`."""
    return t.is_floating_point() and not t.is_meta and t.numel() > 1 and bool((t == t.flatten()[0]).all())


def _noise_like(t: Tensor, generator: torch.Generator) -> Tensor:
    """Return noise of the shape: uniform in [0, 1/4) for vectors, else Gaussian with variance 1 / inputs of a row."""
    if t.ndim < 2:
        return (torch.rand(t.shape, generator=generator) / 4).to(t)
    return (torch.randn(t.shape, generator=generator) / t[0].numel() ** 0.5).to(t)
