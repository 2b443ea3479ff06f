"""Units multiplied by numbers: zeros remove, ones change nothing, derivatives are those of scaling a unit."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import prunefn as pf
from prunefn.criteria.unit_mask import first_part, mask_params, masked, ones, spread
from prunefn.spec.axis import Concat, Fixed, Leaf, Product

from .small import Attention, Tied, cnn, mlp, randn, traced
from .toys import CASES
from .zoo import randomize

FUSED = {
    "attention": "qkv.head_dim",
    "attention_manual": "qkv.head_dim",
    "attention_torch": "attention.in_proj_weight.head_dim",
    "windows": "qkv.head_dim",
    "gqa_fused": "qkv.head_dim",
    "encoder_layer": "layer.self_attn.in_proj_weight.head_dim",
}
"""Widths of queries and keys that are one group with the values': a mask acts on the values, as documented."""
DYNAMIC = {"dynamic_conv": "a"}
"""Weights that are made from the input."""


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def far(a: Any, b: Any) -> float:
    """Largest difference of two outputs, over their scale."""
    pairs = [(x, y) for x, y in zip(tensors(a), tensors(b), strict=True) if x.numel()]
    return max(float((x - y).abs().max()) / max(1.0, float(y.abs().max())) for x, y in pairs)


@pytest.mark.parametrize("name", CASES)
def test_ones_change_nothing_and_a_zero_removes_the_unit(name: str) -> None:
    args, kwargs = CASES[name].inputs()
    model = CASES[name].model()
    spec, params = pf.trace(model, args, kwargs), pf.params(model)
    dense = pf.forward(params, *args, spec=spec, **kwargs)

    def multiplied(masks: dict[str, Tensor]) -> Any:
        return pf.forward(mask_params(params, masks, spec), *args, spec=masked(spec), **kwargs)

    for out in (multiplied(ones(spec)), multiplied({})):
        assert all(torch.equal(a, b) for a, b in zip(tensors(out), tensors(dense), strict=True))
    for g in spec.widths.values():
        if g.exact and g.size > 1:
            keep = torch.arange(g.size) != g.size - 1
            small = pf.apply(params, {g.name: keep}, spec=spec)
            removed = pf.forward(small, *args, spec=pf.shrink(spec, {g.name: keep}), **kwargs)
            known = g.name in (FUSED.get(name), DYNAMIC.get(name))
            assert (far(multiplied({g.name: keep.double()}), removed) < 1e-9) != known, g.name


def test_masks_leave_their_inputs_alone() -> None:
    t = traced(cnn(), randn(2, 3, 6, 6))
    before = {n: v.clone() for n, v in t.params.items()}
    out = mask_params(t.params, {g: torch.zeros(n).double() for g, n in t.spec.sizes.items()}, t.spec)
    assert all(torch.equal(before[n], v) for n, v in t.params.items())
    assert set(t.params) < set(out)
    assert set(masked(t.spec).axes) - set(t.spec.axes) == set(out) - set(t.params)
    assert masked(t.spec) is masked(t.spec)


def test_numbers_along_an_axis() -> None:
    a, b = torch.tensor([2.0, 3.0]), torch.tensor([5.0, 7.0])
    axis = Concat((Product((Leaf("a"), Leaf("b"))), Fixed(1), Leaf("a")))
    sizes = {"a": 2, "b": 2}
    assert spread(axis, {"a": a, "b": b}, sizes, a).tolist() == [10.0, 14.0, 15.0, 21.0, 1.0, 2.0, 3.0]
    assert spread(axis, {"b": b}, sizes, b).tolist() == [5.0, 7.0, 5.0, 7.0, 1.0, 1.0, 1.0]
    assert first_part(Product((Leaf("a"), Leaf("b"))), "b") == Product((Leaf("a"), Leaf("b")))
    assert first_part(axis, "b") == Concat((axis.parts[0],))


def test_a_bias_that_a_compensation_created_goes_with_its_unit() -> None:
    """Queries of their own: their width has no site, and is multiplied where it is produced."""

    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h = nn.Linear(4, 6)
            self.q, self.k, self.v = (nn.Linear(6, 6, bias=False) for _ in range(3))
            self.o = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.h(x).relu()
            return self.o(torch.softmax(self.q(h) @ self.k(h).mT, -1) @ self.v(h))

    t = traced(Cross(), randn(2, 5, 4))
    x = randn(3, 5, 4, seed=1)
    params = {**t.params, t.spec.sites["q"].slot: randn(6, seed=2)}
    (width,) = [g.name for g in t.spec.widths.values() if not g.sites]
    keep = torch.arange(6) != 2
    out = pf.forward(mask_params(params, {width: keep.double()}, t.spec), x, spec=masked(t.spec))
    small = pf.apply(params, {width: keep}, spec=t.spec)
    assert far(out, pf.forward(small, x, spec=pf.shrink(t.spec, {width: keep}))) < 1e-12


