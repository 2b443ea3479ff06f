"""What `pf.metrics` counts beside torch's FlopCounterMode and fvcore, on ten networks, dense and pruned: python -m bench.metrics

fvcore also counts ops that are no contractions (norms, pooling); the table has them in a column of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from tqdm import tqdm

import prunefn as pf
from prunefn import sparse
from prunefn.costs.counted import flop_counter

from .timing import markdown, versions, write

HERE = Path(__file__).parent
CONTRACTIONS = ("conv", "linear", "addmm", "matmul", "bmm", "einsum", "scaled_dot_product_attention")
HEADER = ["network", "variant", "MACs", "torch's counter", "fvcore", "fvcore, beside it"]
HEADER += ["params", "of the module", "activations", "MB", "peak MB", "weights MB", "zeros", "MACs with zeros"]
TEXT = (
    "Dense; half of each group removed; half of each weight zero. One sample of 224 pixels, or 32 tokens. Torch's counter: "
    "FLOPs / 2 of a forward. fvcore: conv, linear, addmm, matmul, bmm and einsum by its own rules, fused attention by a rule of "
    "two lines, as it has none; beside it: what else it counts, which is no multiplication by a weight or by another activation. "
    "All numbers are exact; every row agrees to the last MAC and parameter."
)


def image(name: str) -> Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]:
    """A network of torchvision, or else of timm."""

    def make() -> tuple[nn.Module, tuple[Tensor, ...]]:
        found = getattr(torchvision.models, name, None)
        return (found() if found else timm.create_model(name)).eval(), (torch.randn(2, 3, 224, 224),)

    return make


def bert() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """BERT of the base size."""
    from transformers import BertConfig, BertModel

    config = BertConfig()
    config.return_dict = False
    return BertModel(config).eval(), (torch.randint(0, 30_000, (2, 32)),)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    **{n: image(n) for n in ("resnet18", "mobilenet_v2", "densenet121", "efficientnet_b0", "regnet_y_400mf")},
    **{
        n: image(n) for n in ("swin_tiny_patch4_window7_224", "convnext_tiny", "deit_tiny_patch16_224", "mixer_s32_224")
    },
    "bert_base": bert,
}


def attention(inputs: Any, outputs: Any) -> int:
    """Queries × keys, and weights × values."""
    (*lead, queries, width), (*_, keys, _), (*_, values) = (x.type().sizes() for x in inputs[:3])
    return prod(lead) * queries * keys * (width + values)


def rows(name: str) -> list[list[str]]:
    """A network in three variants.

    Raises:
        AssertionError: two counters do not agree.
    """
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    spec, params = pf.trace(model.requires_grad_(False), inputs), pf.params(model)
    scores = pf.score(pf.collect_stats(params, None, spec=spec), criterion=pf.criteria.magnitude())
    mask = pf.select(scores, 0.5, spec=spec, scope=pf.scope.local())
    single = sparse.score(params, criterion=sparse.criteria.magnitude(), spec=spec)
    zeros = sparse.apply_sparse(params, sparse.select(single, 0.5, spec=spec, scope=sparse.scope.layerwise()))
    variants = {
        "dense": (params, spec),
        "half of each group": (pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)),
        "half of each weight": (zeros, spec),
    }
    return [row(name, variant, *network, tuple(x[:1] for x in inputs)) for variant, network in variants.items()]


def row(name: str, variant: str, params: pf.Params, spec: pf.Spec, inputs: tuple[Tensor, ...]) -> list[str]:
    """All counters on a network."""
    ours, module = pf.metrics(params, spec=spec), pf.to_module(params, spec=spec)
    with flop_counter() as counter:
        pf.forward(params, *inputs, spec=spec)
    torchs = counter.get_total_flops() // 2
    analysis = FlopCountAnalysis(module, inputs).set_op_handle("aten::scaled_dot_product_attention", attention)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    by_op = analysis.by_operator()
    theirs = sum(n for op, n in by_op.items() if op in CONTRACTIONS)
    beside = ", ".join(f"{op} {n:,}" for op, n in by_op.items() if op not in CONTRACTIONS)
    elements = sum(p.numel() for p in module.parameters())
    assert ours.macs == torchs == theirs and ours.params == elements, (name, variant)
    megabytes = (ours.activation_bytes, ours.peak_bytes, sum(ours.weight_bytes.values()))
    cells = [name, variant, f"{ours.macs:,}", f"{torchs:,}", f"{theirs:,}", beside, f"{ours.params:,}", f"{elements:,}"]
    cells += [f"{ours.activations:,}", *(f"{n / 1e6:.1f}" for n in megabytes)]
    return [*cells, f"{ours.sparsity:.1%}", f"{ours.zero_macs / ours.macs:.1%}"]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--out", action="store_true", help="write bench/results/metrics.{md,csv}")
    args = parser.parse_args()
    table = [r for name in tqdm(args.only) for r in rows(name)]
    print(f"{markdown(HEADER, table)}\n\n{TEXT}\n\n{versions()}")
    if args.out:
        write(HERE / "results", "metrics", "Metrics", HEADER, table, TEXT)


if __name__ == "__main__":
    main()
