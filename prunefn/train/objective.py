"""What a batch's loss is: labels or soft labels, a teacher or none, mixed images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BatchError
from ..tracing.arguments import read_dict
from .losses import distillation
from .recipe import Recipe

Loss = Callable[..., Tensor]
"""(output, the rest of the batch …) → mean over the batch."""
Metrics = Callable[..., Mapping[str, Tensor]]
"""(output, the rest of the batch …) → name → mean over the batch."""


class Distill(NamedTuple):
    """Learn from a teacher, too: see `losses.distillation`."""

    teacher: nn.Module
    """The dense network, as a rule; a copy in eval mode is used."""
    alpha: float = 0.7
    temperature: float = 2.0


def call(model: nn.Module, batch: Any, inputs: int = 1) -> tuple[Any, tuple[Any, ...]]:
    """(the model's output, the rest of the batch); for a dict, see `read_dict`."""
    if isinstance(batch, Mapping):
        args, kwargs, rest = read_dict(model, batch)
        return model(*args, **kwargs), rest
    if isinstance(batch, Tensor):
        return model(batch), ()
    return model(*batch[:inputs]), tuple(batch[inputs:])


def cross_entropy(output: Any, *rest: Any) -> Tensor:
    """Of logits and labels; of a model that says its own loss (transformers with `labels`), that one.

    Raises:
        BatchError: there are no labels.
    """
    if isinstance(getattr(output, "loss", None), Tensor):
        return output.loss
    return F.cross_entropy(*_labelled(output, rest))


def top1(output: Any, *rest: Any) -> dict[str, Tensor]:
    """Share of samples whose highest logit is the label, and the loss; the loss alone where the model says its own."""
    if isinstance(getattr(output, "loss", None), Tensor):
        return {"loss": output.loss.float()}
    logits, labels = _labelled(output, rest)
    return {"top1": (logits.argmax(1) == labels).double().mean(), "loss": F.cross_entropy(logits.float(), labels)}


def _labelled(output: Any, rest: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    if not rest or not isinstance(rest[0], Tensor):
        raise BatchError("the batches have no labels; give tuples of (input, label), or a loss of your own")
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise BatchError(f"the model returns {type(output).__name__}, no logits; give a loss and metrics of your own")
    return logits, rest[0]


class Objective:
    """A batch's mean loss, as the recipe says."""

    def __init__(
        self, recipe: Recipe, *, loss: Loss | None = None, distill: Distill | None = None, inputs: int = 1
    ) -> None:
        self.recipe, self.loss, self.distill, self.inputs = recipe, loss, distill, inputs
        self.soft = recipe.mixup > 0 or recipe.cutmix > 0 or recipe.label_smoothing > 0
        if loss is not None and (self.soft or distill is not None):
            raise BatchError(
                "mixup, cutmix, label_smoothing and distillation have losses of their own; leave out loss="
            )

    def __call__(self, model: nn.Module, batch: Any, classes: int) -> Tensor:
        """The loss; random numbers come from torch's and NumPy's global generators."""
        if self.soft:
            batch = self._mixed(batch, classes)
        output, rest = call(model, batch, self.inputs)
        if self.distill is not None:
            with torch.no_grad():
                taught, _ = call(self.distill.teacher, batch, self.inputs)
            logits, labels = _labelled(output, rest)
            teacher, _ = _labelled(taught, rest)
            return distillation(logits, teacher, labels, alpha=self.distill.alpha, temperature=self.distill.temperature)
        if self.loss is not None:
            return self.loss(output, *rest)
        return cross_entropy(output, *rest)

    def _mixed(self, batch: Any, classes: int) -> tuple[Any, ...]:
        """Images mixed by timm, and soft labels; where the batch is odd, its last image stays as it is."""
        from timm.data.mixup import Mixup, mixup_target

        if isinstance(batch, Mapping | Tensor) or len(batch) < 2:
            raise BatchError("mixup, cutmix and label_smoothing need batches of (image, label)")
        images, labels, *rest = batch
        target = mixup_target(labels, classes, 1.0, self.recipe.label_smoothing)
        even = len(images) - len(images) % 2
        if even and (self.recipe.mixup or self.recipe.cutmix):
            mix = Mixup(
                self.recipe.mixup, self.recipe.cutmix, label_smoothing=self.recipe.label_smoothing, num_classes=classes
            )
            mixed, soft = mix(images[:even].clone(), labels[:even])
            images, target = torch.cat([mixed, images[even:]]), torch.cat([soft, target[even:]])
        return images, target, *rest
