"""Numbers of whole layers and experts that stay: as amounts of `select`, and on the command line before any budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest import mark, raises
from torch import Tensor, nn

import prunefn as pf
from prunefn.errors import BudgetError, PruneError

from .test_depth import Stack, resnet

transformers = pytest.importorskip("transformers")
pytest.importorskip("typer")

from prunefn.cli.pipelines import maker_of  # noqa: E402
from prunefn.cli.sections import Prune  # noqa: E402
from prunefn.cli.stages import in_stages, rest_of  # noqa: E402

from .test_cli import run  # noqa: E402

IDS = torch.randint(3, 48, (2, 7), generator=torch.Generator().manual_seed(0))
SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}


class Pair(nn.Module):
    """Two containers of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Stack(3), nn.Sequential(nn.Linear(3, 8), Stack(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def layers_of(spec: pf.Spec) -> list[str]:
    return [n for n, g in spec.groups.items() if g.kind == "layer"]


def test_layers() -> None:
    torch.manual_seed(0)
    spec = pf.trace(Pair().eval(), (torch.randn(4, 8),))
    names = layers_of(spec)
    assert names == [f"encoder.layers.{i}" for i in range(3)] + [f"decoder.1.layers.{i}" for i in range(2)]
    scores = {n: torch.tensor([s]) for n, s in zip(names, (3.0, 1.0, 2.0, 0.5, 4.0), strict=True)}

    def lost(number: Any) -> set[str]:
        return {g for g, m in pf.select(scores, pf.budget.layers(number), spec=spec).items() if not m.any()}

    assert lost(5) == set() and lost(3) == {names[3], names[1]}
    assert lost({"encoder.*": 1, "*": 2}) == {names[1], names[2]}
    for number, message in (
        (6, r"layers\(6\) is more than there are: 3 in 'encoder.layers', 2 in 'decoder.1.layers'; give at most 5"),
        ({"decoder.*": 3}, "2 in 'decoder.1.layers'; give at most 2"),
        ({"coder": 1}, "'coder' matches none of 'encoder.layers', 'decoder.1.layers'"),
        (0, "at least 1"),
    ):
        with raises(PruneError, match=message):
            lost(number)
    with raises(PruneError, match="needs the spec"):
        pf.select(scores, pf.budget.layers(3))
    with raises(PruneError, match=r"layer 'encoder\.layers\.1' has no score"):
        pf.select({names[0]: scores[names[0]]}, pf.budget.layers(4), spec=spec)


def test_layers_that_cannot_go_count() -> None:
    """A block whose shortcut is a projection stays."""
    spec = pf.trace(resnet().eval(), (torch.randn(2, 3, 32, 32),))
    names = layers_of(spec)
    fixed = 8 - len(names)
    scores = {n: torch.ones(1) for n in names}
    assert not any(bool(m.any()) for m in pf.select(scores, pf.budget.layers(fixed), spec=spec).values())
    with raises(BudgetError, match=rf"of which {fixed} cannot go; give at least {fixed}"):
        pf.select(scores, pf.budget.layers(fixed - 1), spec=spec)
    with raises(PruneError, match="no group of kind 'experts'; it has groups of kind"):
        pf.select(scores, pf.budget.experts(3), spec=spec)


def test_experts_of_grouped_routers() -> None:
    """Each group of experts keeps as many; they are counted all together."""
    config = transformers.DeepseekV3Config(
        **SIZES, num_key_value_heads=4, moe_intermediate_size=16, n_routed_experts=8, n_group=2, topk_group=1,
        num_experts_per_tok=2, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=4,
        qk_nope_head_dim=4, v_head_dim=8,
    )  # fmt: skip
    model = transformers.DeepseekV3ForCausalLM(config).eval()
    spec = pf.trace(model, (IDS,))
    scores = {n: torch.arange(float(g.size)) for n, g in spec.groups.items() if g.kind == "experts"}
    mask = pf.select(scores, pf.budget.experts(6), spec=spec)
    assert [m.tolist() for m in mask.values()] == [[True] * 2, [False, True, True, True]]
    for number in (5, 3):
        with raises(BudgetError, match="has 8 experts, of which 4 or more must stay, a multiple of 2"):
            pf.select(scores, pf.budget.experts(number), spec=spec)
    with raises(BudgetError, match="more than the 8 experts"):
        pf.select(scores, pf.budget.experts(10), spec=spec)
    with raises(PruneError, match="no group of kind 'layer'"):
        pf.select({}, pf.budget.layers(1), spec=pf.trace(nn.Linear(2, 2), (torch.ones(1, 2),)))


# ---- the command line

VIT = ["-c", "digits_vit", "--options", "{dim: 16, depth: 4, heads: 2}", "--ratio", "none"]
MIXTRAL = [
    "transformers/MixtralForCausalLM",
    "--options",
    json.dumps({**SIZES, "num_key_value_heads": 2, "num_local_experts": 6}),
]


def test_layers_then_macs() -> None:
    """The layers of least influence go first, then widths, until the budget of the dense network is met."""
    model, batches = pf.nets.small_vit(dim=16, depth=4, heads=2).eval(), [torch.randn(32, 1, 8, 8)]
    spec, params = pf.trace(model, (batches[0],)), pf.params(model)

    def pruned(**options: Any) -> pf.Pruned:
        section = Prune(recipe="vbp", **options)
        rest = rest_of(section, maker_of(section, "best"))
        return in_stages(params, spec, section, rest, lambda prune, p, s: prune(p, batches, spec=s), data=True)

    influence = pf.criteria.block_influence()
    scores = pf.score(pf.collect_stats(params, batches, spec=spec, criterion=influence), criterion=influence)
    worst = min(layers_of(spec), key=lambda n: float(scores[n]))
    both, dense = pruned(layers=3, macs=0.6), pf.cost(spec)
    assert [g for g in layers_of(spec) if not both.mask[g].any()] == [worst]
    assert 0.55 < both.info.after.macs / dense.macs <= 0.6 and pf.cost(both.spec) == both.info.after
    assert any(0 < lost < units for lost, units in both.info.removed.values())
    assert pf.shrink(spec, both.mask) == both.spec
    small = pf.to_module(both.params, spec=both.spec, model=model)
    torch.testing.assert_close(small(batches[0]), pf.forward(both.params, batches[0], spec=both.spec))
    met = pruned(layers={"blocks": 1}, macs=0.9)
    assert set(met.mask) == set(layers_of(spec)) and len(met.spec.branches) == 3


def test_layers_and_widths_are_saved(tmp_path: Path) -> None:
    """Layers move up in the class, so that names in the file are not those of the spec."""
    model, x = pf.nets.small_vit(dim=16, depth=3, heads=2).eval(), torch.randn(2, 1, 8, 8)
    spec = pf.trace(model, (x,))
    mask = {"blocks.0": torch.tensor([False]), "blocks.2.mlp.fc1": torch.arange(64) > 8}
    small_spec = pf.shrink(spec, mask)
    small = pf.to_module(pf.apply(pf.params(model), mask, spec=spec), spec=small_spec, model=model)
    pf.save(small, tmp_path / "small.safetensors", spec=small_spec, masks=mask)
    assert torch.equal(pf.load(model, tmp_path / "small.safetensors")(x), small(x))
    with raises(
        pf.ParamsError, match=r"'blocks\.1\.mlp\.fc1\.weight' has shape \(55, 16\), but the spec says \(64, 16\)"
    ):
        pf.save(small, tmp_path / "other.safetensors", spec=pf.shrink(spec, {"blocks.0": mask["blocks.0"]}))


def test_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without data, by their weights; the pictures of the run show their groups."""
    monkeypatch.chdir(tmp_path)
    found = run("prune", *MIXTRAL, "--experts", "4", "--json").json
    expert = 32 + 3 * 24 * 32
    assert found["params_dense"] - found["params"] == 2 * 2 * expert
    groups = json.loads((tmp_path / "runs/prune/spec.json").read_text())["groups"]
    assert groups["model.layers.0.mlp.gate.experts"]["units"] == 4
    assert {p.name for p in (tmp_path / "runs/prune").iterdir()} >= {"scores.png", "report.html", "pruned.safetensors"}
    assert "keep 4 experts" in run("prune", *MIXTRAL, "--experts", "4", "--dry-run").stdout


@mark.parametrize(
    ("args", "message", "code"),
    [
        ([*VIT, "--experts", "3"], "no group of kind 'experts'; it has groups of kind", 1),
        ([*VIT, "--layers", "9"], "4 in 'blocks'; give at most 4", 1),
        ([*VIT, "--layers", "many"], "it must be a whole number or an object", 2),
        ([*VIT, "--layers", "3", "--latency", "0.5"], "prune.layers is another amount; give one of the two", 1),
        (
            [*MIXTRAL, "--layers", "1"],
            "block_influence scores layers with data: give --data, or --layers-criterion random",
            1,
        ),
        ([*MIXTRAL, "--experts", "1"], "has 6 experts, of which 2 or more must stay", 1),
    ],
    ids="no_experts too_many no_number latency no_data too_few".split(),
)
def test_what_cannot_be(
    args: list[str], message: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in run("prune", *args, code=code).stderr
