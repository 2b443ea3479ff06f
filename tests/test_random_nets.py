"""The laws over random architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import prunefn as pf
from prunefn.costs.counted import flop_counter

from .nets.space import Flat
from .nets.tokens import FeedForward
from .orders import permuted
from .random_nets import Net, Network, build, nets
from .zoo import random_mask

TOLERANCE = 1e-10


class Subject(NamedTuple):
    """A traced random network."""

    model: Network
    spec: pf.Spec
    params: pf.Params
    x: Tensor
    y: Tensor


def subject(net: Net) -> Subject:
    """Build and trace with a batch of two; laws are checked with three."""
    model = build(net).requires_grad_(False)
    spec, x = pf.trace(model, (net.inputs(2),)), net.inputs(3)
    return Subject(model, spec, pf.params(model), x, model(x))


def close(a: Tensor, b: Tensor) -> None:
    """Equal up to a tolerance that is relative to the largest number."""
    assert a.shape == b.shape
    scale = float(b.abs().max())
    assert 1e-9 < scale < 1e30, "the output is trivial"
    assert float((a - b).abs().max()) <= TOLERANCE * scale


def check_groups(s: Subject) -> None:
    """Every op has a rule, and the groups inside the blocks are found."""
    assert not s.spec.unknown
    assert s.model.expects.items() <= s.spec.sizes.items(), s.model.expects.items() - s.spec.sizes.items()


def check_forward(s: Subject) -> None:
    """The program is the module at another batch size, and nothing is changed by it (law 1)."""
    before = {n: (t, t._version, t.clone()) for n, t in s.params.items()}
    rng = torch.get_rng_state()
    assert torch.equal(pf.forward(s.params, s.x, spec=s.spec), s.y)
    assert torch.equal(pf.forward(s.params, s.x[:1], spec=s.spec), s.model(s.x[:1]))
    assert torch.equal(rng, torch.get_rng_state())
    assert all(t._version == version and torch.equal(t, copy) for t, version, copy in before.values())
    assert not any(m.training for m in s.model.modules())


def check_order(s: Subject) -> None:
    """The order of the units of any group does not matter."""
    params, spec = permuted(s.params, s.spec, 3)
    close(pf.forward(params, s.x, spec=spec), s.y)


def check_whole(s: Subject) -> None:
    """Keeping all changes nothing (law 2)."""
    whole = {g: torch.ones(n, dtype=torch.bool) for g, n in s.spec.sizes.items()}
    same = pf.apply(s.params, whole, spec=s.spec)
    assert list(same) == list(s.params) and all(t is s.params[n] for n, t in same.items())
    assert pf.shrink(s.spec, whole) == s.spec


def check_exact(s: Subject) -> None:
    """Removing units that nothing mixes is zeroing them (law 3)."""
    mask = random_mask(s.spec, 4, groups=[g.name for g in s.spec.groups.values() if g.exact])
    small = pf.forward(pf.apply(s.params, mask, spec=s.spec), s.x, spec=pf.shrink(s.spec, mask))
    close(small, pf.forward(pf.zero(s.params, mask, spec=s.spec), s.x, spec=s.spec))


def check_rounds(s: Subject) -> None:
    """Two rounds are one (law 5)."""
    first = random_mask(s.spec, 5, 0.7)
    smaller = pf.shrink(s.spec, first)
    second = random_mask(smaller, 6, 0.6)
    both = pf.compose(first, second)
    twice = pf.apply(pf.apply(s.params, first, spec=s.spec), second, spec=smaller)
    once = pf.apply(s.params, both, spec=s.spec)
    assert all(torch.equal(twice[n], t) for n, t in once.items())
    assert pf.shrink(smaller, second) == pf.shrink(s.spec, both)


def check_cost(s: Subject) -> None:
    """The cost of a mask is what is counted on the pruned network (law 6).

    Two units of each group stay: einsum multiplies where only one is summed over, which torch does not count.
    """
    mask = random_mask(s.spec, 7, 0.75)
    small, params = pf.shrink(s.spec, mask), pf.apply(s.params, mask, spec=s.spec)
    with flop_counter() as counter:
        pf.forward(params, s.x[:1], spec=small)  # products of weights alone cost the same for any batch
    cost = pf.cost(s.spec, mask)
    assert cost == pf.cost(small)
    assert 2 * cost.macs == counter.get_total_flops()
    assert cost.params == sum(t.numel() for n, t in params.items() if n in small.parameters and n not in small.tied)


def check_module(s: Subject) -> None:
    """The module of a pruned network computes the same (law 10)."""
    mask = random_mask(s.spec, 8, 0.4)
    small, params = pf.shrink(s.spec, mask), pf.apply(s.params, mask, spec=s.spec)
    module = pf.to_module(params, spec=small).requires_grad_(
        False
    )  # torch folds products otherwise where one is asked for
    assert torch.equal(module(s.x), pf.forward(params, s.x, spec=small))
    assert module.state_dict().keys() == s.model.state_dict().keys()


def check_select(s: Subject) -> None:
    """No group is emptied (law 11)."""
    scores = pf.score(pf.collect_stats(s.params, None, spec=s.spec), criterion=pf.criteria.magnitude())
    units = sum(len(v) for v in scores.values())
    mask = pf.select(scores, 1 - len(scores) / units, spec=s.spec)
    assert scores and all(int(m.sum()) == 1 for m in mask.values())
    assert pf.forward(pf.apply(s.params, mask, spec=s.spec), s.x, spec=pf.shrink(s.spec, mask)).shape == s.y.shape


CHECKS: tuple[Callable[[Subject], None], ...] = (
    check_groups,
    check_forward,
    check_order,
    check_whole,
    check_exact,
    check_rounds,
    check_cost,
    check_module,
    check_select,
)


def check(net: Net) -> None:
    """All laws on one network."""
    s = subject(net)
    for law in CHECKS:
        law(s)


few = settings(max_examples=30)


@few
@given(nets(3, 6))
def test_laws_on_random_networks(net: Net) -> None:
    check(net)


@pytest.mark.slow
@settings(few, max_examples=600, derandomize=False)
@given(nets())
def test_laws_on_many_random_networks(net: Net) -> None:
    check(net)


def test_a_group_norm_mixes_the_positions_behind_the_channels() -> None:
    """Each channel is a group of its own; its mean runs over the tokens, which a linear layer makes."""
    net = Net((2, 3), 4, (Flat(mid=3, width=4), FeedForward(hidden=2, norm="group")), head="all")
    s = subject(net)
    assert s.spec.einops("head.fc.weight") == "3 (residual_0 residual_1 groups)"
    mixed = {g.label: g.mixed_by for g in s.spec.widths.values() if g.kind != "hidden"}
    norm = ("aten.group_norm.default",)
    assert mixed == {"groups": (), "residual_0": norm, "residual_1": norm}
    check(net)
