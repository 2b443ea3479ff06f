"""`Pruning`: a config drives training, masking and removal; nothing that is given is changed, and a state goes on to the bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import prunefn as pf
from prunefn.pruning import Pruning, Step
from prunefn.sparse import slice_order
from prunefn.train.losses import slice_log_norm

X = (torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)),)


class Net(nn.Module):
    """Three convolutions, the last but one depthwise; a table that is in no state dict."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.norm_b = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.d = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c, self.norm_c = nn.Conv2d(8, 12, (3, 1), bias=False), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 3)
        self.register_buffer("table", torch.full((6,), 0.5), persistent=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / 3 + (0.5 if p.ndim == 1 else 0))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_a(self.a(x)) + self.table)
        x = F.relu(self.d(F.relu(self.norm_b(self.b(x)))))
        return self.head(F.relu(self.norm_c(self.c(x))).mean((2, 3)))


CHANNEL: dict[str, Any] = {
    "global_pruning": True, "block_size": 2, "start_epoch": 1, "end_epoch": 4, "epoch_rate": 1, "global_prune_rate": 0.6,
    "pruning_method": "GroupNormPruner", "layers": ["module.a", "b", "c"], "input_shape": [2, 1, 6, 6],
}  # fmt: skip
SLICE: dict[str, Any] = {
    "block_size": 2, "start_epoch": 2, "end_epoch": 5, "epoch_rate": 2, "prune_rate": 0.5, "pruning_gradually": True,
}  # fmt: skip


def config(slices: bool = False, **changes: Any) -> dict[str, Any]:
    return {"channel_sparsity_args": CHANNEL | changes} | ({"slice_sparsity_args": SLICE} if slices else {})


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, pruning: Pruning, step: Step | None, epoch: int) -> None:
    """Two batches of noise, with the losses of the config."""
    model.train()
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(2):
        x, y = torch.randn(8, 1, 6, 6, generator=generator), torch.arange(8) % 3
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y) + pruning.channel_regularize(model) + pruning.slice_regularize(model)
        loss.backward()
        optimizer.step()
        if step is not None:
            step.hold_zero(optimizer)


def run(
    pruning: Pruning, model: nn.Module, epochs: range, optimizer: torch.optim.Optimizer | None = None
) -> list[Step]:
    """Prune, then train, each epoch; the model of each step is trained after it."""
    steps, optimizer = [], sgd(model) if optimizer is None else optimizer
    for epoch in epochs:
        step = pruning.prune(model, epoch)
        if step.new_optimizer:
            state = step.optimizer_state(optimizer)
            optimizer = sgd(step.model)
            optimizer.load_state_dict(state)
        model, pruning = step.model, step.pruning
        train(model, optimizer, pruning, step, epoch)
        steps.append(step)
    return steps


def left(step: Step) -> list[int]:
    """Filters of a, b and c."""
    return [len(getattr(step.model, n).weight) for n in "abc"]


# ---- the schedule, removed for real


@pytest.mark.parametrize(
    "method", ["BNScalePruner", "GroupNormPruner", "MACAwareImportance", "Magnitude", "LAMP", "FPGM", "Random"]
)
def test_macs_fall_as_scheduled(method: str) -> None:
    """28 channels, of which ⌊28 · .2⌋ = 5, ⌊28 · .4⌋ = 11, ⌊28 · .6⌋ = 16 are to go, in twos."""
    steps = run(
        Pruning.of(config(pruning_method=method, regularize={"reg": 1e-3, "mac_reg": 1e-3}), Net()), Net(), range(6)
    )
    gone = [28 - sum(left(s)) for s in steps]
    assert gone[0] == 0 and gone[3:] == [gone[3]] * 3
    assert all(asked - 4 < g <= asked for g, asked in zip(gone[1:4], (5, 11, 16), strict=True))
    assert gone[1] < gone[2] < gone[3]
    assert all(n % 2 == 0 and n >= 2 for s in steps for n in left(s))
    macs = [pf.cost(s.pruning.spec).macs for s in steps]
    assert macs[0] > macs[1] > macs[2] > macs[3] == macs[5]
    assert [s.new_optimizer for s in steps] == [False, True, True, True, False, False]
    assert all(type(s.model) is Net and not s.masks for s in steps)
    assert steps[1].cut and pf.cost(steps[1].before, steps[1].cut).macs == macs[1]
    assert steps[
        3
    ].report == f"epoch 3: channels removed; {28 - gone[3]} of 28 channels and {macs[3] / macs[0]:.1%}".replace(
        "%", " % of the MACs are left"
    )


