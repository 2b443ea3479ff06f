"""Derivatives of a loss with respect to units and to weights, which the gradient criteria collect.

All collected values are sums over samples, so that statistics of batches add up: the mean loss of a batch is weighted by the
number of its terms: its samples, or its labels of positions, without those of padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import trees
from ..errors import BatchError
from ..parameters.effective import computed_values, effective, exposed, reader
from ..parameters.transforms import tied_names
from ..program.batches import device_of, split
from ..program.inputs import sample_dims, samples, signature
from ..program.run import forward_flat
from ..spec.spec import Spec, check_eval_mode, check_runnable
from ..stats.weights import IGNORED, without_padding
from ..tokens.likelihood import classes_last
from ..tracing.arguments import LABELS
from ..types import Batch, Params
from .unit_mask import mask_params, masked

Loss = Callable[..., Tensor]
"""Loss function: (output, *rest of the batch) → scalar, a mean over samples."""
Tensors = dict[str, Tensor]


def cross_entropy(output: Any, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of logits [batch, classes, …] or [batch, length, classes] with labels [batch, …]."""
    return F.cross_entropy(*classes_last(output, labels))


def loss_name(loss: Loss) -> str:
    """Return a loss's name in statistics: its name, the line of a lambda or inner function, the arguments of a `partial`.

    Two losses that are collected together need different names; a module or other object is named by its class.

    >>> loss_name(cross_entropy), loss_name(partial(cross_entropy, weight=2))
    ('cross_entropy', 'cross_entropy(weight=2)')
    """
    if isinstance(loss, partial):
        arguments = [*map(repr, loss.args), *(f"{k}={v!r}" for k, v in loss.keywords.items())]
        return f"{loss_name(loss.func)}({', '.join(arguments)})"
    name = getattr(loss, "__qualname__", type(loss).__qualname__)
    code = getattr(loss, "__code__", None)
    return f"{name}:{code.co_firstlineno}" if code is not None and "<" in name else name


class Data(NamedTuple):
    """A batch split into the inputs of the model and the further arguments of the loss."""

    inputs: list[Tensor]
    """Inputs of the model."""
    rest: list[Any]
    """Arguments of the loss after the output."""
    count: int
    """Number of samples."""
    terms: int
    """Number of terms of which the loss is the mean: samples, or labels of positions that are not ignored."""


class Objective(NamedTuple):
    """A loss, and the name of its criterion for messages."""

    criterion: str
    loss: Loss

    def data(self, params: Params, batch: Batch, spec: Spec) -> Data:
        """Return the batch, split and moved to the params' device.

        Raises:
            BatchError: the batch has no labels, but the loss needs them.
            ParamsError: the spec was traced in train mode.
        """
        check_eval_mode(spec, f"criterion {self.criterion!r}")
        check_runnable(spec)
        device = device_of(params)
        found = split(batch, spec=spec, device=device)
        rest, names = found.rest, ", ".join(name for name, _ in signature(spec).call.filled)
        labels = [x for x, name in zip(rest, found.names, strict=False) if name in LABELS]
        if self.loss is cross_entropy and len(found.names) == len(rest) and len(labels) == 1:
            rest = labels  # a dict may hold more than that
        if not rest and self.loss is cross_entropy:
            raise BatchError(
                f"criterion {self.criterion!r} needs labels, but the batch has nothing after the model's inputs "
                f"({names}); give batches such as ({names}, labels), or a loss of the output alone: "
                f"criteria.{self.criterion}(loss=lambda output: …)"
            )
        moved = trees.map_tensors(lambda x: x.to(device), rest)
        count = terms = samples(spec, found.inputs)
        labels = moved[0] if self.loss is cross_entropy else None
        if isinstance(labels, Tensor) and labels.ndim > 1 and not labels.is_floating_point():
            labels = without_padding(labels, spec, found.inputs)
            moved, terms = [labels, *moved[1:]], int((labels != IGNORED).sum())
        return Data(found.inputs, moved, count, terms)

    def value(self, params: Params, inputs: list[Tensor], rest: list[Any], spec: Spec) -> Tensor:
        """Return the loss.

        Raises:
            BatchError: the loss is not a scalar, or the output and the batch do not fit cross entropy.
        """
        output = forward_flat(params, inputs, spec)
        if self.loss is cross_entropy and not (isinstance(output, Tensor) and len(rest) == 1):
            raise BatchError(
                f"criterion {self.criterion!r} takes the cross entropy of an output tensor with one tensor of labels, but the "
                f"output is {type(output).__name__} and the batch has {len(rest)} after the inputs; pass a loss: "
                f"criteria.{self.criterion}(loss=lambda output, *rest: …)"
            )
        loss = self.loss(output, *rest)
        if not isinstance(loss, Tensor) or loss.ndim:
            what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"type {type(loss).__name__}"
            raise BatchError(
                f"the loss of criterion {self.criterion!r} has {what}; it must be a scalar tensor, such as a mean"
            )
        return loss

    def of_masks(self, params: Params, spec: Spec, at: Tensors) -> Callable[[Tensors, list[Tensor], list[Any]], Tensor]:
        """Return the function (masks, inputs, rest) → loss, for masks of the groups of `at`."""
        program = masked(spec, branches=not spec.branches.keys().isdisjoint(at))
        return lambda masks, inputs, rest: self.value(mask_params(params, masks, spec), inputs, rest, program)

    def of_weights(self, params: Params, spec: Spec) -> Callable[[Tensors, list[Tensor], list[Any]], Tensor]:
        """Return the function (weights, inputs, rest) → loss; the weights replace those of `weights_of`."""
        first_names, program, computed = tied_names(params, spec), exposed(spec), computed_values(params, spec=spec)

        def loss(weights: Tensors, inputs: list[Tensor], rest: list[Any]) -> Tensor:
            values = {**params, **computed, **weights}
            return self.value({n: values[first_names.get(n, n)] for n in values}, inputs, rest, program)

        return loss


