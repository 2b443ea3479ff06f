"""The options of `prunefn llm …`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ..errors import PruneError
from ..settings import Field, Settings, field_validator


class Llm(Settings):
    """A language model in a folder."""

    text: str | None = None
    """file or folder of texts (.txt, .jsonl with `text` or `messages`), or of tokens (.npy, .bin)"""
    params: float | None = Field(default=None, gt=0, lt=1)
    """fraction of the parameters to keep, with equal sizes in all layers"""
    macs: float | None = Field(default=None, gt=0, lt=1)
    """fraction of the MACs to keep, with equal sizes in all layers"""
    target: dict[str, int] = Field(default={})
    """instead of fractions: fields of config.json, such as intermediate_size=1152,num_hidden_layers=24"""
    where: str | None = None
    """groups that may shrink under a fraction, such as hidden or heads; default: the widths inside layers"""
    round_to: int | None = Field(default=None, ge=1)
    """multiple of the sizes under a fraction; default: 8 if all groups have 64 units or more"""
    criterion: str | None = None
    """such as weighted_variance, wanda_sp or flap, on activations without gradients; default: obs(None), and weighted_variance for
    hidden widths"""
    compensation: str | None = None
    """affine(ridge=0.1) or none; default: affine(), least squares layer by layer, without new biases"""
    length: int = Field(default=512, ge=2)
    """tokens of a sequence"""
    batch_size: int = Field(default=8, ge=1)
    """sequences of a batch"""
    sequences: int | None = Field(default=64, ge=1)
    """number of sequences; none: all of the text, and for recover as many as the steps need"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of the computation; the files keep theirs"""

    dense: str | None = None
    """folder of the dense model, towards which the pruned one is trained"""
    steps: int = Field(default=200, ge=1)
    """number of steps, each on one batch"""
    lr: float = Field(default=3e-4, gt=0)
    """highest learning rate, of one cycle"""
    seed: int = 0
    """seed of the held-out part and of the order of the batches"""

    @field_validator("target", mode="before")
    @classmethod
    def _of_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if bad := [name for name, equals, number in pairs if not equals or not number.strip().isdigit()]:
            raise ValueError(f"write FIELD=NUMBER,FIELD=NUMBER, such as intermediate_size=1152, not {bad[0].strip()!r}")
        return {name.strip(): int(number) for name, _, number in pairs}


def dtype_of(section: Llm) -> Any:
    """Return the type of the computation."""
    import torch

    return getattr(torch, section.dtype)


def folder_of(files: list[str]) -> Path:
    """Return the one folder of the call.

    Raises:
        PruneError: there is none, or there are several.
    """
    if len(files) != 1:
        raise PruneError(f"give one folder of a model: {', '.join(files) or 'none is given'}")
    return Path(files[0])
