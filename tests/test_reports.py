"""Whole report pages of real runs: the line on top, links that arrive, sorted tables; and runs beside published tables."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("timm")

import prunefn as pf  # noqa: E402
import prunefn.cli  # noqa: E402
from prunefn.cli.sections import Report  # noqa: E402
from prunefn.report.beside import beside, differences_of, on_line  # noqa: E402
from prunefn.report.measured import Measured, measured  # noqa: E402
from prunefn.report.page import page  # noqa: E402
from prunefn.report.published import COLUMNS, published, table_names  # noqa: E402

SIZES = {"dim": 16, "depth": 1, "heads": 2, "mlp_ratio": 4.0}
VIT = ["-c", "digits_vit", "--options", json.dumps(SIZES), "--data.images", "300"]
DENSE, HALF = "runs/train/best_model.safetensors", "runs/half/pruned.safetensors"


def run(*args: str | Path, code: int = 0) -> Any:
    done = typer_testing.CliRunner().invoke(prunefn.cli.app, [str(a) for a in args])
    assert done.exit_code == code, (args, done.stdout, done.stderr, done.exception)
    return done


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of runs: the dense network, three that are pruned, one that is fine-tuned, a sweep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        run("train", *VIT, "--profile.rounds", "2", "--epochs", "2", "--lr", "0.01")
        prune = ["prune", *VIT, "--checkpoint", DENSE, "--recipe", "vbp", "--prune.images", "64"]
        run(*prune, "--ratio", "0.2", "--out", "runs/a fifth")
        run(*prune, "--ratio", "0.5", "--out", "runs/half")
        run(*prune, "--macs", "0.55", "--where", "all", "--out", "runs/all")
        tuning = ["--epochs", "1", "--distill.teacher", DENSE, "--out", "runs/tuned"]
        run("finetune", *VIT, "--checkpoint", HALF, *tuning)
        space = "{macs_ratio: [0.1, 0.2], epochs: [0]}"
        run("sweep", *VIT, "--checkpoint", DENSE, "--sampler", "grid", "--space", space, "--prune.images", "64")
        run("report", "runs", "--beside", "vbp_table_10,without_training")
        return Path("runs").resolve()


class Page(HTMLParser):
    """The line on top, the links, and the tables of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.text = file.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [v for k in ("href", "src") if (v := values.get(k)) and not v.startswith("data:")]
        self.ids |= {values["id"] or ""} if "id" in values else set()

    @property
    def verdict(self) -> str:
        found = re.search(r'<p class="verdict">(.*?)</p>', self.text)
        assert found
        return unescape(found[1]).replace("\u00a0", " ")

    def table(self, heading: str) -> list[list[str]]:
        """Rows of the table of a section, the heading first."""
        section = self.text.partition(f">{heading}</h2>")[2].partition("</section>")[0]
        rows = re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)
        return [[unescape(re.sub("<[^>]+>", "", c)) for c in re.findall(r"<t[hd].*?</t[hd]>", r)] for r in rows]


def check_links(file: Path) -> Page:
    """Every link of a page leads to a file or to an id of the page."""
    found = Page(file)
    for link in found.links:
        where, _, anchor = link.partition("#")
        if not where:
            assert anchor in found.ids, link
            continue
        assert not re.match(r"\w+:|/", where), link
        assert (file.parent / where.replace("%20", " ")).is_file(), link
    return found


# ---- whole pages


def test_every_link_of_every_page_arrives(runs: Path) -> None:
    pages = sorted(runs.rglob("*.html"))
    names = {p.relative_to(runs).as_posix() for p in pages}
    assert {"report.html", "published.html", "train/report.html", "a fifth/report.html", "sweep/report.html"} <= names
    assert {"sweep/trials/0000/report.html", "sweep/trials/0001/report.html"} <= names
    for file in pages:
        check_links(file)
    links = check_links(runs / "report.html").links
    assert {"train/report.html", "a%20fifth/report.html", "half/report.html", "sweep/report.html"} <= set(links)
    assert "published.html" in links and "report.html" in check_links(runs / "published.html").links
    assert "../report.html" not in check_links(runs / "sweep/report.html").links


