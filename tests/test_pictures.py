"""Pictures of a run and the page that holds them: the numbers behind them, the same bytes each time, nothing from outside."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import Tensor, nn

import prunefn as pf
from prunefn.drawing import svg
from prunefn.drawing.canvas import grid, number
from prunefn.files.nest import read_nest, write_nest
from prunefn.report import norms, plots
from prunefn.report.layers import layer_costs
from prunefn.report.page import ROWS, page, versions
from prunefn.report.pareto import Point, pareto_front
from prunefn.report.scores import histogram, place
from prunefn.spec.picture import themed
from prunefn.train import Phases, pat, regularizers, schedule, train
from prunefn.train.picture import pictures
from prunefn.types import Residual

from .small import mlp, randn
from .training import MEASURED, PLAIN, SETUP, calibration, net, spec_of
from .zoo import subject

MLP = pf.trace(mlp(3, 9, 8, 2), (torch.zeros(2, 3),))
MASK = {"0": torch.arange(9) % 3 > 0, "2": torch.arange(8) > 4}


def some(size: int, seed: int = 0) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- numbers behind the pictures


@pytest.mark.parametrize("spread", ["even", "wide", "zeros", "same", "negative"])
def test_every_unit_is_in_one_bin(spread: str) -> None:
    values = {
        "even": 1 + some(100),
        "wide": some(100) ** 12,
        "zeros": some(100) ** 12 * (torch.arange(100) % 4 > 0),
        "same": torch.full((100,), 3.0),
        "negative": some(100) - 0.5,
    }[spread]
    keep = torch.arange(100) % 3 > 0
    h = histogram(values, keep)
    assert (sum(h.kept), sum(h.removed)) == (int(keep.sum()), int((~keep).sum()))
    assert h.log == (spread in ("wide", "zeros")) and len(h.edges) == len(h.kept) + 1
    assert h.line == (float(values[~keep].max()), float(values[keep].min()))
    assert all(a < b for a, b in pairwise(h.edges))
    assert [place(e, h) for e in (h.edges[0], h.edges[-1])] == [0.0, 1.0]


def test_zeros_are_in_the_first_bin_of_a_logarithmic_axis() -> None:
    h = histogram(torch.tensor([0.0, 0.0, 1e-3, 1.0]), torch.tensor([False, False, True, True]), bins=3)
    assert h.log and h.removed == [2, 0, 0] and h.kept == [1, 0, 1] and h.edges[0] == pytest.approx(1e-3)
    assert h.below == 2
    dead = histogram(torch.tensor([1e-29, 1e-3, 1.0]), bins=3)
    assert dead.edges[0] == pytest.approx(1e-3) and dead.kept == [2, 0, 1] and dead.below == 1
    assert histogram(torch.tensor([1.0, 2.0])).below == 0
    for wide in (some(100, i) ** 8 for i in range(20)):  # edges are rounded, this is not
        assert histogram(wide).below == int((wide < 1e-7 * wide.max()).sum())


def test_a_group_that_is_kept_whole_has_no_line() -> None:
    assert histogram(some(5)).line is None and histogram(some(5), torch.ones(5, dtype=torch.bool)).line is None


def test_a_mask_of_another_size() -> None:
    with pytest.raises(pf.MaskError, match="there are 5 scores, and the mask keeps 4 of 4 units"):
        histogram(some(5), torch.ones(4, dtype=torch.bool))
    with pytest.raises(pf.MaskError, match="keeps 0 of 5"):
        histogram(some(5), torch.zeros(5, dtype=torch.bool))


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_nothing_beats(seed: int) -> None:
    draw = random.Random(seed)
    found: list[Point] = [(str(i), draw.randrange(12), draw.randrange(8) / 8) for i in range(draw.randrange(1, 40))]

    def beaten(p: Point) -> bool:
        return any(q[1] <= p[1] and q[2] >= p[2] and q[1:] != p[1:] for q in found)

    assert pareto_front(found) == [not beaten(p) for p in found]


def test_there_is_no_front_of_nothing(tmp_path: Path) -> None:
    assert pareto_front([]) == []
    with pytest.raises(pf.PruneError, match="no points"):
        plots.pareto([], tmp_path / "a.png")


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenet_v3_small"])
def test_layers_add_up_to_the_cost(name: str) -> None:
    spec = subject(name).spec
    small = pf.shrink(spec, {g: torch.arange(n) < -(-n // 2) for g, n in spec.sizes.items()})
    for at in (spec, small):
        found, whole = layer_costs(at).values(), pf.cost(at)
        assert sum(v.macs for v in found) == whole.macs and sum(v.params for v in found) == whole.params
    assert list(layer_costs(spec)) == list(layer_costs(small))


def test_costs_of_layers_by_hand() -> None:
    """Attention's two products are the module's own; what is tied counts once; a parameter of the model has no module."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.out = nn.Linear(4, 4, bias=False)
            self.again = self.out

        def forward(self, x: Tensor) -> Tensor:
            x = x * self.scale
            return self.again(self.out(self.attention(x, x, x, need_weights=False)[0]))

    found = layer_costs(pf.trace(Small().eval(), (randn(2, 3, 4).float(),)))
    assert found[""] == (0, 4)
    assert found["attention"].params == 3 * 4 * 4 + 3 * 4
    assert found["attention"].macs == 3 * 3 * 4 * 4 + 2 * 3 * 3 * 4
    assert found["attention.out_proj"] == (3 * 4 * 4, 4 * 4 + 4)
    assert sum(v.params for n, v in found.items() if n in ("out", "again")) == 16
    assert sum(v.macs for n, v in found.items() if n in ("out", "again")) == 2 * 3 * 4 * 4


