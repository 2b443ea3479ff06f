"""Random inputs for a model, and the check that it takes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError


def example_inputs(
    model: nn.Module, shape: tuple[int, ...] | None, name: str
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return random inputs of a batch of two: positional, or by name for models of transformers."""
    generator = torch.Generator().manual_seed(0)
    main = getattr(model, "main_input_name", None)
    if main == "input_ids":
        config: Any = model.config
        return (), {"input_ids": torch.randint(0, config.vocab_size, (2, 16), generator=generator)}
    if shape is None:
        raise PruneError(f"{name} does not say what it takes: give --model.input-shape, such as 3,224,224, or --data")
    x = torch.randn(2, *shape, generator=generator)
    return ((), {main: x}) if main is not None else ((x,), {})


def check_inputs(
    model: nn.Module, example: tuple[Tensor, ...], keywords: dict[str, Tensor], name: str, shape: tuple[int, ...] | None
) -> None:
    """Check that the model accepts the inputs.

    Raises:
        PruneError: it does not; quotes its error.
    """
    try:
        with torch.no_grad():
            model(*example, **keywords)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise PruneError(
            f"{name} does not take inputs of {shape}: {str(error).strip().splitlines()[0]}; give other --options or --model.input-shape"
        ) from None
