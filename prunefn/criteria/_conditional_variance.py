"""Variance that the other units do not explain: the optimal-brain-surgeon score of a layer's inputs.

With the best affine compensation (`compensation.affine`), losing input j of y = W x costs ‖W[:, j]‖² / [C⁻¹]_jj, where 1 / [C⁻¹]_jj
is the variance of x_j given all others: Hassibi and Stork, "Second Order Derivatives for Network Pruning", NeurIPS 1992, for a
linear layer; OB²C (arXiv 2608.17657).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .._shapes import Float
from ..doors import door
from ..errors import PruneError, StatsError
from ..spec.axis import size
from ..spec.parts import Site
from ..types import Criterion, Moments, Scores, Stats
from .base import column_squares, measured, over_sites, spec_of, sum_positions


@door
def conditional_variance(ridge: float = 1e-4) -> Criterion:
    """‖W[:, j]‖² / [C⁻¹]_jj at the inputs of the group's consumers, averaged over sites.

    C: covariance of the inputs, of a grouped convolution for each of its groups; the ridge is added first. It says what is lost
    with a single unit: of two equal ones, each is nothing beside the other, and both score low. A unit that stands at several
    positions (a head) has the sum over them, each given all others: what they share is not counted.

    Args:
        ridge: share of the mean variance that is added to each; 0 needs a covariance of full rank.

    Raises:
        PruneError: the ridge is negative.
    """
    if not ridge >= 0:
        raise PruneError(f"conditional_variance's ridge is {ridge}; it must be 0 or more, such as 1e-4")
    return Criterion("conditional_variance", partial(_score, ridge=ridge), needs=("covariance",))


def _score(stats: Stats, *, ridge: float) -> Scores:
    spec = spec_of(stats)
    sites = measured(stats, "conditional_variance", f"conditional_variance({ridge})", "covariance")
    known: dict[tuple[int, int], Tensor] = {}  # sites that read the same value share the covariance

    def values(site: Site, m: Moments) -> Tensor:
        g = size(site.groups, spec.sizes)
        key = id(m.scatter), g
        if key not in known:
            c, i = m.covariance, size(site.axis, spec.sizes) // g
            blocks = [c[n * i : (n + 1) * i, n * i : (n + 1) * i] for n in range(g)]
            known[key] = torch.cat([_conditional(b, ridge, site.name) for b in blocks])
        return known[key] * column_squares(stats, site).to(known[key].device)

    return over_sites(sites, spec, values, sum_positions)


def _conditional(c: Float[Tensor, "i i"], ridge: float, site: str) -> Float[Tensor, " i"]:
    """1 / [C⁻¹]_jj"""
    eye = torch.eye(len(c), dtype=c.dtype, device=c.device)
    scale = c.diagonal().mean()
    if not bool(scale > 0):
        return torch.zeros_like(c.diagonal())
    factor, failed = torch.linalg.cholesky_ex(c + ridge * scale * eye)
    if bool(failed):
        raise StatsError(
            f"the covariance of site {site!r} has no inverse with a ridge of {ridge}; give a larger one, such as "
            "criteria.conditional_variance(1e-4), or more samples"
        )
    return torch.linalg.solve_triangular(factor, eye, upper=False).square().sum(0).reciprocal()
