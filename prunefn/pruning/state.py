"""State of a `Pruning` as a flat dict of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError
from ..parameters.transforms import check_mask, shrink
from ..spec.spec import Spec
from ..types import Mask
from .channels import Channels

NUMBERS = ("share", "rate", "reached")
MASKS = ("there", "live", "slices")
"""Keys of the stored state: numbers, and first parts of the keys of masks; `there` are kept units, `live` active ones."""


def store(channels: Channels, slices: Mapping[str, Tensor], slice_ratio: float) -> dict[str, Tensor]:
    """Return the state: numbers as tensors without dims, masks by group or parameter."""
    out = {
        "share": torch.tensor(channels.ratio, dtype=torch.float64),
        "rate": torch.tensor(slice_ratio, dtype=torch.float64),
        "reached": torch.tensor(channels.finished),
    }
    for key, masks in zip(MASKS, (channels.kept, channels.active, slices), strict=True):
        out |= {f"{key}.{name}": m.cpu().clone() for name, m in masks.items()}
    return out


def restore(state: Mapping[str, Tensor], dense: Spec) -> dict[str, Any]:
    """Return the fields of a `Pruning` that a state has.

    Raises:
        PruneError: a key is missing or unknown, or a mask does not fit the model.
        MaskError: a mask of units does not fit the spec.
    """
    if missing := [n for n in NUMBERS if n not in state]:
        raise PruneError(f"the state has no {missing[0]!r}; it must be what Pruning.state_dict() returned")
    masks: dict[str, Mask] = {kind: {} for kind in MASKS}
    for key, t in state.items():
        kind, _, name = key.partition(".")
        if kind in masks:
            masks[kind][name] = t.clone()
        elif key not in NUMBERS:
            raise PruneError(f"the state has an unknown key {key!r}; it must be what Pruning.state_dict() returned")
    kept, active = masks["there"], masks["live"]
    check_mask(kept, dense)
    check_mask(active, dense)
    spec = shrink(dense, kept)
    for name, m in masks["slices"].items():
        if name not in spec.axes or tuple(m.shape) != spec.shape(name):
            raise PruneError(
                f"the state has a mask of shape {tuple(m.shape)} for {name!r}, which does not fit this model; give "
                "the state of a pruning of it"
            )
    channels = Channels(dense, spec, kept, active, float(state["share"]), bool(state["reached"]))
    return {"channels": channels, "slices": masks["slices"], "slice_ratio": float(state["rate"])}
