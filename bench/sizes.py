"""Sizes of the inputs that vary, on ten architectures: python bench/sizes.py [--only NAME …] [--rounds N] [--out]

For each: statistics over batches of mixed sizes against one size at a time; forward at sizes that were not traced against the
module; trace against the export with the same symbols.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from timing import HEADER, Row, interleaved, markdown, ratio_row, versions, write
from torch import Tensor, nn
from torch.export import Dim, ShapesCollection

import prunefn as pf
from prunefn import trees
from prunefn.tracing.dynamic import names_of

HERE = Path(__file__).parent
WIDTH = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
Inputs = dict[str, Tensor]


class Case(NamedTuple):
    """A network, its inputs at given sizes, and the sizes: the first is traced, all are measured."""

    make: Callable[[], nn.Module]
    inputs: Callable[..., Inputs]
    sizes: tuple[tuple[int, ...], ...]
    dynamic: str | None = None


def ids(*shape: int) -> Tensor:
    """Return token ids."""
    return torch.randint(1, 900, shape)


def bert() -> nn.Module:
    """Return an encoder of text."""
    return transformers.BertModel(transformers.BertConfig(vocab_size=1000, **WIDTH))


def llama() -> nn.Module:
    """Return a decoder of text."""
    config = transformers.LlamaConfig(vocab_size=1000, num_key_value_heads=2, use_cache=False, **WIDTH)
    return transformers.LlamaForCausalLM(config)


def t5() -> nn.Module:
    """Return an encoder with a decoder."""
    size = {"d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 3, "num_heads": 4}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=1000, decoder_start_token_id=0, **size)
    )


def whisper() -> nn.Module:
    """Return a transcriber; the length of its audio is fixed by its class."""
    size = {"encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(
        vocab_size=1000,
        d_model=256,
        encoder_ffn_dim=1024,
        decoder_ffn_dim=1024,
        max_source_positions=200,
        **size,
        **tokens,
    )
    return transformers.WhisperForConditionalGeneration(config)


def conformer() -> nn.Module:
    """Return an encoder of raw audio."""
    config = transformers.Wav2Vec2ConformerConfig(
        vocab_size=40, conv_dim=(128,) * 7, position_embeddings_type="relative", **WIDTH
    )
    return transformers.Wav2Vec2ConformerModel(config)


def detr() -> nn.Module:
    """Return a detector whose queries attend to a map of any size."""
    backbone = transformers.ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 128], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    size = {"d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 512, "decoder_ffn_dim": 512}
    config = transformers.DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        num_queries=20,
        **size,
    )
    return transformers.DetrForObjectDetection(config)


class Block(nn.Sequential):
    """A convolution, a norm and a nonlinearity."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU())


class UNet(nn.Module):
    """Three levels with concatenated shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = Block(3, 32), Block(32, 64, 2), Block(64, 128, 2)
        self.up2, self.d = nn.ConvTranspose2d(128, 64, 2, 2), Block(128, 64)
        self.up1, self.e, self.out = nn.ConvTranspose2d(64, 32, 2, 2), Block(64, 32), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a class for each pixel."""
        a = self.a(x)
        b = self.b(a)
        d = self.d(torch.cat([b, self.up2(self.c(b))], 1))
        return self.out(self.e(torch.cat([a, self.up1(d)], 1)))


class Yolo(nn.Module):
    """Split blocks, pooled pyramids and three heads, as the YOLO family has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.s2, self.s3 = Block(3, 16, 2), Block(16, 32, 2), Block(32, 64, 2)
        self.s4, self.inner, self.merge = Block(64, 128, 2), Block(64, 64), Block(192, 128)
        self.up = nn.Upsample(scale_factor=2)
        self.lateral = Block(192, 64)
        self.heads = nn.ModuleList([nn.Conv2d(n, 16, 1) for n in (64, 128)])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of two heads."""
        p3 = self.s3(self.s2(self.stem(x)))
        first, second = self.s4(p3).chunk(2, 1)
        p4 = self.merge(torch.cat([first, second, self.inner(second)], 1))
        return [
            h(p).flatten(2)
            for h, p in zip(self.heads, (self.lateral(torch.cat([p3, self.up(p4)], 1)), p4), strict=True)
        ]


class PointNet(nn.Module):
    """A shared network over points, and a maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(3, 64, 1), nn.Conv1d(64, 128, 1), nn.Conv1d(128, 512, 1)
        self.d, self.e = nn.Linear(512, 256), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return a class for each cloud."""
        h = self.c(self.b(self.a(x).relu()).relu()).amax(2)
        return self.e(self.d(h).relu())


class GCN(nn.Module):
    """Two rounds of sums over neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(32, 128), nn.Linear(128, 128), nn.Linear(128, 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return a class for each node."""
        for layer in (self.a, self.b):
            h = layer(x).relu()
            x = torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]])
        return self.c(x)


def text(batch: int, length: int) -> Inputs:
    """Return token ids with a mask."""
    return {"input_ids": ids(batch, length), "attention_mask": torch.ones(batch, length, dtype=torch.int64)}


def image(batch: int, height: int, width: int) -> Inputs:
    """Return images."""
    return {"x": torch.randn(batch, 3, height, width)}


