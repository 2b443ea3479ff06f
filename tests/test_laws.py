"""The laws of the design over real architectures."""

from __future__ import annotations

import timm
import torch
import torchvision.models as tv
from pytest import mark, raises
from torch import Tensor, nn

import prunefn as pf
from prunefn.costs.counted import flop_counter

from .orders import permuted
from .zoo import NAMES, SIDE, Subject, double, random_mask, randomize, subject

each = mark.parametrize("name", NAMES)
BAKED_FLOAT32 = ("edgenext_xx_small",)
"""Their forward casts to float32, so that they cannot run in float64."""


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    scale = float(b.abs().max())
    assert scale > 1e-3, "the output is trivial"
    assert float((a - b).abs().max()) <= tolerance * max(scale, 1.0)


def precision(name: str, s: Subject) -> tuple[pf.Params, Tensor, float]:
    """Params, input and tolerance: float64 where the architecture can."""
    if name in BAKED_FLOAT32:
        return s.params, s.x, 1e-4
    return double(s.params), s.x.double(), 1e-10


@each
def test_forward_is_the_module_at_any_batch_size(name: str) -> None:
    s = subject(name)
    x = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    for batch in (x, x[:1]):
        assert torch.equal(pf.forward(s.params, batch, spec=s.spec), s.model(batch))
    assert not s.spec.unknown


@each
def test_law_1_nothing_is_changed_and_the_same_call_gives_the_same_bits(name: str) -> None:
    s = subject(name)
    before = {n: (t, t._version, t.double().sum()) for n, t in s.params.items()}
    flags, rng = [m.training for m in s.model.modules()], torch.get_rng_state()
    prune = pf.pipeline(criterion=pf.criteria.variance(), where=pf.kind("hidden"), ratio=0.3, scope=pf.scope.local())
    first, second = (prune(s.params, [s.x], spec=s.spec) for _ in range(2))
    assert flags == [m.training for m in s.model.modules()]
    assert torch.equal(rng, torch.get_rng_state())
    for n, t in pf.params(s.model).items():
        assert t._version == before[n][1]
        assert torch.equal(t.double().sum(), before[n][2])
    assert all(torch.equal(t, second.params[n]) for n, t in first.params.items())
    assert first.spec == second.spec
    assert all(torch.equal(m, second.mask[g]) for g, m in first.mask.items())


@each
def test_law_2_keeping_all_changes_nothing(name: str) -> None:
    s = subject(name)
    whole = {g: torch.ones(n, dtype=torch.bool) for g, n in s.spec.sizes.items()}
    same = pf.apply(s.params, whole, spec=s.spec)
    assert all(torch.equal(same[n], t) for n, t in s.params.items())
    assert pf.shrink(s.spec, whole) == s.spec
    scores = pf.score(pf.collect_stats(s.params, None, spec=s.spec), criterion=pf.criteria.random(0))
    assert all(bool(m.all()) for m in pf.select(scores, 0.0, spec=s.spec).values())


@each
def test_law_3_removing_units_is_zeroing_them(name: str) -> None:
    s = subject(name)
    params, x, tolerance = precision(name, s)
    mask = random_mask(s.spec, 4, groups=[g.name for g in s.spec.groups.values() if g.exact])
    assert mask
    with torch.no_grad():
        small = pf.forward(pf.apply(params, mask, spec=s.spec), x, spec=pf.shrink(s.spec, mask))
        zeroed = pf.forward(pf.zero(params, mask, spec=s.spec), x, spec=s.spec)
    close(small, zeroed, tolerance)


@each
def test_the_order_of_the_units_does_not_matter(name: str) -> None:
    s = subject(name)
    params, x, tolerance = precision(name, s)
    other, spec = permuted(params, s.spec, 12)
    with torch.no_grad():
        close(pf.forward(other, x, spec=spec), pf.forward(params, x, spec=s.spec), tolerance)
    assert any(not torch.equal(t, params[n]) for n, t in other.items())


