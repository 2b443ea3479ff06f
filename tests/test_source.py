"""Networks as plain source: without prunefn they do what `forward` does, train, script and export."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from pytest import mark
from torch import Tensor, nn

import prunefn as pf
from bench.coverage.hf import models
from prunefn import export, trees
from prunefn.export.text import WIDTH

from . import zoo


class Recurrent(nn.Module):
    """Integers and a keyword as inputs, a dict with a list as output, dropout inside an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.lstm = nn.LSTM(8, 12, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, 3)

    def forward(self, ids: Tensor, *, scale: Tensor) -> dict[str, Any]:
        h, (last, cell) = self.lstm(self.embedding(ids))
        return {"y": self.head(h[:, -1]) * scale, "state": [last, cell]}


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)])
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down[0](x))
        b = self.up(F.relu(self.down[1](F.max_pool2d(a, 2))))
        b = F.interpolate(F.avg_pool2d(b, 2), scale_factor=2.0, mode="bilinear")
        return self.out(torch.cat([a, b], 1))


class Odd(nn.Module):
    """Names that are no identifiers, tied and frozen tensors, constants, half of a nest as input, a value of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"in-side": nn.Linear(6, 8), "7": nn.Linear(8, 6, bias=False)})
        self.scales = nn.ParameterList([torch.full((8,), 0.5), torch.full((6,), 2.0)])
        self.second = nn.Linear(8, 6, bias=False)
        self.second.weight = self.layers["7"].weight
        self.layers["in-side"].requires_grad_(False)
        self.register_buffer("table", torch.arange(30.0).reshape(5, 6) / 30, persistent=False)
        self.register_buffer("mean", torch.tensor([0.1, -0.2, 0.3, 1e-9, float("inf"), 2.0]), persistent=False)

    def forward(self, batch: dict[str, Any], power: int) -> tuple[Tensor, list[Tensor]]:
        x = batch["values"] + self.table[: batch["values"].shape[1]] - self.mean.clamp(max=3)
        h = self.layers["in-side"](x).relu() * self.scales[0]
        y = self.layers["7"](h) * self.scales[1] + self.second(h) ** power
        return torch.where(batch["mask"][..., None] > 0, y, -1.0), [2 - y.mean(-1), y.flip(1)]


def images(build: Callable[[], nn.Module], side: int = 64) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    return zoo.randomize(build(), 1), (torch.randn(2, 3, side, side),), {}


def words(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    return models()[name].build(), *models()[name].inputs(2)


CASES: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]] = {
    "unet": lambda: images(UNet, 16),
    "recurrent": lambda: (Recurrent(), (torch.randint(0, 11, (2, 5)),), {"scale": torch.rand(2, 1)}),
    "odd": lambda: (Odd(), ({"values": torch.randn(2, 5, 6), "mask": torch.ones(2, 5)}, 2), {}),
    **{name: lambda name=name: words(name) for name in ("llama", "gpt2", "bert_masked", "bart", "swin", "segformer")},
    **{
        name: lambda name=name: images(lambda: zoo.build(name))
        for name in (
            "resnet18",
            "mobilenet_v3_small",
            "convnext_atto",
            "deit_tiny_patch16_224",
            "efficientnet_b0",
            "swin_t",
        )
    },
}
each = mark.parametrize("name", CASES)
SCRIPTABLE = {name: name not in ("recurrent",) for name in CASES}
"""TorchScript knows no dict of tensors and lists."""


class Written(NamedTuple):
    """A pruned network and its source."""

    path: Path
    params: pf.Params
    spec: pf.Spec
    names: list[str]
    """Names of the state dict of the original."""

    def load(self) -> nn.Module:
        return imported(self.path).load()

    def run(self, module: nn.Module, seed: int = 3) -> tuple[Any, Any]:
        """The outputs of the module and of `forward`, flat."""
        args, kwargs = self.spec.example.draw(seed=seed, batch=3)
        tensors = tuple(a for a in args if not isinstance(a, int))
        return trees.tensors(module(*tensors, **kwargs)), trees.tensors(
            pf.forward(self.params, *args, spec=self.spec, **kwargs)
        )


def imported(path: Path) -> Any:
    description = importlib.util.spec_from_file_location(path.stem, path)
    assert description is not None and description.loader is not None
    module = importlib.util.module_from_spec(description)
    sys.modules[path.stem] = module  # where TorchScript looks for its globals
    description.loader.exec_module(module)
    return module


@cache
def folder() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp())


@cache
def written(name: str) -> Written:
    """A network of which a third is removed, written once for all tests of a process."""
    torch.manual_seed(0)
    model, args, kwargs = CASES[name]()
    spec, params = pf.trace(model.eval(), args, kwargs), pf.params(model)
    mask = {g.name: torch.arange(g.size) % 3 != 1 for g in spec.groups.values() if g.size > 2}
    params, spec = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)
    path = folder() / f"written_{name}.py"
    done = export.source(params, path, spec=spec, batches=(1, 3))
    assert max(done.differences.values()) <= 1e-6 and done.path == path
    return Written(path, params, spec, list(model.state_dict()))


@each
def test_it_does_what_forward_does_under_the_original_names(name: str) -> None:
    w = written(name)
    module = w.load()
    actual, expected = w.run(module)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert list(module.state_dict()) == w.names
    assert all(torch.equal(t, w.params[n]) for n, t in module.state_dict().items())


WITHOUT = """
import sys
sys.modules["prunefn"] = None
sys.path.insert(0, {folder!r})
import torch
torch.set_num_threads(1)  # as the tests, so that sums are in the same order
for name in {names!r}:
    module = __import__(name).load()
    args, kwargs, outputs = torch.load(f"{folder}/{{name}}.pt")
    actual = torch.utils._pytree.tree_leaves(module(*args, **kwargs))
    assert all(torch.equal(a, b) for a, b in zip(actual, outputs, strict=True)), name