def test_the_line_on_top_is_that_of_the_numbers(runs: Path) -> None:
    found = Page(runs / "report.html")
    compared = [line.split(",") for line in (runs / "final_comparison.csv").read_text().splitlines()[1:]]
    met = [r for r in compared if r[4] == "True"]
    count = f"{len(met)} of 4 runs met the goal" if met else "None of 4 runs met the goal"
    assert found.verdict.startswith(count)
    best = min(met or compared, key=lambda r: (float(r[3]), -float(r[2])))
    assert not met or f"best: {best[0]}: " in found.verdict
    one = json.loads((runs / "half/summary.json").read_text())
    start = f"{100 * one['macs_removed']:.1f} % of the MACs removed"
    assert Page(runs / "half/report.html").verdict.startswith(start)


def test_the_table_is_sorted_and_says_what_the_files_say(runs: Path) -> None:
    head, dense, *rows = Page(runs / "report.html").table("Results")
    assert head[:4] == ["", "goal", "top-1", "points lost"] and dense[0] == "train ★"
    assert {r[0].removesuffix(" ◆") for r in rows} == {"a fifth", "half", "all", "tuned"}
    values = {
        p.name: json.loads((p / "summary.json").read_text())
        for p in runs.iterdir()
        if (p / "mask.safetensors").exists()
    }
    for row in (r for r in rows if r[0].removesuffix(" ◆") in values):
        assert row[2] == f"{100 * values[row[0].removesuffix(' ◆')]['top1']:.2f} %"
    keys = [(r[1] != "met", float(r[3].replace("−", "-")), -float(r[5].partition(" ")[0])) for r in rows]
    assert keys == sorted(keys)
    trials = Page(runs / "sweep/report.html").table("Results")
    keys = [(r[1] != "met", float(r[3].replace("−", "-")), -float(r[5].partition(" ")[0])) for r in trials[2:]]
    assert len(keys) == 2 and keys == sorted(keys)


# ---- published tables


def test_published_tables_are_whole() -> None:
    assert table_names() == get_args(get_args(Report.model_fields["beside"].annotation)[0])
    for table in map(published, table_names()):
        assert table.columns[:2] == ["model", "method"] and set(table.columns[2:]) <= COLUMNS.keys()
        assert all(len(row) == len(table.columns) for row in table.rows) and table.source and table.data
    with pytest.raises(pf.PruneError, match=r"no published table 'vbp_table_1'; did you mean 'vbp_table_10'"):
        published("vbp_table_1")


def test_macs_and_parameters_of_the_paper_follow_from_its_ratios() -> None:
    """The table needs no data: what is left of DeiT-T without some hidden units is arithmetic."""
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model("deit_tiny_patch16_224").eval()
    spec = pf.trace(model, (torch.empty(2, 3, 224, 224, device="meta"),))
    hidden = [g for g in spec.groups if g.endswith("mlp.fc1")]
    assert len(hidden) == 12
    table = published("vbp_table_10")
    for row, numbers in zip(table.rows, table.numbers(), strict=True):
        keep = round(768 * (1 - numbers["units_removed"] / 100))
        cost = pf.cost(spec, {g: torch.arange(768) < keep for g in hidden})
        assert cost.params / 1e6 == pytest.approx(numbers["params_m"], abs=0.01), row
        assert cost.macs / 1e9 == pytest.approx(numbers["gmacs"], abs=0.01), row


def test_the_line_between_and_beyond_its_points() -> None:
    table = published("vbp_table_10")
    for row, n in zip(table.rows, table.numbers(), strict=True):
        assert on_line(table, n["macs_removed"], "before") == pytest.approx(100 * float(row[3]) / 72.02)
    ends = [table.numbers()[k]["macs_removed"] for k in (3, 4)]
    middle = on_line(table, sum(ends) / 2, "after")
    assert middle == pytest.approx(100 * (71.76 + 71.60) / 2 / 72.02)
    assert on_line(table, 50.0, "after") is None


def test_what_runs_measured_is_read_from_their_folders(runs: Path) -> None:
    found = {m.name: m for m in measured(runs)}
    assert set(found) == {"a fifth", "half", "all", "tuned"}  # neither the dense network nor the sweep
    summary = json.loads((runs / "half/summary.json").read_text())
    half, tuned = found["half"].numbers(), found["tuned"].numbers()
    assert half["macs_removed"] == pytest.approx(100 * summary["macs_removed"])
    assert half["kept_before"] == pytest.approx(100 * summary["top1"] / summary["top1_dense"])
    assert half["units_removed"] == pytest.approx(50.0) and "top1_after" not in half
    assert {k: tuned[k] for k in ("units_removed", "kept_before", "macs_removed")} == pytest.approx(
        {k: half[k] for k in ("units_removed", "kept_before", "macs_removed")}, abs=1e-3
    )
    assert tuned["top1_after"] > 0 and found["tuned"].epochs == 1 and found["tuned"].method == "vbp"
    assert set(found["all"].other_kinds) and found["half"].other_kinds == ()
    trials = measured(runs / "sweep")
    assert [m.name for m in trials] == ["trial 0", "trial 1"] and all(m.data == "digits" for m in trials)
    assert [round(m.numbers()["macs_removed"] / 10) for m in trials] == [2, 1] or len(trials) == 2
    (log,) = measured(runs / "half/metrics.jsonl")
    assert log.model == "" and log.numbers()["kept_before"] == pytest.approx(half["kept_before"])


