"""Criteria on single weights; higher = keep.

They are values like those of `prunefn.criteria`, and are passed to `collect_stats` in the same way. But they score weights: their
`score` returns parameter → float64 tensor of its shape, for all weights of contractions.

`snip` and `movement` are criteria for training: SNIP scores a network before it is trained, movement adds up over steps, and
`movement_since` over the whole training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from .._shapes import Float
from ..criteria.base import collected, measured, spec_of
from ..criteria.gradients import Loss, Objective, cross_entropy, loss_name, mean_gradients
from ..doors import door
from ..errors import ParamsError, PruneError
from ..spec.spec import Spec
from ..types import Batch, Collector, Criterion, Moments, Params, Scores, Stats
from .layouts import Weight, weights

__all__ = ["magnitude", "movement", "movement_since", "obs", "random", "snip", "taylor", "wanda"]


Columns = Float[Tensor, "g i"]
"""One value for each input of a contraction."""


@door
def magnitude(p: float = 2.0) -> Criterion:
    """Score weights by |w|^p; needs no data.

    The power matters where scores are added up: in blocks and slices, and for `scope.lamp`.

    Raises:
        PruneError: p is not above zero.
    """
    if not p > 0:
        raise PruneError(f"magnitude's p is {p}; it must be above 0")
    return Criterion("magnitude", partial(_score_magnitude, p=p), needs=())


@door
def random(seed: int = 0) -> Criterion:
    """Score weights by uniform random numbers in [0, 1) from a separate generator; needs no data.

    The same seed gives the same scores.
    """
    return Criterion("random", partial(_score_random, seed=seed), needs=())


@door
def taylor(loss: Loss = cross_entropy) -> Criterion:
    """Score weights by |w · ∂L/∂w| with the mean gradient over all data: to first order, the change of the loss without the weight.

    Args:
        loss: (output, *rest of the batch) → scalar, a mean over samples; default: cross entropy with the labels that follow
            the inputs.

    Raises:
        BatchError: (when collected) a batch has no labels.
        StatsError: (when scored) the gradients were not collected; pass the criterion to `collect_stats`.
    """
    return _gradient_criterion("taylor", loss, _absolute)


@door
def snip(loss: Loss = cross_entropy) -> Criterion:
    """Score weights by |w · ∂L/∂w| divided by its sum over all weights, for untrained networks: Lee et al., ICLR 2019, eq. 6.

    Use it with `scope.global_()`, as in the paper. The ranking equals that of `taylor`, from the same gradients.

    Args, errors: as in `taylor`.
    """
    return _gradient_criterion("snip", loss, _divide_by_total)


@door
def movement(loss: Loss = cross_entropy) -> Criterion:
    """Score weights by −w · ∂L/∂w, which is high where gradient descent moves the weight away from zero.

    The score is a mean over samples; scores below zero are usual. For a score over the steps of a training, collect from each
    step's params and batch, and add up `stats.sums`. Source: Sanh et al., NeurIPS 2020, eq. 5.

    Args, errors: as in `taylor`.
    """
    collector = Collector(f"weight movement by {loss_name(loss)}", Movement(loss))
    return Criterion("movement", partial(_score_movement, collector=collector), (), (collector,))


@door
def movement_since(start: Params) -> Criterion:
    """Score weights by ½ (w² − w₀²), the movement added up along the whole training from `start`; needs no data.

    Under gradient flow, −∫ w · ∂L/∂w dt equals this score; with the usual optimizers, it approximates the sum over steps. The
    gradients of a converged network are noise, and so is `movement` on it; the distance of its weights from the start is not.

    Args:
        start: the params before training, such as those of the same model built with the same seed.

    Raises:
        ParamsError: (when scored) a weight is not in `start`, or has another shape there.
    """
    return Criterion("movement_since", partial(_score_movement_since, start=dict(start)), needs=())


def wanda() -> Criterion:
    """Score weights by |w| · ‖x‖, where ‖x‖² is the mean square of the weight's input: Sun et al., ICLR 2024, eq. 1.

    The paper (arXiv 2306.11695) compares weights within each output: use `scope.rows()`. All taps of a convolution use the
    norm of their channel. Weights whose inputs are not measured (see `Weight.site`) have no score and are not pruned.

    Raises:
        StatsError: (when scored) there are no moments; pass batches to `collect_stats`.
    """
    return Criterion("wanda", _score_wanda, ("moments",))


@door
def obs(ridge: float = 1e-2) -> Criterion:
    """Score weights by w² / [C⁻¹]_jj, the squared error of removing one weight after the others have compensated for it.

    C is the covariance of the inputs, plus `ridge` times the mean of its diagonal; means do not count, as biases compensate
    them (see `reconstruct`). This is the saliency of OBS (Hassibi et al., 1993), which SparseGPT uses (Frantar and Alistarh,
    ICML 2023, eq. 4). Taps and weights without a site are treated as in `wanda`.

    Args:
        ridge: fraction of the mean variance that is added to each variance; above zero.

    Raises:
        PruneError: the ridge is not above zero.
        StatsError: (when scored) there is no covariance.
    """
    if not ridge > 0:
        raise PruneError(f"obs's ridge is {ridge}; it must be above 0, such as 1e-2")
    return Criterion("obs", partial(_score_obs, ridge=ridge), ("covariance",))


# ---- from weights


def _score_magnitude(stats: Stats, *, p: float) -> Scores:
    return {n: stats.params[n].detach().double().abs().pow(p) for n in weights(spec_of(stats))}


def _score_random(stats: Stats, *, seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.rand(w.shape, generator=generator, dtype=torch.float64) for n, w in weights(spec_of(stats)).items()
    }


def _score_movement_since(stats: Stats, *, start: Params) -> Scores:
    out: Scores = {}
    for n in weights(spec_of(stats)):
        current, initial = stats.params[n].detach().double(), start.get(n)
        if initial is None or initial.shape != current.shape:
            problem = "is missing" if initial is None else f"has the shape {tuple(initial.shape)}"
            raise ParamsError(
                f"movement_since: {n!r}, {tuple(current.shape)}, {problem} in start; give the params before training"
            )
        out[n] = (current.square() - initial.detach().to(current).square()) / 2
    return out


# ---- from gradients


class Gradients(NamedTuple):
    """Collector of Σ over samples of ∂L/∂w: parameter → tensor of its shape."""

    loss: Loss
    criterion: str

    def __call__(self, params: Params, batch: Batch, spec: Spec) -> dict[str, Tensor]:
        objective, at = Objective(self.criterion, self.loss), {n: params[n].detach() for n in weights(spec)}
        return mean_gradients(objective.of_weights(params, spec), at, objective.data(params, batch, spec))


class Movement(NamedTuple):
    """Collector of −Σ over samples of w · ∂L/∂w, with the weights at collection: parameter → tensor of its shape."""

    loss: Loss

    def __call__(self, params: Params, batch: Batch, spec: Spec) -> dict[str, Tensor]:
        gradients = Gradients(self.loss, "movement")(params, batch, spec)
        return {n: -params[n].detach().double() * g for n, g in gradients.items()}


def _score_movement(stats: Stats, *, collector: Collector) -> Scores:
    sums = collected(stats, collector, "movement", "movement(…)")
    return {n: s / max(stats.samples, 1) for n, s in sums.items()}


def _gradient_criterion(name: str, loss: Loss, finish: Callable[[Scores], Scores]) -> Criterion:
    """Return a criterion whose scores are a function of the products w · ∂L/∂w."""
    collector = Collector(f"weight gradients of {loss_name(loss)}", Gradients(loss, name))
    return Criterion(name, partial(_score_products, name=name, collector=collector, finish=finish), (), (collector,))


def _score_products(stats: Stats, *, name: str, collector: Collector, finish: Callable[[Scores], Scores]) -> Scores:
    """Return `finish` of the products w · ∂L/∂w."""
    sums = collected(stats, collector, name, f"{name}(…)")
    return finish({n: stats.params[n].detach().double() * s / max(stats.samples, 1) for n, s in sums.items()})


def _absolute(products: Scores) -> Scores:
    return {n: v.abs() for n, v in products.items()}


def _divide_by_total(products: Scores) -> Scores:
    total = max(sum(float(v.abs().sum()) for v in products.values()), torch.finfo(torch.float64).tiny)
    return {n: v.abs() / total for n, v in products.items()}


# ---- from inputs


def _score_wanda(stats: Stats) -> Scores:
    sites = measured(stats, "wanda", "wanda()")
    return _scale_columns(
        stats, sites, lambda w, m: _split_groups(w, m.m2 / m.count + m.mean.square()).sqrt(), torch.abs
    )


def _score_obs(stats: Stats, *, ridge: float) -> Scores:
    sites = measured(stats, "obs", "obs()", "covariance")

    def columns(w: Weight, m: Moments) -> Columns:
        inverse = [torch.linalg.inv(damped(c, ridge)).diagonal() for c in diagonal_blocks(m.covariance, w.groups)]
        return 1 / torch.stack(inverse)

    return _scale_columns(stats, sites, columns, torch.square)


def _scale_columns(
    stats: Stats,
    sites: Mapping[str, Moments],
    columns: Callable[[Weight, Moments], Columns],
    of_weight: Callable[[Tensor], Tensor],
) -> Scores:
    """Return scores `of_weight(w)` times a value of the weight's column, for weights with a measured site."""
    out: Scores = {}
    for w in weights(spec_of(stats)).values():
        if w.site in sites:
            weight = w.split(stats.params[w.name].detach().double())
            factors = columns(w, sites[w.site]).to(weight.device)
            out[w.name] = w.joined(of_weight(weight) * factors[:, None, :, None])
    return out


def _split_groups(w: Weight, values: Tensor) -> Columns:
    """Return values of all inputs [groups · in] as [groups, in]."""
    return rearrange(values, "(g i) -> g i", g=w.groups)


def diagonal_blocks(c: Float[Tensor, "d d"], g: int) -> list[Tensor]:
    """Return the blocks on the diagonal: the covariances of the inputs of each group of a contraction."""
    i = len(c) // g
    return [c[n * i : (n + 1) * i, n * i : (n + 1) * i] for n in range(g)]


def damped(c: Float[Tensor, "i i"], ridge: float) -> Float[Tensor, "i i"]:
    """Return c with the ridge times the mean of the diagonal added to it; with 1 added if the diagonal is zero."""
    mean = float(c.diagonal().mean())
    return c + torch.eye(len(c), dtype=c.dtype, device=c.device) * (ridge * mean if mean > 0 else 1.0)


def __dir__() -> list[str]:
    return __all__
