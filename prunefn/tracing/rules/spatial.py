"""Pooling and resampling: channels pass through, spatial dims are new."""

from __future__ import annotations

from .base import Axes, Call, replaced, rule

SPATIAL = {
    f"aten.{name}{rank}d": rank
    for name, ranks in {
        "max_pool": (1, 2, 3),
        "avg_pool": (1, 2, 3),
        "adaptive_avg_pool": (1, 2, 3),
        "adaptive_max_pool": (1, 2, 3),
        "upsample_nearest": (1, 2, 3),
        "_upsample_nearest_exact": (1, 2, 3),
        "_adaptive_avg_pool": (2, 3),
        "fractional_max_pool": (2, 3),
    }.items()
    for rank in ranks
} | {
    "aten.max_pool1d_with_indices": 1,
    "aten.max_pool2d_with_indices": 2,
    "aten.max_pool3d_with_indices": 3,
    "aten.upsample_linear1d": 1,
    "aten.upsample_bilinear2d": 2,
    "aten.upsample_bicubic2d": 2,
    "aten.upsample_trilinear3d": 3,
    "aten._upsample_bilinear2d_aa": 2,
    "aten._upsample_bicubic2d_aa": 2,
    "aten._upsample_lanczos2d_aa": 2,
    "aten.max_unpool2d": 2,
    "aten.max_unpool3d": 3,
}


@rule(*SPATIAL)
def spatial(call: Call) -> Axes | list[Axes]:
    """Freeze the last dims, along which windows run, and pass all dims before them."""
    x = call["self"] or call["input"]
    rank = SPATIAL[".".join(call.op.split(".")[:2])]
    lead = x.axes[:-rank]
    call.freeze(x.axes[-rank:], "pooled or resampled along it")
    if call["indices"] is not None:
        for a, b in zip(lead, call["indices"].axes, strict=False):
            call.unify(a, b)
        call.freeze(call["indices"].axes[-rank:], "it is an index")
    if (samples := call["random_samples"]) is not None:  # [samples, channels, rank]
        call.freeze([*lead, *samples.axes], "windows of it are drawn")
    out = [(*lead, *call.frozen(s[-rank:], "it is a spatial dim")) for s in call.shapes]
    return out[0] if len(out) == 1 else out


@rule("aten.grid_sampler", "aten.grid_sampler_2d", "aten.grid_sampler_3d")
def grid_sampler(call: Call) -> Axes:
    """Sample x [n, c, …] at grid [n, …, rank]; freeze all but batch and channels."""
    x, grid = call["input"], call["grid"]
    call.unify(x.axes[0], grid.axes[0])
    call.freeze([*x.axes[2:], *grid.axes[1:]], "it is sampled along")
    return replaced(x.axes, dict(enumerate(call.frozen(call.shape[2:], "it is a spatial dim"), start=2)))


@rule("aten.affine_grid_generator")
def affine_grid(call: Call) -> Axes:
    """Turn matrices [n, rank, rank + 1] into grids [n, …, rank]; freeze all but the batch."""
    theta = call["theta"]
    call.freeze(theta.axes[1:], "it is a map of coordinates")
    if isinstance(call["size"][0], int):
        call.freeze(theta.axes[0], "its size is written in the call")
    return (theta.axes[0], *call.frozen(call.shape[1:], "it is a spatial dim"))


@rule("torchvision.deform_conv2d")
def deform_conv2d(call: Call) -> Axes:
    """Freeze all dims but the batch, since offsets are laid out by kernel position and offset group."""
    samples = [call[name] for name in ("input", "offset", "mask") if call[name] is not None]
    for v in call.tensors():
        call.freeze(v.axes[1:] if v in samples else v.axes, "a deformable convolution")
    for v in samples[1:]:
        call.unify(v.axes[0], samples[0].axes[0])
    return (call["input"].axes[0], *call.frozen(call.shape[1:], "a deformable convolution"))
