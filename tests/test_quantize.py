"""Simulated quantisation: values pass through it, and per-channel scales and zero points follow the channels."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn

import prunefn as pf

quantized = torch.ops.quantized_decomposed


def checked(model: nn.Module, x: Tensor) -> pf.Spec:
    """Check forward against the module, bit for bit, and removing exact groups against zeroing."""
    spec, params = pf.trace(model, (x,)), pf.params(model)
    assert not spec.unknown and spec.groups
    assert torch.equal(pf.forward(params, x, spec=spec), model(x))
    every = {g: torch.arange(n) % 3 != 0 for g, n in spec.sizes.items()}
    shape = pf.forward(pf.apply(params, every, spec=spec), x, spec=pf.shrink(spec, every)).shape
    assert shape == model(x).shape
    mask = {g: m for g, m in every.items() if spec.groups[g].exact}
    small = pf.forward(pf.apply(params, mask, spec=spec), x, spec=pf.shrink(spec, mask))
    (kept,) = every.values()
    zeroed = {**params, "b.weight": params["b.weight"] * kept} if mask else params
    torch.testing.assert_close(small, pf.forward(zeroed, x, spec=spec))
    return spec


@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("observing", [True, False])
def test_a_model_prepared_for_quantisation(convolution: bool, observing: bool) -> None:
    torch.manual_seed(0)
    q = torch.ao.quantization
    layers = [nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)]
    if convolution:
        layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)]
    model, x = nn.Sequential(*layers), torch.randn(4, 3, 6, 6) if convolution else torch.randn(4, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.qconfig = q.get_default_qat_qconfig("fbgemm")  # type: ignore[assignment]
        model = q.prepare_qat(model.train())
        model(x)
        if not observing:
            model.apply(q.disable_observer)
        spec = pf.trace(model.eval(), (x,))
    params = pf.params(model)
    assert not spec.unknown and list(spec.groups) == ["0"]
    assert torch.equal(pf.forward(params, x, spec=spec), model(x))
    mask = {"0": torch.arange(spec.sizes["0"]) % 2 == 0}
    small = pf.apply(params, mask, spec=spec)
    assert (
        small["0.weight_fake_quant.scale"].shape == small["0.weight_fake_quant.zero_point"].shape == (mask["0"].sum(),)
    )
    assert pf.forward(small, x, spec=pf.shrink(spec, mask)).shape == model(x).shape


class Quantised(nn.Module):
    """Two layers with simulated quantisation of weights by channels, and of activations."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.a, self.b, self.mode = nn.Linear(6, 16, bias=False), nn.Linear(16, 3), mode
        integers = torch.int64 if "pt2e" in mode else torch.float32 if mode == "learnable" else torch.int32
        self.register_buffer("scale", torch.rand(16) * 0.01 + 0.01)
        self.register_buffer("zero", torch.zeros(16, dtype=integers))
        self.register_buffer("blocks", torch.rand(16, 3) * 0.01 + 0.01)
        self.register_buffer("block_zeros", torch.zeros(16, 3, dtype=torch.int64))

    def weight(self) -> Tensor:
        w, channels = self.a.weight, (0, -128, 127)
        match self.mode:
            case "channel":
                return torch.fake_quantize_per_channel_affine(w, self.scale, self.zero, *channels)
            case "learnable":
                return torch._fake_quantize_learnable_per_channel_affine(w, self.scale, self.zero, *channels)
            case "pt2e":
                ints = quantized.quantize_per_channel(w, self.scale, self.zero, *channels, torch.int8)
                return quantized.dequantize_per_channel(ints, self.scale, self.zero, *channels, torch.int8)
            case "pt2e groups":
                bits: tuple[Any, ...] = (-8, 7, torch.int8, 2)
                ints = quantized.quantize_per_channel_group(w, self.blocks, self.block_zeros, *bits)
                return quantized.dequantize_per_channel_group(ints, self.blocks, self.block_zeros, *bits, torch.float32)
        return torch.fake_quantize_per_tensor_affine(w, 0.01, 0, -128, 127)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(nn.functional.linear(x, self.weight()))
        if self.mode == "pt2e tokens":
            scale, zero = quantized.choose_qparams_per_token_asymmetric(h, torch.int8)
            ints = quantized.quantize_per_token(h, scale, zero, -128, 127, torch.int8)
            h = quantized.dequantize_per_token(ints, scale, zero, -128, 127, torch.int8, torch.float32)
        elif "pt2e" in self.mode:
            ints = quantized.quantize_per_tensor(h, 0.02, 3, 0, 255, torch.uint8)
            h = quantized.dequantize_per_tensor(ints, 0.02, 3, 0, 255, torch.uint8)
        else:
            h = torch.fake_quantize_per_tensor_affine(h, torch.tensor(0.02), torch.tensor(3, dtype=torch.int32), 0, 255)
        return self.b(h)


@pytest.mark.parametrize("mode", ["tensor", "channel", "learnable", "pt2e", "pt2e groups", "pt2e tokens"])
def test_values_pass_through(mode: str) -> None:
    torch.manual_seed(0)
    spec = checked(Quantised(mode).eval(), torch.randn(5, 6))
    assert len(spec.groups) == 1
    if mode in ("channel", "learnable", "pt2e"):
        assert spec.axes["scale"] == spec.axes["zero"] == spec.axes["a.weight"][:1]
