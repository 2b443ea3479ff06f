"""Cut a program at the streams between the layers of a network, so that a layer can run alone on what those before it give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

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


def segments(spec: Spec, reads: Mapping[str, Sequence[str]]) -> list[Segment]:
    """Return the segments of a program, in order; the first begins with the inputs, and the last ends with the outputs.

    A place where more than plain tensors would be handed over is no end of a segment. A network without layers that can be told
    apart is one segment.

    Args:
        spec: of an exported program.
        reads: value → earlier values that are read when it has been computed, besides what the program itself reads.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3).eval()
    >>> [(len(s.takes), len(s.gives)) for s in segments(pf.trace(model, (torch.randn(2, 5, 8),)), {})]
    [(0, 1), (1, 1), (1, 0)]
    """
    program = spec.program
    position = {f"%{i.name}": n for n, i in enumerate(program.instructions)}
    plain = _without_parameters(program)
    last = dict[str, int]()
    for n, i in enumerate(program.instructions):
        last |= dict.fromkeys(i.reads(), n)
    for at, values in reads.items():
        last |= {v: max(last.get(v, -1), position[at]) for v in values}
    layers = [b.output for g, b in spec.branches.items() if spec.groups[g].kind == LAYER]
    ends = sorted({position[v] for v in layers})
    live = {c: tuple(v for v, n in position.items() if n <= c < last.get(v, -1) and v not in plain) for c in ends}
    cuts = [c for c in ends if live[c] and all(v in program.axes for v in live[c])]
    bounds = [-1, *cuts, len(position) - 1]
    return [
        _segment(program, first, end, plain, live.get(first, ()), live.get(end, ()) if end in cuts else ())
        for first, end in pairwise(bounds)
        if end > first
    ]


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