def derivative_is_a_difference(t: Any, inputs: tuple[Tensor, ...], groups: list[str] | None = None) -> None:
    """dL/dm at ones against (L(1 + ε) − L(1 − ε)) / 2ε, unit by unit."""
    spec, program, step = t.spec, masked(t.spec), 1e-5

    def loss(masks: dict[str, Tensor]) -> Tensor:
        out = pf.forward(mask_params(t.params, masks, spec), *inputs, spec=program)
        return sum(v.square().mean() for v in tensors(out))  # type: ignore[return-value]

    at = ones(spec)
    found = torch.func.grad(loss)(at)
    assert set(found) == set(spec.widths)
    for g in groups or spec.widths:
        for u in {0, spec.sizes[g] // 2, spec.sizes[g] - 1}:
            e = torch.zeros(spec.sizes[g]).double().index_fill(0, torch.tensor(u), step)
            difference = (loss({**at, g: at[g] + e}) - loss({**at, g: at[g] - e})) / (2 * step)
            assert abs(float(found[g][u] - difference)) < 1e-7 * max(1.0, float(found[g].abs().max())), (g, u)
        assert float(found[g].abs().max()) > 0, g


def test_derivatives_of_convolutions_with_batchnorm_and_groups() -> None:
    derivative_is_a_difference(traced(cnn(), randn(2, 3, 6, 6)), (randn(3, 3, 6, 6, seed=1),))


def test_derivatives_of_a_residual_network() -> None:
    model = timm.create_model("resnet18", num_classes=5, layers=(1, 1, 1, 1), channels=(8, 8, 16, 16), stem_width=8)
    model = randomize(model, 1)  # timm starts the last norm of a block at zero
    t = traced(model, randn(2, 3, 32, 32))
    derivative_is_a_difference(t, (randn(2, 3, 32, 32, seed=1),))


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", depth=2, embed_dim=24, num_heads=3, img_size=32, num_classes=5, class_token=True
    )


def test_derivatives_of_a_vision_transformer() -> None:
    t = traced(vit(), randn(2, 3, 32, 32))
    assert {g.kind for g in t.spec.widths.values()} == {"residual", "heads", "head_dim", "hidden"}
    derivative_is_a_difference(t, (randn(2, 3, 32, 32, seed=1),))


def test_derivatives_of_gpt2_with_tied_embeddings() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_embd=12, n_head=3, vocab_size=11, n_positions=8, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).double().eval()
    ids = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(0))
    spec = pf.trace(model, (ids,), {"use_cache": False})
    assert spec.tied
    t = type("T", (), {"spec": spec, "params": pf.params(model)})
    derivative_is_a_difference(t, (ids,))


def test_a_tied_tensor_is_not_multiplied_where_it_only_embeds() -> None:
    """The output layer reads the stream; the embedding, which is the same tensor, makes it."""
    model = Tied().double().eval()
    ids = torch.arange(6).reshape(2, 3)
    spec, params = pf.trace(model, (ids,)), pf.params(model)
    (group,) = spec.widths
    masks = {group: torch.tensor([1.0, 0.5, 1.0, 2.0, 1.0, 1.0]).double()}
    w = model.embed.weight
    out = ((model.hidden(w[ids] * masks[group]).relu() * masks[group]) @ w.mT).detach()
    assert far(pf.forward(mask_params(params, masks, spec), ids, spec=masked(spec)), out) < 1e-12


def test_masks_of_a_pruned_network_and_of_a_recurrent_one() -> None:
    t = traced(Attention(8, 4, 3), randn(2, 5, 8))
    mask = {"qkv.heads": torch.tensor([True, False, True, True])}
    small, spec = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    x = randn(2, 5, 8, seed=3)
    out = pf.forward(mask_params(small, ones(spec), spec), x, spec=masked(spec))
    assert torch.equal(out, pf.forward(small, x, spec=spec))
    derivative_is_a_difference(traced(mlp(3, 5, 4, 2), randn(2, 3)), (randn(6, 3, seed=2),))
