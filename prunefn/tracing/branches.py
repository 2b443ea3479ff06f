"""The other branch of the residual addition that a contraction ends in."""

from __future__ import annotations

from typing import NamedTuple

from ..spec.parts import Site
from ..spec.program import Instruction, Ref
from ..spec.spec import Spec
from .rules.families import BATCH_NORM, MULTIPLY, family

PASSES = {f"aten.{op}" for op in ("dropout", "clone", "contiguous", "alias", "detach")}
"""Ops that change no value in eval mode."""


class Scale(NamedTuple):
    """A factor of each output: that of a BatchNorm, or a layer scale."""

    weight: str
    """Value of the program; empty for a BatchNorm without weight."""
    variance: str = ""
    """Running variance of a BatchNorm."""
    eps: float = 0.0


class Branch(NamedTuple):
    """The addition that a contraction's output enters: output · scales, permuted, plus `value`."""

    value: str
    """The other operand of the addition."""
    scales: tuple[Scale, ...]
    order: tuple[int, ...]
    """The permutation of the output's dims before the addition."""
    addition: str
    """Instruction."""


def other_branch(site: Site, spec: Spec) -> Branch | None:
    """Return what the output of a site is added to, if each value of it is added to just one value.

    The output may pass a BatchNorm, a layer scale, a permutation and ops without effect in eval mode.

    >>> import torch, prunefn as pf
    >>> class Block(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.up, self.down = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)
    ...     def forward(self, x):
    ...         return x + self.down(self.up(x).relu())
    >>> spec = pf.trace(Block(), (torch.randn(2, 4),))
    >>> other_branch(spec.sites["down"], spec)
    Branch(value='x', scales=(), order=(0, 1), addition='add')
    """
    axes = {**{i.name: i.axes for i in spec.program.inputs}, **spec.program.axes}
    if len(site.calls) != 1 or (shape := axes.get(f"%{site.calls[0]}")) is None:
        return None
    readers: dict[str, list[Instruction]] = {}
    for i in spec.program.instructions:
        for name in i.reads():
            readers.setdefault(name, []).append(i)
    active = spec.program.activations()
    value, order, scales = f"%{site.calls[0]}", tuple(range(len(shape))), list[Scale]()
    while len(users := readers.get(value, [])) == 1:
        (user,), arguments = users, users[0].arguments()
        operands = [a for a in user.args if a != Ref(value)]
        match family(user.op):
            case "aten.batch_norm" if user.op == BATCH_NORM and not arguments["training"]:
                scales.append(_norm_scale(arguments))
            case "aten.permute":
                order = tuple(order[d] for d in arguments["dims"])
            case "aten.mul" if user.op == MULTIPLY and _is_scale(operands, active):
                scales.append(Scale(operands[0].name))
            case "aten.add" if len(operands) == 1 and isinstance(operands[0], Ref) and not user.kwargs:
                other = operands[0].name
                same = axes.get(other) == axes.get(value) and other in active
                return Branch(other, tuple(scales), order, user.name) if same else None
            case op if op not in PASSES:
                return None
        value = f"%{user.name}"
    return None


def _norm_scale(arguments: dict[str, object]) -> Scale:
    weight, variance, eps = (arguments[n] for n in ("weight", "running_var", "eps"))
    assert isinstance(variance, Ref) and isinstance(eps, float)
    return Scale(weight.name if isinstance(weight, Ref) else "", variance.name, eps)


def _is_scale(operands: list[object], active: frozenset[str]) -> bool:
    return len(operands) == 1 and isinstance(operands[0], Ref) and operands[0].name not in active
