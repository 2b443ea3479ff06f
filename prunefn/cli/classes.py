"""Checks that a checkpoint has as many classes as the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..data.value import Data
from ..errors import PruneError
from ..modules.pruned_file import read_content


def check_refused(model: nn.Module, checkpoint: str, data: Data | None) -> None:
    """Check that a checkpoint that does not fit has as many classes as the data.

    Args:
        model: built for the data.
        checkpoint: that was refused.
        data: None: nothing is checked.

    Raises:
        PruneError: it has not; states both numbers.
    """
    if data is None:
        return
    classes, stored = len(data.classes), read_content(checkpoint).tensors
    for name, t in model.state_dict().items():
        other = stored.get(name)
        if other is None or not t.ndim or not other.ndim or t.shape[1:] != other.shape[1:]:
            continue
        if len(t) == classes != len(other):
            raise _mismatch(classes, len(other), f"{name!r} of {checkpoint}") from None


def check_loaded(
    dense: nn.Module, loaded: nn.Module, checkpoint: str, data: Data | None, inputs: tuple[tuple[Tensor, ...], dict]
) -> None:
    """Check that a loaded network has as many outputs as the data have classes.

    A checkpoint may have fewer units than the dense model anywhere, as it may be pruned; but if it was trained for fewer classes,
    its outputs are not those of the data. `--options` may choose a model with more outputs than classes.

    Args:
        dense, loaded: the model that was built, and that with the checkpoint.
        checkpoint: names it in the error.
        data: None: nothing is checked.
        inputs: example inputs, by position and by name.

    Raises:
        PruneError: it has not; states both numbers.
    """
    if data is None or (outputs := _outputs(loaded, inputs)) is None:
        return
    classes = len(data.classes)
    if outputs < classes or (outputs > classes and _outputs(dense, inputs) == classes):
        raise _mismatch(classes, outputs, checkpoint)


def _outputs(model: nn.Module, inputs: tuple[tuple[Tensor, ...], dict]) -> int | None:
    """Return the number of logits of an image; None if the outputs are none."""
    example, keywords = inputs
    with torch.no_grad():
        out: Any = model(*example, **keywords)
    logits = getattr(out, "logits", out)
    return logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 2 else None


def _mismatch(classes: int, other: int, where: str) -> PruneError:
    return PruneError(
        f"the data have {classes} classes, the checkpoint {other} ({where}): give data with these classes"
        + (f", or --options '{{num_classes: {other}}}' to keep the checkpoint's outputs" if other > classes else "")
    )
