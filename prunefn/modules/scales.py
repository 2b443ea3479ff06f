"""Whether two modules of the same code scale their values by the same numbers, which one run of each shows without a trace."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from .. import trees
from ..spec.spec import Spec
from ..tracing.caches import without_caches
from ..tracing.capture import in_mode
from ..tracing.unchanged import buffer_copies, unchanged
from ..types import Params
from .expected import seeded
from .fold import example_inputs

SCALING = re.compile(r"(mul|div|multiply|divide)_*$")
"""Names of functions whose whole numbers are factors; those of other functions are mostly sizes."""
BY_WIDTH = re.compile(r"(scaled_dot_product_attention|multi_head_attention_forward)$")
"""Names of functions that may compute a factor from the width of what they read."""

Numbers = tuple[tuple[str, tuple[Any, ...]], ...]
"""Functions of torch in the order of their calls, each with the numbers that may scale."""


def compare_scales(model: nn.Module, params: Params, spec: Spec) -> Callable[[nn.Module], bool]:
    """Return a function that says whether a rebuilt module may scale its values by other numbers than the traced model.

    If it does not, no fold helps. What cannot be told from a run may differ.
    """

    @cache
    def numbers_of_model() -> Numbers | None:
        # inputs with fewer positions are no inputs of the model
        return None if spec.program.interfaces else scaling_numbers(model, *inputs(), train=spec.train)

    def inputs() -> tuple[Any, Any]:
        return example_inputs(params, spec)

    def may_differ(module: nn.Module) -> bool:
        expected = numbers_of_model()
        return expected is None or scaling_numbers(module, *inputs(), train=spec.train) != expected

    return may_differ


def scaling_numbers(module: nn.Module, args: Any, kwargs: Any, *, train: bool) -> Numbers | None:
    """Run a module and return the numbers that may scale its values; None if they cannot be told from a run.

    The module is left unchanged.

    >>> attend = nn.Module()
    >>> attend.width, attend.forward = 16, lambda x: torch.relu(x * attend.width**-0.5).reshape(-1, 16) / 2
    >>> scaling_numbers(attend, (torch.ones(2, 16),), {}, train=False)
    (('torch.Tensor.mul', (0.25,)), ('torch.relu', ()), ('torch.Tensor.reshape', ()), ('torch.Tensor.div', (2,)))
    """
    if any(isinstance(m, torch.jit.ScriptModule) for m in module.modules()):
        return None  # its calls are not seen
    recorder = _Recorder()
    try:
        with in_mode(module, train), unchanged(module), without_caches(module), torch.no_grad(), seeded(), recorder:
            torch.func.functional_call(module, buffer_copies(module), args, kwargs)
    except Exception:  # the class's own code may raise anything
        return None
    return tuple(recorder.calls)


class _Recorder(TorchFunctionMode):
    """Records the calls of functions of torch, with the numbers that may scale."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = resolve_name(func) or getattr(func, "__name__", str(func))
        kwargs = kwargs or {}
        if not name.endswith(("__get__", "__set__")):
            self.calls.append((name, _numbers(name, (args, dict(kwargs)))))
        return func(*args, **kwargs)


def _numbers(name: str, arguments: Any) -> tuple[Any, ...]:
    """Return the floats and the single numbers in tensors among arguments; factors that are whole numbers; widths that scale."""
    is_factor, by_width = SCALING.search(name), BY_WIDTH.search(name)
    out: list[Any] = []
    for x in trees.leaves(arguments):
        if isinstance(x, Tensor):
            if x.numel() == 1 and not x.is_meta:
                out.append(x.item())
            elif by_width and x.ndim:
                out.append(("width", x.shape[-1]))
        elif isinstance(x, float) or (is_factor and type(x) is int):
            out.append(x)
    return tuple(out)
