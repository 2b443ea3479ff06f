"""Slices: the order of filters, exact quotas, what is not eligible, and the loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import prunefn as pf
from prunefn.sparse import apply_sparse, slice_order, slice_scores, slices
from prunefn.train.losses import slice_log_norm
from prunefn.train.optimizer import hold_zero

from .small import Traced, bits, close, laws, randn, same, traced


def conv(filters: int, inputs: int = 2, kernel: tuple[int, ...] = (3, 3), groups: int = 1) -> Traced:
    kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    layer = kinds[len(kernel)](inputs, filters, kernel, groups=groups, bias=False)
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
    return traced(nn.Sequential(layer), randn(2, inputs, *(7 for _ in kernel)))


def gone(mask: Tensor, order: Tensor, block: int) -> list[list[int]]:
    """Of each block, the positions (inputs and kernel, flat) whose slice goes; all weights of a slice go alike."""
    out = []
    for b in (~mask)[order].flatten(1).split(block):
        assert bool((b.all(0) == b.any(0)).all())
        out.append(b.all(0).nonzero()[:, 0].tolist())
    return out


# ---- order


def test_golden_orders() -> None:
    assert slice_order(6, 2).tolist() == [0, 3, 1, 4, 2, 5]
    assert slice_order(6, 3).tolist() == [0, 2, 4, 1, 3, 5]
    assert slice_order(4, 1).tolist() == slice_order(4, 4).tolist() == [0, 1, 2, 3]
    assert slice_order(8, 3, short_blocks=True).tolist() == [0, 2, 4, 1, 3, 5, 6, 7]
    assert slice_order(2, 4, short_blocks=True).tolist() == [0, 1]


@given(st.integers(1, 24), st.integers(1, 9))
@laws
def test_an_order_has_every_filter_once(filters: int, block: int) -> None:
    """Block b holds b, b + B, b + 2B, …"""
    order = slice_order(filters, block, short_blocks=True).tolist()
    assert sorted(order) == list(range(filters))
    blocks = filters // block
    assert order[: blocks * block] == [b + i * blocks for b in range(blocks) for i in range(block)]


def test_blocks_that_do_not_divide() -> None:
    with pytest.raises(pf.PruneError, match=r"7 filters are no multiple of the block size 2; use .* short_blocks=True"):
        slice_order(7, 2)
    t = conv(7)
    with pytest.raises(pf.PruneError, match=r"the weight '0\.weight': 7 filters"):
        slices(t.params, 0.5, spec=t.spec, block=2)
    mask = slices(t.params, 0.5, spec=t.spec, block=2, short_blocks=True)["0.weight"]
    lost = gone(mask, slice_order(7, 2, short_blocks=True), 2)
    assert [len(b) for b in lost] and sum(map(len, lost)) == 36  # of 4 · 2 · 9 slices


# ---- selection


def test_golden_scores_and_mask() -> None:
    """Blocks (0, 2) and (1, 3); norms 5, 1 and √2, 2 of the two positions."""
    t = conv(4, 1, (1, 2))
    w = torch.tensor([[3.0, 1.0], [1.0, 2.0], [4.0, 0.0], [1.0, 0.0]]).double().reshape(4, 1, 1, 2)
    close(slice_scores(w, 2).flatten(), torch.tensor([5.0, 1.0, 2**0.5, 2.0], dtype=torch.float64))
    mask = slices({"0.weight": w}, 0.5, spec=t.spec, block=2)["0.weight"]
    assert mask.flatten(1).int().tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]


@given(st.floats(0, 0.99), st.integers(0, 3), st.booleans(), st.booleans())
@laws
def test_quotas_are_exact(rate: float, seed: int, protect: bool, ties: bool) -> None:
    """⌊rate · eligible⌋ slices go, the lowest, also where most scores are equal."""
    t = conv(6)
    w = randn(6, 2, 3, 3, seed=seed)
    w = w.sign() if ties else w
    mask = slices({"0.weight": w}, rate, spec=t.spec, block=3, protect_first=protect)["0.weight"]
    lost = gone(mask, slice_order(6, 3), 3)
    eligible = [[p for p in range(18) if not (protect and p % 3 == 0)]] * 2
    assert sum(map(len, lost)) == int(rate * 2 * len(eligible[0]) + 1e-9)
    assert all(set(b) <= set(e) for b, e in zip(lost, eligible, strict=True))
    scores = slice_scores(w, 3).flatten(1)
    left = [scores[b][p] for b in range(2) for p in eligible[b] if p not in lost[b]]
    assert not any(scores[b][p] > min(left) + 1e-12 for b in range(2) for p in lost[b])


def test_ties_go_by_index_and_rates_nest() -> None:
    t = conv(4, 1, (1, 4))
    w = torch.ones(4, 1, 1, 4).double()
    lost = [
        gone(slices({"0.weight": w}, r, spec=t.spec, block=2)["0.weight"], slice_order(4, 2), 2) for r in (0.25, 0.6)
    ]
    assert lost == [[[0, 1], []], [[0, 1, 2, 3], []]]


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 2), (7,), (2, 3, 3)])
def test_any_kernel(kernel: tuple[int, ...]) -> None:
    """The first index of each row is protected; of a row of one, all is."""
    t = conv(4, 2, kernel)
    mask = slices(t.params, 0.9, spec=t.spec, block=4, protect_first=True)["0.weight"]
    total = mask[0].numel()
    rows = total // kernel[-1]
    assert bool(mask[..., 0].all())
    assert int((~mask[0]).sum()) == int(0.9 * (total - rows) + 1e-9)


def net() -> Traced:
    """A convolution, a depthwise one, a transposed one, a grouped one, and a linear head."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(),
        nn.ConvTranspose2d(8, 8, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip
    return traced(model, randn(2, 1, 8, 8))


def test_which_weights_have_slices() -> None:
    """Depthwise weights have blocks of 2; a first layer with one input is no depthwise one; transposed ones and linear have none."""
    t = net()
    masks = slices(t.params, 0.5, spec=t.spec, block=4)
    assert {n: tuple(m.shape) for n, m in masks.items()} == {
        "0.weight": (8, 1, 3, 3), "3.weight": (8, 1, 3, 3), "7.weight": (8, 4, 3, 3),
    }  # fmt: skip
    assert sum(len(b) for b in gone(masks["0.weight"], slice_order(8, 4), 4)) == 9
    assert sum(len(b) for b in gone(masks["3.weight"], slice_order(8, 2), 2)) == 18
    assert list(slices(t.params, 0.5, spec=t.spec, block=4, weights=["7", "0"])) == ["0.weight", "7.weight"]
    for chosen in ("10", ["7", "10"]):
        with pytest.raises(pf.ParamsError, match="weights='10' names no weight of a convolution; there are"):
            slices(t.params, 0.5, spec=t.spec, block=4, weights=chosen)
    same(t.params, pf.params(t.model))


def test_masked_filters_go_last_and_do_not_count() -> None:
    """Under a mask, the slices are those of the network without the masked channels."""
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 6, (1, 3)),
        nn.ReLU(),
    ]
    t = traced(nn.Sequential(*layers, nn.Conv2d(6, 4, 1)), randn(2, 3, 8, 8))
    mask = {"0": bits("01110100"), "4": bits("110011")}
    small, spec = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    expected = slices(small, 0.5, spec=spec, block=2)
    found = slices(pf.zero(t.params, mask, spec=t.spec), 0.5, spec=t.spec, block=2, mask=mask)
    assert list(found) == ["0.weight", "2.weight", "4.weight", "6.weight"]
    for n, m in found.items():
        at = pf.kept_positions(mask, t.spec)[n]
        assert torch.equal(m[torch.meshgrid(*at, indexing="ij")], expected[n])
        rest = m.clone()
        rest[torch.meshgrid(*at, indexing="ij")] = True
        assert bool(rest.all())


