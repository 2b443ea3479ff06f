"""Recipes: each is what its paper says, on real networks, and short enough to read."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

import prunefn as pf
from prunefn import recipes

from .small import Traced, randn

NAMES = recipes.__all__
BATCH = 6


@cache
def network(name: str) -> tuple[Traced, list[Any]]:
    """A small convolutional network and a small transformer, with BatchNorm statistics that are not trivial."""
    torch.manual_seed(0)
    if name == "resnet":
        model = torchvision.models.ResNet(
            torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5, width_per_group=64
        )
        for p in model.parameters():
            if p.ndim == 1:
                torch.nn.init.uniform_(p, 0.5, 1.5)
    else:
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=3, num_classes=5
        )
    x = randn(4 * BATCH, 3, 32, 32).float()
    batches = [(part, torch.arange(len(part)) % 5) for part in x.split(BATCH)]
    spec = pf.trace(model.eval(), (x[:2],))
    return Traced(model, spec, pf.params(model)), batches


def test_all_recipes_are_here() -> None:
    assert set(NAMES) == {
        "best", "vbp", "dvbp_ob2c", "corp", "network_slimming", "l1_channels", "taylor", "isomorphic", "depgraph_group_norm",
        "lamp", "fpgm", "mac_aware", "flap", "wanda_sp", "minitron",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_short(name: str) -> None:
    assert len(inspect.getsource(getattr(recipes, name)).splitlines()) <= 15


@pytest.mark.filterwarnings("ignore:compensation 'affine' estimates weights from few samples")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("net", ["resnet", "vit"])
def test_recipes_prune(net: str, name: str) -> None:
    t, batches = network(net)
    where = (
        pf.kind("hidden", "heads")
        if name in ("taylor", "isomorphic", "depgraph_group_norm", "lamp", "mac_aware")
        else None
    )
    options: dict[str, Any] = {} if where is None else {"where": where}
    if name == "dvbp_ob2c":
        options["criterion"] = pf.criteria.denoised_variance() if net == "vit" else pf.criteria.variance()
        batches = [(randn(128, 3, 32, 32).float(), torch.zeros(128).long())]
    small = getattr(recipes, name)(pf.budget.macs(0.7), **options)(t.params, batches, spec=t.spec)
    assert small.info.after.macs <= 0.7 * small.info.before.macs
    y = pf.forward(small.params, batches[0][0], spec=small.spec)
    assert y.shape == (len(batches[0][0]), 5) and bool(torch.isfinite(y).all())


def test_a_loss_of_ones_own() -> None:
    t, batches = network("vit")

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        return F.multi_margin_loss(output, labels)

    a, b = (
        recipes.taylor(0.3, where=pf.kind("hidden"), **k)(t.params, batches, spec=t.spec) for k in ({}, {"loss": loss})
    )
    assert any(not torch.equal(a.mask[g], b.mask[g]) for g in a.mask)


@pytest.mark.parametrize("net, normalize", [("resnet", True), ("vit", None)])
def test_variances_are_normalized_in_networks_with_batch_norm(net: str, normalize: bool | None) -> None:
    """As published in all others; a scope or criterion that is given is taken as it is."""
    t, batches = network(net)
    global_ = pf.scope.global_
    options: dict[str, Any] = {"criterion": pf.criteria.variance(), "where": pf.kind("hidden")}
    by_hand = {n: pf.pipeline(ratio=0.4, scope=global_(normalize=n), **options) for n in (None, True)}
    masks = {n: prune(t.params, batches, spec=t.spec).mask for n, prune in by_hand.items()}
    assert any(not torch.equal(masks[None][g], masks[True][g]) for g in masks[True])
    given = {"scope": global_()}, {"criterion": pf.criteria.variance()}
    for prune, expected in ((recipes.vbp(0.4), normalize), *((recipes.vbp(0.4, **o), None) for o in given)):
        found = prune(t.params, batches, spec=t.spec)
        assert all(torch.equal(found.mask[g], m) for g, m in masks[expected].items())
    with pytest.raises(pf.ParamsError, match="spec is"):
        recipes.vbp(0.4)(t.params, batches, spec=None)  # type: ignore[arg-type]
