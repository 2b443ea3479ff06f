"""Losses of a batch: labels or soft labels, with or without a teacher, mixed images; and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BatchError
from ..stats.weights import IGNORED
from ..tokens.likelihood import classes_last, labels_in, mask_in, next_tokens
from ..tracing.arguments import read_dict
from .losses import distillation, soft_targets
from .recipe import Recipe

Loss = Callable[..., Tensor]
"""(output, *rest of the batch) → mean over the batch."""
Metrics = Callable[..., Mapping[str, Tensor]]
"""(output, *rest of the batch) → name → mean over the batch."""


class Distill(NamedTuple):
    """Loss of a `Setup` that also learns from a teacher: see `losses.distillation`.

    >>> Distill(nn.Linear(4, 2)).alpha
    0.7
    """

    teacher: nn.Module
    """Usually the dense network; a copy in eval mode is used."""
    alpha: float = 0.7
    """Weight of the labels, in [0, 1]."""
    temperature: float = 2.0
    shift: bool | None = None
    """Of language models that compute their loss (transformers with `labels`): which positions the teacher counts at. None: all
    that are no padding. True: those whose next label is not −100, as in causal models. False: those whose own label is not."""

    def of(self, output: Any, target: Any, rest: tuple[Any, ...]) -> Tensor:
        """Return the loss of the network's output, the teacher's output and the rest of a batch.

        Where the output carries a loss (transformers with `labels`), this is that of the labels, which the model shifts as it
        needs; the teacher counts at the positions that `shift` says.
        """
        loss = getattr(output, "loss", None)
        if not isinstance(loss, Tensor):
            logits, labels = _read_labels(output, rest)
            teacher, _ = _read_labels(target, rest)
            return distillation(logits, teacher, labels, alpha=self.alpha, temperature=self.temperature)
        student, teacher = _read_logits(output), _read_logits(target)
        batch = rest[0] if rest and isinstance(rest[0], Mapping) else {}
        counted = self._counted(batch, tuple(student.shape[:-1]))
        student, teacher = (x.reshape(-1, x.shape[-1]) for x in (student, teacher))
        soft = soft_targets(student, teacher, None if counted is None else counted.flatten(), self.temperature)
        return self.alpha * loss + (1 - self.alpha) * soft

    def _counted(self, batch: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor | None:
        """Return at which positions of a batch the teacher counts, bool [batch, length]; None: at all."""
        mask, labels = mask_in(batch, shape), labels_in((), batch)
        if self.shift is None or labels is None or tuple(labels.shape) != shape:
            return mask
        return next_tokens(labels, mask, shift=self.shift) != IGNORED


def call(model: nn.Module, batch: Any, inputs: int = 1) -> tuple[Any, tuple[Any, ...]]:
    """Return the model's output and the rest of the batch; a dict is read as `read_dict` does."""
    if isinstance(batch, Mapping):
        args, kwargs, rest = read_dict(model, batch)
        return model(*args, **kwargs), rest
    if isinstance(batch, Tensor):
        return model(batch), ()
    return model(*batch[:inputs]), tuple(batch[inputs:])


def cross_entropy(output: Any, *rest: Any) -> Tensor:
    """Return the cross entropy of logits and labels, or the loss that the model's output carries (transformers with `labels`).

    Raises:
        BatchError: there are no labels or no logits.
    """
    if isinstance(getattr(output, "loss", None), Tensor):
        return output.loss
    return F.cross_entropy(*_read_labels(output, rest))


def top1(output: Any, *rest: Any) -> dict[str, Tensor]:
    """Return the fraction of samples whose highest logit is the label, and the loss.

    A model whose output carries a loss gives the loss alone.

    >>> metrics = top1(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0]))
    >>> float(metrics["top1"])
    0.5
    """
    if isinstance(getattr(output, "loss", None), Tensor):
        return {"loss": output.loss.float()}
    logits, labels = _read_labels(output, rest)
    counted = labels != IGNORED
    top1 = (logits.argmax(1) == labels)[counted].double().mean()
    return {"top1": top1, "loss": F.cross_entropy(logits.float(), labels)}


def _read_labels(output: Any, rest: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Return logits [batch, classes] and labels; of tokens, those of all positions of all samples."""
    if not rest or not isinstance(rest[0], Tensor):
        raise BatchError("the batches have no labels; give tuples of (input, label), or Setup(data, loss=…, metrics=…)")
    return classes_last(_read_logits(output), rest[0])


def _read_logits(output: Any) -> Tensor:
    """Return the logits of an output; raise BatchError if it has none."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise BatchError(
            f"the model returns {type(output).__name__}, without logits; give Setup(data, loss=…, metrics=…)"
        )
    return logits


def is_soft(recipe: Recipe) -> bool:
    """Return whether the recipe mixes or smooths labels."""
    return recipe.mixup > 0 or recipe.cutmix > 0 or recipe.label_smoothing > 0


class BatchLoss(NamedTuple):
    """Mean loss of a batch by a recipe and the loss of a setup."""

    recipe: Recipe
    loss: Loss | Distill | None
    inputs: int
    classes: int
    """Number of classes; 0 where no labels are mixed or smoothed."""

    def check(self) -> BatchLoss:
        """Return the loss itself.

        Raises:
            BatchError: the recipe has soft labels, and the loss takes none.
        """
        if is_soft(self.recipe) and self.loss is not None and not isinstance(self.loss, Distill):
            raise BatchError(
                "mixup, cutmix and label_smoothing make soft labels with their own cross entropy; leave out loss=, or set "
                "them to 0"
            )
        return self

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss; random numbers come from the global generators of torch and NumPy."""
        if is_soft(self.recipe):
            batch = self._mix(batch)
        output, rest = call(model, batch, self.inputs)
        if isinstance(self.loss, Distill):
            with torch.no_grad():
                target, _ = call(self.loss.teacher, batch, self.inputs)
            return self.loss.of(output, target, rest)
        return (self.loss or cross_entropy)(output, *rest)

    def _mix(self, batch: Any) -> tuple[Any, ...]:
        """Return images mixed by timm, and soft labels [batch, classes].

        timm mixes pairs, so the last image of an odd batch is not mixed.
        """
        from timm.data.mixup import Mixup, mixup_target

        if isinstance(batch, Mapping | Tensor) or len(batch) < 2:
            raise BatchError("mixup, cutmix and label_smoothing need batches of (image, label)")
        images, labels, *rest = batch
        recipe = self.recipe
        target = mixup_target(labels, self.classes, 1.0, recipe.label_smoothing)
        even = len(images) - len(images) % 2
        if even and (recipe.mixup or recipe.cutmix):
            mix = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=self.classes)
            mixed, soft = mix(images[:even].clone(), labels[:even])
            images, target = torch.cat([mixed, images[even:]]), torch.cat([soft, target[even:]])
        return images, target, *rest
