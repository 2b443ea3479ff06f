"""Errors and warnings of prunefn; the text of each names the group or tensor, the value and the fix."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from difflib import get_close_matches


class PruneError(ValueError):
    """Base of all errors that prunefn raises on purpose."""


class TraceError(PruneError):
    """A model cannot be traced, or a spec without a program is to be run."""


class MaskError(PruneError):
    """A mask does not fit the spec."""


class ParamsError(PruneError):
    """Parameters do not fit the spec."""


class SpecNeededError(ParamsError):
    """A checkpoint does not say all sizes: a spec of the dense model does."""


class FormatError(PruneError):
    """A file violates its format. The text states the problem, and the caller adds the name of the file."""


class StatsError(PruneError):
    """Statistics are missing, broken or of another spec."""


class BatchError(PruneError):
    """Batches are empty or of the wrong shape."""


class BudgetError(PruneError):
    """A budget cannot be met."""


class PruneWarning(UserWarning):
    """A result may not be the intended one."""


def warn(text: str) -> None:
    """Warn at the line that called prunefn, however deep in prunefn the cause is."""
    frame, depth, outermost = sys._getframe(1), 1, 1
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] == __name__.partition(".")[0]:
            outermost = depth
        frame, depth = frame.f_back, depth + 1
    warnings.warn(text, PruneWarning, stacklevel=outermost + 2)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for a misspelt name.

    >>> nearest("layer1.conv", ["layer1.conv1", "fc"])
    "; did you mean 'layer1.conv1'?"
    """
    known = list(dict.fromkeys(known))
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    return f"; known are {', '.join(known[:5])}{' …' if len(known) > 5 else ''}" if known else "; there are none"
