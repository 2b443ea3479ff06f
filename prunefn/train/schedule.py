"""Schedules: how much is removed after each step of an iterative pruning, as a share of the dense network.

A schedule is a value; call it with the number of steps done: `schedule(0)` is what was removed before, `schedule(steps)` the
whole.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ..doors import door
from ..errors import PruneError

__all__ = ["Schedule", "cubic", "epochs", "geometric", "linear", "multiples", "one_shot"]


MOST = 2**53
"""Steps of a schedule: above, a float does not tell them apart."""

MOST_ROUNDS = 10_000
"""Of pruning with training in between: each of them is work."""


class Schedule(NamedTuple):
    """How much is removed by when."""

    name: str
    steps: int
    """Of pruning."""
    share: Callable[[int], float]
    """Steps done → share of the final ratio's units or MACs that is removed, from 0 to the ratio."""

    def __call__(self, step: int) -> float:
        """The share removed after so many steps; before the first none, after the last the whole."""
        return self.share(min(max(step, 0), self.steps))


@door
def one_shot(ratio: float) -> Schedule:
    """All at once.

    >>> one_shot(0.5)(0), one_shot(0.5)(1)
    (0.0, 0.5)
    """
    return linear(ratio, 1)._replace(name="one_shot")


@door
def linear(ratio: float, steps: int) -> Schedule:
    """The same share of the dense network at each step: ratio · t / steps.

    >>> [round(linear(0.6, 3)(t), 2) for t in range(4)]
    [0.0, 0.2, 0.4, 0.6]
    """
    _check(ratio, steps)
    return Schedule("linear", steps, partial(_linear, ratio=ratio, steps=steps))


@door
def geometric(ratio: float, steps: int) -> Schedule:
    """The same share of what is left at each step: 1 − (1 − ratio)^{t / steps}.

    >>> [round(geometric(0.35, 5)(t), 4) for t in range(6)]
    [0.0, 0.0825, 0.1583, 0.2278, 0.2915, 0.35]
    """
    _check(ratio, steps)
    return Schedule("geometric", steps, partial(_geometric, ratio=ratio, steps=steps))


@door
def cubic(ratio: float, steps: int, *, initial: float = 0.0) -> Schedule:
    """Fast at first, slow at the end: s_f + (s_i − s_f)(1 − t / steps)³ (Zhu and Gupta, arXiv 1710.01878).

    Args:
        ratio: s_f, removed at the end.
        steps: of pruning.
        initial: s_i, removed before the first step.

    >>> [round(cubic(0.8, 4)(t), 4) for t in range(5)]
    [0.0, 0.4625, 0.7, 0.7875, 0.8]
    """
    _check(ratio, steps)
    if not 0 <= initial <= ratio:
        raise PruneError(f"the schedule starts at {initial}; it must be between 0 and the ratio, {ratio}")
    return Schedule("cubic", steps, partial(_cubic, ratio=ratio, steps=steps, initial=initial))


@door
def epochs(ratio: float, start: int, end: int, period: int = 1) -> Schedule:
    """By epoch: of the K epochs i in [start, end) with i % period = 0, the j-th (from 0) brings the share to ratio · (j + 1) / K.

    Call it with the number of the epoch: what is removed once that epoch's pruning is done. Nothing before `start`, everything
    from `end` on.

    Args:
        ratio: share removed in the end, in [0, 1).
        start: first epoch at which something may go.
        end: epoch from which on nothing more goes.
        period: epochs from one pruning to the next.

    Raises:
        PruneError: no epoch in the range is a multiple of the period.

    >>> [round(epochs(0.6, 2, 8, 2)(e), 2) for e in range(10)]
    [0.0, 0.0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.6, 0.6]
    """
    _check(ratio, max(end, 1))
    steps = multiples(start, end, period) if period > 0 else 0
    if start < 0 or not steps:
        raise PruneError(
            f"no epoch in [{start}, {end}) is a multiple of period {period}, so that nothing would be pruned; change one of them"
        )
    return Schedule("epochs", end, partial(_epochs, ratio=ratio, start=start, period=period, steps=steps))


def multiples(start: int, end: int, period: int) -> int:
    """Return how many numbers in [start, end) the period divides, without counting them.

    >>> multiples(1, 6, 2), multiples(0, 10**30, 1), multiples(5, 2, 1)
    (2, 1000000000000000000000000000000, 0)
    """
    return max(0, (end - 1) // period - (start - 1) // period)


def _check(ratio: float, steps: int) -> None:
    if not 0 <= ratio <= 1:
        raise PruneError(f"the schedule's ratio is {ratio}; it is the share removed at the end and must be in [0, 1]")
    if not 1 <= steps <= MOST:
        raise PruneError(f"the schedule has {steps} steps; it must have at least one, and at most {MOST}")


def _linear(t: int, *, ratio: float, steps: int) -> float:
    return ratio if t == steps else ratio * t / steps


def _geometric(t: int, *, ratio: float, steps: int) -> float:
    return ratio if t == steps else 1 - (1 - ratio) ** (t / steps)


def _cubic(t: int, *, ratio: float, steps: int, initial: float) -> float:
    return ratio + (initial - ratio) * (1 - t / steps) ** 3


def _epochs(epoch: int, *, ratio: float, start: int, period: int, steps: int) -> float:
    return _linear(min(multiples(start, epoch + 1, period), steps), ratio=ratio, steps=steps)


def __dir__() -> list[str]:
    return __all__
