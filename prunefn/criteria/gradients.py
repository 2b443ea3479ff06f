"""Derivatives of a loss by units and by weights: what the gradient criteria collect.

Everything that is collected is a sum over samples, so that statistics of batches add up: a batch's mean loss counts as often as
the batch has samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import trees
from ..errors import BatchError, ParamsError
from ..parameters.effective import computed_values, effective, exposed, reader
from ..parameters.transforms import tied_names
from ..program.batches import device_of, inputs_of
from ..program.run import forward
from ..spec.axis import Leaf
from ..spec.spec import Spec
from ..types import Batch, Params
from .unit_mask import mask_params, masked

Loss = Callable[..., Tensor]
"""(output, *rest of the batch) → scalar, a mean over samples."""
Tensors = dict[str, Tensor]


def cross_entropy(output: Any, labels: Tensor) -> Tensor:
    """Mean cross entropy of logits [batch, classes, …] with labels [batch, …]."""
    return F.cross_entropy(output, labels)


def loss_name(loss: Loss) -> str:
    """What statistics call a loss: its name, the line of a lambda or inner function, the arguments of a `partial`.

    Two losses that are collected together need different names; a module or other object is called by its class.

    >>> loss_name(cross_entropy), loss_name(partial(cross_entropy, weight=2))
    ('cross_entropy', 'cross_entropy(weight=2)')
    """
    if isinstance(loss, partial):
        given = [*map(repr, loss.args), *(f"{k}={v!r}" for k, v in loss.keywords.items())]
        return f"{loss_name(loss.func)}({', '.join(given)})"
    name = getattr(loss, "__qualname__", type(loss).__qualname__)
    code = getattr(loss, "__code__", None)
    return f"{name}:{code.co_firstlineno}" if code is not None and "<" in name else name


class Data(NamedTuple):
    """A batch taken apart."""

    inputs: list[Tensor]
    """The model's."""
    rest: list[Any]
    """What the loss gets after the output."""
    count: int
    """Samples."""


class Objective(NamedTuple):
    """A loss, and the criterion that it serves, for messages."""

    criterion: str
    loss: Loss

    def data(self, params: Params, batch: Batch, spec: Spec) -> Data:
        """The batch on the params' device.

        Raises:
            BatchError: it has no labels, but the loss needs them.
            ParamsError: the spec was traced in train mode.
        """
        if spec.train:
            raise ParamsError(
                f"criterion {self.criterion!r} needs a spec that was traced in eval mode: trace(model, args)"
            )
        device = device_of(params)
        inputs, names = inputs_of(batch, spec=spec, device=device), [i.name for i in spec.program.inputs]
        if isinstance(batch, Mapping):
            rest = [v for k, v in batch.items() if k not in names]
        else:
            rest = [] if isinstance(batch, Tensor) else list(batch)[len(names) :]
        if not rest and self.loss is cross_entropy:
            raise BatchError(
                f"criterion {self.criterion!r} needs labels, but the batch has nothing after the model's inputs "
                f"({', '.join(names)}); give batches such as ({', '.join(names)}, labels), or a loss of the output alone: "
                f"criteria.{self.criterion}(loss=lambda output: …)"
            )
        moved = trees.map_tensors(lambda x: x.to(device), rest)
        return Data(inputs, moved, next((len(x) for x in inputs if x.ndim), 1))

    def value(self, params: Params, inputs: list[Tensor], rest: list[Any], spec: Spec) -> Tensor:
        """The loss.

        Raises:
            BatchError: it is not a scalar, or cannot be computed from what the network and the batch give.
        """
        output = forward(params, *inputs, spec=spec)
        if self.loss is cross_entropy and not (isinstance(output, Tensor) and len(rest) == 1):
            raise BatchError(
                f"criterion {self.criterion!r} takes the cross entropy of an output tensor with one tensor of labels, but the "
                f"output is {type(output).__name__} and the batch has {len(rest)} after the inputs; say what to do: "
                f"criteria.{self.criterion}(loss=lambda output, *rest: …)"
            )
        found = self.loss(output, *rest)
        if not isinstance(found, Tensor) or found.ndim:
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"type {type(found).__name__}"
            raise BatchError(
                f"the loss of criterion {self.criterion!r} has {what}; it must be a scalar tensor, such as a mean"
            )
        return found

    def of_masks(self, params: Params, spec: Spec) -> Callable[[Tensors, list[Tensor], list[Any]], Tensor]:
        """(masks, inputs, rest) → loss."""
        program = masked(spec)
        return lambda masks, inputs, rest: self.value(mask_params(params, masks, spec), inputs, rest, program)

    def of_weights(self, params: Params, spec: Spec) -> Callable[[Tensors, list[Tensor], list[Any]], Tensor]:
        """(weights, inputs, rest) → loss; the weights stand for those of `weights_of`."""
        second, program, computed = tied_names(params, spec), exposed(spec), computed_values(params, spec=spec)

        def loss(weights: Tensors, inputs: list[Tensor], rest: list[Any]) -> Tensor:
            new = {**params, **computed, **weights}
            return self.value({n: new[second.get(n, n)] for n in new}, inputs, rest, program)

        return loss