@each
def test_law_5_two_rounds_are_one(name: str) -> None:
    s = subject(name)
    first = random_mask(s.spec, 5, 0.7)
    smaller = pf.shrink(s.spec, first)
    second = random_mask(smaller, 6, 0.6)
    both = pf.compose(first, second)
    twice = pf.apply(pf.apply(s.params, first, spec=s.spec), second, spec=smaller)
    once = pf.apply(s.params, both, spec=s.spec)
    assert all(torch.equal(twice[n], t) for n, t in once.items())
    assert pf.shrink(smaller, second) == pf.shrink(s.spec, both)


@each
def test_law_6_cost_is_what_a_counter_counts_on_the_pruned_network(name: str) -> None:
    s = subject(name)
    for keep in (1.0, 0.4):
        mask = random_mask(s.spec, 7, keep)
        small, params = pf.shrink(s.spec, mask), pf.apply(s.params, mask, spec=s.spec)
        with torch.no_grad(), flop_counter() as counter:
            pf.forward(params, s.x, spec=small)
        cost = pf.cost(s.spec, mask)
        assert cost == pf.cost(small)
        assert cost.macs == counter.get_total_flops() // 2 // len(s.x)
        assert cost.params == sum(t.numel() for n, t in params.items() if n in s.spec.parameters)


@each
def test_law_7_a_budget_is_met_and_no_unit_too_many_goes(name: str) -> None:
    s = subject(name)
    scores = pf.score(pf.collect_stats(s.params, None, spec=s.spec), criterion=pf.criteria.random(1))
    dense = pf.cost(s.spec)
    for budget, quantity in ((pf.budget.macs(0.6), "macs"), (pf.budget.params(0.6), "params")):
        mask = pf.select(scores, budget, spec=s.spec)
        assert getattr(pf.cost(s.spec, mask), quantity) <= 0.6 * getattr(dense, quantity)
        removed = [(float(scores[g][i]), g, i) for g, m in mask.items() for i in (~m).nonzero()[:, 0].tolist()]
        _, group, unit = max(removed)
        mask[group][unit] = True
        assert getattr(pf.cost(s.spec, mask), quantity) > 0.6 * getattr(dense, quantity)


