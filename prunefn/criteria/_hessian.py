"""Diagonal of the Hessian: LeCun, Denker, Solla, "Optimal Brain Damage", NeurIPS 1989, for units, estimated as in Hutchinson's
trace estimator (Bekas, Kokiopoulou, Saad, 2007)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..doors import door
from ..errors import PruneError
from ..program.batches import device_of
from ..spec.spec import Spec
from ..types import Batch, Collector, Criterion, Params, Scores, Stats
from .base import collected
from .gradients import Loss, Objective, Tensors, cross_entropy, loss_name
from .unit_mask import ones


class HessianDiagonal(NamedTuple):
    """Collector of Σ over samples of the mean over probes v of v ⊙ (H v): group → [units]."""

    loss: Loss
    probes: int
    seed: int

    def __call__(self, params: Params, batch: Batch, spec: Spec) -> Mapping[str, Tensor]:
        objective = Objective("hessian", self.loss)
        inputs, rest, _, terms = objective.data(params, batch, spec)
        at = ones(spec, device_of(params))
        value = objective.of_masks(params, spec, at)
        total = {g: torch.zeros_like(m) for g, m in at.items()}
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivatives
            for v in rademacher(at, self.probes, self.seed):
                hv = _hessian_vector_product(lambda masks: value(masks, inputs, rest), at, v)
                total = {g: t + v[g] * hv[g] * (terms / self.probes) for g, t in total.items()}
        return total


@door
def hessian(loss: Loss = cross_entropy, *, probes: int = 8, seed: int = 0) -> Criterion:
    """Score units by ∂²L/∂m² at a mask m of ones on the units (see `mask_params`), with Hutchinson's estimator.

    Every group has a score: the mean of v ⊙ (H v) over probes v of ±1. Its expectation is the diagonal of H; its error comes
    from the off-diagonal entries and falls with √probes. All batches use the same probes. Scores may be below zero. The factor
    ½ of the paper is left out.

    Args:
        loss: as in `taylor`.
        probes: number of probes; each costs about two gradients.
        seed: of the probes.

    Raises:
        PruneError: probes is below one.
        BatchError: (when collected) a batch has no labels.
        StatsError: (when scored) the derivatives were not collected; pass the criterion to `collect_stats`.
    """
    if probes < 1:
        raise PruneError(f"hessian's probes are {probes}; there must be 1 or more, such as 8")
    name = f"Hessian diagonal of {loss_name(loss)}, {probes} probes, seed {seed}"
    collector = Collector(name, HessianDiagonal(loss, probes, seed))
    score = partial(_score, collector=collector, call=f"hessian(…, probes={probes}, seed={seed})")
    return Criterion("hessian", score, (), (collector,), increments=True)


def rademacher(like: Mapping[str, Tensor], probes: int, seed: int) -> list[Tensors]:
    """Return random vectors of ±1 in the shapes of `like`, one dict for each probe."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {g: (torch.randint(2, m.shape, generator=generator) * 2.0 - 1).to(m) for g, m in like.items()}
        for _ in range(probes)
    ]


def _hessian_vector_product(f: Callable[[Tensors], Tensor], at: Tensors, v: Tensors) -> Tensors:
    """Return H v: forward over reverse mode, or reverse over reverse where an op has no forward derivative."""
    try:
        return jvp(grad(f), (at,), (v,))[1]
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, RuntimeError):  # if the fault is another one, the fallback meets it, too
        return grad(lambda masks: sum((g * v[n]).sum() for n, g in grad(f)(masks).items()))(at)


def _score(stats: Stats, *, collector: Collector, call: str) -> Scores:
    sums = collected(stats, collector, "hessian", call)
    return {g: s / max(stats.samples, 1) for g, s in sums.items()}