def weights_of(params: Params, spec: Spec) -> Tensors:
    """The effective tensors in which groups occur, tied ones once."""
    value = reader(params, spec=spec)
    found = {e.name: value(e.name).detach() for e in effective(spec)}
    return {n: t for n, t in found.items() if t.is_floating_point()}


# ---- what is summed over batches


def mean_gradients(
    loss: Callable[[Tensors, list[Tensor], list[Any]], Tensor], at: Tensors, data: Data
) -> dict[str, Tensor]:
    """Gradient of the batch's loss, times the number of its samples, float64."""
    with torch.no_grad():
        found = grad(loss)(at, data.inputs, data.rest)
    return {n: g.double() * data.count for n, g in found.items()}


def squared_gradients(
    loss: Callable[[Tensors, list[Tensor], list[Any]], Tensor], at: Tensors, data: Data, spec: Spec, chunk: int
) -> dict[str, Tensor]:
    """Σ over samples of the square of the gradient of each sample's loss, float64; `chunk` samples at a time."""
    total = {n: torch.zeros_like(t, dtype=torch.float64) for n, t in at.items()}
    for varies, fixed in _chunks(data, spec, chunk):

        def one(at: Tensors, sample: list[Tensor], fixed: Callable[[list[Tensor]], tuple[Any, Any]] = fixed) -> Tensor:
            return loss(at, *fixed([x[None] for x in sample]))

        with torch.no_grad(), batched_attention(varies):
            found = vmap(grad(one), in_dims=(None, 0))(at, varies)
        for n, g in found.items():
            for row in g.unbind():  # reductions over the first dim are slow, and would need all of them in double
                wide = row.double()
                total[n].addcmul_(wide, wide)
    return total


def batched_attention(inputs: list[Tensor]) -> AbstractContextManager[Any]:
    """On a CPU, `vmap` takes the fused attention one sample after the other; written out, it takes them at once."""
    on_cpu = all(x.device.type == "cpu" for x in inputs)
    return sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext()


def _chunks(
    data: Data, spec: Spec, chunk: int
) -> Iterator[tuple[list[Tensor], Callable[[list[Tensor]], tuple[list[Tensor], list[Any]]]]]:
    """(what has a sample dim, a chunk of it; how to put it back among what has none)."""
    flat, tree = trees.flatten(data.rest)
    batched = [bool(i.axes) and isinstance(i.axes[0], Leaf) for i in spec.program.inputs]
    batched += [isinstance(x, Tensor) and x.ndim > 0 and len(x) == data.count for x in flat]
    everything = [*data.inputs, *flat]

    def put(sample: list[Tensor]) -> tuple[list[Tensor], list[Any]]:
        given = iter(sample)
        full = [next(given) if varies else x for varies, x in zip(batched, everything, strict=True)]
        return full[: len(data.inputs)], trees.unflatten(full[len(data.inputs) :], tree)

    for start in range(0, data.count, chunk):
        yield [x[start : start + chunk] for x, varies in zip(everything, batched, strict=True) if varies], put