def test_norms_by_hand() -> None:
    model = mlp(2, 2, 2)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0.0], [1.0, 2.0]]))
        model[2].weight.copy_(torch.tensor([[4.0, 0.0], [0.0, 2.0]]))
        model[0].bias.fill_(100.0)  # biases do not count
    spec = pf.trace(model, (torch.zeros(1, 2),))
    found = norms.group_norms(pf.params(model), spec=spec)
    assert found.keys() == {"0"}
    assert found["0"].tolist() == pytest.approx([5.0, 3.0])


def test_norms_count_all_that_goes_with_a_unit() -> None:
    model = net(norm=True)
    spec, params = spec_of(model), pf.params(model)
    found = norms.group_norms(params, spec=spec)
    rows = params["0.weight"].square().sum(1) + params["1.weight"].square() + params["4.weight"].square().sum(0)
    assert torch.allclose(found["0"], rows.double().sqrt())


def test_the_spread_of_norms() -> None:
    found = norms.spread({"a": torch.tensor([0.0, 0.05, 1.0]), "b": torch.tensor([30.0]), "zero": torch.zeros(2)})
    assert sum(found.counts) == 6 and found.near == pytest.approx(4 / 6)
    assert found.counts[-1] == 2 and found.counts[0] == 3


def test_many_checkpoints_are_thinned_out() -> None:
    names = [str(i) for i in range(1000)]
    for most in (2, 5, 24):
        chosen = norms.thinned(names, most)
        assert len(chosen) == most and chosen[0] == "0" and chosen[-1] == "999"
        gaps = [int(b) - int(a) for a, b in pairwise(chosen)]
        assert max(gaps) - min(gaps) <= 1
    assert norms.thinned(names[:5], 5) == names[:5]


def test_numbers_and_panels() -> None:
    assert [number(v) for v in (0.0, -0.25, 999.0, 1e6, 0.0099)] == ["0", "-0.25", "999", "1e6", "9.90e-3"]
    places = list(grid(7, 3, (2.0, 1.0), norms.Panel(0, 0, 1.5, 0.5)))
    assert len({p[:2] for p in places}) == 7 and max(p.x for p in places) == 4.0 and max(p.y for p in places) == 2.0


# ---- pictures


