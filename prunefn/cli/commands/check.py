"""The command `prunefn load-check`."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ...costs.analytic import cost
from ...costs.summary import summarize
from ...display.units import quantity
from ...errors import PruneError
from ...parameters.transforms import params as params_of
from ...trees import tensors
from ..command import Job, Result
from ..resources import network_of, optional_data, zero_fraction
from ..sections import Config


def run(job: Job) -> Result:
    """Run the command."""
    from ...program.run import forward

    config = job.config
    if config.model.checkpoint is None:
        raise PruneError("there is nothing to check; give --checkpoint")
    data = optional_data(config)
    dense, network = network_of(config, data, dense=True), network_of(config, data)
    spec, before = network.spec(), cost(dense.spec())
    with torch.no_grad():
        output = network.model(*network.example, **network.keywords)
        of_program = forward(params_of(network.model), *network.example, spec=spec, **network.keywords)
    pairs = list(zip(tensors(output), tensors(of_program), strict=True))
    finite = all(bool(torch.isfinite(a).all()) for a, _ in pairs)
    worst = max((float((a - b).abs().max()) for a, b in pairs if a.numel()), default=0.0)
    if not finite:
        raise PruneError(f"{config.model.checkpoint} loads, but {network.name} gives outputs that are not finite")
    after = cost(spec)
    result: Result = summarize(before, after)
    result |= {"sparsity": zero_fraction(network.model), "difference": worst, "class": type(network.model).__name__}
    job.show(
        f"{config.model.checkpoint} loads into {result['class']} and runs; it differs from its program by {worst:.1e}"
    )
    job.show(
        f"{quantity(after.macs, 'MACs')} of {quantity(before.macs, 'MACs')}, "
        f"{quantity(after.params, 'params')} of {quantity(before.params, 'params')}, "
        f"{result['sparsity']:.1%} of the weights zero"
    )
    return result


def plan(config: Config) -> Iterable[str]:
    """Yield the steps."""
    yield f"build {config.model.name}, load {config.model.checkpoint or 'nothing: give --checkpoint'}"
    yield "run it, compare it with its traced program, print what it costs"
