"""Classes of users, in the ways in which people keep sizes, are rebuilt at the sizes that are left, or refused by their line."""

from __future__ import annotations

from pathlib import Path

import torch
from pytest import mark, raises
from torch import nn

import prunefn as pf

from .classes import CASES
from .classes.case import Case
from .small import close
from .zoo import random_mask

each = mark.parametrize("name", CASES)


def halved(case: Case) -> tuple[nn.Module, pf.Params, pf.Spec]:
    """The model, and params and spec without half of every group."""
    torch.manual_seed(0)
    x = case.inputs(2)
    model = case.build().to(x[0].dtype).eval().requires_grad_(False)
    spec = pf.trace(model, x, check=False)
    groups = [g.name for g in spec.groups.values() if not case.with_kinds or g.kind in case.with_kinds]
    mask = random_mask(spec, 0, groups=groups)
    return model, pf.apply(pf.params(model), mask, spec=spec), pf.shrink(spec, mask)


@each
def test_a_class_runs_at_half_of_its_sizes(name: str) -> None:
    case = CASES[name]
    model, params, spec = halved(case)
    if case.refused:
        with raises(pf.PruneError) as error:
            pf.to_module(params, spec=spec, model=model)
        assert case.refused in str(error.value)
        return
    attributes = [dict(vars(m)) for m in model.modules()]
    new, x = pf.to_module(params, spec=spec, model=model), case.inputs(3)
    assert [dict(vars(m)) for m in model.modules()] == attributes
    outputs, expected = (y if isinstance(y, tuple) else (y,) for y in (new(*x), pf.forward(params, *x, spec=spec)))
    tolerance = torch.finfo(x[0].dtype).eps ** 0.75
    for a, b in zip(outputs, expected, strict=True):
        close(a.double(), b.double(), max(tolerance, 1e-11))


def test_a_refusal_advises_what_was_tried() -> None:
    """Heads and head_dims are tied to a width that stays, so neither kind alone can stay whole; hidden groups can go."""
    model, params, spec = halved(CASES["MinGPTHidden"]._replace(with_kinds=()))
    with raises(
        pf.PruneError, match=r"c // self.n_head.*It runs if only hidden groups are pruned: where=pf.kind\('hidden'\)\."
    ):
        pf.to_module(params, spec=spec, model=model)
    model, params, spec = halved(CASES["MinGPT"])
    with raises(pf.PruneError, match=r"make it run\. Without model=") as error:
        pf.to_module(params, spec=spec, model=model)
    assert "where=" not in str(error.value)


def test_dead_code_shrinks_along_and_costs_nothing() -> None:
    model, _, spec = halved(CASES["DeadBlocks"])
    dense = pf.trace(model, CASES["DeadBlocks"].inputs(2), check=False)
    assert list(dense.groups) == ["a"]
    assert pf.cost(dense).macs == 6 * 16 + 16 * 3
    assert [spec.shape(f"{n}.weight") for n in ("dead.0", "dead.3", "norm")] == [(10, 8), (8, 10), (8,)]
    assert dense.frozen["dead.0.weight", 0] == ("nothing reads what is computed with it",)
    assert "dead.0.weight" not in dense.program.tensors


def test_numbers_are_found_in_containers_and_shared_objects_stay() -> None:
    model, params, spec = halved(CASES["SharedConfig"])
    new = pf.to_module(params, spec=spec, model=model)
    assert [vars(b.cfg) for b in new.blocks] == [{"heads": 2, "dim": 3, "depth": 2}] * 2
    assert vars(model.cfg) == {"heads": 4, "dim": 6, "depth": 2} == vars(model.blocks[0].cfg)


@mark.parametrize("name", ["InNestedDict", "RearrangeLayers", "InPartial", "InFrozenDataclass"])
def test_a_saved_module_has_the_numbers_in_its_containers(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model, params, spec = halved(case)
    new, x = pf.to_module(params, spec=spec, model=model), case.inputs(3)
    pf.save(new, tmp_path / "a.safetensors")
    back = pf.load(case.build().to(x[0].dtype), tmp_path / "a.safetensors")
    close(back(*x), new(*x))
