"""Metrics: by hand, and beside torch's and fvcore's counters on real architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from math import prod
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torchvision.models as tv
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

import prunefn as pf
from prunefn import sparse
from prunefn.costs.counted import flop_counter
from prunefn.tables import markdown

from .zoo import random_mask

SIDE = 32


class Network(NamedTuple):
    """What is counted, and what torch counts by op."""

    params: pf.Params
    spec: pf.Spec
    inputs: tuple[Tensor, ...]
    found: pf.Metrics
    flops: Mapping[str, int]


def bert() -> tuple[nn.Module, tuple[Tensor, ...]]:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=16,
    )
    config.return_dict = False
    return BertModel(config), (torch.arange(24).reshape(2, 12),)


def image(make: Callable[[], nn.Module]) -> Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]:
    return lambda: (make(), (torch.randn(2, 3, SIDE, SIDE),))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "resnet18": image(tv.resnet18),
    "mobilenet_v2": image(
        lambda: tv.MobileNetV2(inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]])
    ),
    "densenet": image(lambda: tv.DenseNet(8, (2, 3), 16)),
    "efficientnet": image(lambda: timm.create_model("tinynet_e")),
    "regnet": image(lambda: timm.create_model("regnety_002")),
    "swin": image(
        lambda: timm.models.SwinTransformer(SIDE, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4))
    ),
    "convnext_atto": image(lambda: timm.create_model("convnext_atto")),
    "deit_tiny": image(lambda: timm.create_model("deit_tiny_patch16_224", img_size=SIDE, depth=3)),
    "mixer": image(lambda: timm.models.MlpMixer(img_size=SIDE, patch_size=8, num_blocks=3, embed_dim=64)),
    "bert": bert,
}
each = pytest.mark.parametrize("name", list(NETWORKS))


@cache
def networks(name: str) -> tuple[Network, Network]:
    """Dense, and with half of the units."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    inputs = tuple(x[:1] for x in inputs)
    spec, params = (
        pf.trace(model.eval().requires_grad_(False), tuple(torch.cat([x, x]) for x in inputs)),
        pf.params(model),
    )
    mask = random_mask(spec, 3)
    return network(params, spec, inputs), network(pf.apply(params, mask, spec=spec), pf.shrink(spec, mask), inputs)


def network(params: pf.Params, spec: pf.Spec, inputs: tuple[Tensor, ...]) -> Network:
    with flop_counter() as counter:
        pf.forward(params, *inputs, spec=spec)
    flops = {str(op): n for op, n in counter.flop_counts["Global"].items()}
    return Network(params, spec, inputs, pf.metrics(params, spec=spec), flops)


# ---- beside other counters


def attention(inputs: Any, outputs: Any) -> int:
    """fvcore has no rule for the fused op: queries × keys and weights × values."""
    (*lead, queries, width), (*_, keys, _), (*_, values) = (x.type().sizes() for x in inputs[:3])
    return prod(lead) * queries * keys * (width + values)


CONTRACTIONS = ("conv", "linear", "addmm", "matmul", "bmm", "einsum", "scaled_dot_product_attention")
NO_CONTRACTIONS = {
    "batch_norm": "fvcore counts 2 an element; it can be folded into the convolution before it",
    "layer_norm": "fvcore counts 5 an element",
    "adaptive_avg_pool2d": "fvcore counts 1 an element of the input: additions",
    "avg_pool2d": "fvcore counts 1 an element",
    "mean": "fvcore counts 1 an element",
}
"""What else fvcore counts, and why it is no MAC here."""


def by_op(n: Network) -> Mapping[str, int]:
    analysis = FlopCountAnalysis(pf.to_module(n.params, spec=n.spec), n.inputs)
    analysis.set_op_handle("aten::scaled_dot_product_attention", attention)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return analysis.by_operator()


@each
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_macs_are_those_of_fvcore_on_contractions(name: str) -> None:
    for n in networks(name):
        counted = by_op(n)
        assert set(counted) <= {*CONTRACTIONS, *NO_CONTRACTIONS}
        assert n.found.macs == sum(macs for op, macs in counted.items() if op in CONTRACTIONS)


@each
def test_macs_and_params_are_those_of_torch(name: str) -> None:
    dense, pruned = networks(name)
    assert pruned.found.macs < 0.6 * dense.found.macs and pruned.found.params < 0.6 * dense.found.params
    for n in (dense, pruned):
        assert 2 * n.found.macs == sum(n.flops.values())
        module = pf.to_module(n.params, spec=n.spec)
        assert n.found.params == sum(p.numel() for p in module.parameters()) == pf.cost(n.spec).params
        assert sum(n.found.weight_bytes.values()) == sum(t.nbytes for t in module.state_dict().values())


@each
def test_every_mac_with_a_weight_is_one_with_a_zero_once_all_weights_are(name: str) -> None:
    """Products of two activations are none; what is with zeros stays in `macs`."""
    n = networks(name)[1]
    weights = sparse.weights(n.spec)
    assert n.found.weights == sum(prod(w.shape) for w in weights.values())
    zeros = pf.metrics({**n.params, **{w: torch.zeros_like(n.params[w]) for w in weights}}, spec=n.spec)
    assert (zeros.macs, zeros.sparsity, zeros.zeros) == (n.found.macs, 1.0, n.found.weights)
    # torch 2.13 runs the linear layers of a mixer, whose inputs are transposed, as products of batches of matrices
    products = sum(flops for op, flops in n.flops.items() if name != "mixer" and ("attention" in op or "bmm" in op))
    assert 2 * (zeros.macs - zeros.zero_macs) == products