def test_runs_stand_in_the_columns_of_the_paper(runs: Path) -> None:
    found = Page(runs / "published.html")
    head, *rows = found.table("DeiT-T at eleven ratios")
    table = published("vbp_table_10")
    assert head == ["", "model", "method", *(COLUMNS[c][0] for c in table.columns[2:])]
    assert [r[1:] for r in rows if r[0] == "published"] == [list(r) for r in table.rows]
    ours = {r[0].removesuffix(" †"): r for r in rows if r[0] != "published"}
    n = {m.name: m.numbers() for m in measured(runs)}["half"]
    assert ours["half"][1:6] == ["small_vit", "vbp", "50", f"{n['top1_before']:.2f}", ""]
    assert float(ours["half"][6]) == pytest.approx(n["gmacs"], rel=0.05)  # two digits, not 0.00
    line = [r for r in found.table("Beside the line of DeiT-T at eleven ratios") if r[0] == "a fifth"]
    n = {m.name: m.numbers() for m in measured(runs)}["a fifth"]
    there = on_line(table, n["macs_removed"], "before")
    assert there is not None
    expected = f"{n['kept_before'] - there:+.2f}".replace("-", "−")
    assert line == [
        ["a fifth", "before", f"{n['macs_removed']:.2f}", f"{n['kept_before']:.2f}", f"{there:.2f}", expected]
    ]
    assert found.text.count('class="line ') == 2 and "the published line of DeiT-T keeps" in found.verdict
    assert found.verdict.startswith("4 pruned networks; 0 of them comparable")


def test_what_is_not_comparable_is_said(runs: Path) -> None:
    _, *rows = Page(runs / "published.html").table("What is not comparable")
    assert ["tuned", "DeiT-T at eleven ratios", "data set", "ImageNet-1k", "digits"] in rows
    assert ["tuned", "DeiT-T at eleven ratios", "epochs of fine-tuning", "10", "1"] in rows
    assert [r[3] for r in rows if r[0] == "all" and r[2] == "groups that lose units"] == ["hidden", "hidden"]
    same = {"top1_dense": 0.7202, "top1_before": 0.5, "top1_after": 0.7, "macs_dense": 1.26e9, "macs": 0.94e9}
    ours = Measured("a", model="DeiT-T", data="ImageNet-1k", epochs=10, results=same)
    table = published("vbp_table_10")
    assert differences_of(ours, table) == []
    assert [d.what for d in differences_of(ours._replace(epochs=None, rounds=2), table)] == [
        "epochs of fine-tuning",
        "rounds of pruning",
    ]
    other = {**same, "top1_dense": 0.8, "macs_dense": 1.3e9}
    what = [d.what for d in differences_of(ours._replace(results=other), table)]
    assert what == ["top-1 of the dense network", "MACs of the dense network"]
    assert next((d.published, d.here) for d in differences_of(ours, published("vbp_methods"))) == ("DeiT-B", "DeiT-T")


def test_a_log_and_errors(runs: Path, tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text((runs / "half/metrics.jsonl").read_text())
    assert "give its folder, or --beside vbp_table_10 for a log" in run("report", log, code=1).stderr
    done = json.loads(run("report", log, "--beside", "vbp_models", "--json").stdout)
    assert (
        done["pages"] == [str(tmp_path / "published.html")]
        and "not stated" in (tmp_path / "published.html").read_text()
    )
    with pytest.raises(pf.PruneError, match="no pruned network with an accuracy"):
        beside(runs / "train", ["vbp_table_10"])
    with pytest.raises(pf.PruneError, match="name a published table"):
        beside(runs, [])
    assert "'vbp_table_10', 'vbp_models'" in run("report", runs, "--beside", "vbp", code=2).stderr
    log.write_text("{")
    with pytest.raises(pf.PruneError, match=re.escape(str(log))):
        beside(log, ["vbp_table_10"])
    assert page(runs / "half").parent == runs / "half" and not (runs / "half/published.html").exists()
