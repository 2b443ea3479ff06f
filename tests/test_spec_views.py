"""A spec as a table, as plain data, and as a picture."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn.spec.layout import COLUMNS, cut, fit, layout
from prunefn.spec.picture import _place

from .small import Attention, Residual, Tied, bits, cnn, mlp, randn
from .zoo import random_mask, subject


class Encoder(nn.Module):
    """Attention and an MLP on a normalised stream, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(8), "attn": Attention(8, 2, 4), "mlp": mlp(8, 16, 8)}) for _ in range(2)
        )
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for b in self.blocks:
            x = x + b["attn"](b["norm"](x))
            x = x + b["mlp"](x)
        return self.head(x)


class Frozen(nn.Module):
    """Nothing can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.only(x)


MODELS = {
    "encoder": (Encoder, (5, 3)),
    "cnn": (cnn, (3, 6, 6)),
    "residual": (lambda: Residual(3, 5, 6, 2), (3,)),
    "chain": (lambda: mlp(3, 9, 8, 7, 6, 5, 4, 2), (3,)),
    "frozen": (Frozen, (3,)),
}
REAL = ("resnet18", "densenet121", "swin_t", "mobilenet_v3_small", "googlenet", "shufflenet_v2_x0_5", "convnext_atto")


@lru_cache
def spec_of(name: str) -> pf.Spec:
    if name == "tied":
        return pf.trace(Tied(), (torch.zeros(2, 3, dtype=torch.int64),))
    if name not in MODELS:
        return subject(name).spec
    make, shape = MODELS[name]
    return pf.trace(make().eval(), (randn(2, *shape).float(),))


every = pytest.mark.parametrize("name", [*MODELS, "tied", "resnet18", "shufflenet_v2_x0_5"])


# ---- table


def test_golden_table() -> None:
    lines = spec_of("encoder").table().splitlines()
    assert lines[0] == repr(spec_of("encoder"))
    assert lines[2].split() == ["group", "kind", "units", "members", "sites", "MACs", "params", "mixed", "by"]
    assert lines[4].split()[:5] == ["embed", "residual", "8", str(len(spec_of("encoder").groups["embed"].members)), "5"]
    assert lines[4].endswith("layer_norm")
    assert lines[5].split()[:5] == ["blocks.0.attn.qkv.heads", "heads", "2", "3", "1"]
    assert len(lines) == 4 + 7 + 6 + 2


def test_numbers_stand_to_the_right() -> None:
    lines = spec_of("encoder").table().splitlines()
    units = lines[2].index("units") + len("units")
    assert [line[units - 2 : units] for line in lines[4:11]] == [" 8", " 2", " 4", "16", " 2", " 4", "16"]
    ends = {line.index("%") for line in lines[4:11]}
    assert len(ends) == 1


def test_shares_are_those_of_the_costs() -> None:
    spec = spec_of("chain")
    row = next(line for line in spec.table().splitlines() if line.startswith("4 "))
    macs, params = pf.cost(spec).macs, pf.cost(spec).params
    assert f"{100 * (8 * 7 + 7 * 6) / macs:.1f} %" in row
    assert f"{100 * (8 * 7 + 7 + 7 * 6) / params:.1f} %" in row


def test_a_table_of_nothing() -> None:
    assert spec_of("frozen").table() == repr(spec_of("frozen"))


def test_a_table_follows_the_mask() -> None:
    small = pf.shrink(spec_of("chain"), {"0": bits("101010101")})
    assert next(line for line in small.table().splitlines() if line.startswith("0 ")).split()[2] == "5"


# ---- plain data


def evaluate(axis: Any, sizes: dict[str, int]) -> int:
    """Number of positions, from plain data alone."""
    if isinstance(axis, dict):
        if "size" in axis:
            return eval(axis["size"], {**sizes, "max": max, "min": min})
        inner = [evaluate(a, sizes) for v in axis.values() for a in v]
        return prod(inner) if "product" in axis else sum(inner)
    return sizes[axis] if isinstance(axis, str) else axis


def keeps(axis: Any, mask: dict[str, list[bool]], sizes: dict[str, int]) -> list[bool]:
    """Which positions are kept, from plain data alone."""
    if isinstance(axis, str):
        return mask.get(axis, [True] * sizes[axis])
    if isinstance(axis, int):
        return [True] * axis
    if "concat" in axis:
        return [k for part in axis["concat"] for k in keeps(part, mask, sizes)]
    out = [True]
    for factor in axis["product"]:
        out = [a and b for a in out for b in keeps(factor, mask, sizes)]
    return out


@every
def test_plain_data_goes_through_json(name: str) -> None:
    data = spec_of(name).to_dict()
    assert json.loads(json.dumps(data)) == data


@every
def test_plain_data_is_enough_to_prune(name: str) -> None:
    spec, data = spec_of(name), json.loads(json.dumps(spec_of(name).to_dict()))
    sizes = {g: d["units"] for g, d in data["groups"].items()}
    mask = random_mask(spec, 3)
    lists = {g: m.tolist() for g, m in mask.items()}
    at = pf.kept_positions(mask, spec)
    for n, t in {**data["tensors"], **data["new_biases"]}.items():
        assert [evaluate(a, sizes) for a in t["axes"]] == t["shape"] == list(spec.shape(n))
        for a, positions in zip(t["axes"], at[n], strict=True):
            assert [i for i, k in enumerate(keeps(a, lists, sizes)) if k] == positions.tolist()
    assert {*data["tensors"], *data["new_biases"]} == set(spec.axes)


@every
def test_plain_data_is_enough_for_costs(name: str) -> None:
    spec, data = spec_of(name), spec_of(name).to_dict()
    mask = random_mask(spec, 4)
    left = {g: int(mask[g].sum()) for g in spec.groups}
    for sizes, cost in ((dict(spec.sizes), pf.cost(spec)), (left, pf.cost(spec, mask))):
        for quantity, terms in data["polynomials"].items():
            total = sum(
                t["times"] * prod(evaluate(a, {**data["input_sizes"], **sizes}) for a in t["axes"]) for t in terms
            )
            assert total == getattr(cost, quantity)
    assert data["costs"] == pf.cost(spec)._asdict()


@every
def test_groups_and_sites_as_plain_data(name: str) -> None:
    spec, data = spec_of(name), spec_of(name).to_dict()
    assert list(data["groups"]) == list(spec.groups)
    for g, d in data["groups"].items():
        group = spec.groups[g]
        assert d["macs"] == spec.macs_of(g)
        assert d["exact"] is group.exact
        assert [(m["tensor"], m["dim"], m["role"]) for m in d["members"]] == [tuple(m) for m in group.members]
        assert all(m["size"] == spec.shape(m["tensor"])[m["dim"]] for m in d["members"])
        assert all(g in json.dumps(data["sites"][s]["axis"]) for s in d["sites"])
    assert list(data["sites"]) == list(spec.sites)


def test_golden_plain_data() -> None:
    data = spec_of("encoder").to_dict()
    assert data["format"] == 1
    assert data["versions"] == {"prunefn": pf.__version__, "torch": str(torch.__version__)}
    assert data["capture"] == "exported"
    assert data["train"] is False
    heads, dim = "blocks.0.attn.qkv.heads", "blocks.0.attn.qkv.head_dim"
    qkv = data["tensors"]["blocks.0.attn.qkv.weight"]
    assert qkv["axes"] == [{"product": [3, heads, dim]}, "embed"]
    assert qkv["einops"] == "(3 heads_0 head_dim_0) residual"
    assert qkv["shape"] == [24, 8]
    assert qkv["parameter"] is True
    assert data["tensors"]["head.weight"]["frozen"] == [["it is an output"], []]
    assert data["sites"]["blocks.0.attn.proj"]["axis"] == {"product": [heads, dim]}
    assert data["sites"]["blocks.0.attn.proj"]["bias"] == "blocks.0.attn.proj.bias"
    assert data["free"] == {"batch": ["x", 0], "length": ["x", 1]}
    assert data["batch"] == ["batch"]
    assert data["inputs"]["x"][2] == 3


def test_tied_and_frozen_as_plain_data() -> None:
    data = spec_of("tied").to_dict()
    assert data["tensors"]["out.weight"]["tied_to"] == "embed.weight"
    assert data["tensors"]["embed.weight"]["tied_to"] is None
    spec = pf.trace(mlp(3, 5, 2), (torch.randn(2, 3),), freeze="2")
    assert spec.to_dict()["tensors"]["2.weight"]["frozen"][1] == ["by the caller"]


# ---- picture


@pytest.mark.parametrize("name", [*MODELS, "tied", *REAL])
def test_every_group_has_its_own_place(name: str) -> None:
    spec = spec_of(name)
    plan = layout(spec)
    place = _place(plan)
    assert set(place.boxes) == set(spec.widths)
    boxes = list(place.boxes.values())
    for i, a in enumerate(boxes):
        assert a.x > 0
        assert a.x + a.w < place.size[0]
        assert a.y > 0
        assert a.y + a.h < place.size[1]
        for b in boxes[:i]:
            apart = a.x + a.w <= b.x + 1e-6 or b.x + b.w <= a.x + 1e-6 or a.y + a.h <= b.y or b.y + b.h <= a.y
            assert apart
    assert all(len(r.columns) <= COLUMNS for r in plan.rows)
    for s, lane in plan.lanes.items():
        for t in (t for t, other in plan.lanes.items() if other == lane and t != s):
            (a, b), (c, d) = plan.span(s), plan.span(t)
            assert b < c or d < a


def test_blocks_are_laid_out_alike() -> None:
    rows = layout(spec_of("encoder")).rows
    assert [(r.label, r.stream) for r in rows] == [("", "embed"), ("blocks.0", ""), ("blocks.1", "")]
    for i, r in enumerate(rows[1:]):
        at = f"blocks.{i}"
        assert r.columns == (((f"{at}.attn.qkv.heads", f"{at}.attn.qkv.head_dim"),), ((f"{at}.mlp.0",),))


def test_a_resnet_is_a_row_for_each_block() -> None:
    plan = layout(spec_of("resnet18"))
    blocks = [r for r in plan.rows if not r.stream and r.label]
    assert [r.label for r in blocks] == [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    assert all(r.names == [f"{r.label}.conv1"] for r in blocks)
    assert plan.starts == {"conv1"}
    assert plan.ends == {next(reversed(plan.lanes)): ("fc",)}


def test_a_long_chain_is_wrapped() -> None:
    assert [r.names for r in layout(spec_of("chain")).rows] == [["0", "2", "4", "6"], ["8", "10"]]


@pytest.mark.parametrize("name", ["encoder", "frozen", "mobilenet_v3_small"])
def test_a_vector_picture_shows_every_group(name: str, tmp_path: Path) -> None:
    spec_of(name).picture(tmp_path / "spec.svg")
    texts = [t.text for t in ET.parse(tmp_path / "spec.svg").iter("{http://www.w3.org/2000/svg}text")]
    shown = " ".join(t for t in texts if t)
    for g in spec_of(name).widths.values():
        assert f"{g.size} units · {g.kind}" in shown
        assert g.name.split(".")[-1] in shown
    assert [p.name for p in tmp_path.iterdir()] == ["spec.svg"]


def test_a_picture_is_the_same_each_time(tmp_path: Path) -> None:
    for ending in ("svg", "png", "pdf", "html"):
        for i in range(2):
            spec_of("residual").picture(str(tmp_path / f"{i}.{ending}"))
        assert (tmp_path / f"0.{ending}").read_bytes() == (tmp_path / f"1.{ending}").read_bytes()
    pixels = matplotlib.image.imread(tmp_path / "0.png")
    assert pixels.shape[0] > 300
    assert pixels.std() > 0.02


def test_a_picture_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(pf.PruneError, match=r"'spec.gif'; its name must end in .svg, .png, .pdf, .html"):
        spec_of("residual").picture(tmp_path / "spec.gif")
    assert not list(tmp_path.iterdir())


def test_a_picture_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(pf.PruneError, match=r'pip install "prunefn\[plot\]"'):
        spec_of("residual").picture(tmp_path / "spec.svg")


def test_a_picture_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", fails)
    (tmp_path / "spec.svg").write_text("old")
    with pytest.raises(RuntimeError, match="disk is full"):
        spec_of("residual").picture(tmp_path / "spec.svg")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_words_are_cut_to_the_room() -> None:
    names = ["conv1", "bn1", "conv2"]
    assert fit(names, 2.0, 6.5) == "conv1, bn1, conv2"
    assert fit(names, 0.8, 6.5) == "conv1 … 2 more"
    assert fit([], 0.8, 6.5) == ""
    assert cut("a.long.path.to.a.layer", 0.7, 8.0) == "…o.a.layer"
    assert cut("a.layer", 0.7, 8.0) == "a.layer"