def checkpoints(n: int) -> dict[str, dict[str, Tensor]]:
    return {f"epoch {i}": {"0": some(9, i), "2": some(8 - i % 2, i)} for i in range(n)}


DRAWN: dict[str, Callable[[Path], None]] = {
    "scores": lambda path: plots.scores({"0": some(9), "2": some(8) ** 20}, MASK, path),
    "scores of one group, kept whole": lambda path: plots.scores({"0": some(9)}, {}, path),
    "scores that overlap": lambda path: plots.scores({"0": torch.arange(9.0)}, {"0": torch.arange(9) != 5}, path),
    "norms": lambda path: plots.norms(checkpoints(30), path),
    "norms of one checkpoint": lambda path: plots.norms(checkpoints(1), path),
    "layers": lambda path: plots.layers(MLP, pf.shrink(MLP, MASK), path),
    "pareto": lambda path: plots.pareto([("a", 2e9, 0.7), ("b", 1e9, 0.6), ("c", 2e9, 0.5), ("d", 2e9, 0.7)], path),
    "pareto of one": lambda path: plots.pareto([("<$a_b$>", 2e3, 0.7)], path),
    "residuals": lambda path: plots.residuals({"mean": {"2": Residual(1, 4, 2)}, "no": {"4": Residual(0, 1, 0)}}, path),
    "spec": MLP.picture,
}


@pytest.mark.parametrize("what", DRAWN)
def test_the_same_data_give_the_same_picture(what: str, tmp_path: Path) -> None:
    for i in range(2):
        DRAWN[what](tmp_path / f"{i}.png")
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.png", "1.png"]
    pixels = imread(tmp_path / "0.png")
    assert min(pixels.shape[:2]) > 150 and pixels[..., :3].std() > 0.02


def test_other_data_give_another_picture(tmp_path: Path) -> None:
    plots.scores({"0": some(9)}, MASK, tmp_path / "0.png")
    plots.scores({"0": some(9)}, {}, tmp_path / "1.png")
    plots.scores({"0": some(9, 1)}, MASK, tmp_path / "2.png")
    assert len({(tmp_path / f"{i}.png").read_bytes() for i in range(3)}) == 3


