"""What a convolution reads at each tap of its kernel: means, patches, and the weights of its output positions."""

from __future__ import annotations

from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import StatsError
from ..spec.parts import Geometry
from .moments import as_count


@torch.fx.wrap
def tap_means(x: Tensor, dim: int, geometry: Geometry, weights: Tensor | None = None) -> tuple[Tensor, int | float]:
    """Return the mean over output positions of the zero-padded input at each tap, float64 [d, taps], and the number of positions.

    Args:
        x: [n, d, *spatial] or [d, *spatial].
        dim: of the channels, counted from the right.
        geometry: of the convolution.
        weights: of x's positions, [n, *spatial] or [*spatial]; an output position counts as much as the input position
            at the centre of its kernel; None: each counts once.
    """
    if weights is None:
        sums, n = tap_sums(x, dim, geometry)
    else:
        sums, n = weighted_tap_sums(x, geometry, weights)
    return (sums / n if n else sums), n


def tap_sums(x: Tensor, dim: int, g: Geometry) -> tuple[Tensor, int]:
    """Return the sum over output positions of the zero-padded input at each tap, and the number of output positions.

    The sums are float64 [d, taps]. For a transposed convolution, they run over the input positions whose contribution through
    a tap falls inside the output.
    """
    rank = len(g.kernel)
    batch = x.shape[0] if x.ndim == rank + 2 else 1
    image = x.sum(0, dtype=torch.promote_types(x.dtype, torch.float32)) if x.ndim == rank + 2 else x
    image = image.double()
    spatial = image.shape[1:]
    if g.transposed:
        out = [
            (n - 1) * s - p[0] - p[1] + d * (k - 1) + o + 1
            for n, s, p, d, k, o in zip(
                spatial, g.stride, g.padding, g.dilation, g.kernel, g.output_padding, strict=True
            )
        ]
    else:
        image = F.pad(image, [p for pair in reversed(g.padding) for p in pair])
        out = [
            (n + p[0] + p[1] - d * (k - 1) - 1) // s + 1
            for n, s, p, d, k in zip(spatial, g.stride, g.padding, g.dilation, g.kernel, strict=True)
        ]
    taps = [image]
    for i, kernel in enumerate(g.kernel):  # one spatial dim (now dim 1) after the other
        windows = [_reach(i, t, spatial[i], out[i], g) for t in range(kernel)]
        step = 1 if g.transposed else g.stride[i]
        taps = [v.narrow(1, start, length)[:, ::step].sum(1) for v in taps for start, length in windows]
    return torch.stack(taps, 1), batch * prod(out)


def _reach(i: int, t: int, n: int, out: int, g: Geometry) -> tuple[int, int]:
    """Return (start, length) of the input positions that meet tap t along spatial dim i."""
    if not g.transposed:
        return t * g.dilation[i], (out - 1) * g.stride[i] + 1
    offset = t * g.dilation[i] - g.padding[i][0]  # output position = input position * stride + offset
    first = max(0, -(offset // g.stride[i]))
    last = min(n - 1, (out - 1 - offset) // g.stride[i])
    return min(first, n), max(0, last - first + 1)


def weighted_tap_sums(x: Tensor, g: Geometry, weights: Tensor) -> tuple[Tensor, float]:
    """Return the weighted sum over output positions of the zero-padded input at each tap, and the sum of the weights.

    The sums are float64 [d, taps]. Positions without a weight are zero, like the padding at the end of a shorter input.

    Raises:
        StatsError: the convolution is transposed.
    """
    rank = len(g.kernel)
    x, w = (x, weights) if x.ndim == rank + 2 else (x[None], weights[None])
    w = w.to(x.device, torch.float64)
    x = F.pad(x.double() * (w > 0)[:, None], [p for pair in reversed(g.padding) for p in pair])
    w = centre_weights(w, g)
    taps = []
    for tap in product(*map(range, g.kernel)):
        at = tuple(
            slice(t * d, t * d + (m - 1) * s + 1, s)
            for t, d, m, s in zip(tap, g.dilation, w.shape[1:], g.stride, strict=True)
        )
        taps.append((x[(slice(None), slice(None), *at)] * w[:, None]).flatten(2).sum((0, 2)))
    return torch.stack(taps, 1), as_count(w.sum())


def centre_weights(w: Tensor, g: Geometry) -> Tensor:
    """Return the weights of output positions [n, *out], those of the input positions [n, *spatial] at the centres of the kernel.

    Raises:
        StatsError: the convolution is transposed.
    """
    if g.transposed:
        raise StatsError(
            "a transposed convolution reads positions with weights; weights=False counts all positions alike"
        )
    for i, (n, k, s, p, d) in enumerate(zip(w.shape[1:], g.kernel, g.stride, g.padding, g.dilation, strict=True)):
        outputs = torch.arange((n + sum(p) - d * (k - 1) - 1) // s + 1, device=w.device)
        centres = outputs * s - p[0] + d * (k - 1) // 2
        inside = ((centres >= 0) & (centres < n)).to(w.dtype).reshape(-1, *(1,) * (len(g.kernel) - 1 - i))
        w = w.index_select(1 + i, centres.clamp(0, n - 1)) * inside
    return w


def im2col(x: Tensor, g: Geometry) -> Tensor:
    """Return the patches of images [n, d, *spatial] as [positions, d, taps]."""
    spatial, stride, padding, reach = (
        x.shape[2:],
        g.stride,
        g.padding,
        [d * (k - 1) for d, k in zip(g.dilation, g.kernel, strict=True)],
    )
    if g.transposed:  # a convolution of stride 1 over the inputs set apart, with the kernel turned round
        apart = x.new_zeros(*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(spatial, stride, strict=True)))
        apart[(..., *(slice(None, None, s) for s in stride))] = x
        padding = [(r - p[0], r - p[1] + o) for r, p, o in zip(reach, padding, g.output_padding, strict=True)]
        x, stride = apart, (1,) * len(stride)
    x = F.pad(x, [p for pair in reversed(padding) for p in pair])
    sizes = [(n - r - 1) // s + 1 for n, r, s in zip(x.shape[2:], reach, stride, strict=True)]
    taps = []
    for tap in product(*map(range, g.kernel)):
        starts = [d * (k - 1 - t if g.transposed else t) for d, k, t in zip(g.dilation, g.kernel, tap, strict=True)]
        taps.append(
            x[(..., *(slice(b, b + (m - 1) * s + 1, s) for b, m, s in zip(starts, sizes, stride, strict=True)))]
        )
    return torch.stack(taps, 2).movedim((1, 2), (-2, -1)).flatten(0, -3)
