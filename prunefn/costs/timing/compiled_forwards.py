"""Networks by torch.compile: whole forwards, and the seconds of each part by its share of an eager forward."""

from __future__ import annotations

from typing import Any

import torch

from ... import trees
from ...modules.graph import graph_module
from ...program.inputs import flat_inputs
from ...sparse.layouts import weights
from ...spec.program import Instruction
from ...spec.spec import Spec
from ...types import Params
from .clock import WARM_UP, Call, clock_for, quiet
from .loaded import Loaded, Part
from .walk import Env, machine, used, walk


def load(params: Params, spec: Spec, inputs: tuple[Any, Any]) -> Loaded:
    """Compile the network for these inputs; the first forward takes the time of the compiler."""
    args, kwargs = inputs
    module = torch.compile(graph_module(params, spec).eval().requires_grad_(False), dynamic=False)
    parts, numbers = program_parts(spec)
    device = next((t.device for t in trees.tensors(inputs)), torch.device("cpu"))

    def profile(rounds: int) -> dict[int, float]:
        clock, times = clock_for(device), dict[str, list[float]]()
        m = machine(spec, params, flat_inputs(spec, args, kwargs), device)

        def timed(ins: Instruction, call: Call, _: Env) -> Any:
            result, seconds = clock.run(call)
            times.setdefault(ins.name, []).append(seconds)
            return result

        for _ in range(WARM_UP + rounds):
            walk(m, timed)
        out: dict[int, float] = {}
        for name, seconds in times.items():
            out[numbers[name]] = out.get(numbers[name], 0.0) + quiet(seconds[WARM_UP:])
        return out

    return Loaded(parts, Call("whole", "torch.compile", module, args, kwargs), profile)


def program_parts(spec: Spec) -> tuple[tuple[Part, ...], dict[str, int]]:
    """Return the parts of a program, and instruction → number of its part.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> parts, numbers = program_parts(pf.trace(model, (torch.randn(2, 4),)))
    >>> [p.weight for p in parts], list(numbers.values())
    (['', '0.weight', '2.weight'], [1, 1, 2])
    """
    layouts, parts = weights(spec), [Part("", ())]
    numbers: dict[str, int] = {}
    for ins in spec.program.instructions:
        reads = used(ins)
        weight = next((n for n in reads if n in layouts), None)
        number = max((numbers.get(n.removeprefix("%"), 0) for n in reads), default=0)
        if weight is not None:
            number = len(parts)
            parts.append(Part(weight, spec.axes[weight]))
        numbers[ins.name] = number
    return tuple(parts), numbers
