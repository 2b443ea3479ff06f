"""Explain why latency does not fall with the MACs: layer by layer, in seconds that add up to the difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..display.units import quantity

ALIGNED = 8
"""Widths that are no multiple of this leave lanes of vector and matrix units empty."""
STARTS = 3.0
"""Starts of calls dominate a layer that takes less than this many times the seconds of its starts."""
LESS = 0.95
"""A layer can have become bound by memory if its MACs a byte fell below this share of their dense value."""
WORTH = 0.01
"""Share of the latency that a layer must exceed to count for the speed of the machine."""

KEPT = "more of their MACs kept"
NO_MACS = "no MACs"
START = "starts of calls"
BANDWIDTH = "bandwidth"
UNALIGNED = "unaligned widths"
SMALLER = "smaller kernels"
FASTER = "faster than their MACs"
CAUSES = (KEPT, NO_MACS, START, BANDWIDTH, UNALIGNED, SMALLER, FASTER)


class Layer(NamedTuple):
    """All ops of a module, on the whole batch."""

    seconds: float
    macs: int
    """Multiply-accumulates, by torch's counter."""
    moved: int
    """Bytes read and written."""
    widths: tuple[int, ...]
    """Inputs and outputs of its contractions."""
    start: float
    """Seconds that as many calls take without any work."""


NOTHING = Layer(0.0, 0, 0, (), 0.0)


class Excess(NamedTuple):
    """A layer that saves less time than the network saves MACs."""

    layer: str
    seconds: float
    """Seconds beyond those that it would take if its time had fallen like the network's MACs."""
    cause: str
    """One of `CAUSES`."""
    reason: str


class Account(NamedTuple):
    """A measured latency and the latency expected from the MACs, in seconds."""

    latency: float
    expected: float
    """The first network's latency times the share of its MACs that is left."""
    causes: Mapping[str, float]
    """Cause → seconds that it adds in all layers together; their sum is latency - expected."""


class Balance(NamedTuple):
    """The highest rates that a machine reached in layers that take long enough to judge."""

    macs: float
    """MACs a second."""
    moved: float
    """Bytes a second."""

    @property
    def macs_per_byte(self) -> float:
        """MACs a byte below which a layer is bound by memory."""
        return self.macs / self.moved if self.moved else 0.0


def balance(layers: Mapping[str, Layer]) -> Balance:
    """Return the highest rates of all layers that take more than `WORTH` of the latency."""
    latency = sum(layer.seconds for layer in layers.values())
    long = [layer for layer in layers.values() if layer.seconds > WORTH * latency]
    macs = max((layer.macs / layer.seconds for layer in long), default=0.0)
    moved = max((layer.moved / layer.seconds for layer in long), default=0.0)
    return Balance(macs, moved)


def excess(name: str, dense: Layer, now: Layer, share: float, machine: Balance) -> Excess:
    """Return the seconds of a layer beyond the network's share of its dense seconds, and the largest cause.

    Args:
        name: name of the layer.
        dense, now: the layer in the dense and in the pruned network.
        share: share of the network's MACs that is left.
        machine: the rates of the machine, of `balance`.
    """
    seconds = now.seconds - share * dense.seconds
    parts = _seconds_by_cause(dense, now, share, machine)
    cause = max(parts, key=lambda c: parts[c])
    return Excess(name, seconds, cause, _reason(cause, dense, now, share, machine))


def account(dense: Mapping[str, Layer], now: Mapping[str, Layer], share: float, machine: Balance) -> Account:
    """Return the account of all layers of two networks; the arguments are those of `excess`, by name of the layer."""
    causes: dict[str, float] = dict.fromkeys(CAUSES, 0.0)
    for name in {**dense, **now}:
        for cause, seconds in _seconds_by_cause(
            dense.get(name, NOTHING), now.get(name, NOTHING), share, machine
        ).items():
            causes[cause] += seconds
    latency, dense_latency = (sum(layer.seconds for layer in layers.values()) for layers in (now, dense))
    return Account(latency, share * dense_latency, causes)


def _seconds_by_cause(dense: Layer, now: Layer, share: float, machine: Balance) -> dict[str, float]:
    """Return cause → seconds. A layer with MACs has two causes: how many MACs it keeps, and how long they take now."""
    if not dense.macs:
        return {NO_MACS: now.seconds - share * dense.seconds}
    own_share = now.macs / dense.macs
    slower = now.seconds - own_share * dense.seconds
    return {KEPT: (own_share - share) * dense.seconds, _cause_of_slowness(dense, now, slower, machine): slower}


def _cause_of_slowness(dense: Layer, now: Layer, slower: float, machine: Balance) -> str:
    """Return the cause of the seconds `slower` that a layer takes beyond its own share of the MACs."""
    if slower <= 0:
        return FASTER
    if now.seconds < STARTS * now.start:
        return START
    if _macs_per_byte(now) < min(machine.macs_per_byte, LESS * _macs_per_byte(dense)):
        return BANDWIDTH
    return UNALIGNED if _unaligned_widths(now) and not _unaligned_widths(dense) else SMALLER


def _macs_per_byte(layer: Layer) -> float:
    """Return the MACs of a layer for each byte that it moves."""
    return layer.macs / max(layer.moved, 1)


def _unaligned_widths(layer: Layer) -> list[int]:
    """Return the widths of a layer that are no multiple of `ALIGNED`."""
    return [w for w in layer.widths if w % ALIGNED]


def _reason(cause: str, dense: Layer, now: Layer, share: float, machine: Balance) -> str:
    """Return a text that explains a cause by the numbers of the layer."""
    if cause == KEPT:
        return f"it keeps {now.macs / dense.macs:.0%} of its MACs, the network {share:.0%}"
    if cause == NO_MACS:
        part = now.moved / dense.moved if dense.moved else 1.0
        return f"no multiplications: it moves {quantity(now.moved, 'B', 3)}, {part:.0%} of before"
    if cause == START:
        return f"of {quantity(now.seconds, 's', 3)}, {quantity(now.start, 's', 3)} are starts of calls: a larger batch hides them"
    if cause == BANDWIDTH:
        return (
            f"{_macs_per_byte(now):.1f} MACs a byte (dense {_macs_per_byte(dense):.1f}), and this machine "
            f"does {machine.macs_per_byte:.1f} while it moves one: bandwidth"
        )
    rates = [quantity(layer.macs / max(layer.seconds, 1e-12), "MACs", 3) for layer in (now, dense)]
    rate = f"{rates[0]} a second (dense {rates[1]})"
    if cause == UNALIGNED:
        return f"{rate} at width {', '.join(map(str, _unaligned_widths(now)))}, no multiple of {ALIGNED}: prune with round_to={ALIGNED}"
    return f"{rate}: its kernel is less busy at this size"