@each
def test_law_8_split_and_shuffled_batches_give_the_same_stats(name: str) -> None:
    s = subject(name)
    params, _, _ = precision(name, s)
    x = torch.randn(
        4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(8), dtype=next(iter(params.values())).dtype
    )
    whole = pf.collect_stats(params, [x], spec=s.spec)
    split = pf.merge_stats(
        pf.collect_stats(params, [x[3:]], spec=s.spec), pf.collect_stats(params, [x[:1], x[1:3]], spec=s.spec)
    )
    tolerance = 1e-4 if name in BAKED_FLOAT32 else 1e-9
    for site, m in whole.sites.items():
        n = split.sites[site]
        assert m.count == n.count
        torch.testing.assert_close(m.mean, n.mean, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(m.variance, n.variance, rtol=tolerance, atol=tolerance)


@mark.parametrize(
    "name", ["resnet50", "deit_tiny_patch16_224", "convnext_tiny", "vit_b_16", "swin_t", "densenet121", "googlenet"]
)
def test_law_9_constant_units_are_removed_without_loss(name: str) -> None:
    s = subject(name)
    params, x = _with_constant_units(s)
    stats = pf.collect_stats(params, [x], spec=s.spec)
    variances = pf.score(stats)
    mask = {}
    for g in s.spec.groups.values():
        unpadded = all(not s.spec.sites[site].taps for site in g.sites)
        if (
            g.kind == "hidden"
            and g.exact
            and g.name in variances
            and unpadded
            and bool((variances[g.name] < 1e-20).any())
        ):
            mask[g.name] = variances[g.name] >= 1e-20
    assert mask
    with torch.no_grad():
        dense = pf.forward(params, x, spec=s.spec)
        filled = pf.apply(pf.compensate(params, stats, mask, spec=s.spec), mask, spec=s.spec)
        bare = pf.apply(params, mask, spec=s.spec)
        small = pf.shrink(s.spec, mask)
        close(pf.forward(filled, x, spec=small), dense, 1e-9)
        assert float((pf.forward(bare, x, spec=small) - dense).abs().max()) > 1e-6


def _with_constant_units(s: Subject) -> tuple[pf.Params, Tensor]:
    """Every fourth unit of each hidden group hears nothing: its producer's rows are zero, its bias is not."""
    params = double(s.params)
    for g in s.spec.groups.values():
        for tensor, dim, role in g.members:
            if g.kind == "hidden" and role == "out" and params[tensor].ndim > 1 and params[tensor].shape[dim] == g.size:
                params[tensor] = params[tensor].clone()
                params[tensor].select(dim, 0)[...] = 0
                params[tensor].narrow(dim, 0, g.size)[torch.arange(0, g.size, 4)] = 0
    return params, s.x.double()


@each
def test_law_11_no_group_is_emptied(name: str) -> None:
    s = subject(name)
    scores = pf.score(pf.collect_stats(s.params, None, spec=s.spec), criterion=pf.criteria.magnitude())
    for scope in (pf.scope.global_(), pf.scope.local()):
        mask = pf.select(scores, 0.9, spec=s.spec, scope=scope)
        assert all(bool(m.any()) for m in mask.values())
    with raises(pf.BudgetError, match="works"):
        pf.select(scores, 0.9999, spec=s.spec)
    with raises(pf.BudgetError, match="at least"):
        pf.select(scores, pf.budget.macs(1e-9), spec=s.spec)


# ---- law 4: where a norm runs over the axis, compare with the same architecture built at the smaller width


def shrunk_to(spec: pf.Spec, native: nn.Module, x: Tensor) -> pf.Mask:
    """A mask that gives every group the size it has in a natively smaller network."""
    target = pf.trace(native, (x,))
    assert list(target.groups) == list(spec.groups)
    generator = torch.Generator().manual_seed(9)
    return {g: torch.rand(n, generator=generator).argsort() < target.sizes[g] for g, n in spec.sizes.items()}


def check_native(model: nn.Module, native: nn.Module) -> None:
    randomize(model, 10).eval()
    native.eval()
    x = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(11))
    spec, params = pf.trace(model, (x,)), pf.params(model)
    mask = shrunk_to(spec, native, x)
    small = pf.apply(params, mask, spec=spec)
    native.load_state_dict(small, strict=True)
    with torch.no_grad():
        y = pf.forward(double(small), x.double(), spec=pf.shrink(spec, mask))
        close(y, native.double()(x.double()), 1e-10)
    assert pf.cost(spec, mask) == pf.cost(pf.trace(native.float(), (x,)))


def test_law_4_vit_of_timm() -> None:
    def vit(heads: int, ratio: float) -> nn.Module:
        return timm.models.VisionTransformer(
            img_size=SIDE, embed_dim=64 * heads, num_heads=heads, depth=3, mlp_ratio=ratio
        )

    check_native(vit(3, 4.0), vit(2, 2.0))


def test_law_4_vit_of_torchvision() -> None:
    def vit(heads: int) -> nn.Module:
        return tv.VisionTransformer(SIDE, 16, num_layers=3, num_heads=heads, hidden_dim=32 * heads, mlp_dim=80 * heads)

    check_native(vit(4), vit(3))


def test_law_4_swin() -> None:
    def swin(heads: int) -> nn.Module:
        return tv.SwinTransformer([4, 4], 32 * heads, [2, 2, 2, 2], [heads * 2**i for i in range(4)], [7, 7])

    check_native(swin(3), swin(2))


def test_law_4_convnext() -> None:
    def convnext(width: int) -> nn.Module:
        return timm.models.ConvNeXt(depths=(2, 2, 3, 2), dims=tuple(width * 2**i for i in range(4)))

    check_native(convnext(24), convnext(16))
