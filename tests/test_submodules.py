"""Submodules of models that cannot be traced as a whole: pruned by what the model feeds them, and put back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytest import raises
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

import prunefn as pf

from .small import same


def detector() -> Any:
    torch.manual_seed(0)
    sizes = {"min_size": 64, "max_size": 96, "weights": None, "weights_backbone": None}
    return fasterrcnn_mobilenet_v3_large_320_fpn(**sizes, box_score_thresh=0.0).eval()


def test_the_backbone_of_a_detector(tmp_path: Path) -> None:
    model = detector()
    before = {n: t.clone() for n, t in pf.params(model).items()}
    batches = [([torch.rand(3, 64, 72), torch.rand(3, 60, 64)],)]
    prune = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.3, where=pf.kind("hidden"))
    small, pruned = pf.prune_submodule(model, "backbone", batches, prune)
    assert pruned.spec.capture == "exported" and pruned.info.after.params < 0.7 * pruned.info.before.params
    same(dict(pf.params(model)), before)
    x = torch.rand(2, 3, 64, 96)
    features, expected = small.backbone(x), pf.forward(pruned.params, x, spec=pruned.spec)
    assert list(features) == list(expected)
    for name, feature in features.items():
        torch.testing.assert_close(feature, expected[name], rtol=1e-4, atol=1e-4)
    found = small(batches[0][0])
    assert [set(f) for f in found] == [{"boxes", "labels", "scores"}] * 2 and len(found[0]["boxes"])
    pf.save(small, tmp_path / "small.safetensors")
    again = pf.load(detector(), tmp_path / "small.safetensors")
    assert torch.equal(again(batches[0][0])[0]["boxes"], found[0]["boxes"])


class Recursive(nn.Module):
    """Calls its part by keyword, and more often the larger its input; the part writes to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor, *, shift: float = 0.0) -> Tensor:
        x = x + shift
        while float(x.detach().abs().max()) > 0.1:
            x = 0.1 * self.part(x).tanh()
        return x


def test_every_call_counts_with_what_it_was_given() -> None:
    torch.manual_seed(0)
    model = Recursive()
    x, calls = torch.randn(5, 4), list[Tensor]()
    handle = model.part.register_forward_pre_hook(lambda _, args: calls.append(args[0].detach().clone()))
    model(x, shift=1.0)
    handle.remove()
    assert calls
    taken = pf.collect_stats(pf.params(model.part), calls, spec=(spec := pf.trace(model.part, (calls[0],))))
    expected = pf.select(pf.score(taken), 0.5, spec=spec)
    small, pruned = pf.prune_submodule(
        model, "part", [{"x": x, "shift": 1.0}], pf.pipeline(criterion=pf.criteria.variance(), ratio=0.5)
    )
    same(dict(pruned.mask), dict(expected))
    assert small.part[1].out_features == 3 and small.training and small(x).shape == x.shape


def test_what_cannot_be_pruned_is_named() -> None:
    model, prune = Recursive(), pf.pipeline(criterion=pf.criteria.variance(), ratio=0.5)
    with raises(pf.PruneError, match=r"Recursive has no submodule 'prat'.*'part'"):
        pf.prune_submodule(model, "prat", [torch.randn(5, 4)], prune)
    with raises(pf.BatchError, match="does not call 'unused' on these batches"):
        pf.prune_submodule(model, "unused", [torch.randn(5, 4)], prune)
    with raises(pf.PruneError, match="a pipeline, such as"):
        pf.prune_submodule(model, "part", [torch.randn(5, 4)], 0.5)  # type: ignore[arg-type]
