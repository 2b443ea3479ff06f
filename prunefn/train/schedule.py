"""Schedules of iterative pruning: step → ratio of the dense network that is removed after it.

A schedule is a value. Call it with the number of finished steps: `schedule(0)` is the ratio before the first step,
`schedule(steps)` the final one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ..display.calls import choice_text
from ..doors import door
from ..errors import PruneError

__all__ = ["Schedule", "cubic", "epochs", "geometric", "linear", "multiples", "one_shot"]


MOST = 2**53
"""Largest number of steps: floats are exact up to it."""


class Schedule(NamedTuple):
    """Ratio removed after each step."""

    name: str
    steps: int
    """Number of steps."""
    curve: Callable[[int], float]
    """Number of finished steps, in [0, steps] → ratio removed."""
    is_choice = True

    def __repr__(self) -> str:
        return choice_text(self.name, self.curve, steps=self.steps)

    def __call__(self, step: int) -> float:
        """Return the ratio removed after a number of steps, which is clipped to [0, steps]."""
        return self.curve(min(max(step, 0), self.steps))


@door
def one_shot(ratio: float) -> Schedule:
    """Return the schedule that removes everything in one step.

    >>> one_shot(0.5)(0), one_shot(0.5)(1)
    (0.0, 0.5)
    """
    return linear(ratio, 1)._replace(name="one_shot")


@door
def linear(ratio: float, steps: int) -> Schedule:
    """Return the schedule that removes an equal part of the dense network in each step: ratio · t / steps.

    >>> [round(linear(0.6, 3)(t), 2) for t in range(4)]
    [0.0, 0.2, 0.4, 0.6]
    """
    _check(ratio, steps)
    return Schedule("linear", steps, partial(_linear, ratio=ratio, steps=steps))


@door
def geometric(ratio: float, steps: int) -> Schedule:
    """Return the schedule that removes an equal ratio of the rest in each step: 1 − (1 − ratio)^{t / steps}.

    >>> [round(geometric(0.35, 5)(t), 4) for t in range(6)]
    [0.0, 0.0825, 0.1583, 0.2278, 0.2915, 0.35]
    """
    _check(ratio, steps)
    return Schedule("geometric", steps, partial(_geometric, ratio=ratio, steps=steps))


@door
def cubic(ratio: float, steps: int, *, initial: float = 0.0) -> Schedule:
    """Return the schedule with large steps first and small ones last: s_f + (s_i − s_f)(1 − t / steps)³ (Zhu and Gupta, arXiv 1710.01878).

    Args:
        ratio: s_f, after the last step.
        steps: number of steps.
        initial: s_i, before the first step.

    Raises:
        PruneError: a number is out of range.

    >>> [round(cubic(0.8, 4)(t), 4) for t in range(5)]
    [0.0, 0.4625, 0.7, 0.7875, 0.8]
    """
    _check(ratio, steps)
    if not 0 <= initial <= ratio:
        raise PruneError(f"the schedule starts at {initial}; initial must be in [0, {ratio}], up to the ratio")
    return Schedule("cubic", steps, partial(_cubic, ratio=ratio, steps=steps, initial=initial))


@door
def epochs(ratio: float, start: int, end: int, period: int = 1) -> Schedule:
    """Return the schedule by epochs: of the K epochs i in [start, end) with i % period = 0, the j-th from 0 ends at ratio · (j + 1) / K.

    Call it with the number of an epoch, from 0, for the ratio after that epoch's step.

    Args:
        ratio: after the last step, in [0, 1].
        start: first epoch that may prune.
        end: first epoch after the last one that may prune.
        period: epochs from one step to the next.

    Raises:
        PruneError: a number is out of range, or no epoch in [start, end) is a multiple of the period.

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
        raise PruneError(
            f"the schedule's ratio is {ratio}; it is the fraction removed at the end, and must be in [0, 1]"
        )
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
