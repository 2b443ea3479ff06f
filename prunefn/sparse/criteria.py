"""Criteria on single weights; higher = keep. Values as in `prunefn.criteria`, to be given to `collect_stats` in the same way, but
what they score are weights: their `score` gives parameter → float64 tensor of its shape, for all weights of contractions.

`snip` and `movement` are criteria of training: SNIP scores a network before it is trained, movement adds up over steps (and
`movement_since` over all of them).
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
"""A number for each input of a contraction."""


@door
def magnitude(p: float = 2.0) -> Criterion:
    """|w|^p; needs no data. The power counts where weights are added up: in blocks and slices, and for `scope.lamp`.

    Raises:
        PruneError: p is not above zero.
    """
    if not p > 0:
        raise PruneError(f"magnitude's p is {p}; it must be above 0")
    return Criterion("magnitude", partial(_magnitude, p=p), needs=())


@door
def random(seed: int = 0) -> Criterion:
    """Uniform in [0, 1), from a generator of its own; the same seed gives the same scores. Needs no data."""
    return Criterion("random", partial(_random, seed=seed), needs=())


@door
def taylor(loss: Loss = cross_entropy) -> Criterion:
    """|w · ∂L/∂w|, with the gradient's mean over all data: to first order, how the loss changes when the weight goes.

    Args:
        loss: (output, *rest of the batch) → scalar, a mean over samples; default: cross entropy with the labels that follow
            the inputs.

    Raises:
        BatchError: (when collected) a batch has no labels.
        StatsError: (when scored) the gradients were not collected; pass the criterion to `collect_stats`.
    """
    return _by_gradient("taylor", loss, _absolute)


@door
def snip(loss: Loss = cross_entropy) -> Criterion:
    """|w · ∂L/∂w| as a share of its sum over all weights, of a network that is not trained yet: Lee et al., ICLR 2019, eq. 6.

    With `scope.global_()`, as in the paper. It ranks as `taylor` does, from the same gradients.

    Args, errors: as for `taylor`.
    """
    return _by_gradient("snip", loss, _shares)


@door
def movement(loss: Loss = cross_entropy) -> Criterion:
    """−w · ∂L/∂w: high where gradient descent moves the weight away from zero; Sanh et al., NeurIPS 2020, eq. 5.

    Over batches it is the mean; over the steps of a training, collect from each step's params and batch, and add up
    `stats.sums`. Scores below zero are usual.

    Args, errors: as for `taylor`.
    """
    collector = Collector(f"weight movement by {loss_name(loss)}", Movement(loss))
    return Criterion("movement", partial(_movement, collector=collector), (), (collector,))


@door
def movement_since(start: Params) -> Criterion:
    """½ (w² − w₀²): movement added up along the whole training from `start`; needs no data.

    Under gradient flow, −∫ w · ∂L/∂w dt is exactly this; with the optimizers in use it is what the sum stands for. Where a network
    has converged, its gradients are noise, and so is `movement` on it; what the weights have moved from their start is not.

    Args:
        start: the params before training, such as those of the same model built with the same seed.

    Raises:
        ParamsError: (when scored) a weight is not in `start`, or has another shape there.
    """
    return Criterion("movement_since", partial(_since, start=dict(start)), needs=())


def wanda() -> Criterion:
    """|w| · ‖x‖, where ‖x‖² is the mean square of the weight's input: Sun et al., ICLR 2024 (arXiv 2306.11695), eq. 1.

    In the paper weights are compared within each output: `scope.rows()`. All taps of a convolution have the norm of their
    channel. Weights whose inputs are not measured (see `Weight.site`) have no score, and so stay whole.

    Raises:
        StatsError: (when scored) there are no moments; give `collect_stats` batches.
    """
    return Criterion("wanda", _wanda, ("moments",))


@door
def obs(ridge: float = 1e-2) -> Criterion:
    """w² / [C⁻¹]_jj: the squared error that removing the one weight costs once the others have made up for it.

    C is the covariance of the inputs, as biases make up for means (see `reconstruct`), with `ridge` times its mean diagonal
    added. It is the saliency of OBS (Hassibi et al., 1993) by which SparseGPT chooses (Frantar and Alistarh, ICML 2023, eq. 4).
    Taps and weights without a site are treated as by `wanda`.

    Args:
        ridge: above zero.

    Raises:
        PruneError: the ridge is not above zero.
        StatsError: (when scored) there is no covariance.
    """
    if not ridge > 0:
        raise PruneError(f"obs's ridge is {ridge}; it must be above 0, such as 1e-2")
    return Criterion("obs", partial(_obs, ridge=ridge), ("covariance",))


# ---- from weights


def _magnitude(stats: Stats, *, p: float) -> Scores:
    return {n: stats.params[n].detach().double().abs().pow(p) for n in weights(spec_of(stats))}


def _random(stats: Stats, *, seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    known = weights(spec_of(stats)).values()
    return {w.name: torch.rand(w.shape, generator=generator, dtype=torch.float64) for w in known}


def _since(stats: Stats, *, start: Params) -> Scores:
    out: Scores = {}
    for n in weights(spec_of(stats)):
        now, then = stats.params[n].detach().double(), start.get(n)
        if then is None or then.shape != now.shape:
            there = "is not there" if then is None else f"has the shape {tuple(then.shape)}"
            raise ParamsError(
                f"movement_since: {n!r}, {tuple(now.shape)}, {there} in start; give the params before training"
            )
        out[n] = (now.square() - then.detach().to(now).square()) / 2
    return out


# ---- from gradients


class Gradients(NamedTuple):
    """Collects Σ over samples of ∂L/∂w: parameter → its shape."""

    loss: Loss
    criterion: str

    def __call__(self, params: Params, batch: Batch, spec: Spec) -> dict[str, Tensor]:
        objective, at = Objective(self.criterion, self.loss), {n: params[n].detach() for n in weights(spec)}
        return mean_gradients(objective.of_weights(params, spec), at, objective.data(params, batch, spec))


class Movement(NamedTuple):
    """Collects −Σ over samples of w · ∂L/∂w, with the weights of that moment: parameter → its shape."""

    loss: Loss

    def __call__(self, params: Params, batch: Batch, spec: Spec) -> dict[str, Tensor]:
        found = Gradients(self.loss, "movement")(params, batch, spec)
        return {n: -params[n].detach().double() * g for n, g in found.items()}


def _movement(stats: Stats, *, collector: Collector) -> Scores:
    sums = collected(stats, collector, "movement", "movement(…)")
    return {n: s / max(stats.samples, 1) for n, s in sums.items()}


def _by_gradient(name: str, loss: Loss, finish: Callable[[Scores], Scores]) -> Criterion:
    collector = Collector(f"weight gradients of {loss_name(loss)}", Gradients(loss, name))
    return Criterion(name, partial(_products, name=name, collector=collector, finish=finish), (), (collector,))


def _products(stats: Stats, *, name: str, collector: Collector, finish: Callable[[Scores], Scores]) -> Scores:
    """What is made of w · ∂L/∂w."""
    sums = collected(stats, collector, name, f"{name}(…)")
    return finish({n: stats.params[n].detach().double() * s / max(stats.samples, 1) for n, s in sums.items()})


def _absolute(products: Scores) -> Scores:
    return {n: v.abs() for n, v in products.items()}


def _shares(products: Scores) -> Scores:
    total = max(sum(float(v.abs().sum()) for v in products.values()), torch.finfo(torch.float64).tiny)
    return {n: v.abs() / total for n, v in products.items()}


# ---- from inputs


def _wanda(stats: Stats) -> Scores:
    sites = measured(stats, "wanda", "wanda()")
    return _by_columns(stats, sites, lambda w, m: _grouped(w, m.m2 / m.count + m.mean.square()).sqrt(), torch.abs)


def _obs(stats: Stats, *, ridge: float) -> Scores:
    sites = measured(stats, "obs", "obs()", "covariance")

    def columns(w: Weight, m: Moments) -> Columns:
        inverse = [torch.linalg.inv(damped(c, ridge)).diagonal() for c in diagonal_blocks(m.covariance, w.groups)]
        return 1 / torch.stack(inverse)

    return _by_columns(stats, sites, columns, torch.square)


def _by_columns(
    stats: Stats,
    sites: Mapping[str, Moments],
    columns: Callable[[Weight, Moments], Columns],
    of_weight: Callable[[Tensor], Tensor],
) -> Scores:
    """Something of the weight, times something of its column."""
    out: Scores = {}
    for w in weights(spec_of(stats)).values():
        if w.site in sites:
            own = w.split(stats.params[w.name].detach().double())
            at = columns(w, sites[w.site]).to(own.device)
            out[w.name] = w.joined(of_weight(own) * at[:, None, :, None])
    return out


def _grouped(w: Weight, values: Tensor) -> Columns:
    return rearrange(values, "(g i) -> g i", g=w.groups)


def diagonal_blocks(c: Float[Tensor, "d d"], g: int) -> list[Tensor]:
    """The blocks on the diagonal: what the groups of a contraction read."""
    i = len(c) // g
    return [c[n * i : (n + 1) * i, n * i : (n + 1) * i] for n in range(g)]


def damped(c: Float[Tensor, "i i"], ridge: float) -> Float[Tensor, "i i"]:
    """With the ridge times the mean of the diagonal added to it; the identity's where there is nothing."""
    mean = float(c.diagonal().mean())
    return c + torch.eye(len(c), dtype=c.dtype, device=c.device) * (ridge * mean if mean > 0 else 1.0)


def __dir__() -> list[str]:
    return __all__
