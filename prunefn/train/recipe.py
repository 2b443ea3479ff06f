"""How a stage of training goes: one frozen, validated value that is written into the run's folder as JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Recipe(BaseModel):
    """Options of a stage. The rate rises linearly in the warm-up and falls along a cosine, batch by batch.

    The defaults are those of variance-based pruning's fine-tuning (AdamW, 1.5e-5, weight decay .01, clip 5). For a ResNet,
    `optimizer="sgd", rate=0.01, decay=1e-4` is better.

    Raises:
        pydantic.ValidationError: an unknown option, or a value out of its range; names both.

    >>> Recipe(epochs=3, optimizer="sgd", rate=0.01).momentum
    0.9
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=10, ge=0)
    batch: int = Field(default=64, ge=1, description="samples of all processes together that are read at once")
    drop_last: bool = Field(
        default=True, description="leave out the last batch of a dataset where it is smaller, if there is another one"
    )
    accumulate: int = Field(
        default=1, ge=1, description="so many batches give one update, the same as one batch of them all"
    )
    optimizer: str = Field(
        default="adamw", description="a name of timm's factory; sgd is Nesterov's, momentum is plain"
    )
    rate: float = Field(default=1.5e-5, gt=0)
    decay: float = Field(default=0.01, ge=0, description="weight decay; biases and norms have none")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of optimizers that have one")
    warmup: float = Field(default=0.0, ge=0, description="epochs, from 1 % of the rate")
    floor: float = Field(default=1e-8, ge=0, description="the rate at the end")
    clip: float | None = Field(default=5.0, gt=0, description="largest norm of the gradient")
    precision: Literal["no", "bf16", "fp16"] = "no"
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="decay of an average of the weights, which is what is measured"
    )
    smoothing: float = Field(default=0.0, ge=0, lt=1, description="of labels")
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    patience: int | None = Field(default=None, ge=1, description="stop after so many epochs without a better one")
    sync_batch_norm: bool = Field(default=False, description="BatchNorms see the batches of all processes (on GPUs)")
    workers: int = Field(default=0, ge=0, description="processes that read the data")
    save_every: int | None = Field(default=None, ge=1, description="updates between checkpoints within an epoch")
    seed: int = 0