def test_bad_values() -> None:
    t = conv(4)
    for rate in (1.0, -0.1):
        with pytest.raises(pf.PruneError, match=f"ratio is {rate}"):
            slices(t.params, rate, spec=t.spec, block=2)
    with pytest.raises(pf.PruneError, match="a block has 0 filters"):
        slices(t.params, 0.5, spec=t.spec, block=0)
    with pytest.raises(pf.PruneError, match=r"'0\.weight' is not finite"):
        slices({"0.weight": t.params["0.weight"] * torch.inf}, 0.5, spec=t.spec, block=2)


# ---- what masks are for


def test_apply_sparse_is_pure_and_keeps_ties() -> None:
    a, b = randn(4, 2), randn(3)
    params = {"a": a, "tied": a, "b": b}
    before = {n: p.clone() for n, p in params.items()}
    out = apply_sparse(params, {"a": bits("1001")[:, None].expand(4, 2)})
    assert out["a"] is out["tied"] and out["b"] is b
    assert torch.equal(out["a"], a * bits("1001")[:, None])
    assert not bool(torch.signbit(out["a"][1]).any())  # zero, not −0
    same(params, before)
    for bad in ({"a": bits("1001")}, {"c": bits("1")}, {"b": torch.ones(3)}):
        with pytest.raises(pf.ParamsError, match="the weight mask of"):
            apply_sparse(params, bad)


