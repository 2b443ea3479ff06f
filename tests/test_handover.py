"""Graph modules and rebuilt classes in the hands of other tools: quantisers, TorchScript, pickles where prunefn is missing."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from pytest import mark
from torch import Tensor, nn

import prunefn as pf

Small = tuple[nn.Module, pf.Params, pf.Spec, Tensor]


class Block(nn.Module):
    """Layers, an activation that is called twice, a sum, attention, outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 8, 4, stride=4), nn.ReLU()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8, bias=False))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.act(self.stem(x)).flatten(2).transpose(1, 2)
        h = self.norm(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return {"y": self.act(x + self.mlp(x)), "mean": x.mean(1)}


def small(frozen: str = "") -> Small:
    torch.manual_seed(0)
    model = Block().eval()
    if frozen:
        model.get_submodule(frozen).requires_grad_(False)
    x = torch.randn(3, 3, 8, 8)
    spec, params = pf.trace(model, (x,)), pf.params(model)
    mask = {g.name: torch.arange(g.size) % 3 != 1 for g in spec.groups.values() if g.kind == "hidden"}
    assert mask
    stats = pf.collect_stats(params, [x], spec=spec)
    params = pf.apply(pf.compensate(params, stats, mask, spec=spec), mask, spec=spec)
    return model, params, pf.shrink(spec, mask), x


def test_a_graph_module_has_the_layers_and_functions_that_tools_look_for() -> None:
    _, params, spec, x = small()
    module = pf.to_module(params, spec=spec)
    kinds = {n: type(m) for n, m in module.named_modules() if type(m).__module__.startswith("torch.nn.modules")}
    assert kinds["stem"] is nn.Conv2d and kinds["act"] is nn.ReLU and kinds["norm"] is nn.LayerNorm
    assert kinds["mlp.0"] is kinds["mlp.2"] is nn.Linear and kinds["mlp.1"] is nn.GELU
    assert module.get_submodule("mlp.0").out_features == spec.shape("mlp.0.weight")[0]
    assert not any(isinstance(n.target, torch._ops.OpOverload) for n in module.graph.nodes)
    assert list(module.state_dict()) == list(params)
    exported = torch.export.export(module, (x,)).module()
    stacks = {
        str(n.target): list(n.meta["nn_module_stack"].values())[-1][1]
        for n in exported.graph.nodes
        if "nn_module_stack" in n.meta
    }
    assert "Conv2d" in str(stacks["aten.conv2d.default"]) and "GELU" in str(stacks["aten.gelu.default"])


@mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
def test_fx_quantises_as_many_layers_as_of_the_class() -> None:
    quantize_fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    from torch.ao.quantization import get_default_qconfig_mapping

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(3, 3, 6, 6)
    spec, mask = pf.trace(model, (x,)), {"0": torch.arange(8) % 3 != 1}
    params, spec = pf.apply(pf.params(model), mask, spec=spec), pf.shrink(spec, mask)
    counts = []
    for module in (pf.to_module(params, spec=spec, model=model), pf.to_module(params, spec=spec)):
        prepared = quantize_fx.prepare_fx(copy.deepcopy(module).eval(), get_default_qconfig_mapping("x86"), (x,))
        prepared(x)
        done = quantize_fx.convert_fx(prepared)
        counts.append(sorted(type(m).__name__ for m in done.modules() if "quantized" in type(m).__module__))
    assert counts[0] == counts[1] and counts[1].count("ConvReLU2d") == 2 and counts[1].count("Linear") == 1


def test_torchscript_takes_a_graph_module() -> None:
    _, params, spec, x = small()
    module = pf.to_module(params, spec=spec)
    scripted = torch.jit.script(module)
    for batch in (x, torch.randn(5, 3, 8, 8)):
        for a, b in zip(scripted(batch).values(), module(batch).values(), strict=True):
            torch.testing.assert_close(a, b)  # TorchScript fuses some ops


@mark.parametrize("frozen", ["stem", "mlp", "attention"])
def test_what_was_frozen_stays_frozen(frozen: str) -> None:
    _, params, spec, _ = small(frozen)
    module = pf.to_module(params, spec=spec)
    made = {s.tensor for s in spec.program.slots}
    assert {n for n, p in module.named_parameters() if not p.requires_grad} == {
        n for n in params if n.startswith(f"{frozen}.") and n not in made
    }


class WithoutPrunefn(pickle.Unpickler):
    """As where prunefn is not installed."""

    def find_class(self, module: str, name: str) -> Any:
        assert module.partition(".")[0] != "prunefn"
        return super().find_class(module, name)


class Loader:
    """The module `pickle` for `torch.load`."""

    Unpickler = WithoutPrunefn


def test_a_saved_class_with_attention_and_created_biases_needs_no_prunefn() -> None:
    model, params, spec, x = small()
    file = io.BytesIO()
    module = pf.to_module(params, spec=spec, model=model)
    torch.save(module, file)
    file.seek(0)
    there = torch.load(file, pickle_module=Loader, weights_only=False)
    assert set(there.state_dict()) == set(params)
    for a, b in zip(there(x).values(), module(x).values(), strict=True):
        assert torch.equal(a, b)
