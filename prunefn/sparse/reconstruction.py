"""Reconstruction: kept weights compensate for removed ones, from the covariance of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .._shapes import Bool, Float
from ..compensation.error import weighted_sum
from ..compensation.repair import Repaired, check_covariance, not_ours, site_inputs, written
from ..doors import door
from ..errors import ParamsError, PruneError, warn
from ..parameters.transforms import check_names
from ..program.compiled import site_weight
from ..program.sharded import check_plain
from ..spec.spec import Spec
from ..stats import check_stats
from ..types import Params, Repair, Stats
from .criteria import damped
from .layouts import check_weights, weights
from .slicing import apply_sparse


class Solver(NamedTuple):
    """Method that computes the kept weights of a matrix."""

    name: str
    solve: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    """(weight [rows, d], kept bool [rows, d], covariance [d, d], ridge) → new weight [rows, d], zero where removed."""


@door
def least_squares(chunk: int = 1 << 26) -> Solver:
    """Solve for the optimum: v_S = w_S + (C_SS + λ)⁻¹ C_SP w_P in each row, with λ = ridge · mean(diag C).

    Rows that keep the same weights are solved at once; each other row costs d³ / 3, which is slow for wide layers.

    Args:
        chunk: number of float64 values in the systems that are solved at once.
    """
    return Solver("least_squares", partial(_least_squares, chunk=chunk))


def sweep() -> Solver:
    """Solve like SparseGPT: columns from left to right, where all later columns compensate for each removed weight.

    One factorisation of the inverse serves all rows, so that a layer costs d³ once, and d² a row. Earlier columns cannot
    compensate for a removed one, so that the error is above the optimum's. Source: Frantar and Alistarh, ICML 2023
    (arXiv 2301.00774), algorithm 1 with a fixed mask.
    """
    return Solver("sweep", _sweep)


@door
def reconstruct(
    params: Params,
    stats: Stats,
    masks: Mapping[str, Tensor],
    *,
    spec: Spec,
    ridge: float = 1e-2,
    solver: Solver | None = None,
) -> Params:
    """Apply weight masks, and update the kept weights so that each layer's outputs change least over the measured inputs.

    Each row minimises E(w·x − v·x − b)² + λ‖v − w‖² over v with support S and over b: v follows from the covariance C of the
    inputs, and b = (w − v)·μ is added to the bias, as in `pf.compensate`. Layers without taps are exact; the taps of a
    convolution are taken as uncorrelated. Weights whose inputs were not measured (see `Weight.site`) are masked only, and a
    warning names them.

    Args:
        params: of the spec, as they were measured.
        stats: of `collect_stats(…, covariance=True)`.
        masks: parameter → bool of its shape, True = kept.
        spec: of the params.
        ridge: fraction of the mean variance of the inputs that is added to each variance; above zero.
        solver: `least_squares()` (the default) or `sweep()`.

    Returns:
        New params of the same shapes, zero where the masks are False.

    Raises:
        StatsError: there are no covariances.
        ParamsError: params or masks do not fit the spec, or a weight is shared with other layers; leave it out of `masks`,
            and apply its mask by `apply_sparse`.
        PruneError: the ridge is not above zero.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1, bias=False))
    >>> model[0].weight.data, model[1].weight.data = torch.ones(2, 2), torch.tensor([[2.0, 3.0]])
    >>> spec, params = pf.trace(model, (torch.randn(2, 2),)), pf.params(model)  # inputs of the second layer are the same
    >>> stats = pf.collect_stats(params, [torch.randn(64, 2)], spec=spec, covariance=True)
    >>> new = reconstruct(params, stats, {"1.weight": torch.tensor([[False, True]])}, spec=spec, ridge=1e-9)
    >>> new["1.weight"].round(decimals=4)
    tensor([[0., 5.]])
    """
    if not ridge > 0:
        raise PruneError(f"reconstruct's ridge is {ridge}; it must be above 0, such as 1e-2")
    check_names(params, spec)
    check_plain(params, "sparse.reconstruct", "reconstruct before the params are sharded")
    check_stats(stats, spec)
    by_name = weights(spec)
    check_weights(masks, by_name, "weight masks")
    unmeasured = [n for n, m in masks.items() if by_name[n].site not in stats.sites and not bool(m.all())]
    if unmeasured:
        names = ", ".join(map(repr, unmeasured))
        warn(
            f"sparse.reconstruct only masks {names}: nothing measures their inputs, so the weights that stay cannot make up for "
            "those that go; leave them out of the masks to keep them dense",
        )
    repairs = list(_reconstruct_sites(params, stats, masks, spec, ridge, least_squares() if solver is None else solver))
    return apply_sparse(written(params, repairs, spec), masks)


def _reconstruct_sites(
    params: Params, stats: Stats, masks: Mapping[str, Tensor], spec: Spec, ridge: float, solver: Solver
) -> Iterator[Repaired]:
    """Yield the repairs of the sites whose weights lose elements.

    Raises:
        StatsError: a site has no covariance.
        ParamsError: a weight cannot be rewritten.
    """
    for w in weights(spec).values():
        if w.name not in masks or bool(masks[w.name].all()) or w.site not in stats.sites:
            continue
        site = spec.sites[w.site]
        inputs, weight = site_inputs(site, stats.sites, {}, params, spec), site_weight(params, site, spec=spec)
        covariances = check_covariance(inputs, site, "sparse.reconstruct")
        if why := not_ours(site, spec):
            raise ParamsError(
                f"the weight {w.name!r} cannot be rewritten: {why}; leave it out of the masks here, and use sparse.apply_sparse for it"
            )
        kept = w.split(masks[w.name]).to(weight.device)
        solved = torch.zeros_like(weight)
        for g, c in enumerate(covariances):
            for t in range(weight.shape[-1]):
                solved[g, :, :, t] = solver.solve(weight[g, :, :, t], kept[g, :, :, t], c, ridge)
        shift = weighted_sum(weight, inputs.mean) - weighted_sum(solved, inputs.mean)
        yield Repaired(site, weight, inputs, Repair(solved, shift))


def _least_squares(
    weight: Float[Tensor, "o i"], kept: Bool[Tensor, "o i"], c: Float[Tensor, "i i"], ridge: float, *, chunk: int
) -> Float[Tensor, "o i"]:
    """Return the weights of `least_squares`: by support where many rows share one, else in chunks of rows."""
    full = damped(c, ridge)
    target = torch.where(kept, 0.0, weight) @ c  # C_:P w_P of each row
    supports, support_of_row = torch.unique(kept, dim=0, return_inverse=True)
    updates, d = torch.zeros_like(weight), len(c)
    if len(supports) < len(weight) / 2:
        for n, support in enumerate(supports):
            rows = support_of_row == n
            solved = torch.linalg.solve(full[support][:, support], target[rows][:, support].mT).mT
            updates[rows] = updates[rows].masked_scatter(support.expand(len(solved), -1), solved)
    else:
        for rows in torch.arange(len(weight), device=weight.device).split(max(1, chunk // (d * d))):
            k = kept[rows]
            # Removed inputs become those of an identity, so that all rows have systems of one size.
            within = torch.where(k[:, :, None] & k[:, None, :], full, 0.0) + torch.diag_embed((~k).to(full.dtype))
            factor = torch.linalg.cholesky(within)
            updates[rows] = torch.cholesky_solve(torch.where(k, target[rows], 0.0)[..., None], factor)[..., 0]
    return torch.where(kept, weight + updates, 0.0)


def _sweep(
    weight: Float[Tensor, "o i"], kept: Bool[Tensor, "o i"], c: Float[Tensor, "i i"], ridge: float
) -> Float[Tensor, "o i"]:
    """Return the weights of `sweep`; errors reach later blocks of 128 columns in one matrix product each."""
    upper = torch.linalg.cholesky(torch.linalg.inv(damped(c, ridge)), upper=True)
    updated = weight.clone()
    for start in range(0, len(c), 128):
        stop = min(start + 128, len(c))
        errors = torch.zeros_like(updated[:, start:stop])
        for j in range(start, stop):
            errors[:, j - start] = torch.where(kept[:, j], 0.0, updated[:, j]) / upper[j, j]
            updated[:, j:stop] -= errors[:, j - start, None] * upper[j, j:stop]
        updated[:, stop:] -= errors @ upper[start:stop, stop:]
    return torch.where(kept, updated, 0.0)
