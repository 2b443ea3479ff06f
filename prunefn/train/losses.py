"""Losses around pruning as pure functions of params or outputs; add them, and differentiate by `torch.func.grad` or `backward`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .._shapes import Float
from ..criteria.base import index_map, member_sums
from ..doors import door
from ..errors import BatchError, PruneError, StatsError
from ..parameters.effective import reader
from ..sparse.slicing import pieces, sliced
from ..spec.spec import Spec, check_params
from ..stats.weights import IGNORED
from ..types import Mask, Params, Scores, Where
from ..where import matches

__all__ = ["bn_l1", "distillation", "group_lasso", "growing", "l21", "slice_log_norm", "variance_concentration"]


@door
def distillation(
    student: Float[Tensor, "... classes"],
    teacher: Float[Tensor, "... classes"],
    labels: Tensor,
    *,
    alpha: float = 0.7,
    temperature: float = 2.0,
) -> Tensor:
    """Return α · cross entropy + (1 − α) · T² · KL(teacher ‖ student), the latter at temperature T (Hinton et al., arXiv 1503.02531).

    Both are means over samples, or over the positions of all samples; where the label is −100, neither counts.

    Args:
        student: logits [batch, classes], or of tokens [batch, length, classes].
        teacher: logits; they are detached.
        labels: classes [batch] or [batch, length], each for the logits in its place; or probabilities of the logits' shape (mixup).
        alpha: weight of the labels, in [0, 1].
        temperature: T, above 0.

    Raises:
        PruneError: alpha or temperature is out of range.
        BatchError: the shapes differ.

    >>> y = torch.tensor([[2.0, 0.0]])
    >>> bool(distillation(y, y, torch.tensor([0])) == 0.7 * F.cross_entropy(y, torch.tensor([0])))
    True
    """
    if not 0 <= alpha <= 1 or not temperature > 0:
        raise PruneError(
            f"alpha is {alpha} and temperature {temperature}; alpha must be in [0, 1], temperature above 0"
        )
    if student.shape != teacher.shape or labels.shape not in (student.shape, student.shape[:-1]):
        raise BatchError(
            f"the student's logits have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}, and the labels "
            f"{tuple(labels.shape)}; labels are classes {tuple(student.shape[:-1])} or probabilities {tuple(student.shape)}"
        )
    classes = student.shape[-1]
    student, teacher = student.reshape(-1, classes), teacher.reshape(-1, classes)
    labels = labels.reshape(-1, classes) if labels.is_floating_point() else labels.flatten()
    counted = None if labels.is_floating_point() else labels != IGNORED
    soft = soft_targets(student, teacher, counted, temperature)
    return alpha * F.cross_entropy(student, labels) + (1 - alpha) * soft


def soft_targets(student: Tensor, teacher: Tensor, counted: Tensor | None, temperature: float) -> Tensor:
    """Return T² · KL(teacher ‖ student) at temperature T, the mean over positions.

    Args:
        student, teacher: logits [positions, classes]; the teacher's are detached.
        counted: bool [positions]; None: all positions count.
        temperature: T.
    """
    if counted is not None and not bool(counted.all()):
        student, teacher = student[counted], teacher[counted]
    target = F.log_softmax(teacher.detach() / temperature, -1)
    divergence = F.kl_div(F.log_softmax(student / temperature, -1), target, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


@door
def group_lasso(params: Params, *, spec: Spec, where: Where | str | None = None) -> Tensor:
    """Return Σ over units of the L2 norm of all coupled weights, which drives whole units to zero (Yuan and Lin, 2006; DepGraph).

    Args:
        params: of the spec.
        spec: of the model.
        where: groups to sum over; None: all.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> _ = [torch.nn.init.constant_(m.weight, w) for m, w in zip(model, (3.0, 4.0))]
    >>> float(group_lasso(pf.params(model), spec=pf.trace(model, (torch.randn(2, 1),))))
    10.0
    """
    squares = group_squares(params, spec, where)
    return _total(_norm(s.sum(0)).sum() for s in squares.values())


@door
def l21(params: Params, *, spec: Spec, where: Where | str | None = None) -> Tensor:
    """Return Σ of the L2 norms of the rows of weights that produce a group: `group_lasso` without coupling.

    Args:
        params, spec, where: as for `group_lasso`.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> _ = [torch.nn.init.constant_(m.weight, w) for m, w in zip(model, (3.0, 4.0))]
    >>> float(l21(pf.params(model), spec=pf.trace(model, (torch.randn(2, 1),))))  # 2 · 3
    6.0
    """
    check_complete(params, spec)
    chosen = {g.name for g in spec.groups.values() if matches(where, g)}
    rows = []
    for g in spec.groups.values():
        for tensor, dim, role in g.members:
            if g.name in chosen and role == "out" and tensor in spec.parameters and params[tensor].ndim > 1:
                at = index_map(spec.axes[tensor][dim], g.name, spec.sizes).flatten().to(params[tensor].device)
                rows.append(_norm(params[tensor].movedim(dim, 0)[at].flatten(1).square().sum(1)).sum())
    return _total(rows)


@door
def bn_l1(params: Params, *, spec: Spec, where: Where | str | None = None) -> Tensor:
    """Return Σ |γ| over the scales of norms of prunable channels: network slimming (Liu et al., ICCV 2017, arXiv 1708.06519).

    Args:
        params, spec, where: as for `group_lasso`.

    Raises:
        PruneError: no chosen group has a norm with a scale.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1)).eval()
    >>> float(bn_l1(pf.params(model), spec=pf.trace(model, (torch.randn(2, 1),))).detach())  # two scales of 1
    2.0
    """
    check_complete(params, spec)
    names = dict.fromkeys(
        m.tensor
        for g in spec.groups.values()
        if matches(where, g)
        for m in g.members
        if m.role == "along"
        and m.tensor in spec.parameters
        and m.tensor.endswith("weight")
        and params[m.tensor].ndim == 1
    )
    if not names:
        raise PruneError(
            "the chosen groups have no norm with a scale for bn_l1; choose others by where=, or use group_lasso"
        )
    return _total(params[n].abs().sum() for n in names)


@door
def growing(
    params: Params,
    scores: Scores,
    *,
    spec: Spec,
    alpha: float = 4.0,
    where: Where | str | None = None,
    weights: Mapping[str, float] | None = None,
) -> Tensor:
    """Return ½ Σ γ ‖w‖² over units, with γ = 2^{α (g_max − g) / (g_max − g_min)} and g = √score.

    Units of low scores shrink up to 2^α times as fast as others: the gradient is γ w on rows, columns and norms. Multiply the loss by a
    weight such as 5e-4. After DepGraph (Fang et al., CVPR
    2023) and GReg (Wang et al., ICLR 2021).

    Args:
        params: of the spec.
        scores: group → [units], not negative; they are detached.
        spec: of the params.
        alpha: growth of the exponent; 0 is weight decay on the chosen groups.
        where: groups to sum over, among those with scores; None: all.
        weights: group → factor of its terms; default 1.

    Raises:
        PruneError: a score is negative, or a group does not have one score for each unit.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> _ = [torch.nn.init.ones_(m.weight) for m in model]
    >>> spec, scores = pf.trace(model, (torch.randn(2, 1),)), {"0": torch.tensor([0.0, 1.0])}
    >>> float(growing(pf.params(model), scores, spec=spec, alpha=1.0).detach())  # ½ (2 · 2 + 1 · 2)
    3.0
    """
    terms = []
    for name, squares in group_squares(params, spec, where).items():
        if name not in scores:
            continue
        if scores[name].shape != squares.shape[1:]:
            raise PruneError(
                f"the scores of group {name!r} have shape {tuple(scores[name].shape)}; they must be ({squares.shape[1]},)"
            )
        g = scores[name].detach().to(squares)
        if bool((g < 0).any()):
            raise PruneError(f"growing needs scores of zero or more, but group {name!r} has {float(g.min()):.3g}")
        g = g.sqrt()
        span = (g.max() - g.min()).clamp_min(torch.finfo(g.dtype).tiny)
        factor = (weights or {}).get(name, 1.0) / 2
        terms.append(factor * (2 ** (alpha * (g.max() - g) / span) * squares.sum(0)).sum())
    return _total(terms)


@door
def slice_log_norm(
    params: Params,
    *,
    spec: Spec,
    block: int,
    depthwise_block: int = 2,
    mask: Mask | None = None,
    protect_first: bool = False,
    short_blocks: bool = False,
    weights: Sequence[str] | str | None = None,
) -> Tensor:
    """Return Σ log ‖slice‖₂ over the eligible slices of all convolutions, which drives whole slices to zero, the smallest first.

    The gradient is w / ‖slice‖², so every slice loses an equal amount of its square in each step. Slices of zeros add nothing. Multiply
    the loss by a weight such as 1e-4.

    Args:
        params: of the spec.
        spec, block, depthwise_block, mask, protect_first, short_blocks, weights: as for `sparse.slices`.

    Raises:
        PruneError, ParamsError, MaskError: as `sparse.slices`.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1, bias=False))
    >>> spec = pf.trace(model, (torch.randn(1, 1, 4, 4),))
    >>> w = torch.tensor([3.0, 4.0]).reshape(2, 1, 1, 1)
    >>> loss = lambda p: slice_log_norm(p, spec=spec, block=2)
    >>> loss({"0.weight": w}), torch.func.grad(loss)({"0.weight": w})["0.weight"].flatten()  # log 5; w / 25
    (tensor(1.6094), tensor([0.1200, 0.1600]))
    """
    check_complete(params, spec)
    terms = []
    for s in sliced(spec, block=block, depthwise_block=depthwise_block, mask=mask, weights=weights):
        for part in pieces(params[s.name], s, protect_first=protect_first, short_blocks=short_blocks):
            squares = part.float().square().sum(-1) if part.itemsize < 4 else part.square().sum(-1)
            terms.append(torch.where(squares == 0, 1.0, squares).log().sum() / 2)
    return _total(terms)


@door
def variance_concentration(variances: Mapping[str, Tensor]) -> Tensor:
    """Return Σ over sites of the entropy H = −Σ p log p of p = σ² / Σσ²; lowering it concentrates the variance in few units.

    Args:
        variances: site → [units], differentiable, such as those of `site_variances`; take them from the forward pass of the loss,
            so that no BatchNorm runs twice.

    Raises:
        StatsError: the variances have no gradient.

    >>> s = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> variance_concentration({"a": s}).detach()  # log 2
    tensor(0.6931)
    """
    if not any(v.requires_grad for v in variances.values()):
        raise StatsError(
            "the variances have no gradient; take them from the forward pass of the loss, such as site_variances"
        )
    terms = []
    for v in variances.values():
        p = v / v.sum().clamp_min(torch.finfo(v.dtype).tiny)
        positive = torch.where(p > 0, p, 1.0)  # constant units: 0 log 0 = 0, with gradient 0 instead of an infinite one
        terms.append(-(positive * positive.log()).sum())
    return _total(terms)


def check_complete(params: Params, spec: Spec) -> None:
    """Check that the params have all parameters of the spec, at its sizes; cheap enough for every step of a training.

    Raises:
        ParamsError: one is missing or has another shape; names the first one.
    """
    for name, shape in _shapes(spec):
        if name not in params or params[name].shape != shape:
            check_params(params, spec, (name,))


@lru_cache(maxsize=64)
def _shapes(spec: Spec) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return (name, shape) of all parameters."""
    return tuple((n, spec.shape(n)) for n in sorted(spec.parameters))


def group_squares(params: Params, spec: Spec, where: Where | str | None) -> dict[str, Tensor]:
    """Return group → [tensors, units]: sums of squares of all effective tensors, including biases."""
    check_complete(params, spec)
    value = reader(params, spec=spec)
    sums = member_sums(spec, lambda t: value(t).square())
    return {g: s for g, s in sums.items() if matches(where, spec.groups[g])}


def _norm(squares: Tensor) -> Tensor:
    """Return the square root, with gradient 0 instead of infinity at 0."""
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())


def _total(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of scalars; 0 if there are none."""
    values = list(terms)
    return torch.stack(values).sum() if values else torch.zeros(())


def __dir__() -> list[str]:
    return __all__
