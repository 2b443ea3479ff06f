"""Weights that stay make up for those that go, from the covariance of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .._shapes import Bool, Float
from ..compensation.methods import weighted_sum
from ..compensation.repair import Repaired, not_ours, site_inputs, written
from ..doors import door
from ..errors import ParamsError, PruneError, StatsError, warn
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
    """How the kept weights of a matrix are found."""

    name: str
    solve: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    """(weight [rows, d], kept bool [rows, d], covariance [d, d], ridge) → new weight [rows, d], zero where removed."""


@door
def least_squares(chunk: int = 1 << 26) -> Solver:
    """The optimum: v_S = w_S + (C_SS + λ)⁻¹ C_SP w_P in each row, with λ = ridge · mean(diag C).

    Rows that keep the same weights are solved at once; each other row costs d³ / 3, and with a million of weights that is time.

    Args:
        chunk: so many numbers of float64 are taken up at once.
    """
    return Solver("least_squares", partial(_least_squares, chunk=chunk))


def sweep() -> Solver:
    """SparseGPT's: columns from left to right, where each removed weight is made up for by all later columns, kept or not yet seen.

    One factorisation of the inverse serves all rows, so that wide layers cost d³ once, and d² a row; what is left of a removed
    column cannot be made up for by those before it, so that the error is above the optimum's. Frantar and Alistarh, ICML 2023
    (arXiv 2301.00774), algorithm 1 with a mask that is given.
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
    """Apply weight masks, and update the weights that stay so that each layer's outputs change least over the measured inputs.

    In each row, min over v that keep the support S and over b of E(w·x − v·x − b)² + λ‖v − w‖²: v by the covariance C of the
    inputs, and b = (w − v)·μ goes into the bias, as with `pf.compensate`. Layers without taps are exact; the taps of a convolution
    are taken as uncorrelated. Weights whose inputs were not measured (see `Weight.site`) are just masked, and a warning names them.

    Args:
        params: of the spec, as they were measured.
        stats: of `collect_stats(…, covariance=True)`.
        masks: parameter → bool of its shape, True = kept.
        spec: of the params.
        ridge: share of the mean variance of the inputs that is added to each; above zero.
        solver: `least_squares()` (the default) or `sweep()`.

    Returns:
        New params of the same shapes, zero where the masks say so.

    Raises:
        StatsError: there are no covariances.
        ParamsError: something does not fit the spec, or a weight serves other layers, too; leave it out of `masks`, and apply its
            mask by `apply_sparse`.
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
    known = weights(spec)
    check_weights(masks, known, "weight masks")
    bare = [n for n, m in masks.items() if known[n].site not in stats.sites and not bool(m.all())]
    if bare:
        names = ", ".join(map(repr, bare))
        warn(
            f"sparse.reconstruct only masks {names}: nothing measures their inputs, so the weights that stay cannot make up for "
            "those that go; leave them out of the masks to keep them dense",
        )
    found = list(_repaired(params, stats, masks, spec, ridge, least_squares() if solver is None else solver))
    return apply_sparse(written(params, found, spec), masks)


def _repaired(
    params: Params, stats: Stats, masks: Mapping[str, Tensor], spec: Spec, ridge: float, solver: Solver
) -> Iterator[Repaired]:
    """The sites whose weights lose something."""
    for w in weights(spec).values():
        if w.name not in masks or bool(masks[w.name].all()) or w.site not in stats.sites:
            continue
        site = spec.sites[w.site]
        inputs, old = site_inputs(site, stats.sites, {}, params, spec), site_weight(params, site, spec=spec)
        if inputs.covariance is None:
            raise StatsError(
                f"sparse.reconstruct needs the covariance of site {w.site!r}; use collect_stats(…, covariance=True)"
            )
        if why := not_ours(site, spec):
            raise ParamsError(
                f"the weight {w.name!r} cannot be rewritten: {why}; leave it out of the masks here, and use sparse.apply_sparse for it"
            )
        kept = w.split(masks[w.name]).to(old.device)
        new = torch.zeros_like(old)
        for g, c in enumerate(inputs.covariance):
            for t in range(old.shape[-1]):
                new[g, :, :, t] = solver.solve(old[g, :, :, t], kept[g, :, :, t], c, ridge)
        shift = weighted_sum(old, inputs.mean) - weighted_sum(new, inputs.mean)
        yield Repaired(site, old, inputs, Repair(new, shift))


def _least_squares(
    weight: Float[Tensor, "o i"], kept: Bool[Tensor, "o i"], c: Float[Tensor, "i i"], ridge: float, *, chunk: int
) -> Float[Tensor, "o i"]:
    full = damped(c, ridge)
    target = torch.where(kept, 0.0, weight) @ c  # C_:P w_P of each row
    supports, of_row = torch.unique(kept, dim=0, return_inverse=True)
    new, d = torch.zeros_like(weight), len(c)
    if len(supports) < len(weight) / 2:
        for n, support in enumerate(supports):
            rows = of_row == n
            solved = torch.linalg.solve(full[support][:, support], target[rows][:, support].mT).mT
            new[rows] = new[rows].masked_scatter(support.expand(len(solved), -1), solved)
    else:
        for at in torch.arange(len(weight), device=weight.device).split(max(1, chunk // (d * d))):
            k = kept[at]
            within = torch.where(k[:, :, None] & k[:, None, :], full, 0.0) + torch.diag_embed((~k).to(full.dtype))
            factor = torch.linalg.cholesky(within)
            new[at] = torch.cholesky_solve(torch.where(k, target[at], 0.0)[..., None], factor)[..., 0]
    return torch.where(kept, weight + new, 0.0)


def _sweep(
    weight: Float[Tensor, "o i"], kept: Bool[Tensor, "o i"], c: Float[Tensor, "i i"], ridge: float
) -> Float[Tensor, "o i"]:
    upper = torch.linalg.cholesky(torch.linalg.inv(damped(c, ridge)), upper=True)
    new = weight.clone()
    for start in range(0, len(c), 128):
        stop = min(start + 128, len(c))
        errors = torch.zeros_like(new[:, start:stop])
        for j in range(start, stop):
            errors[:, j - start] = torch.where(kept[:, j], 0.0, new[:, j]) / upper[j, j]
            new[:, j:stop] -= errors[:, j - start, None] * upper[j, j:stop]
        new[:, stop:] -= errors @ upper[start:stop, stop:]
    return torch.where(kept, new, 0.0)
