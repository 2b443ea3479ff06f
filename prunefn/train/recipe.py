"""Recipe of a training: one frozen, validated value, stored in the folder of a run as JSON."""

from __future__ import annotations

from typing import Literal

from ..settings import Field, Settings, model_validator

MOST_ROUNDS = 10_000
"""Largest number of rounds of pruning and training, each of which takes real time."""


class Recipe(Settings):
    """Epochs, optimizer, learning rate and the like of a training.

    The learning rate rises linearly in the warm-up, and then falls along a cosine, update by update, or in steps.

    The defaults are those of variance-based pruning's fine-tuning (AdamW, lr 1.5e-5, weight decay 0.01, clipping at 5). For a ResNet,
    `optimizer="sgd", lr=0.01, weight_decay=1e-4` is better.

    Raises:
        pydantic.ValidationError: an option is unknown, or its value out of range; names both.

    >>> Recipe(epochs=3, optimizer="sgd", lr=0.01).momentum
    0.9
    """

    epochs: int = Field(default=10, ge=0, description="passes over the training data")
    batch_size: int = Field(default=64, ge=1, description="samples of all processes together that are read at once")
    drop_last: bool = Field(
        default=True, description="leave out the last batch of a dataset where it is smaller, if there is another one"
    )
    accumulate: int = Field(
        default=1, ge=1, description="so many batches give one update, the same as one batch of them all"
    )
    optimizer: str = Field(
        default="adamw", description="a name of timm's factory; sgd is Nesterov's, momentum is plain"
    )
    lr: float = Field(default=1.5e-5, gt=0, description="learning rate")
    weight_decay: float = Field(default=0.01, ge=0, description="weight decay; biases and norms have none")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of optimizers that have one")
    warmup: float = Field(default=0.0, ge=0, description="epochs, from 1 % of the rate; at most half of all")
    schedule: Literal["cosine", "multistep"] = Field(default="cosine", description="how the rate falls")
    milestones: tuple[int, ...] = Field(
        default=(), description="epochs after which a multistep rate is multiplied by gamma"
    )
    gamma: float = Field(default=0.1, gt=0, le=1, description="of a multistep rate")
    min_lr: float = Field(default=1e-8, ge=0, description="the rate at the end of a cosine")
    grad_clip: float | None = Field(default=5.0, gt=0, description="largest norm of the gradient")
    precision: Literal["no", "bf16", "fp16"] = Field(default="no", description="mixed precision")
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="decay of an average of the weights, which is what is measured"
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="of labels")
    mixup: float = Field(default=0.0, ge=0, description="alpha of the beta distribution")
    cutmix: float = Field(default=0.0, ge=0, description="alpha of the beta distribution")
    patience: int | None = Field(default=None, ge=1, description="stop after so many epochs without a better one")
    sync_batch_norm: bool = Field(default=False, description="BatchNorms see the batches of all processes (on GPUs)")
    workers: int = Field(default=0, ge=0, description="processes that read the data")
    save_every: int | None = Field(default=None, ge=1, description="updates between checkpoints within an epoch")
    keep_every: int | None = Field(
        default=None, ge=1, description="epochs between checkpoints that stay, such as epoch_005.safetensors"
    )
    seed: int = Field(default=0, description="of batches, augmentation, dropout and mixing")

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.milestones and self.schedule != "multistep":
            raise ValueError(f"milestones {self.milestones} need schedule='multistep'; it is {self.schedule!r}")
        if list(self.milestones) != sorted(set(self.milestones)) or any(m < 1 for m in self.milestones):
            raise ValueError(f"milestones are {self.milestones}; they must rise, from 1 on")
        return self
