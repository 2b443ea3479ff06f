"""Every toy obeys every law, and has the groups that it should have."""

from __future__ import annotations

import linecache
import pickle
from collections.abc import Callable
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import prunefn as pf
from prunefn.costs.counted import flop_counter
from prunefn.tracing.rules import Axes, Call

from .toys import CASES
from .toys.golden import AXES, GROUPS

every_toy = pytest.mark.parametrize("name", CASES)


class Traced(NamedTuple):
    model: nn.Module
    spec: pf.Spec
    params: pf.Params
    before: Any
    after: Any
    """State of the model before and after it was traced."""

    def run(self, name: str, batch: int, params: pf.Params | None = None, spec: pf.Spec | None = None) -> Any:
        args, kwargs = CASES[name].inputs(batch)
        return pf.forward(params or self.params, *args, spec=spec or self.spec, **kwargs)


@cache
def traced(name: str) -> Traced:
    model = CASES[name].model()
    disturb(model)
    before = state_of(model)
    args, kwargs = CASES[name].inputs()
    spec = pf.trace(model, args, kwargs)
    after = state_of(model)
    return Traced(model.eval(), spec, pf.params(model), before, after)


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def mask_of(spec: pf.Spec, seed: int | None, groups: list[str]) -> pf.Mask:
    """Every other unit, or by a seed a random half; at least one stays."""
    mask = {}
    for g in groups:
        n = spec.sizes[g]
        mask[g] = torch.arange(n) % 2 == 0
        if seed is not None:
            order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + len(mask)))
            mask[g] = order < max(n // 2, 1)
    return mask


# ---- laws


@every_toy
@pytest.mark.parametrize("batch", [1, 3])
def test_forward_is_the_module_bit_for_bit(name: str, batch: int) -> None:
    t = traced(name)
    args, kwargs = CASES[name].inputs(batch)
    # the module on detached tensors: where they require gradients, torch may fold a matmul in another way
    wanted = torch.func.functional_call(t.model, dict(t.params), args, kwargs, tie_weights=False)
    got = t.run(name, batch)
    assert pytree.tree_structure(got) == pytree.tree_structure(wanted)
    for a, b in zip(tensors(got), tensors(wanted), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


ZERO_DIVIDES = {"weight_norm": "b"}
"""Toy → a group that cannot be set to zero, only removed: torch divides each row by its norm."""


@every_toy
@pytest.mark.parametrize("seed", [None, 0], ids=["half", "random"])
def test_removing_is_zeroing_where_nothing_mixes(name: str, seed: int | None) -> None:
    t = traced(name)
    groups = [g.name for g in t.spec.groups.values() if g.exact and g.name != ZERO_DIVIDES.get(name)]
    mask = mask_of(t.spec, seed, groups)
    small, shrunk = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    zeroed = pf.zero(t.params, mask, spec=t.spec)
    got, wanted, dense = (
        tensors(t.run(name, 3, p, s)) for p, s in ((small, shrunk), (zeroed, t.spec), (t.params, t.spec))
    )
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    changed = any(not torch.allclose(a, b) for a, b in zip(got, dense, strict=True))
    assert changed == bool(groups), "a mask changes the output, and only a mask"


UNCOUNTED: dict[str, Callable[[pf.Spec], int]] = {
    "vectors": lambda spec: 5 * prod(spec.shape("score")),
    "bilinear": lambda spec: prod(spec.shape("both.weight")),
}
"""MACs that torch's counter leaves out: matrix times vector, and nn.Bilinear."""


@every_toy
def test_pruned_shapes_and_costs(name: str) -> None:
    t = traced(name)
    mask = mask_of(t.spec, 1, list(t.spec.groups))
    small, shrunk = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    assert {n: tuple(p.shape) for n, p in small.items()} == {n: shrunk.shape(n) for n in small}
    with flop_counter() as counter:
        t.run(name, 1, small, shrunk)
    cost = t.spec.costs(shrunk.sizes)
    assert cost == shrunk.costs(shrunk.sizes)
    assert 2 * (cost.macs - UNCOUNTED.get(name, lambda spec: 0)(shrunk)) == counter.get_total_flops()
    assert cost.params == sum(p.numel() for n, p in small.items() if n in t.spec.parameters and n not in t.spec.tied)


@every_toy
def test_keeping_all_is_the_identity(name: str) -> None:
    t = traced(name)
    everything = {g: torch.ones(n, dtype=torch.bool) for g, n in t.spec.sizes.items()}
    for mask in ({}, everything):
        same = pf.apply(t.params, mask, spec=t.spec)
        assert list(same) == list(t.params) and all(same[n] is p for n, p in t.params.items())
        assert pf.shrink(t.spec, mask) == t.spec
        assert all(torch.equal(z, t.params[n]) for n, z in pf.zero(t.params, mask, spec=t.spec).items())


@every_toy
def test_traces_are_equal_values(name: str) -> None:
    spec = traced(name).spec
    args, kwargs = CASES[name].inputs(1)  # of another batch size, which export would take for broadcasting
    again = pf.trace(CASES[name].model(), args, kwargs)
    assert again == spec and hash(again) == hash(spec)
    loaded = pickle.loads(pickle.dumps(spec))
    assert loaded == spec and hash(loaded) == hash(spec)
    assert str(loaded) == str(spec)


def test_specs_of_different_toys_differ() -> None:
    assert traced("concat").spec != traced("cat_twice").spec
    mask = mask_of(traced("concat").spec, 0, ["a"])
    assert pf.shrink(traced("concat").spec, mask) != traced("concat").spec


@pytest.mark.parametrize(
    "name", ["residual", "attention", "gqa_native", "rotary", "tied", "windows", "conv_transpose_grouped"]
)
def test_a_model_without_values_gives_the_same_spec(name: str) -> None:
    args, kwargs = CASES[name].inputs()
    with torch.device("meta"):
        model = CASES[name].factory().double()
    meta = pf.trace(model, args, kwargs)
    spec = traced(name).spec
    assert (meta.groups, meta.axes, meta.costs, meta.sites) == (spec.groups, spec.axes, spec.costs, spec.sites)
    assert meta.program.instructions == spec.program.instructions


# ---- tracing leaves the model alone


def disturb(model: nn.Module) -> None:
    """Training flags that differ, gradients, hooks, parameters that do not train: all of it must be there afterwards."""
    for i, module in enumerate(model.modules()):
        module.train(i % 2 == 1)
        module.register_forward_hook(nothing)
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 3 != 1)
        p.grad = torch.full_like(p, float(i)) if i % 2 else None


def nothing(module: nn.Module, args: Any, out: Any) -> None:
    """A hook that changes nothing."""


def state_of(model: nn.Module) -> Any:
    """All that a trace could change, values included."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    values = [
        (n, id(t), t._version, t.requires_grad, t.detach().clone(), t.grad if t.grad is None else t.grad.clone())
        for n, t in named
    ]
    modules = [(m.training, list(m._forward_hooks.values()), list(m._buffers)) for m in model.modules()]
    lists = [(k, v) for m in model.modules() for k, v in m.__dict__.items() if isinstance(v, list)]
    attributes = [(k, [id(x) for x in v if isinstance(x, Tensor)]) for k, v in lists]
    return values, modules, attributes, torch.is_grad_enabled()


@every_toy
def test_the_model_comes_back_as_it_was(name: str) -> None:
    before, after = traced(name).before, traced(name).after
    for (n, *old, value, grad), (m, *new, value2, grad2) in zip(before[0], after[0], strict=True):
        assert n == m and old == new and torch.equal(value, value2)
        assert grad is grad2 is None or torch.equal(grad, grad2)
    assert before[1:] == after[1:]


# ---- what is prunable


@every_toy
def test_groups(name: str) -> None:
    groups = traced(name).spec.widths.values()
    assert ", ".join(f"{g.name} {g.kind} {g.size}{'' if g.exact else '*'}" for g in groups) == GROUPS[name]


@pytest.mark.parametrize("name", AXES)
def test_axes(name: str) -> None:
    spec = traced(name).spec
    assert {t: spec.einops(t) for t in AXES[name]} == AXES[name]


@every_toy
def test_members_are_where_a_group_occurs(name: str) -> None:
    spec = traced(name).spec
    for g in spec.widths.values():
        assert g.members and len(set(g.members)) == len(g.members)
        for m in g.members:
            assert g.label in spec.einops(m.tensor)
    for site in spec.sites.values():
        assert all(site.name in spec.groups[g].sites for g in spec.groups if g in str(site.axis).split("'"))


def test_sites() -> None:
    """A site is the input of a contraction with parameters; one that is called twice has two values."""
    assert list(traced("residual").spec.sites) == ["down1", "up1", "down2", "up2", "head"]
    assert list(traced("attention").spec.sites) == ["qkv", "proj", "head"]
    assert list(traced("einsum_mlp").spec.sites) == ["b", "d"]
    assert [len(s.values) for s in traced("shared").spec.sites.values()] == [2, 1]
    assert traced("residual").spec.groups["stem"].sites == ("down1", "down2", "head")
    assert traced("residual").spec.sites["down1"].norm == "norm1.running_mean"
    assert traced("bare").spec.sites["w3"].slot == "w3.bias"


FROZEN = [
    ("residual", "stem.weight", 1, "it is an input", "", ""),
    ("residual", "head.weight", 0, "it is an output", "", ""),
    ("residual", "stem.weight", 2, "it is a kernel dim", "aten.conv2d.default", "F.relu(self.norm(self.stem(x)))"),
    ("channel_conv", "a.weight", 0, "a convolution runs along it", "aten.conv1d.default", "self.along(x.mean("),
    ("attention", "qkv.weight", 0, "its positions are taken apart", "aten.unbind.int", ".unbind(0)"),
    ("gqa_fused", "qkv.weight", 0, "one position of it is taken", "aten.select.int", "y[..., -2, :]"),
    ("cross_covariance", "qkv.weight", 0, "softmax runs over it", "aten.softmax.int", ".softmax(-1)"),
    (
        "memory",
        "memory",
        1,
        "attention runs over it",
        "aten.scaled_dot_product_attention.default",
        "F.scaled_dot_product_attention(q, k.expand",
    ),
    ("windows", "table", 0, "positions of it are picked by an index", "aten.index.Tensor", "self.table["),
    ("embedding", "embed.weight", 0, "it is a vocabulary", "aten.embedding.default", "self.embed(tokens)"),
    ("no_rule", "enter.weight", 0, "no rule", "prunefn_tests.clip_columns.default", "clip_columns(self.enter(x)"),
    ("no_rule", "fc1.weight", 1, "no rule", "prunefn_tests.clip_columns.default", "clip_columns(self.enter(x)"),
    ("roll", "a.weight", 0, "roll runs along it", "aten.roll.default", "self.run(self.a(x))"),
    ("flip", "b.weight", 1, "flip runs along it", "aten.flip.default", "self.run(self.a(x))"),
    ("softmax", "a.weight", 0, "softmax runs over it", "aten.softmax.int", "self.run(self.a(x))"),
    ("largest", "a.weight", 0, "its largest are picked", "aten.topk.default", "self.run(self.a(x))"),
    ("short", "a.weight", 0, "the first positions of it meet an index", "aten.gather.default", ".gather(1,"),
    ("unused", "idle.weight", 0, "the program does not use it", "", ""),
    ("dead", "aside.weight", 0, "the program does not use it", "", ""),
    ("options", "a.weight", 0, "it is an output", "", ""),
]
"""Toy, tensor, dim, why it is frozen, by which op, and what stands in that line of the source."""


@pytest.mark.parametrize(("name", "tensor", "dim", "why", "op", "code"), FROZEN)
def test_what_is_frozen_says_why(name: str, tensor: str, dim: int, why: str, op: str, code: str) -> None:
    lines = traced(name).spec.explain(tensor).splitlines()
    line = next(text for text in lines if text.startswith(f"  dim {dim},"))
    reason = next(r for r in line.split("; ") if "frozen: " in r and op in r)
    assert why in reason
    if code:
        path, number = reason.rpartition(" at ")[2].rsplit(":", 1)
        assert code in linecache.getline(path, int(number))


def test_an_op_without_a_rule_is_reported() -> None:
    spec = traced("no_rule").spec
    ((op, where),) = spec.unknown.items()
    assert op == "prunefn_tests.clip_columns.default" and "clip_columns" in linecache.getline(*parse(where))
    assert f"{op}: {where}" in str(spec)
    assert not any(traced(n).spec.unknown for n in CASES if n != "no_rule")


def parse(where: str) -> tuple[str, int]:
    path, _, number = where.rpartition(":")
    return path, int(number)


def test_explain_of_a_group_lists_members_and_sites() -> None:
    assert traced("group_norm").spec.explain("a.hidden").splitlines() == [
        "a.hidden: 2 units, hidden, mixed by aten.group_norm.default",
        "  a.weight dim 0 (out): (groups hidden) 3 1 1",
        "  a.bias dim 0 (out): (groups hidden)",
        "  layer.weight dim 0 (along): (groups hidden)",
        "  layer.bias dim 0 (along): (groups hidden)",
        "  b.weight dim 1 (in): 2 (groups hidden) 1 1",
        "  measured at b",
    ]


# ---- rules of the user


def lstm_rule(call: Call) -> list[Axes]:
    """As in torch: the input's width can be pruned, the state's cannot."""
    x, (w, *others) = call["input"], call["params"]
    call.unify(x.axes[2], w.axes[1])
    for axes in (w.axes[:1], *(v.axes for v in others), *(v.axes for v in call["hx"])):
        call.freeze(axes, "it is the state")
    return [
        (*x.axes[:2], *call.frozen(call.shape[2:], "it is the state")),
        *(call.frozen(s, "state") for s in call.shapes[1:]),
    ]


@pytest.mark.parametrize("key", ["aten.lstm.input", "aten.lstm"])
def test_a_rule_of_the_user_is_used(key: str) -> None:
    args, _ = CASES["lstm"].inputs()
    model = CASES["lstm"].model()
    spec = pf.trace(model, args, rules={key: lstm_rule})
    assert not spec.unknown
    assert list(spec.widths) == ["enter", "fc1"]
    assert spec.einops("lstm.weight_ih_l0") == "20 hidden_0"
    mask = mask_of(spec, None, ["enter"])
    params = pf.params(model)
    got = pf.forward(pf.apply(params, mask, spec=spec), *args, spec=pf.shrink(spec, mask))
    torch.testing.assert_close(got, pf.forward(pf.zero(params, mask, spec=spec), *args, spec=spec))


def test_a_rule_of_the_user_comes_first() -> None:
    def freezing(call: Call) -> Axes:
        call.freeze(call["self"].axes[-1], "I say so")
        return call["self"].axes

    args, _ = CASES["unused"].inputs()
    spec = pf.trace(CASES["unused"].model(), args, rules={"aten.relu.default": freezing})
    assert not spec.groups
    assert "frozen: I say so by aten.relu.default" in spec.explain("a.weight")


def test_a_rule_that_returns_wrong_sizes_is_caught() -> None:
    args, _ = CASES["unused"].inputs()
    with pytest.raises(pf.TraceError, match=r"rules\['aten\.relu'\] returns axes of sizes .* at "):
        pf.trace(CASES["unused"].model(), args, rules={"aten.relu": lambda call: call["self"].axes[:1]})


class Product(nn.Module):
    """Two activations are multiplied over a hidden axis after any function of one."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.q, self.k, self.o, self.function = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(5, 3), function

    def forward(self, x: Any) -> Any:
        return self.o((self.function(self.q(x)) @ self.function(self.k(x)).mT).softmax(-1))


@pytest.mark.parametrize(
    ("function", "exact"),
    [(torch.relu, True), (torch.sigmoid, False), (lambda x: x + 1, False), (lambda x: x * x, True), (torch.exp, False)],
)
def test_a_product_of_activations_is_exact_if_zero_stays_zero(function: Any, exact: bool) -> None:
    model, x = Product(function).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    spec = pf.trace(model, (x,))
    assert spec.groups["q"].exact == exact
    mask = {"q": torch.arange(6) < 4}
    params = pf.params(model)
    removed = pf.forward(pf.apply(params, mask, spec=spec), x, spec=pf.shrink(spec, mask))
    zeroed = pf.forward(pf.zero(params, mask, spec=spec), x, spec=spec)
    assert torch.allclose(removed, zeroed, rtol=0, atol=1e-10) or not exact


class Positions(nn.Module):
    """A table of positions of which as many are taken as there are tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.o = nn.Parameter(torch.randn(9, 6)), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        return self.o((self.up(x) + self.table[: x.shape[1]]).relu())


def test_rows_of_a_table_that_the_example_does_not_reach_stay() -> None:
    spec = pf.trace(Positions(), (torch.randn(2, 5, 4),), dynamic="batch")
    assert spec.einops("table") == "9 hidden"
    assert "nothing reads it at this size of the inputs" in spec.explain("table")


@every_toy
def test_a_spec_on_disk_is_the_same_spec(name: str, tmp_path: Path) -> None:
    """Whole and pruned: equal, and what it builds gives the same bits."""
    t = traced(name)
    mask = mask_of(t.spec, 1, [g for g in t.spec.groups if g in t.spec.widths])
    small, params = pf.shrink(t.spec, mask), pf.apply(t.params, mask, spec=t.spec)
    for n, spec in enumerate((t.spec, small)):
        pf.save_spec(spec, tmp_path / str(n))
    whole, again = (pf.load_spec(tmp_path / str(n)) for n in (0, 1))
    assert whole == t.spec and again == small and hash(whole) == hash(t.spec)
    assert str(whole) == str(t.spec)
    assert pf.cost(whole, mask) == pf.cost(t.spec, mask)
    if t.spec.program.recorded is None or not t.spec.program.recorded.refusal:
        torch.manual_seed(0)
        expected = t.run(name, 2, params, small)
        torch.manual_seed(0)
        got = t.run(name, 2, params, again)
        assert all(torch.equal(a, b) for a, b in zip(tensors(got), tensors(expected), strict=True))
