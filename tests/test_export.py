"""Files for other runtimes: they do what `forward` does at any batch size, or there is no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn import export
from prunefn.export import verify
from prunefn.modules import exported


class Mixed(nn.Module):
    """A flag that is no tensor, a whole number as an input, outputs in a dict, and a size that the batch is part of."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first, self.second = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, flag: bool, scale: Tensor) -> dict[str, Any]:
        h = torch.relu(self.first(self.embedding(ids)))
        start = torch.zeros(ids.shape[0], 1, 8, dtype=h.dtype)
        y = self.second(torch.cat([start, h], 1).reshape(ids.shape[0] * 5, 8)) * (2 if flag else 1)
        return {"y": y.reshape(ids.shape[0], 5, 3), "last": [y.reshape(ids.shape[0], 5, 3)[:, -1] * scale]}


def small(model: nn.Module, *args: Any, ratio: float = 0.5) -> tuple[pf.Params, pf.Spec]:
    spec = pf.trace(model.eval(), args)
    prune = pf.pipeline(
        criterion=pf.criteria.magnitude(), where=pf.kind("hidden"), ratio=ratio, compensation=pf.compensation.none()
    )
    pruned = prune(pf.params(model), None, spec=spec)
    return pruned.params, pruned.spec


def cnn() -> tuple[pf.Params, pf.Spec]:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, stride=2),
        nn.Flatten(),
        nn.Linear(36, 5),
    ]
    return small(nn.Sequential(*layers), torch.randn(2, 3, 9, 9))


def mixed() -> tuple[pf.Params, pf.Spec]:
    torch.manual_seed(0)
    return small(Mixed(), torch.randint(0, 9, (2, 4)), True, torch.randn(2, 1))


def vit() -> tuple[pf.Params, pf.Spec]:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)
    return small(model, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("make", [cnn, mixed, vit])
@pytest.mark.parametrize(
    ("exporter", "name"), [(export.program, "a.pt2"), (export.torchscript, "a.pt"), (export.onnx, "a.onnx")]
)
def test_every_format_at_every_batch_size(make: Any, exporter: Any, name: str, tmp_path: Path) -> None:
    params, spec = make()
    done = exporter(params, tmp_path / name, spec=spec, batches=(1, 3, 7))
    assert list(done.differences) == [1, 3, 7] and max(done.differences.values()) < 1e-5
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert f"{name} ({done.kind}" in str(done) and "at batch 7; limit 1.0e-04" in str(done)


class Windows(nn.Module):
    """A mask that is made of filled slices, as torchvision's Swin makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        mask = x.new_zeros((6, 6))
        mask[:3, 3:] = 1
        mask[3:, :3] = 2
        return self.second(torch.relu(self.first(x @ mask.masked_fill(mask == 0, -1.0))))


def test_filled_slices_in_torchscript(tmp_path: Path) -> None:
    params, spec = small(Windows(), torch.randn(2, 6))
    assert any("fill" in i.op for i in spec.program.instructions)
    assert max(export.torchscript(params, tmp_path / "a.pt", spec=spec).differences.values()) < 1e-5


def test_state_dict_of_the_original_class(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)
    params, spec = small(model, torch.randn(2, 3, 32, 32))
    path = tmp_path / "a.safetensors"
    done = export.state_dict(params, path, spec=spec, model=model, batches=(1, 3))
    assert list(done.differences) == [1, 3] and max(done.differences.values()) < 1e-5
    fresh = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3).eval()
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(pf.load(fresh, path)(x), pf.forward(params, x, spec=spec))
    before = path.read_bytes()
    with pytest.raises(pf.PruneError, match="the state dict file differs from forward"):
        export.state_dict(params, path, spec=spec, model=model, atol=-1.0)
    assert path.read_bytes() == before and model.blocks[0].mlp.fc1.out_features == 768


def test_the_limit_grows_with_the_outputs() -> None:
    params, spec = cnn()
    large = {n: 1e4 * t if n.startswith("5.") else t for n, t in params.items()}
    args, kwargs = spec.example.draw(seed=1, batch=1)
    scale = float(pf.forward(large, *args, spec=spec, **kwargs).abs().max())

    def run(inputs: Any) -> list[Tensor]:
        return [pf.forward(large, *inputs, spec=spec)]

    found, limit = verify.verified(run, large, spec, kind="ONNX", batches=(1,), atol=1e-4)
    assert found == {1: 0.0} and scale > 10 and limit == pytest.approx(1e-4 * scale)


def test_compiled_ahead_of_time(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    params, spec = small(model, torch.randn(2, 4))
    done = export.aoti(params, tmp_path / "a.pt2", spec=spec)
    assert max(done.differences.values()) < 1e-5
    loaded = torch._inductor.aoti_load_package(str(tmp_path / "a.pt2"))
    x = torch.randn(4, 4)
    torch.testing.assert_close(loaded(x), pf.forward(params, x, spec=spec))


def test_what_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params, spec = cnn()
    path = tmp_path / "a.pt2"
    path.write_bytes(b"before")
    with pytest.raises(
        pf.PruneError, match=r"the exported program file differs from forward by .* at batch 1 .*nothing was written"
    ):
        export.program(params, path, spec=spec, atol=-1.0)
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["a.pt2"]
    wrong = {n: t + 1 for n, t in params.items()}
    monkeypatch.setattr(exported, "graph_module", lambda p, s: pf.to_module(wrong, spec=s))
    with pytest.raises(pf.PruneError, match="differs from forward"):
        export.program(params, path, spec=spec)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (lambda inputs: [], r"gives outputs of shapes \[\] at batch 1, instead of \[\(1, 5\)\]"),
        (lambda inputs: [torch.full((len(inputs[0]), 5), torch.nan)], "differs from forward by inf"),
        (lambda inputs: 1 / 0, "does not run at batch 1: division by zero"),
    ],
)
def test_files_that_do_something_else(found: Any, text: str) -> None:
    params, spec = cnn()
    with pytest.raises(pf.PruneError, match=text):
        verify.verified(found, params, spec, kind="ONNX", batches=(1, 2), atol=1e-4)


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    train = pf.trace(model, (torch.randn(2, 4),), train=True)
    with pytest.raises(pf.PruneError, match="traced in train mode"):
        export.program(pf.params(model), tmp_path / "a.pt2", spec=train)
    spec = pf.trace(model.eval(), (torch.randn(2, 4),))
    with pytest.raises(pf.PruneError, match="there is no folder"):
        export.program(pf.params(model), tmp_path / "no" / "a.pt2", spec=spec)


def test_arguments_that_are_no_tensors_are_given_again() -> None:
    model = Mixed().eval()
    args = torch.randint(0, 9, (2, 4)), True, torch.randn(2, 1)
    spec = pf.trace(model, args)
    module = pf.to_module(pf.params(model), spec=spec)
    for a, b in zip(module(*args)["last"], model(*args)["last"], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(module(*args)["y"], model(*args)["y"])
