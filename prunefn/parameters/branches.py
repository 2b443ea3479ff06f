"""The tensors that make what a branch adds zero."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from ..errors import ParamsError
from ..spec.parts import Term
from ..spec.program import Instruction, Ref
from ..spec.spec import Spec
from ..tracing.rules.families import DROPOUT, MOVES, MULTIPLY, SCALABLE, family


def zeroed_by_branches(spec: Spec, removed: Iterable[str]) -> frozenset[str]:
    """Return the parameters whose zeros make what some branches add zero: the last weights and biases, or layer scales.

    Raises:
        ParamsError: the last op of a branch has no parameters of its own.
    """
    removed = list(removed)
    if ends := [n for n in removed if spec.branches[n].bypass]:
        raise ParamsError(
            f"layer {ends[0]!r} cannot be set to zero: it ends in {spec.groups[ends[0]].mixed_by[0]}, so that no zeros make it pass "
            "its input on; remove it with pf.apply"
        )
    return frozenset(
        t for name in removed for term in spec.branches[name].terms for t in _last_tensors(spec, name, term)
    )


@lru_cache(maxsize=4096)
def _last_tensors(spec: Spec, name: str, term: Term) -> frozenset[str]:
    """Return the parameters of the last op of a summand that has some."""
    instructions = {f"%{i.name}": i for i in spec.program.instructions}
    value = instructions[f"%{term.addition}"].args[term.operand].name
    while (i := instructions.get(value)) is not None:
        own = _own(i, spec)
        if own and all(_readers(spec, t) == [i.name] for t in own):
            return frozenset(own) | {s.tensor for s in spec.program.slots if s.instruction == i.name}
        inputs = [v for v in i.reads() if v in instructions]
        if own or len(inputs) != 1 or family(i.op) not in MOVES | DROPOUT:
            break
        value = inputs[0]
    raise ParamsError(
        f"{name!r} cannot be set to zero: the last op of what it adds, {i.op if i is not None else value}, has no weights that "
        "it alone reads; remove it with pf.apply"
    )


def _own(i: Instruction, spec: Spec) -> list[str]:
    """Return the parameters of an op that scale its result."""
    if family(i.op) in SCALABLE:
        weight, bias, _ = SCALABLE[family(i.op)]
        found = [i.args[p] if p is not None and p < len(i.args) else None for p in (weight, bias)]
        if not isinstance(found[0], Ref):
            return []
        names = [a.name for a in found if isinstance(a, Ref)]
    elif i.op == MULTIPLY:
        names = [n for n in i.reads() if n in spec.parameters]
    else:
        return []
    return [n for n in names if n in spec.parameters] if set(names) <= spec.parameters else []


def _readers(spec: Spec, tensor: str) -> list[str]:
    names = {tensor, *(b for b, a in spec.tied.items() if a == tensor), spec.tied.get(tensor, tensor)}
    return [i.name for i in spec.program.instructions if names & set(i.reads())]