def test_a_hundred_groups_are_a_hundred_panels(tmp_path: Path) -> None:
    plots.scores({f"a.long.name.of.a.block.{i}.conv": some(32, i) for i in range(100)}, {}, tmp_path / "a.png")
    pixels = imread(tmp_path / "a.png")[..., :3]
    blue = (np.abs(pixels - np.array([0x4C, 0x72, 0xB0]) / 255) < 0.02).all(-1)
    rows = blue.any(1)
    assert int((rows[1:] & ~rows[:-1]).sum()) == 25 + 1  # four in a row; and the legend


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(pf.PruneError, match="no residuals"):
        plots.residuals({"mean": {}}, tmp_path / "a.png")
    with pytest.raises(pf.PruneError, match="no checkpoints to draw"):
        plots.norms({}, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


# ---- SVG


def test_groups_say_what_they_are(tmp_path: Path) -> None:
    MLP.picture(tmp_path / "a.svg")
    space = "{http://www.w3.org/2000/svg}"
    titles = {t.text for t in ET.parse(tmp_path / "a.svg").iter(f"{space}title")}
    assert {MLP.explain(g) for g in MLP.groups} <= titles
    MLP.picture(tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert text.count("<title>") == 1 + len(MLP.groups) and "prefers-color-scheme: dark" in text
    assert "http" not in text and "<script" not in text and "#222222" not in text and "var(--ink)" in text


def test_an_svg_in_a_page_draws_and_nothing_else() -> None:
    bad = """<?xml version="1.0"?><!DOCTYPE svg PUBLIC "a" "http://a/b.dtd">
    <svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" onload="x()" width="3">
    <!-- a --><metadata>http://a</metadata><style>@import url(http://a)</style><script>x()</script><image href="http://a"/>
    <foreignObject><p>a</p></foreignObject><a href="javascript:x()"><path d="b"/></a><use xlink:href="http://a#b"/>
    <use xlink:href="#b"/><path style="fill: url(http://a)" clip-path="url(#p)" onclick="x()"/><text>1 &lt; 2</text></svg>"""
    text = svg.inline(bad, {})
    assert not re.search("http|script|onload|onclick|foreign|import|image|metadata|xlink", text)
    assert 'href="#b"' in text and 'clip-path="url(#p)"' in text and "1 &lt; 2" in text and 'width="3"' in text
    assert themed(bad) == text


# ---- checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything."""
    folder = tmp_path_factory.mktemp("run")
    phases = Phases(
        lambda ratio: pf.recipes.vbp(ratio, where=None),
        schedule.geometric(0.5, 2),
        sparse=(
            lambda spec: regularizers.lasso(spec, weight=1e-3),
            PLAIN.model_copy(update={"keep_every": 1, "epochs": 3}),
        ),
        between=PLAIN.model_copy(update={"epochs": 1}),
        tuning=PLAIN.model_copy(update={"keep_every": 5}),
    )
    pat(net(drop=0.0), MEASURED, phases, calibration=calibration(), folder=folder)
    return folder


def test_the_checkpoints_of_a_run(run: Path) -> None:
    spec = spec_of(net())
    found = norms.analyze(run, spec=spec)
    assert list(found) == [
        *(f"sparse, epoch {i}" for i in (1, 2, 3)),
        "round 1, epoch 1",
        "round 2, epoch 1",
        "tuning, epoch 2",
    ]
    last = read_nest(run / "sparse/last.safetensors")["weights"]
    expected = norms.group_norms(last, spec=spec)
    assert all(torch.equal(found["sparse, epoch 3"][g], n) for g, n in expected.items())
    mask = read_nest(run / "mask.safetensors")["mask"]
    assert {g: len(n) for g, n in found["tuning, epoch 2"].items()} == {g: int(m.sum()) for g, m in mask.items()}
    first = read_nest(run / "round_1/pruned.safetensors")["whole_mask"]
    assert {g: len(n) for g, n in found["round 1, epoch 1"].items()} == {g: int(m.sum()) for g, m in first.items()}


def test_any_checkpoints(run: Path, tmp_path: Path) -> None:
    """A stage, a file of ours, a state dict, a pickle of torch, a pruned file without its run: all the same numbers."""
    model, spec = net(), spec_of(net())
    params = pf.params(model)
    whole = norms.group_norms(params, spec=spec)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    pf.save(params, tmp_path / "b.safetensors", spec=spec)
    write_nest(tmp_path / "c.safetensors", {"weights": dict(model.state_dict())})
    sources: list[Any] = [tmp_path / "a.pt", str(tmp_path / "b.safetensors"), tmp_path / "c.safetensors", params]
    found = norms.analyze(sources, spec=spec)
    assert list(found) == ["a", "b", "c", "3"]
    for one in found.values():
        assert all(torch.equal(one[g], n) for g, n in whole.items())
    assert norms.analyze(params, spec=spec)["checkpoint"].keys() == whole.keys()
    assert list(norms.analyze({"x": params, "y": tmp_path / "a.pt"}, spec=spec)) == ["x", "y"]
    assert list(norms.analyze([tmp_path / "a.pt"] * 2, spec=spec)) == ["0: a", "1: a"]
    assert list(norms.analyze(run / "sparse", spec=spec)) == ["epoch 1", "epoch 2", "epoch 3"]
    shutil.copy(run / "tuning/last.safetensors", tmp_path / "alone.safetensors")
    alone = norms.analyze(tmp_path / "alone.safetensors", spec=spec)["alone"]
    known = norms.analyze(run, spec=spec)["tuning, epoch 2"]
    assert all(torch.equal(alone[g], n) for g, n in known.items())


def test_no_checkpoints(tmp_path: Path) -> None:
    spec = spec_of(net())
    with pytest.raises(pf.PruneError, match=r"has no checkpoints; train with Recipe\(keep_every=…\)"):
        norms.analyze(tmp_path, spec=spec)
    with pytest.raises(pf.ParamsError, match=r"checkpoint '0' has no '0.weight'"):
        norms.analyze([{"another": torch.ones(1)}], spec=spec)


def test_checkpoints_that_stay(tmp_path: Path) -> None:
    """They are what was measured at that epoch, and change nothing else."""
    recipe = PLAIN.model_copy(update={"epochs": 5, "ema": 0.9})
    plain = train(net(), SETUP, recipe)
    kept = train(net(), SETUP, recipe.model_copy(update={"keep_every": 2}), folder=tmp_path)
    assert sorted(p.name for p in tmp_path.glob("epoch*")) == ["epoch_002.safetensors", "epoch_004.safetensors"]
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), kept.model.parameters(), strict=True))
    short = train(net(), SETUP, recipe.model_copy(update={"keep_every": 5}), folder=tmp_path / "b")
    state = read_nest(tmp_path / "b/epoch_005.safetensors")
    assert state["epoch"] == 5
    assert all(torch.equal(state["weights"][n], t) for n, t in short.model.state_dict().items())