def test_one_ranking_for_each_group_is_exact() -> None:
    """⌊share · units⌋ of each: 8, 8, 12 units at .2, .4, .6."""
    steps = run(Pruning.of(config(global_pruning=False, block_size=1), Net()), Net(), range(4))
    assert [left(s) for s in steps] == [[8, 8, 12], [7, 7, 10], [5, 5, 8], [4, 4, 5]]


def test_caps_are_of_the_dense_network() -> None:
    steps = run(Pruning.of(config(max_pruning_rate=0.6, block_size=1, isomorphic=True), Net()), Net(), range(4))
    assert all(n >= least for s in steps for n, least in zip(left(s), (4, 4, 5), strict=True))
    assert sum(left(steps[-1])) <= 28 - 16 + 2


def test_the_right_channels_go() -> None:
    """The four smallest scales of 16."""
    model = Net()
    with torch.no_grad():
        model.norm_a.weight.copy_(torch.tensor([5.0, -0.1, 5, 0.2, 5, 5, 5, 5]))
        model.norm_b.weight.copy_(torch.tensor([4.0, 4, 4, 4, 4, 0.3, -0.4, 4]))
    given = config(pruning_method="BNScalePruner", layers=["a", "b"], global_prune_rate=0.25, end_epoch=2)
    step = Pruning.of(given, model).prune(model, 1)
    cut = {g: (~m).nonzero()[:, 0].tolist() for g, m in step.cut.items()}
    assert cut == {"a": [1, 3], "b": [5, 6]}
    expected = pf.apply(pf.params(model), step.cut, spec=step.before)
    assert all(torch.equal(t, expected[n]) for n, t in pf.params(step.model).items())


def test_it_stops_at_the_target_of_macs() -> None:
    steps = run(Pruning.of(config(mac_target=0.7, block_size=1), Net()), Net(), range(5))
    dense = pf.cost(steps[0].before).macs
    assert steps[-1].pruning.channels.finished and "the target of MACs is met" in steps[-1].report
    assert 0.6 < pf.cost(steps[-1].pruning.spec).macs / dense <= 0.7
    assert len({tuple(left(s)) for s in steps}) < 4


# ---- as if the rate were 1


def test_masked_until_the_target_is_met_then_removed() -> None:
    given = config(prune_at_target=True, mac_target=0.35, end_epoch=7, block_size=1, regularize={"reg": 1e-3})
    steps = run(Pruning.of(given, Net()), Net(), range(8))
    at = next(i for i, s in enumerate(steps) if s.cut)
    dense = pf.cost(steps[0].before).macs
    assert 2 < at < 7
    shares = [s.pruning.channels.macs for s in steps]
    assert shares == sorted(shares, reverse=True) and shares[at - 1] > 0.35 >= shares[at]
    for i, s in enumerate(steps[1:at], 1):
        assert left(s) == [8, 8, 12] and s.new_optimizer and not s.cut and "channels masked" in s.report
        asked = 28 * i // 6
        assert sum(int((~m).sum()) for m in s.pruning.channels.active.values()) == asked
        now = pf.params(s.model)  # trained since
        assert s.masks and all(bool((now[n][~m] == 0).all()) for n, m in s.masks.items())
    assert pf.cost(steps[at].pruning.spec).macs / dense <= 0.35
    for s in steps[at:]:
        assert not s.masks and left(s) == left(steps[at]) and float(s.pruning.channel_regularize(s.model)) == 0
    assert [s.new_optimizer for s in steps[at:]] == [True] + [False] * (7 - at)
    one_more = steps[at - 1].pruning.channels.active  # what was masked before is gone now
    assert all(bool((steps[at].pruning.channels.active[g] <= m).all()) for g, m in one_more.items())