def test_gradients_go_through_what_is_kept() -> None:
    mask = {"w": bits("101")}
    grad = torch.func.grad(lambda p: apply_sparse(p, mask)["w"].square().sum())({"w": torch.tensor([1.0, 2.0, 3.0])})
    assert grad["w"].tolist() == [2, 0, 6]


def test_they_are_held_through_training() -> None:
    t = conv(4)
    masks = slices(t.params, 0.5, spec=t.spec, block=2)
    optimizer = torch.optim.Adam(t.model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        t.model(randn(2, 2, 5, 5)).square().mean().backward()
        optimizer.step()
        hold_zero(dict(t.model.named_parameters()), optimizer, masks)
    after = pf.params(t.model)
    assert bool((after["0.weight"][~masks["0.weight"]] == 0).all())
    same(apply_sparse(after, masks), after)
    assert torch.equal(slices(after, 0.5, spec=t.spec, block=2)["0.weight"], masks["0.weight"])


# ---- the loss


@pytest.mark.parametrize("protect", [False, True])
def test_the_gradient_of_the_log_norm_is_w_over_the_square(protect: bool) -> None:
    t = conv(6)
    w = t.params["0.weight"]
    kept = slices(t.params, 0.25, spec=t.spec, block=3)["0.weight"]
    params = {"0.weight": w.where(kept, 0)}
    grad = torch.func.grad(lambda p: slice_log_norm(p, spec=t.spec, block=3, protect_first=protect))(params)["0.weight"]
    norms = slice_scores(w, 3)
    by_filter = torch.empty(6, *norms.shape[1:], dtype=w.dtype)
    by_filter[slice_order(6, 3)] = norms.repeat_interleave(3, 0)
    expected = (w / by_filter.square()).where(kept, 0)
    if protect:
        expected[..., 0] = 0
    close(grad, expected)


def test_zero_slices_and_half_precision_give_numbers() -> None:
    t = conv(4)
    zero = {"0.weight": torch.zeros(4, 2, 3, 3)}
    loss = lambda p: slice_log_norm(p, spec=t.spec, block=2)  # noqa: E731
    assert float(loss(zero)) == 0 and float(torch.func.grad(loss)(zero)["0.weight"].abs().sum()) == 0
    tiny = {"0.weight": torch.full((4, 2, 3, 3), 1e-4, dtype=torch.float16)}  # its square is no half
    assert bool(torch.isfinite(loss(tiny))) and float(loss(tiny)) < -100
