"""Cut a program at the streams between the layers of a network, so that a layer can run alone on what those before it give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from ..frozen_dict import FrozenDict
from ..spec.parts import LAYER
from ..spec.program import Input, Program, needed_by
from ..spec.spec import Spec


class Segment(NamedTuple):
    """The part of a program from the end of one layer to the end of the next."""

    program: Program
    """Its inputs are those of the whole program, then what it takes over. Values without parameters, such as attention masks and
    rotary tables, are computed again in each segment."""
    own: frozenset[str]
    """Values that it computes and that depend on parameters; the first segment also has all that do not."""
    takes: tuple[str, ...]
    """Values of earlier segments that it or a later one reads: one tensor each."""
    hands: tuple[str, ...]
    """Values that later segments read."""

    @property
    def gives(self) -> tuple[str, ...]:
        """Return the values that it computes for later segments."""
        return tuple(v for v in self.hands if v in self.own)

    def tensors(self, wanted: Sequence[str]) -> frozenset[str]:
        """Return the parameters that some of its values need."""
        return frozenset(needed_by(self.program, set(wanted), {})) & set(self.program.tensors)


def segments(
    spec: Spec, reads: Mapping[str, Sequence[str]] = FrozenDict(), at: Sequence[str] | None = None
) -> list[Segment]:
    """Return the segments of a program, in order; the first begins with the inputs, and the last ends with the outputs.

    Args:
        spec: of an exported program.
        reads: value → earlier values that are read when it has been computed, besides what the program itself reads.
        at: values after which it is cut; default: `cuts(spec, reads)`.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3).eval()
    >>> [(len(s.takes), len(s.gives)) for s in segments(pf.trace(model, (torch.randn(2, 5, 8),)))]
    [(0, 1), (1, 1), (1, 0)]
    """
    lives = _Lives(spec, reads)
    ends = [lives.position[v] for v in (cuts(spec, reads) if at is None else at)]
    bounds = [-1, *ends, len(lives.position) - 1]
    return [
        _segment(spec.program, first, end, lives.plain, lives.at(first), lives.at(end) if end in ends else ())
        for first, end in pairwise(bounds)
        if end > first
    ]


def cuts(spec: Spec, reads: Mapping[str, Sequence[str]] = FrozenDict()) -> list[str]:
    """Return the ends of layers at which a program can be cut, in order.

    A place where more than plain tensors would be handed over is none. A network without layers that can be told apart has none.

    Args:
        spec, reads: as in `segments`.
    """
    return lives_at(spec, reads, [b.output for g, b in spec.branches.items() if spec.groups[g].kind == LAYER])


def lives_at(spec: Spec, reads: Mapping[str, Sequence[str]], values: Sequence[str]) -> list[str]:
    """Return those of some values after which a program can be cut, in order."""
    lives = _Lives(spec, reads)
    present = sorted({v for v in values if v in lives.position}, key=lambda v: lives.position[v])
    found = {v: lives.at(lives.position[v]) for v in present}
    return [v for v, live in found.items() if live and all(x in spec.program.axes for x in live)]


class _Lives:
    """What is alive after each instruction of a program: computed, and read later."""

    def __init__(self, spec: Spec, reads: Mapping[str, Sequence[str]]) -> None:
        program = spec.program
        self.position = {f"%{i.name}": n for n, i in enumerate(program.instructions)}
        self.plain = _without_parameters(program)
        self.last = dict[str, int]()
        for n, i in enumerate(program.instructions):
            self.last |= dict.fromkeys(i.reads(), n)
        for value, more in reads.items():
            self.last |= {v: max(self.last.get(v, -1), self.position[value]) for v in more}

    def at(self, end: int) -> tuple[str, ...]:
        """Return the values that are alive after an instruction, but for those that depend on no parameter."""
        return tuple(v for v, n in self.position.items() if n <= end < self.last.get(v, -1) and v not in self.plain)


def _segment(
    program: Program,
    first: int,
    end: int,
    plain: frozenset[str],
    takes: tuple[str, ...],
    hands: tuple[str, ...],
) -> Segment:
    """Return the segment of the instructions after one position, up to another."""
    numbered = list(enumerate(program.instructions))
    chosen = tuple(i for n, i in numbered if first < n <= end or f"%{i.name}" in plain)
    own = frozenset(f"%{i.name}" for n, i in numbered if first < n <= end) - plain
    shared = plain | {i.name for i in program.inputs} if first < 0 else frozenset[str]()
    inputs = (*program.inputs, *(Input(v, program.axes[v]) for v in takes))
    return Segment(program._replace(instructions=chosen, inputs=inputs), own | shared, takes, hands)


def _without_parameters(program: Program) -> frozenset[str]:
    """Return the results of instructions that depend on no tensor of the state dict."""
    dependent: set[str] = set(program.tensors)
    for i in program.instructions:
        if dependent & set(i.reads()):
            dependent.add(f"%{i.name}")
    return frozenset(f"%{i.name}" for i in program.instructions) - dependent
