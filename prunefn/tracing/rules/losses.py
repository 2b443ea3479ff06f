"""Losses: elements are compared one by one, or classes against each other; a mean or a sum runs over the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..axes import Term
from .base import Axes, Call, rule
from .shape import freeze_all

CLASSES = "classes are compared along it"


def _reduced(call: Call, axes: Axes) -> Axes:
    """Return the axes of a loss per element after its reduction: unchanged for `none`, no dims for `mean` and `sum`."""
    if not call["reduction"]:
        return axes
    call.mark(axes, f"mixed:{call.op}")
    return ()


@rule(
    "aten.mse_loss",
    "aten.smooth_l1_loss",
    "aten.huber_loss",
    "aten.soft_margin_loss",
    "aten.binary_cross_entropy_with_logits",
)
def elementwise(call: Call) -> Axes:
    """Broadcast predictions, targets and weights, and reduce."""
    return _compared(call)


def _compared(call: Call) -> Axes:
    values = call.tensors()
    shape = torch.broadcast_shapes(*(_sizes(call, v.axes) for v in values))
    return _reduced(call, call.broadcast(values, shape))


@rule("aten.binary_cross_entropy")
def of_probabilities(call: Call) -> Axes:
    """Compare tensors of one shape, which torch's kernel does not broadcast."""
    if len({tuple(_sizes(call, v.axes)) for v in call.tensors()}) > 1:
        freeze_all(call, "its tensors have several shapes")
    return _compared(call)


@rule(
    "aten.nll_loss_forward", "aten.nll_loss2d_forward", "aten.multi_margin_loss", "aten.multilabel_margin_loss_forward"
)
def of_classes(call: Call) -> list[Axes]:
    """Hold the classes (dim 1, or the only dim) of x [n, classes, …]; the other dims are those of target [n, …], or of all of x."""
    x, target = call["self"].axes, call["target"].axes
    classes = min(1, len(x) - 1)
    _hold_classes(call, x[classes])
    rest = (*x[:classes], *x[classes + 1 :])
    same_rank = len(target) == len(x) and "multilabel" in call.op  # one row of classes per row of x
    for a, b in zip(x if same_rank else rest, target, strict=False):
        call.unify(a, b)
    loss = _reduced(call, rest)
    return [
        loss,
        *(target if len(s) == len(target) and same_rank else call.frozen(s, CLASSES) for s in call.shapes[1:]),
    ]


def _hold_classes(call: Call, classes: Term) -> None:
    """Hold the classes, which the targets of `nll_loss` pick and weights [classes] scale; other losses freeze them."""
    weight = call["weight"]
    if not call.op.startswith("aten.nll_loss"):
        call.freeze([classes, *(weight.axes if weight is not None else ())], CLASSES)
        return
    if weight is not None:
        call.unify(weight.axes[0], classes)
    call.mark([classes], f"mixed:{call.op}")
    call.look_up(classes, call["target"], CLASSES)


def _sizes(call: Call, axes: Sequence[Term]) -> list[int]:
    return [call.alg.size(a) for a in axes]
