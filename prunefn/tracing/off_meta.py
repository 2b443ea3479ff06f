"""What code does on `meta` and on no other device: a program that is traced there has to run with values elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class OffMeta(TorchFunctionMode):
    """Lets some functions do on `meta` what they do on a CPU.

    Lists of numbers that index a tensor become a tensor on the device of the tensor, which has no values on `meta`. Histograms of
    whole numbers, by which code of mixtures of experts counts tokens on other devices, do not exist on a CPU.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and args[0].is_meta:
            args = (args[0], _index_with_values(args[1]))
        elif func is torch.histc and args[0].is_meta and not args[0].is_floating_point():
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


def _index_with_values(index: Any) -> Any:
    """Return an index whose lists of numbers are tensors on the CPU."""
    if isinstance(index, tuple):
        return tuple(_index_with_values(part) for part in index)
    is_numbers = isinstance(index, list) and bool(index) and all(type(n) is int for n in index)
    return torch.tensor(index, device="cpu") if is_numbers else index
