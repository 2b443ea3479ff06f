"""Why a rebuilt module is not accepted: the line of its code that fails, and what was read there."""

from __future__ import annotations

import dis
import linecache
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import trees
from ..errors import TraceError

ROUNDING = 256
"""Differences below this many times the precision and the largest output are only rounding."""


class Frame(NamedTuple):
    """A function of the class's own code in which an error was raised, or which called such a function."""

    path: str
    """Path of the module that the code belongs to."""
    line: int
    on_line: frozenset[str]
    """Names, attributes and strings in the statement that failed."""
    in_function: frozenset[str]
    """Those in the whole function."""


class Problem(NamedTuple):
    """A reason why a rebuilt module is not accepted."""

    text: str
    frames: tuple[Frame, ...] = ()
    """The outermost first; empty if the module runs but gives other outputs."""
    slight: bool = False
    """Whether the difference may be rounding, though more than usual: a scale that hardly shows in outputs may be wrong."""
    of_scale: bool = False
    """Whether the shapes are right, and the class computes another scale from its sizes."""


def failure(error: Exception, module: nn.Module) -> Problem:
    """Return an error of a module's code as a problem: the innermost line outside of torch."""
    if isinstance(error, TraceError) and isinstance(error.__cause__, Exception):  # of the run that was traced
        error = error.__cause__
    tracebacks = list(_walk(error.__traceback__))
    paths = {id(m): path for path, m in module.named_modules(remove_duplicate=False)}
    frames, path, own = [], "", None
    for tb in tracebacks:
        path = paths.get(id(_first_argument(tb.tb_frame)), path)
        if not {"torch", "prunefn"}.intersection(tb.tb_frame.f_code.co_filename.split("/")):
            own = tb
            frames.append(_frame(tb, path))
    own = own or tracebacks[-1]
    file, line = own.tb_frame.f_code.co_filename, own.tb_lineno
    code = linecache.getline(file, line).strip()
    place = f"{file.rpartition('site-packages/')[2]}:{line}" + (f", in `{code:.120}`" if code else "")
    owner = f" of {frames[-1].path!r}" if frames and frames[-1].path else ""
    return Problem(
        f"{type(error).__name__}{owner} at {place}: {str(error)[:300]}", tuple(frames) or (Frame("", 0, *_NO_NAMES),)
    )


_NO_NAMES = frozenset[str](), frozenset[str]()


def _walk(tb: TracebackType | None) -> Iterator[TracebackType]:
    """Yield a traceback and the tracebacks inside it."""
    while tb is not None:
        yield tb
        tb = tb.tb_next


def _first_argument(frame: FrameType) -> object:
    """Return the first argument of a function call, which a method may call `self` or otherwise."""
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    return frame.f_locals.get(names[0]) if names else None


def _frame(tb: TracebackType, path: str) -> Frame:
    """Return a frame with the names that its statement and its function read."""
    code = tb.tb_frame.f_code
    positions = list(code.co_positions())[tb.tb_lasti // 2]
    first, last = positions[0] or tb.tb_lineno, positions[1] or tb.tb_lineno
    on_line, in_function = set[str](), set[str]()
    for instruction in dis.get_instructions(code):
        if isinstance(name := instruction.argval, str):
            in_function.add(name)
            line = instruction.positions.lineno if instruction.positions else None
            if line is not None and first <= line <= last:
                on_line.add(name)
    return Frame(path, tb.tb_lineno, frozenset(on_line), frozenset(in_function))


def difference(actual: Any, expected: Any) -> Problem | None:
    """Return how two outputs differ: a problem beyond √eps, a slight one beyond rounding, else None."""
    xs, ys = (trees.tensors(output) for output in (actual, expected))
    if [tuple(x.shape) for x in xs] != [tuple(y.shape) for y in ys]:
        return Problem(
            f"its outputs have shapes {[tuple(x.shape) for x in xs]} instead of {[tuple(y.shape) for y in ys]}"
        )
    slight = None
    for x, y in zip(xs, ys, strict=True):
        if x.is_meta or not x.numel() or not (x.is_floating_point() or x.is_complex()):
            continue
        eps, largest = torch.finfo(x.dtype).eps, float(y.abs().nan_to_num(0, 0).max())
        limit = eps**0.5 * max(1.0, largest)
        # NaN at the same places is no difference; NaN at other places is an infinite one
        gap = (x - y).abs().nan_to_num(0.0 if torch.equal(x.isnan(), y.isnan()) else float("inf"))
        if float(gap.max()) > limit:
            return Problem(f"its output differs by {float(gap.max()):.3g}")
        if float(gap.max()) > ROUNDING * eps * largest:
            slight = Problem(f"its output differs by {float(gap.max()):.3g}", slight=True)
    return slight