@each
def test_bytes_are_of_the_elements_that_cost_counts(name: str) -> None:
    for n in networks(name):
        assert n.found.activations == pf.cost(n.spec).activations
        largest = 4 if name != "bert" else 8  # positions are int64
        assert n.found.activations < n.found.activation_bytes <= largest * n.found.activations
        assert 0 < n.found.peak_bytes <= n.found.activation_bytes


# ---- by hand


def cnn(**weights: Tensor) -> tuple[pf.Params, pf.Spec]:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2, bias=False), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2, stride=2)
    )
    spec = pf.trace(model.eval(), (torch.randn(2, 2, 5, 5),))
    return {**pf.params(model), **weights}, spec


def test_counts_of_a_small_network() -> None:
    kernel = torch.ones(4, 1, 3, 3)
    kernel[0] = 0
    kernel[1, 0, 1] = 0
    params, spec = cnn(**{"0.weight": kernel})
    found = pf.metrics(params, spec=spec)
    assert found.macs == 25 * 36 + 25 * 48 and found.params == 36 + 48 + 3
    assert found.activations == 100 + 100 + 300 and found.activation_bytes == 4 * 500
    assert found.peak_bytes == 4 * 400  # the input of the last op, and what it writes
    assert found.weight_bytes == {"float32": 4 * 87}
    assert (found.weights, found.zeros, found.zero_macs) == (84, 12, 25 * 12)


def test_zeros_of_transposed_and_recurrent_weights() -> None:
    last = torch.ones(4, 3, 2, 2)
    last[0] = 0
    params, spec = cnn(**{"0.weight": torch.ones(4, 1, 3, 3), "2.weight": last})
    assert pf.metrics(params, spec=spec).zero_macs == 25 * 12

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.last = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.lstm(x)[0])

    model = Steps().eval()
    spec, params = pf.trace(model, (torch.randn(2, 5, 3),)), pf.params(model)
    params = {n: torch.ones_like(t) for n, t in params.items()}
    params["lstm.weight_ih_l0"][:4] = 0
    params["last.weight"][:, 1] = 0
    found = pf.metrics(params, spec=spec)
    assert found.macs == 5 * (16 * 3 + 16 * 4 + 8) and found.zeros == 14 and found.zero_macs == 5 * 12 + 5 * 2


def test_biases_that_were_created_and_types_are_counted_and_tied_weights_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.table.weight
            self.register_buffer("steps", torch.arange(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.table(x) + self.steps[:, None])

    model = Tied().eval()
    spec = pf.trace(model, (torch.zeros(2, 3, dtype=torch.long),))
    found = pf.metrics(pf.params(model), spec=spec)
    assert found.params == 28 and found.weight_bytes == {"float32": 112, "int64": 24} and found.weights == 28
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    spec, params, x = pf.trace(net, (torch.randn(2, 3),)), pf.params(net), torch.randn(8, 3)
    mask = {"0": torch.tensor([True, False, True, True])}
    filled = pf.compensate(params, pf.collect_stats(params, [x], spec=spec), mask, spec=spec)
    small = pf.metrics(pf.apply(filled, mask, spec=spec), spec=pf.shrink(spec, mask))
    assert small.params == pf.cost(spec, mask).params + 2 == 3 * 3 + 3 + 3 * 2 + 2


def test_the_table_says_what_is_left_and_what_is_zero() -> None:
    params, spec = cnn()
    masks = {"0.weight": torch.zeros(4, 1, 3, 3, dtype=torch.bool)}
    half = {n: t.half() for n, t in params.items()}
    table = pf.compare(
        {"dense": (params, spec), "sparse": (sparse.apply_sparse(params, masks), spec), "half": (half, spec)}
    )
    assert table.title == "one sample; in brackets: share of dense"
    assert markdown(table).splitlines()[2:] == [
        "| dense | 2100 | 87 | 500 | 2000 | 1600 | 348 | 0 | 0.0% | 0.0% |",
        "| sparse | 2100 (100.0%) | 87 (100.0%) | 500 (100.0%) | 2000 (100.0%) | 1600 (100.0%) | 348 (100.0%) | 0 (–) | 42.9% | 42.9% |",
        "| half | 2100 (100.0%) | 87 (100.0%) | 500 (100.0%) | 1000 (50.0%) | 800 (50.0%) | 0 (0.0%) | 174 (–) | 0.0% | 0.0% |",
    ]
    dense, pruned = networks("resnet18")
    big = pf.compare({"dense": (dense.params, dense.spec), "pruned": (pruned.params, pruned.spec)})
    assert big.columns[1:3] == ("M MACs", "M params")
    assert big.rows[1][1] == f"{pruned.found.macs / 1e6:.3f} ({pruned.found.macs / dense.found.macs:.1%})"


def test_wrong_calls() -> None:
    params, spec = cnn()
    with pytest.raises(pf.PruneError, match="compare needs at least one network"):
        pf.compare({})
    with pytest.raises(pf.ParamsError, match=r"params\['0.weight'\] is .* on meta; a tensor on meta has no numbers"):
        pf.metrics({n: t.to("meta") for n, t in params.items()}, spec=spec)
    with pytest.raises(pf.ParamsError, match=r"no tensor '9.weight'"):
        pf.metrics({**params, "9.weight": torch.ones(1)}, spec=spec)
