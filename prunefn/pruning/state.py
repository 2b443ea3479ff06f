"""The state of a pruning as a flat dict of tensors."""

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


def stored(channels: Channels, slices: Mapping[str, Tensor], rate: float) -> dict[str, Tensor]:
    """Numbers as tensors without dims, masks by group or parameter."""
    out = {
        "share": torch.tensor(channels.share, dtype=torch.float64),
        "rate": torch.tensor(rate, dtype=torch.float64),
        "reached": torch.tensor(channels.reached),
    }
    for what, masks in zip(MASKS, (channels.there, channels.live, slices), strict=True):
        out |= {f"{what}.{name}": m.cpu().clone() for name, m in masks.items()}
    return out


def restored(state: Mapping[str, Tensor], dense: Spec) -> dict[str, Any]:
    """The fields of `Pruning` that the state says.

    Raises:
        PruneError: it lacks something, or is of another model.
    """
    if missing := [n for n in NUMBERS if n not in state]:
        raise PruneError(f"the state has no {missing[0]!r}; it must be what Pruning.state_dict() returned")
    masks: dict[str, Mask] = {what: {} for what in MASKS}
    for key, t in state.items():
        what, _, name = key.partition(".")
        if what in masks:
            masks[what][name] = t.clone()
        elif key not in NUMBERS:
            raise PruneError(f"the state has an unknown key {key!r}; it must be what Pruning.state_dict() returned")
    there, live = masks["there"], masks["live"]
    check_mask(there, dense)
    check_mask(live, dense)
    spec = shrink(dense, there)
    for name, m in masks["slices"].items():
        if name not in spec.axes or tuple(m.shape) != spec.shape(name):
            raise PruneError(
                f"the state has a mask of shape {tuple(m.shape)} for {name!r}, which does not fit this model"
            )
    channels = Channels(dense, spec, there, live, float(state["share"]), bool(state["reached"]))
    return {"channels": channels, "slices": masks["slices"], "rate": float(state["rate"])}
