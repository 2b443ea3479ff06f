"""The optimal brain surgeon for whole units: Hassibi and Stork, NeurIPS 1992, in the order of greedy removal.

Kurtić et al., "ZipLM", NeurIPS 2023 (arXiv 2302.04089) and SlimGPT (arXiv 2412.18110) remove columns of a layer in this way;
the weight by the Fisher information of the outputs is the output factor of K-FAC (Martens and Grosse, ICML 2015, arXiv 1503.05671).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from ..doors import door
from ..errors import PruneError, nearest
from ..program.compiled import site_weight
from ..spec.axis import size
from ..spec.parts import Site
from ..spec.spec import Spec
from ..spec.stacked import site_named
from ..types import Collector, Criterion, Moments, Scores, Stats
from .base import collected, counts_of_stacks, groups_of, index_map, measured, share_of, spec_of
from .elimination import Term, eliminate
from .output_fisher import LIKELIHOODS, OutputFisher, at_inputs


@door
def obs(likelihood: str | None = "auto", *, ridge: float = 1e-4, seed: int = 0) -> Criterion:
    """Score units by what removing them costs after affine compensation, given the units that were removed before.

    In each group, the unit goes next that costs least: Δ = tr(W̃_J [K_JJ]⁻¹ W̃_Jᵀ), summed over the sites of the group, with
    K = (C + λI)⁻¹ the inverse covariance of a site's inputs; W̃ and K are then updated exactly. The scores are these increments,
    made to rise along the order, so that their sums over groups can be weighed against costs: `scope.knapsack()`. For one
    site and a ridge of 0, the sum is the error that `residual` predicts for `affine(0.0)`.

    Time and memory of a site with n inputs: O(n³) and 32 n² bytes. Taps of a convolution are taken as uncorrelated. Units of a
    group at several positions of an axis (heads) go with all of them. Groups without a site have no score.

    Args:
        likelihood: what an error at a site's output costs. The outputs of the network are logits of classes ("categorical":
            along the last dim, or dim 1 of outputs with four dims or more) or values with unit variance ("gaussian"): W is
            multiplied by the root of the Fisher information of the site's output, over targets drawn from the network's own
            distribution; no labels are needed, and ½ Σ Δ estimates the rise of the loss in nats. None: the error is relative
            to the variance of the site's output; no gradients are needed. "auto": "categorical" if the output is one tensor
            [samples, classes] or [samples, positions, classes], or has `logits`; else None.
        ridge: λ as a fraction of the mean variance of the inputs.
        seed: of the drawn targets.

    Raises:
        PruneError: the ridge is not positive, or the likelihood is unknown.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> prune = pf.pipeline(criterion=obs(), ratio=pf.budget.macs(0.5), scope=pf.scope.knapsack())
    >>> prune(pf.params(model), [torch.randn(64, 4)], spec=spec).info.removed
    {'0': (4, 8)}
    """
    if not ridge > 0:
        raise PruneError(f"obs's ridge is {ridge}; it must be above 0, such as 1e-4")
    if likelihood is not None and likelihood not in LIKELIHOODS:
        names = ", ".join(map(repr, LIKELIHOODS))
        raise PruneError(
            f"obs has no likelihood {likelihood!r}; write {names} or None{nearest(likelihood, LIKELIHOODS)}"
        )
    collectors: tuple[Collector, ...] = ()
    if likelihood is not None:
        name = f"Fisher information of outputs ({likelihood}, seed {seed})"
        collectors = (Collector(name, OutputFisher(likelihood, seed)),)
    return Criterion(
        "obs", partial(_score, collectors=collectors, ridge=ridge), ("covariance",), collectors, increments=True
    )


def _score(stats: Stats, *, collectors: tuple[Collector, ...], ridge: float) -> Scores:
    spec = spec_of(stats)
    sites = measured(stats, "obs", "obs(…)", "covariance")
    fisher: Mapping[str, Tensor] | None = None
    if collectors:
        sums = collected(stats, collectors[0], "obs", "obs(…)")
        fisher = {name: f / max(stats.samples, 1) / 2 for name, f in sums.items()} or None
    inverses: dict[tuple[int, int], Tensor] = {}  # sites that read the same value share the covariance
    terms: dict[str, dict[tuple[int, int], Term]] = {}
    incomparable: set[str] = set()
    shares, energies = counts_of_stacks(sites, spec), _energies(stats, sites)
    for name, m in sites.items():
        site = site_named(spec, name)
        blocks = size(site.groups, spec.sizes)
        groups = groups_of(site.axis, spec)
        if fisher is not None and name not in fisher and at_inputs(name) not in fisher:
            incomparable |= set(groups)
            continue
        key = id(m.scatter), blocks
        if key not in inverses:
            inverses[key] = _precision(m, blocks, ridge)
        precision, importance = inverses[key], _importance(stats, site, m, fisher)
        if site.expert is not None:  # relative to the outputs of all experts
            importance = importance * (share_of(site, m, shares) / energies[site.weight])
        for group in groups:
            positions = index_map(site.axis, group, spec.sizes).to(precision.device)
            same = terms.setdefault(group, {}).get(key)
            total = importance if same is None else same.importance + importance
            terms[group][key] = Term(precision, total, positions)
    scored = [g for g in spec.groups if g in terms and g not in incomparable]
    return {g: _rising(spec, g, list(terms[g].values())) for g in scored}


def _rising(spec: Spec, group: str, terms: list[Term]) -> Tensor:
    """Return the costs of a group's units, each at least a little above that of the unit before it."""
    order, costs = eliminate(terms)
    scores, last = torch.zeros(spec.sizes[group], dtype=torch.float64, device=costs.device), -torch.inf
    for unit, cost in zip(order.tolist(), costs.tolist(), strict=True):
        last = max(cost, last * (1 + 1e-9))
        scores[unit] = last
    return scores


