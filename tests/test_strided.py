"""`as_strided`: where it is a view of dims, channels pass; elsewhere it freezes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import prunefn as pf


class Strided(nn.Module):
    """A view of [batch, 12] between two layers."""

    def __init__(self, view: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.view = nn.Linear(4, 12), view
        self.b = nn.Linear(view(torch.rand(2, 12)).flatten(1).shape[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.view(self.a(x)).flatten(1))


def strided(
    *dims: tuple[int, int], inner: tuple[int, ...] = (12,), offset: int | None = None
) -> Callable[[Tensor], Tensor]:
    """Return `as_strided` of [batch, *inner] with these (size, stride) behind the batch."""
    sizes, strides = zip(*dims, strict=True)
    return lambda h: h.view(-1, *inner).as_strided((h.shape[0], *sizes), (12, *strides), offset)


VIEWS = {
    "same": (strided((12, 1)), [12]),
    "reshape": (strided((3, 4), (4, 1)), [3, 4]),
    "transpose": (strided((4, 1), (3, 4), inner=(3, 4)), [3, 4]),
    "expand": (strided((2, 0), (12, 1)), [12, 2]),
    "new dim": (strided((1, 5), (12, 1)), [12]),
    "windows": (strided((3, 3), (2, 3), (3, 1), inner=(4, 3)), [3]),
    "windows that come last": (strided((3, 3), (3, 1), (2, 3), inner=(4, 3)), [3]),
    "windows over two dims": (strided((3, 3), (2, 3), (3, 1), inner=(2, 2, 3)), [3]),
    "a part": (strided((6, 1), offset=6), []),
    "windows of the channels": (strided((5, 2), (4, 1)), []),
}
"""View → sizes of the groups of the layer before it."""


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("capture", ["exported", "recorded"])
def test_channels_pass_views(name: str, capture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    view, sizes = VIEWS[name]
    if capture == "recorded":
        monkeypatch.setattr("prunefn.tracing.api.capture", _fails)
    model, x = Strided(view).double().eval(), torch.randn(5, 4, dtype=torch.float64)
    spec, params = pf.trace(model, (x,)), pf.params(model)
    assert spec.capture == capture and [g.size for g in spec.groups.values()] == sizes
    assert list(spec.unknown) == (["aten.as_strided.default"] if name == "a part" else [])
    assert torch.equal(pf.forward(params, x, spec=spec), model(x))
    mask = {g.name: torch.arange(g.size) > 0 for g in spec.groups.values()}
    small = pf.forward(pf.apply(params, mask, spec=spec), x, spec=pf.shrink(spec, mask))
    torch.testing.assert_close(small, pf.forward(pf.zero(params, mask, spec=spec), x, spec=spec))


def _fails(*args: object, **kwargs: object) -> None:
    raise pf.TraceError("not today")


def test_a_part_of_a_part_is_no_view_from_the_start() -> None:
    """An offset counts from the start of the memory."""

    class Part(Strided):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            h = h[1:] if int(len(x) * x.sum().isfinite()) else h
            return self.b(h.as_strided((len(h), 12), (12, 1), 0))

    spec = pf.trace(Part(strided((12, 1))).eval(), (torch.randn(5, 4),))
    assert spec.capture == "recorded" and not spec.groups
    assert "no rule on purpose: the op depends on how a tensor lies in memory" in spec.explain("a.weight")