SIDES = ((2, 64, 64), (4, 96, 64), (2, 128, 160))
CASES = {
    "BERT": Case(bert, text, ((2, 32), (8, 64), (4, 100))),
    "Llama": Case(llama, text, ((2, 32), (8, 64), (4, 100))),
    "T5": Case(
        t5,
        lambda b, n, m: {"input_ids": ids(b, n), "decoder_input_ids": ids(b, m)},
        ((2, 32, 16), (8, 64, 20), (4, 100, 48)),
    ),
    "Whisper": Case(
        whisper,
        lambda b, n: {"input_features": torch.randn(b, 80, 400), "decoder_input_ids": ids(b, n)},
        ((2, 16), (4, 32), (2, 48)),
    ),
    "Conformer": Case(conformer, lambda b, n: {"input_values": torch.randn(b, n)}, ((2, 4000), (4, 8000), (2, 12345))),
    "UNet": Case(UNet, image, SIDES, "all"),
    "DETR": Case(detr, lambda b, h, w: {"pixel_values": torch.randn(b, 3, h, w)}, SIDES, "batch height width"),
    "YOLO": Case(Yolo, image, SIDES, "all"),
    "PointNet": Case(PointNet, lambda b, n: {"x": torch.randn(b, 3, n)}, ((2, 128), (8, 1000), (4, 3000))),
    "GCN": Case(
        GCN,
        lambda n, e: {"x": torch.randn(n, 32), "edge_index": torch.randint(0, n, (2, e))},
        ((50, 200), (1000, 5000), (3000, 9000)),
    ),
}


def rows(name: str, rounds: int) -> Iterator[Row]:
    """Measure one architecture."""
    torch.manual_seed(0)
    case = CASES[name]
    model = case.make().eval()
    for module in model.modules():
        if hasattr(module, "config"):
            module.config.use_cache = False
    first = case.inputs(*case.sizes[0])
    both = {
        "trace": lambda: pf.trace(model, first, dynamic=case.dynamic, check=False),
        "export": lambda: _export(model, first, case),
    }
    yield ratio_row("trace / export", name, interleaved(both, rounds=max(2, rounds // 3), text=f"trace {name}"), 1.3)
    spec, params = pf.trace(model, first, dynamic=case.dynamic), pf.params(model)
    varying = ", ".join(spec.program.free)
    batches = [case.inputs(*sizes) for sizes in case.sizes]
    yield Row(
        "statistics, mixed / apart",
        name,
        str(len(spec.sites)) + " sites",
        varying,
        _gap(params, spec, batches),
        1e-10,
        unit="relative",
    )
    for batch, sizes in zip(batches[1:], case.sizes[1:], strict=True):
        with torch.no_grad():
            pair = {"forward": lambda b=batch: pf.forward(params, **b, spec=spec), "module": lambda b=batch: model(**b)}
            times = interleaved(pair, rounds=3 * rounds, warm_up=2, text=f"forward {name}")
        yield ratio_row("forward / module", f"{name} at {' × '.join(map(str, sizes))}", times, 1.05)


def _gap(params: pf.Params, spec: pf.Spec, batches: list[Inputs]) -> float:
    """Return the largest relative difference between statistics of all batches and merged statistics of each."""
    mixed = pf.collect_stats(params, batches, spec=spec, covariance=True)
    apart = pf.Stats()
    for batch in batches:
        apart = pf.merge_stats(apart, pf.collect_stats(params, [batch], spec=spec, covariance=True))
    gap = 0.0
    for site, m in mixed.sites.items():
        for field in ("mean", "m2", "taps", "scatter"):
            x, y = getattr(m, field), getattr(apart.sites[site], field)
            if x is not None:
                gap = max(gap, float((x - y).abs().max() / y.abs().max().clamp_min(1e-30)))
    return gap


def _export(model: nn.Module, inputs: Inputs, case: Case) -> Any:
    """Export with the symbols of the trace."""
    shapes = ShapesCollection()
    for t, names in zip(trees.tensors(inputs), names_of(model, (), inputs, case.dynamic), strict=True):
        shapes[t] = {d: Dim.AUTO for d, name in enumerate(names) if name is not None}
    with torch.no_grad():
        return torch.export.export(
            model, (), inputs, dynamic_shapes=shapes.dynamic_shapes(model, (), inputs), strict=False
        )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES), help="architectures")
    parser.add_argument("--rounds", type=int, default=6, help="rounds of each interleaved comparison")
    parser.add_argument("--out", action="store_true", help="write bench/results/sizes.md")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = [row for name in args.only for row in rows(name, args.rounds)]
    cells = [row.cells() for row in found]
    for row, line in zip(found, cells, strict=True):
        if row.unit == "relative":
            line[4], line[5] = f"{row.value:.1e}", f"≤ {row.limit:.0e}"
    print(markdown(HEADER, cells), f"\n\n{sum(r.met for r in found)} of {len(found)} goals met\n\n{versions()}")
    if args.out:
        remarks = (
            "One trace for all sizes, random weights; nothing is traced or compiled again. Statistics: moments, taps and covariances of "
            "all sites over batches of three sizes in one pass, against three passes that are merged. Forward: at sizes that were not "
            "traced. Trace: without its proof, against `torch.export` with the same symbols. Ratios are medians over interleaved rounds, "
            "in CPU seconds of one thread."
        )
        write(HERE / "results", "sizes", "Sizes of inputs that vary", HEADER, cells, remarks)


if __name__ == "__main__":
    main()