def _precision(m: Moments, blocks: int, ridge: float) -> Tensor:
    """Return the inverse covariance with a ridge, [n, n], zero between the groups of a convolution."""
    assert m.scatter is not None
    c = m.scatter / m.count
    i = len(c) // blocks
    c = torch.block_diag(*(c[n * i : (n + 1) * i, n * i : (n + 1) * i] for n in range(blocks)))
    scale = float(c.diagonal().mean())
    eye = torch.eye(len(c), dtype=c.dtype, device=c.device)
    if not scale > 0:
        return eye / torch.finfo(c.dtype).tiny  # nothing varies, so that nothing costs anything
    return torch.cholesky_inverse(torch.linalg.cholesky(c + ridge * scale * eye))


def _energies(stats: Stats, sites: Mapping[str, Moments]) -> dict[str, float]:
    """Return stacked weight → variance of the outputs of its experts, over all their positions."""
    spec, out = spec_of(stats), dict[str, float]()
    totals = counts_of_stacks(sites, spec)
    for site, m in ((site_named(spec, n), m) for n, m in sites.items() if n not in spec.sites):
        weight = site_weight(stats.params, site, spec=spec)[0, :, :, 0].to(m.m2.device)
        assert m.scatter is not None
        energy = float(torch.einsum("oi,oj,ij->", weight, weight, m.scatter))
        out[site.weight] = out.get(site.weight, 0.0) + energy / totals[site.weight]
    return {w: e if e > 0 else 1.0 for w, e in out.items()}


def _importance(stats: Stats, site: Site, m: Moments, fisher: Mapping[str, Tensor] | None) -> Tensor:
    """Return Wᵀ F W over outputs and taps, [n, n], zero between the groups of a convolution."""
    assert m.scatter is not None
    if fisher is not None and at_inputs(site.name) in fisher:
        return torch.block_diag(*fisher[at_inputs(site.name)].to(m.m2.device))
    weight = site_weight(stats.params, site, spec=spec_of(stats)).to(m.m2.device)
    g, o, i, _ = weight.shape
    out = []
    for k in range(g):
        rows = weight[k].movedim(-1, 0)  # [t, o, i]
        own = slice(k * o, (k + 1) * o)
        weighted = rows if fisher is None else fisher[site.name][own, own].to(rows) @ rows
        out.append(torch.einsum("toi,toj->ij", rows, weighted))
    if fisher is None and site.expert is None:
        blocks = [m.scatter[k * i : (k + 1) * i, k * i : (k + 1) * i] for k in range(g)]
        energy = sum(float((a * c).sum()) for a, c in zip(out, blocks, strict=True)) / m.count
        out = [a / energy if energy > 0 else torch.zeros_like(a) for a in out]
    return torch.block_diag(*out)