def test_checkpoints_that_stay_are_the_same_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at any rename of a file, and going on, it has the same bytes in the same files."""
    recipe = PLAIN.model_copy(update={"epochs": 3, "keep_every": 1})
    rename, left = os.replace, [0]

    def replace(*args: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        rename(*args)

    monkeypatch.setattr(os, "replace", replace)

    def bytes_of(folder: Path) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in folder.glob("epoch_*")}

    train(net(), SETUP, recipe, folder=tmp_path / "whole")
    whole = bytes_of(tmp_path / "whole")
    assert sorted(whole) == [f"epoch_00{i}.safetensors" for i in (1, 2, 3)]
    for n in (2, 4, 5):
        folder = tmp_path / str(n)
        left[0] = n
        with pytest.raises(KeyboardInterrupt):
            train(net(), SETUP, recipe, folder=folder)
        assert bytes_of(folder) != whole
        train(net(), SETUP, recipe, folder=folder)
        assert bytes_of(folder) == whole


# ---- the page


class Links(HTMLParser):
    """What a page would load or go to, its ids, and its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [v or "" for k, v in attrs if k in ("src", "href", "data", "action", "srcset", "poster")]
        self.ids += [v or "" for k, v in attrs if k == "id"]


def check_alone(text: str) -> Links:
    """Nothing but the page itself is needed, and links within it arrive."""
    links = Links(text)
    assert not links.tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for target in links.found:
        assert target.startswith("data:image/png;base64,") or target[1:] in links.ids
    assert not re.search(r"https?:|file:|@import|url\((?!#)", text)
    assert len(links.ids) == len(set(links.ids))
    return links


def test_the_page_of_a_run(run: Path) -> None:
    text = (run / "report.html").read_text()
    links = check_alone(text)
    headings = re.findall(r'<h2 id="[^"]+">([^<]+)</h2>', text)
    assert headings == [
        "Top-1 over the epochs",
        "Norms over the checkpoints",
        "Scores",
        "Predicted errors",
        "What is left of each group",
        "MACs and parameters by layer",
        "Graph of the groups",
        "Phases and epochs",
        "Units kept",
        "What was asked",
        "Versions",
    ]
    assert sum(t.startswith("data:") for t in links.found) == 7  # of two rounds, the scores
    assert "svg" in links.tags and "<td>tuning, best</td>" in text and f"<td>{torch.__version__}</td>" in text
    assert "of the MACs removed by" in text and "prefers-color-scheme: dark" in text