assert not any(m.split(".")[0] in ("timm", "torchvision", "transformers") for m in sys.modules)
"""


def test_it_needs_torch_and_safetensors_alone() -> None:
    names = []
    for name in ("unet", "recurrent", "odd", "llama"):
        w = written(name)
        args, kwargs = w.spec.example.draw(seed=3)
        tensors = tuple(a for a in args if not isinstance(a, int))
        outputs = trees.tensors(pf.forward(w.params, *args, spec=w.spec, **kwargs))
        torch.save((tensors, kwargs, outputs), folder() / f"{w.path.stem}.pt")
        names.append(w.path.stem)
    code = WITHOUT.format(folder=str(folder()), names=names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@each
def test_it_is_plain_and_formatted(name: str) -> None:
    path = written(name).path
    text = path.read_text()
    assert not any(word in text for word in ("aten", "prunefn", "torch.ops", "torch._C", "transformers", "torchvision"))
    assert len([line for line in text.splitlines() if len(line) > WIDTH]) < 8  # names of parameters that are as long
    for command in (["check"], ["format", "--check"]) if name not in ("swin", "segformer") else (["check"],):
        subprocess.run(["ruff", *command, "--isolated", str(path)], check=True, capture_output=True)


@each
def test_gradients_are_those_of_the_class(name: str) -> None:
    w = written(name)
    module = w.load()
    actual, _ = w.run(module)
    sum(t.square().mean() for t in actual if t.is_floating_point() and t.grad_fn).backward()
    params = {
        n: t.detach().clone().requires_grad_(t.is_floating_point() and n in w.spec.parameters)
        for n, t in w.params.items()
        if n not in w.spec.tied
    }
    args, kwargs = w.spec.example.draw(seed=3, batch=3)
    tied = {second: params[first] for second, first in w.spec.tied.items()}
    expected = trees.tensors(pf.forward({**params, **tied}, *args, spec=w.spec, **kwargs))
    sum(t.square().mean() for t in expected if t.is_floating_point() and t.grad_fn).backward()
    for n, p in module.named_parameters():
        assert p.requires_grad == (n not in w.spec.without_grad)
        if p.requires_grad and params[n].grad is not None:
            torch.testing.assert_close(p.grad, params[n].grad, rtol=1e-4, atol=1e-6)


@each
def test_torchscript_and_export_take_it(name: str) -> None:
    w = written(name)
    module = w.load()
    args, kwargs = w.spec.example.draw(seed=3, batch=3)
    tensors = tuple(a for a in args if not isinstance(a, int))
    expected, _ = w.run(module)
    made: list[Any] = [torch.export.export(module, tensors, kwargs).module()]
    if SCRIPTABLE[name]:
        made.append(torch.jit.script(module))
    for other in made:
        outputs = trees.tensors(other(*tensors, **kwargs))
        for a, b in zip(outputs, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_in_training_batch_norm_does_what_the_class_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 5),
        nn.BatchNorm1d(5, momentum=0.3),
    ]
    model, x = nn.Sequential(*layers), torch.randn(4, 3, 6, 6)
    spec = pf.trace(model.eval(), (x,))
    export.source(pf.params(model), tmp_path / "normed.py", spec=spec)
    module = imported(tmp_path / "normed.py").load()
    for m in (model, module):
        optimizer = torch.optim.SGD(m.parameters(), 0.1)
        m.train()
        for _ in range(3):
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
    for n, t in module.state_dict().items():
        torch.testing.assert_close(t, model.state_dict()[n])
    assert (
        torch.allclose(module.eval()(x), model.eval()(x), atol=1e-6)
        and int(module.get_buffer("1.num_batches_tracked")) == 3
    )


def test_a_norm_in_half_precision_and_a_bias_that_compensation_made(tmp_path: Path) -> None:
    model = (
        nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 5, bias=False))
        .to(torch.bfloat16)
        .eval()
    )
    x = torch.randn(3, 4, dtype=torch.bfloat16)
    spec, params = pf.trace(model, (x,)), pf.params(model)
    mask = {"0": torch.arange(6) != 2}
    stats = pf.collect_stats(params, [x], spec=spec)
    params = pf.apply(pf.compensate(params, stats, mask, spec=spec), mask, spec=spec)
    export.source(params, tmp_path / "half.py", spec=pf.shrink(spec, mask))
    module = imported(tmp_path / "half.py").load()
    assert "3.bias" in module.state_dict() and {t.dtype for t in module.parameters()} == {torch.bfloat16}


def test_the_same_bytes_every_time_and_nothing_where_it_fails(tmp_path: Path) -> None:
    w = written("unet")
    again = tmp_path / w.path.name
    export.source(w.params, again, spec=w.spec)
    assert [p.read_bytes() for p in sorted(tmp_path.iterdir())] == [
        p.read_bytes() for p in (w.path, w.path.with_suffix(".safetensors"))
    ]
    with pytest.raises(pf.PruneError, match="differs from forward"):
        export.source(w.params, tmp_path / "other.py", spec=w.spec, atol=-1.0)
    with pytest.raises(pf.PruneError, match=r"ends in \.py"):
        export.source(w.params, tmp_path / "other.txt", spec=w.spec)
    assert len(list(tmp_path.iterdir())) == 2


def test_sizes_that_the_program_was_not_proved_for_are_refused(tmp_path: Path) -> None:
    class Pairs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(x.shape[0] // 2, 2, 3).sum(1)

    spec = pf.trace(Pairs(), (torch.randn(4, 3),))
    export.source({}, tmp_path / "pairs.py", spec=spec, batches=(2, 6))
    module = imported(tmp_path / "pairs.py").load()
    with pytest.raises((AssertionError, RuntimeError)):
        module(torch.randn(3, 3))


def test_an_op_of_nobody_is_refused_by_name(tmp_path: Path) -> None:
    class Strange(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y - 1, (super().forward(x),))

    spec = pf.trace(Strange(4, 4), (torch.randn(2, 4),))
    with pytest.raises(pf.PruneError, match="cond"):
        export.source(pf.params(Strange(4, 4)), tmp_path / "strange.py", spec=spec)
    assert list(tmp_path.iterdir()) == []