def test_removal_changes_no_output() -> None:
    """Between mask and removal without training: the same function."""
    given = config(prune_at_target=True, mac_target=0.35, end_epoch=3, start_epoch=0)
    model = Net().eval()
    masked = Pruning.of(given, model).prune(model, 0)
    assert left(masked) == [8, 8, 12]
    within = masked.pruning.channels.masked
    small = pf.apply(pf.params(masked.model), within, spec=masked.pruning.spec)
    expected = pf.forward(small, *X, spec=pf.shrink(masked.pruning.spec, within))
    torch.testing.assert_close(masked.model(*X), expected)


def test_a_target_that_cannot_be_met_is_said_at_once() -> None:
    model = Net()
    pruning = Pruning.of(config(prune_at_target=True, mac_target=0.05, max_pruning_rate=0.5), model)
    with pytest.raises(pf.BudgetError, match=r"budget.macs\(0.05\) cannot be met"):
        pruning.prune(model, 1)


# ---- slices


def test_slices_of_what_is_left() -> None:
    """Epochs 2 and 4 of [2, 5): ¼ of the slices, then ½; chosen anew where channels went; zero through training."""
    steps = run(Pruning.of(config(slices=True), Net()), Net(), range(6))
    assert [round(s.pruning.slice_ratio, 3) for s in steps] == [0, 0, 0.25, 0.25, 0.5, 0.5]
    assert [s.new_optimizer for s in steps] == [False, True, True, True, True, False]
    for s in steps[2:]:
        now = pf.params(s.model)
        for n, block in (("a", 2), ("b", 2), ("c", 2), ("d", 2)):
            w, kept = now[f"{n}.weight"], s.masks[f"{n}.weight"]
            assert bool((w[~kept] == 0).all())
            blocks = kept[slice_order(len(w), block)].reshape(len(w) // block, block, -1)
            assert bool((blocks == blocks[:, :1]).all())
            assert int((~blocks[:, 0]).sum()) == int(s.pruning.slice_ratio * blocks[:, 0].numel())


def test_slices_under_masked_channels() -> None:
    given = config(slices=True, prune_at_target=True, mac_target=0.3, end_epoch=6)
    steps = run(Pruning.of(given, Net()), Net(), range(8))
    for s in steps:
        now = pf.params(s.model)
        assert all(bool((now[n][~m] == 0).all()) for n, m in s.masks.items())
    assert any(s.cut for s in steps) and steps[-1].masks


def test_unpruning_drops_the_masks() -> None:
    step = run(Pruning.of(config(slices=True), Net()), Net(), range(5))[-1]
    given = config(slices=True)
    given["slice_sparsity_args"] = SLICE | {"pruning_mode": "Unprune", "reg": 1.0}
    free = Pruning.of(given, Net(), state=step.pruning.state_dict())
    after = free.prune(step.model, 5)
    assert step.masks and not after.masks and after.model is step.model
    assert float(free.slice_regularize(step.model)) == 0


# ---- losses


def grads(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    return {
        n: torch.zeros_like(p) if g is None else g
        for (n, p), g in zip(
            model.named_parameters(),
            torch.autograd.grad(loss, list(model.parameters()), allow_unused=True),
            strict=True,
        )
    }


def test_the_loss_of_scales() -> None:
    model = Net()
    given = config(pruning_method="BNScalePruner", regularize={"reg": 0.5}, layers=["a", "b"])
    found = grads(Pruning.of(given, model).channel_regularize(model), model)
    for n, g in found.items():
        expected = 0.5 * dict(model.named_parameters())[n].sign() if n in ("norm_a.weight", "norm_b.weight") else 0 * g
        assert torch.equal(g, expected)


@pytest.mark.parametrize("method, mac_reg", [("GroupNormPruner", 9.0), ("MACAwareImportance", 0.5)])
def test_the_growing_loss(method: str, mac_reg: float) -> None:
    """On rows of c: f · 2^{α (g_max − g) / (g_max − g_min)} · w, with g the norm of all coupled weights."""
    model = Net()
    given = {"reg": 0.25, "gamma": 2.0, "mac_reg": mac_reg, "alpha_shrinkage_reg": 3.0}
    pruning = Pruning.of(config(pruning_method=method, regularize=given, layers=["a", "c"]), model)
    found, p = grads(pruning.channel_regularize(model), model), pf.params(model)
    norm = sum(p[n].flatten(1).square().sum(1) for n in ("c.weight",))
    norm = (norm + p["norm_c.weight"].square() + p["norm_c.bias"].square() + p["head.weight"].square().sum(0)).sqrt()
    macs = {n: pruning.spec.macs_of(n) for n in ("a", "c")}
    factor = 0.5 + (mac_reg * macs["c"] / max(macs.values()) if method == "MACAwareImportance" else 0)
    by_unit = factor * 2 ** (3 * (norm.max() - norm) / (norm.max() - norm.min()))
    torch.testing.assert_close(found["c.weight"], by_unit[:, None, None, None] * p["c.weight"])
    assert not bool(found["d.weight"].any())


def test_the_loss_of_slices() -> None:
    model = Net()
    pruning = Pruning.of({"slice_sparsity_args": SLICE | {"reg": 0.5, "disable_first_index": True}}, model, X)
    loss = pruning.slice_regularize(model)
    expected = slice_log_norm(pf.params(model), spec=pruning.spec, block=2, protect_first=True)
    torch.testing.assert_close(loss, 0.5 * expected)
    assert bool(grads(loss, model)["b.weight"].any()) and float(pruning.channel_regularize(model)) == 0


# ---- at once, and loading


@pytest.mark.parametrize("key", ["prune_channels_at_init", "infer"])
def test_all_at_once(key: str) -> None:
    model = Net()
    given = config(slices=True, global_pruning=False, regularize={"reg": 1.0}, **{key: True})
    pruning = Pruning.of(given, model)
    step = pruning.at_init(model)
    assert left(step) == [4, 4, 6] and left(pruning.prune(model, 0)) == [4, 4, 6]
    after = [step.pruning.prune(step.model, e) for e in range(6)]
    assert all(left(s) == [4, 4, 6] and s.pruning.slice_ratio == 0 for s in after[:2])
    assert (after[4].pruning.slice_ratio > 0) == (key == "prune_channels_at_init")
    assert float(step.pruning.channel_regularize(step.model)) == 0
    if key == "infer":
        assert after[5].model is step.model
        trained = Net(seed=7)
        weights = Pruning.of(given, trained).at_init(trained).model.state_dict()
        step.model.load_state_dict(weights)


@pytest.mark.parametrize("at_target", [False, True])
def test_a_state_goes_on_to_the_same_bits(at_target: bool, tmp_path: Path) -> None:
    """Stopped after three epochs, saved, loaded in a new process' place, and gone on with."""
    given = config(
        slices=True, block_size=2, regularize={"reg": 1e-3}, prune_at_target=at_target, mac_target=0.3 * at_target
    )
    whole = run(Pruning.of(given, Net()), Net(), range(6))
    first = run(Pruning.of(given, Net()), Net(), range(3))[-1]
    weights = {n: t.clone() for n, t in first.model.state_dict().items()}
    save_file(first.pruning.state_dict(), tmp_path / "a.safetensors")
    torch.save(first.pruning.state_dict(), tmp_path / "a.pt")
    state = load_file(tmp_path / "a.safetensors")
    other = torch.load(tmp_path / "a.pt", weights_only=True)
    assert all(torch.equal(t, other[n]) for n, t in state.items()) and len(state) == len(other)
    again = Pruning.of(given, Net(seed=9), state=state)
    small = again.at_init(Net(seed=9))
    small.model.load_state_dict(weights)
    plain = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (first.model, small.model)]
    resumed, went_on = (
        run(p, m, range(3, 6), o)
        for p, m, o in ((small.pruning, small.model, plain[1]), (first.pruning, first.model, plain[0]))
    )
    for a, b in zip(resumed, went_on, strict=True):
        assert a.report == b.report
        for n, t in pf.params(a.model).items():
            assert torch.equal(t, pf.params(b.model)[n])
    assert left(resumed[-1]) == left(whole[-1]) or at_target


def test_a_state_of_another_model() -> None:
    state = Pruning.of(config(), Net()).prune(Net(), 1).pruning.state_dict()
    with pytest.raises(pf.PruneError, match="has no 'share'"):
        Pruning.of(config(), Net(), state={})
    with pytest.raises(pf.PruneError, match="unknown key 'more'"):
        Pruning.of(config(), Net(), state=state | {"more": torch.zeros(1)})
    with pytest.raises(pf.MaskError, match="has a group 'z'"):
        Pruning.of(config(), Net(), state=state | {"there.z": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(pf.PruneError, match=r"a mask of shape \(3,\) for 'a.weight'"):
        Pruning.of(config(), Net(), state=state | {"slices.a.weight": torch.ones(3, dtype=torch.bool)})


# ---- purity and the module


def test_nothing_that_is_given_changes() -> None:
    model = Net().eval()
    model.head.bias.requires_grad_(False)
    model.b.train()
    before = copy.deepcopy(model)
    bits, given = torch.get_rng_state(), config(slices=True, start_epoch=0)
    data = copy.deepcopy(given)
    pruning = Pruning.of(given, model)
    state = pruning.state_dict()
    step = pruning.prune(model, 2)
    assert torch.equal(torch.get_rng_state(), bits) and given == data
    assert all(torch.equal(t, before.state_dict()[n]) for n, t in model.state_dict().items())
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert all(torch.equal(t, state[n]) for n, t in pruning.state_dict().items()) and not pruning.channels.active
    assert step.model is not model and [m.training for m in step.model.modules()] == [
        m.training for m in model.modules()
    ]
    assert not step.model.head.bias.requires_grad and step.model.b.weight.requires_grad
    assert torch.equal(step.model.table, model.table)
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in step.model.parameters()}
    assert not shared and all(p.is_meta for p in pruning.skeleton.parameters())
    again = pruning.prune(model, 2)
    assert all(torch.equal(t, again.model.state_dict()[n]) for n, t in step.model.state_dict().items())


def test_the_optimizer_goes_on() -> None:
    """Its momentum is that of the kept channels."""
    model = Net()
    pruning, optimizer = Pruning.of(config(), model), sgd(model)
    train(model, optimizer, pruning, None, 0)
    step = pruning.prune(model, 1)
    state = step.optimizer_state(optimizer)
    names = [n for n, _ in model.named_parameters()]
    momentum = {n: optimizer.state[p]["momentum_buffer"] for n, p in model.named_parameters()}
    buffers = {n: t for n, t in pf.params(model).items() if n not in momentum}
    expected = pf.apply({**momentum, **buffers}, step.cut, spec=step.before)
    assert all(torch.equal(state["state"][i]["momentum_buffer"], expected[n]) for i, n in enumerate(names))


def test_variance_needs_batches_and_keeps_the_mean() -> None:
    """A channel that is constant goes, and its value stays."""
    model = Net().eval()
    with torch.no_grad():
        model.norm_c.weight[:3].zero_()
        model.norm_c.bias[:3] = torch.tensor([1.0, 2.0, 3.0])
    pruning = Pruning.of(
        config(pruning_method="VBP", layers=["c"], global_prune_rate=0.25, end_epoch=2, block_size=1), model
    )
    with pytest.raises(pf.BatchError, match="'VBP' needs batches"):
        pruning.prune(model, 1)
    step = pruning.prune(model, 1, batches=[torch.randn(8, 1, 6, 6)])
    assert step.cut["c"].tolist() == [False] * 3 + [True] * 9
    torch.testing.assert_close(step.model(*X), model(*X))


class Two(nn.Module):
    """Several inputs: as arguments, or as one."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.packed, self.a, self.b = packed, nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, *x: Any) -> Tensor:
        left, right = x[0] if self.packed else x
        return self.b(F.relu(self.a(left) + right))


@pytest.mark.parametrize("container", [None, "tuple"])
def test_example_inputs_of_the_config(container: str | None) -> None:
    model = Two(container == "tuple").double()
    given = config(layers=["a"], input_shape=[[2, 4], [2, 6]], container=container, block_size=1, end_epoch=2)
    with pytest.raises(pf.PruneError, match="the outputs of 'a' cannot be pruned"):  # they meet an input
        Pruning.of(given, model)
    args = config(layers=["a"], input_shape=[[2, 4], [2, 1]], container=container, block_size=1, end_epoch=2)
    step = Pruning.of(args, model).prune(model, 1)
    assert step.model.a.out_features == 3 and step.model.a.weight.dtype == torch.float64


# ---- what does not fit


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layers": ["a", "bb"]}, "the model has no layer 'bb' with parameters; did you mean 'b'"),
        ({"layers": ["head"]}, "the outputs of 'head' cannot be pruned; leave it out\nhead.weight: .*"),
        ({"input_shape": None}, "no example inputs: give Pruning.of"),
        ({"pruning_method": "GroupNorm"}, "did you mean 'GroupNormPruner'"),
    ],
)
def test_configs_that_do_not_fit_the_model(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(pf.PruneError, match=message):
        Pruning.of(config(**changes), Net())


def test_a_method_that_cannot_score_a_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(pf.PruneError, match="'BNScalePruner' has no norm with a scale to score group '0'"):
        Pruning.of(config(pruning_method="BNScalePruner", layers=["0"], input_shape=[2, 4]), model)


def test_blocks_that_do_not_fit() -> None:
    with pytest.raises(pf.PruneError, match=r"channel_sparsity_args.block_size is 1: it would leave 'a.weight'"):
        Pruning.of(config(slices=True, block_size=1), Net())
    given = config(slices=True, block_size=1)
    given["slice_sparsity_args"] = SLICE | {"block_size": 5}
    with pytest.raises(
        pf.PruneError, match=r"slice_sparsity_args.block_size: 'a.weight' has 8 filters, no multiple of 5"
    ):
        Pruning.of(given, Net())
    steps = run(Pruning.of(given, Net(), short_blocks=True), Net(), range(5))
    assert steps[-1].pruning.slice_ratio == 0.5 and steps[-1].masks


def test_models_that_are_not_what_it_has_come_to() -> None:
    model = Net()
    pruning = Pruning.of(config(), model)
    step = pruning.prune(model, 1)
    for call in (step.pruning.channel_regularize, step.pruning.slice_regularize, lambda m: step.pruning.prune(m, 2)):
        with pytest.raises(pf.ParamsError, match="the sizes of this Net are not those of the pruning; use the model"):
            call(model)
    with pytest.raises(pf.ParamsError, match=r"is wrapped: pass model\.module"):
        pruning.prune(nn.DataParallel(model), 1)
