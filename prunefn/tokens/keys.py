"""Keys of samples of tokens: the same in batches of any size and order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from ..errors import BatchError
from .positions import Positions


def sample_keys(inputs: Mapping[str, Tensor], positions: Positions) -> list[bytes]:
    """Return 16 bytes that identify each sample of a batch by its inputs, whatever the padding on its right.

    Args:
        inputs: of the program by name; those with a row for each sample are told apart by rows.
        positions: that count.
    """
    shape = token_shape(inputs)
    mask = positions.mask(shape) if len(positions.masks) == 1 else None  # two masks are of two lengths
    out = []
    for i in range(shape[0]):
        row = None if mask is None else mask[i]
        first = 0 if row is None else int(row.int().argmax())  # padding on the left moves positions
        digest = blake2b(str(first).encode(), digest_size=16)
        for name in sorted(inputs):
            value = inputs[name][i] if len(inputs[name]) == shape[0] else inputs[name]
            if row is not None and inputs[name].shape[:2] == shape:
                value = value[row]
            value = value if value.is_floating_point() else value.long()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        out.append(digest.digest())
    return out


def token_shape(inputs: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return (samples, length) of the last input of tokens, which in an encoder-decoder is the decoder's."""
    shapes: Sequence[tuple[int, ...]] = [
        tuple(t.shape) for t in inputs.values() if t.ndim == 2 and not t.is_floating_point() and t.dtype != torch.bool
    ]
    if not shapes:
        raise BatchError("the batch has no tokens [batch, length] among the inputs of the network")
    return shapes[-1][0], shapes[-1][1]