def test_the_pictures_of_a_run_again(run: Path, tmp_path: Path) -> None:
    """From its folder, and the same."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    drawn = [p for p in copy.rglob("*") if p.suffix in (".png", ".svg")]
    for path in drawn:
        path.unlink()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    mask = read_nest(run / "mask.safetensors")["mask"]
    written = pictures(rows, spec_of(net(drop=0.0)), mask, copy, pf.params(net(drop=0.0)))
    assert sorted(written) == sorted(drawn)
    assert all(p.read_bytes() == (run / p.relative_to(copy)).read_bytes() for p in written)


def test_the_page_of_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(pf.PruneError, match=r"has no files of a run"):
        page(tmp_path)
    (tmp_path / "config.json").write_text('{"a": 1}')
    with pytest.raises(pf.PruneError, match=r"has no files of a run"):
        page(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_page_of_a_sweep(tmp_path: Path) -> None:
    rows = "".join(f"trial {i},0.5,0.41,{i / 100},True\n" for i in range(ROWS + 3))
    (tmp_path / "final_comparison.csv").write_text(
        "Method,Params_Removed,FLOPs_Reduction,Accuracy_Drop,Goal_Met\n" + rows
    )
    (tmp_path / "all trials.csv").write_text('a,b\n"x, y",2\n')
    for name in ("pareto.png", "z_other.png"):
        plots.pareto([("a", 1, 0.5)], tmp_path / name)
    text = page(tmp_path).read_text()
    check_alone(text)
    found = re.findall(r'<h2 id="[^"]+">([^<]+)</h2>', text)
    assert found == ["Accuracy against MACs", "Z other", "Final comparison", "All trials", "Versions"]
    assert "<td>x, y</td>" in text and f"<td>trial {ROWS - 1}</td>" in text and f"trial {ROWS}<" not in text
    assert "3 more rows are in the file" in text and f"<h1>{tmp_path.name}</h1>" in text


def test_the_page_of_one_pruning(tmp_path: Path) -> None:
    write_nest(tmp_path / "mask.safetensors", {"mask": MASK})
    summary = {"macs": 5, "macs_dense": 10, "macs_removed": 0.5, "top1": 0.5, "top1_dense": 0.6, "other": 3}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = page(tmp_path).read_text()
    check_alone(text)
    assert "50.0 % of the MACs removed by pruning" in text and "−10.00 points" in text
    assert re.findall(r'<h2 id="[^"]+">([^<]+)</h2>', text) == ["Units kept", "Versions"]
    assert text.count('<span class="bar"') == 2 and "width: 66.7%" in text
    assert page(tmp_path).read_text() == text


def test_names_are_words_not_code(tmp_path: Path) -> None:
    evil = "<script>x()</script>\"'&"
    write_nest(tmp_path / "mask.safetensors", {"mask": {evil: torch.ones(2, dtype=torch.bool)}})
    (tmp_path / "config.json").write_text(json.dumps({"prune": evil, "name": evil, "versions": {evil: evil}}))
    (tmp_path / "summary.json").write_text(json.dumps({"macs_removed": 0.5, evil: 1.0, f"{evil}_dense": 2.0}))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"phase": evil, evil: evil}) + "\n")
    (tmp_path / "a.csv").write_text(f"{evil[:21]}\n{evil[:21]}\n")
    (tmp_path / "<b onload=x>.csv").write_text("a\n1\n")
    plots.pareto([(evil, 1, 0.5)], tmp_path / "<i onload=x>.png")
    text = page(tmp_path).read_text()
    links = check_alone(text)
    assert "script" not in links.tags and "i" not in links.tags and "&lt;script&gt;" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "{"),
        ("metrics.jsonl", '{"a": 1}\n{"a'),
        ("spec.svg", "<svg"),
        ("mask.safetensors", "no"),
        ("config.json", "}"),
    ],
)
def test_a_broken_file_is_named(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    (tmp_path / name).write_text(content)
    with pytest.raises(pf.PruneError, match=re.escape(name)):
        page(tmp_path)


def test_versions_are_those_of_the_run(run: Path, tmp_path: Path) -> None:
    assert json.loads((run / "config.json").read_text())["versions"] == versions()
    assert versions()["prunefn"] == pf.__version__
    (tmp_path / "a.csv").write_text("a\n1\n")
    (tmp_path / "config.json").write_text('{"versions": {"torch": "0.0.1"}}')
    text = page(tmp_path).read_text()
    assert "<td>0.0.1</td>" in text and "What was asked" not in text
