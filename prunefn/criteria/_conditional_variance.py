"""Variance that the other units do not explain, the optimal-brain-surgeon score of a layer's inputs.

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
    """Score units by ‖W[:, j]‖² / [C⁻¹]_jj at the inputs of the group's consumers, averaged over sites.

    C is the covariance of the inputs plus the ridge; a grouped convolution has one for each of its groups. The score is the
    loss from removing this unit alone: two equal units both score low, as each explains the other. A unit with several
    positions (a head) has the sum over them, each conditioned on all other positions: variance that they share is not counted.

    Args:
        ridge: fraction of the mean variance that is added to each variance; 0 needs a covariance of full rank.

    Raises:
        PruneError: the ridge is negative.
    """
    if not ridge >= 0:
        raise PruneError(f"conditional_variance's ridge is {ridge}; it must be 0 or more, such as 1e-4")
    return Criterion("conditional_variance", partial(_score, ridge=ridge), needs=("covariance",))


def _score(stats: Stats, *, ridge: float) -> Scores:
    spec = spec_of(stats)
    sites = measured(stats, "conditional_variance", f"conditional_variance({ridge})", "covariance")
    variances: dict[tuple[int, int], Tensor] = {}  # sites that read the same value share the covariance

    def values(site: Site, m: Moments) -> Tensor:
        g = size(site.groups, spec.sizes)
        key = id(m.scatter), g
        if key not in variances:
            c, i = m.covariance, size(site.axis, spec.sizes) // g
            blocks = [c[n * i : (n + 1) * i, n * i : (n + 1) * i] for n in range(g)]
            variances[key] = torch.cat([_conditional_variances(b, ridge, site.name) for b in blocks])
        return variances[key] * column_squares(stats, site).to(variances[key].device)

    return over_sites(sites, spec, values, sum_positions)


def _conditional_variances(c: Float[Tensor, "i i"], ridge: float, site: str) -> Float[Tensor, " i"]:
    """Return 1 / [C⁻¹]_jj of a covariance with the ridge added.

    Raises:
        StatsError: the covariance has no inverse.
    """
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
    # C = L Lᵀ, so that [C⁻¹]_jj is the squared norm of column j of L⁻¹.
    return torch.linalg.solve_triangular(factor, eye, upper=False).square().sum(0).reciprocal()
