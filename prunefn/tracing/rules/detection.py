"""Ops of detection heads: data selects boxes, channels pass through."""

from __future__ import annotations

from .base import Axes, Call, rule
from .shape import freeze_all


@rule(
    "torchvision.nms",
    "aten.where.default",
    "aten.nonzero",
    "aten.nonzero_numpy",
    "aten.nonzero_static",
    "aten.argwhere",
    "aten._unique2",
    "aten._unique",
    "aten.unique_dim",
    "aten.unique_consecutive",
    "aten.unique_dim_consecutive",
    "aten.masked_select",
    "aten.bincount",
    "aten.histogram",
    "aten._histogramdd_bin_edges",
    "aten._histogramdd_from_bin_cts",
    "aten.searchsorted",
    "aten.bucketize",
    "aten.multinomial",
    "aten.isin",
)
def picked(call: Call) -> list[Axes]:
    """Freeze all, since the values determine which positions are returned, or how many."""
    return freeze_all(call, "its positions depend on data")


@rule("torchvision.roi_align", "torchvision.roi_pool")
def roi(call: Call) -> Axes | list[Axes]:
    """Map input [n, c, h, w], rois [k, 5] to [k, c, oh, ow]; pooling also returns positions."""
    x, boxes = call["input"], call["rois"]
    n, c, h, w = x.axes
    call.freeze([n, h, w, *boxes.axes], "boxes are taken from it")
    out = [
        (*call.frozen(s[:1], "it is one per box"), c, *call.frozen(s[2:], "it is a spatial dim")) for s in call.shapes
    ]
    return out[0] if len(out) == 1 else out


@rule("torchvision.ps_roi_align", "torchvision.ps_roi_pool")
def position_sensitive(call: Call) -> list[Axes]:
    """Freeze all, since each channel belongs to a place in the box."""
    return freeze_all(call, "its channels are places in a box")


@rule("aten.index_fill")
def index_fill(call: Call) -> Axes:
    """Freeze the dim at whose positions one number is written."""
    x, d = call["self"], call["dim"]
    dims = call.dims(x, d)
    call.freeze([x.axes[i] for i in dims], "positions of it are overwritten by an index")
    call.freeze(call["index"].axes, "it is an index")
    return x.axes
