"""Fourier transforms, which freeze the transformed dims and pass all others; and views between complex and real pairs."""

from __future__ import annotations

from .base import Axes, Call, Value, replaced, rule

TRANSFORMS = [
    f"aten.fft_{kind}{rank}" for kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft") for rank in ("", "2", "n")
]
ALONG = "it is Fourier transformed"


@rule(*TRANSFORMS, "aten._fft_r2c", "aten._fft_c2r", "aten._fft_c2c")
def transform(call: Call) -> Axes:
    """Freeze the transformed dims, since each of their values depends on all others; a dim may also change its size."""
    x: Value = call["self"]
    sizes, dims = call["s"], call["dim"]
    if dims is None and sizes is not None:  # the last dims
        dims = list(range(-len(sizes), 0))
    along = call.dims(x, dims)
    call.freeze([x.axes[d] for d in along], ALONG)
    new_sizes = {d: call.shape[d] for d in along if call.shape[d] != call.alg.size(x.axes[d])}
    return replaced(x.axes, dict(zip(new_sizes, call.frozen(list(new_sizes.values()), ALONG), strict=True)))


@rule("aten.fft_fftshift", "aten.fft_ifftshift")
def shift(call: Call) -> Axes:
    """Freeze the dim whose positions are rolled by half of its size."""
    x: Value = call["self"]
    call.freeze([x.axes[d] for d in call.dims(x, call["dim"])], "it is rolled by half of its size")
    return x.axes


@rule("aten.view_as_complex", "aten.view_as_real", "aten.view_as_complex_copy", "aten.view_as_real_copy")
def complex_view(call: Call) -> Axes:
    """Drop or add the last dim, which is (real, imaginary)."""
    x: Value = call["self"]
    if len(call.shape) < len(x.axes):
        call.freeze(x.axes[-1], "real and imaginary part")
        return x.axes[:-1]
    return (*x.axes, *call.frozen([2], "real and imaginary part"))