def weights_of(params: Params, spec: Spec) -> Tensors:
    """Return the effective floating-point tensors in which groups occur, tied ones once."""
    value = reader(params, spec=spec)
    tensors = {e.name: value(e.name).detach() for e in effective(spec)}
    return {n: t for n, t in tensors.items() if t.is_floating_point()}


# ---- sums over samples


def mean_gradients(
    loss: Callable[[Tensors, list[Tensor], list[Any]], Tensor], at: Tensors, data: Data
) -> dict[str, Tensor]:
    """Return the gradient of the batch's loss at the tensors `at`, times the number of its terms, float64."""
    if not data.terms:  # the mean of no terms is no number
        return {n: torch.zeros_like(t, dtype=torch.float64) for n, t in at.items()}
    with torch.no_grad():
        gradients = grad(loss)(at, data.inputs, data.rest)
    return {n: g.double() * data.terms for n, g in gradients.items()}


def squared_gradients(
    loss: Callable[[Tensors, list[Tensor], list[Any]], Tensor], at: Tensors, data: Data, spec: Spec, chunk: int
) -> dict[str, Tensor]:
    """Return Σ over samples of the squared gradient of each sample's loss, float64; `chunk` samples at a time."""
    total = {n: torch.zeros_like(t, dtype=torch.float64) for n, t in at.items()}
    for varies, fixed in _chunks(data, spec, chunk):

        def sample_loss(
            at: Tensors, sample: list[Tensor], fixed: Callable[[list[Tensor]], tuple[Any, Any]] = fixed
        ) -> Tensor:
            return loss(at, *fixed([x[None] for x in sample]))

        try:
            with torch.no_grad(), batched_attention(varies):
                gradients = vmap(grad(sample_loss), in_dims=(None, 0))(at, varies)
        except BatchError as error:
            raise BatchError(
                f"the network does not run on one sample at a time, as this criterion needs it: {error}"
            ) from error
        for n, g in gradients.items():
            for row in g.unbind():  # a reduction over the first dim is slow, and needs all rows in float64 at once
                gradient = row.double()
                total[n].addcmul_(gradient, gradient)
    return total


def batched_attention(inputs: list[Tensor]) -> AbstractContextManager[Any]:
    """Return a context for `vmap` over attention: on a CPU, the fused kernel would loop over samples, the plain ops do not."""
    on_cpu = all(x.device.type == "cpu" for x in inputs)
    return sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext()


def _chunks(
    data: Data, spec: Spec, chunk: int
) -> Iterator[tuple[list[Tensor], Callable[[list[Tensor]], tuple[list[Tensor], list[Any]]]]]:
    """Yield (a chunk of the tensors with a sample dim, function that joins it with the others to (inputs, rest))."""
    flat, tree = trees.flatten(data.rest)
    dims = [
        *sample_dims(spec, data.inputs),
        *(0 if isinstance(x, Tensor) and x.ndim and len(x) == data.count else None for x in flat),
    ]
    everything = [*data.inputs, *flat]
    lengths = [len(x) for x in flat if isinstance(x, Tensor) and x.ndim]
    if not signature(spec).samples_first:
        raise BatchError(
            "gradients of single samples need them along dim 0 of the output, but its first dim is another"
        )
    if lengths and data.count not in lengths:
        raise BatchError(
            f"gradients of single samples need labels of each sample, but the inputs have {data.count} samples and what follows "
            f"them has {lengths[0]}"
        )

    def join(sample: list[Tensor]) -> tuple[list[Tensor], list[Any]]:
        parts = iter(sample)
        full = [x if d is None else next(parts).movedim(0, d) for d, x in zip(dims, everything, strict=True)]
        return full[: len(data.inputs)], trees.unflatten(full[len(data.inputs) :], tree)

    for start in range(0, data.count, chunk):
        moved = [x.movedim(d, 0) for x, d in zip(everything, dims, strict=True) if d is not None]
        yield [x[start : start + chunk] for x in moved], join
