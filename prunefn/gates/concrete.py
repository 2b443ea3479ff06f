"""Hard-concrete gates: random numbers in [0, 1] that are exactly 0 or 1 with some probability (Louizos et al., ICLR 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from math import log

import torch
from torch import Tensor

from ..doors import door

BETA = 2 / 3
"""Temperature of the concrete distribution."""
LOW, HIGH = -0.1, 1.1
"""Interval that it is stretched to before it is clamped to [0, 1]."""


@door
def sample(logits: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Draw hard-concrete gates, differentiable by the logits: s = σ((log u − log(1 − u) + logit) / β), clamp(1.2 s − 0.1, 0, 1).

    Args:
        logits: group → [units].
        generator: of the CPU, which it advances.

    Returns:
        Group → [units], from 0 to 1, in float32 or the logits' wider dtype.

    >>> gates = sample({"a": torch.tensor([-9.0, 9.0])}, torch.Generator().manual_seed(0))
    >>> gates["a"]
    tensor([0., 1.])
    """
    out = {}
    for group, logit in logits.items():
        u = torch.rand(logit.shape, generator=generator, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
        u = u.to(logit.device, torch.promote_types(logit.dtype, torch.float32))
        s = torch.sigmoid((u.log() - (-u).log1p() + logit) / BETA)
        out[group] = (s * (HIGH - LOW) + LOW).clamp(0, 1)
    return out


@door
def expected_units(logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the expected number of gates of each group that are not zero, a scalar: the units of `soft_cost`.

    Args:
        logits: group → [units].

    >>> expected_units({"a": torch.tensor([-9.0, 9.0, 9.0])})
    {'a': tensor(2.0006)}
    """
    return {group: open_probability(logit).sum() for group, logit in logits.items()}


def open_probability(logits: Tensor) -> Tensor:
    """Return the probability that a gate is not zero, of the logits' shape."""
    return torch.sigmoid(logits - BETA * log(-LOW / HIGH))
