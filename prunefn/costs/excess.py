"""Why latency does not fall with the MACs: layer by layer, in seconds that add up to the difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

ALIGNED = 8
"""Widths that are no multiple of this leave lanes of vector and matrix units empty."""
STARTS = 3.0
"""A layer that takes less than this many times what the starts of its calls take is mostly these."""
LESS = 0.95
"""A layer has become one that waits for memory if it has less than this share of the MACs a byte that it had."""
WORTH = 0.01
"""Share of the latency from which on a layer says how fast the machine is."""

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
    """By torch's counter."""
    moved: int
    """Bytes read and written."""
    widths: tuple[int, ...]
    """Inputs and outputs of its contractions."""
    start: float
    """Seconds that as many calls take if there is nothing to do."""


NOTHING = Layer(0.0, 0, 0, (), 0.0)


class Excess(NamedTuple):
    """A layer that saves less time than the network saves MACs."""

    layer: str
    seconds: float
    """More than if its time had fallen as the network's MACs did."""
    cause: str
    """One of `CAUSES`."""
    reason: str


class Account(NamedTuple):
    """A latency, as the MACs say and as it is; seconds."""

    latency: float
    expected: float
    """The first network's latency times the share of its MACs that is left."""
    causes: Mapping[str, float]
    """Cause → what it adds, all layers together; their sum is latency - expected."""


class Balance(NamedTuple):
    """What the machine was seen to do at its best, in a layer that takes a while."""

    macs: float
    """A second."""
    moved: float
    """Bytes a second."""

    @property
    def macs_per_byte(self) -> float:
        """Below this, a layer waits for memory."""
        return self.macs / self.moved if self.moved else 0.0


def balance(layers: Mapping[str, Layer]) -> Balance:
    """The best of all layers that take a while."""
    whole = sum(layer.seconds for layer in layers.values())
    seen = [layer for layer in layers.values() if layer.seconds > WORTH * whole]
    macs = max((layer.macs / layer.seconds for layer in seen), default=0.0)
    moved = max((layer.moved / layer.seconds for layer in seen), default=0.0)
    return Balance(macs, moved)


def excess(name: str, dense: Layer, now: Layer, share: float, machine: Balance) -> Excess:
    """What a layer takes beyond the network's share of its dense time, and the larger of its two reasons.

    Args:
        name: of the layer.
        dense, now: the layer in the two networks.
        share: of the network's MACs that is left.
        machine: see `balance`.
    """
    seconds = now.seconds - share * dense.seconds
    parts = _parts(dense, now, share, machine)
    cause = max(parts, key=lambda c: parts[c])
    return Excess(name, seconds, cause, _reason(cause, dense, now, share, machine))


def account(dense: Mapping[str, Layer], now: Mapping[str, Layer], share: float, machine: Balance) -> Account:
    """All layers of two networks."""
    causes: dict[str, float] = dict.fromkeys(CAUSES, 0.0)
    for name in {**dense, **now}:
        for cause, seconds in _parts(dense.get(name, NOTHING), now.get(name, NOTHING), share, machine).items():
            causes[cause] += seconds
    latency, before = (sum(layer.seconds for layer in layers.values()) for layers in (now, dense))
    return Account(latency, share * before, causes)


def _parts(dense: Layer, now: Layer, share: float, machine: Balance) -> dict[str, float]:
    """Cause → seconds. A layer with MACs has two: how many of them it keeps, and how long they take now."""
    if not dense.macs:
        return {NO_MACS: now.seconds - share * dense.seconds}
    own = now.macs / dense.macs
    slower = now.seconds - own * dense.seconds
    return {KEPT: (own - share) * dense.seconds, _why_slower(dense, now, slower, machine): slower}


def _why_slower(dense: Layer, now: Layer, slower: float, machine: Balance) -> str:
    if slower <= 0:
        return FASTER
    if now.seconds < STARTS * now.start:
        return START
    if _per_byte(now) < min(machine.macs_per_byte, LESS * _per_byte(dense)):
        return BANDWIDTH
    return UNALIGNED if _odd(now) and not _odd(dense) else SMALLER


def _per_byte(layer: Layer) -> float:
    return layer.macs / max(layer.moved, 1)


def _odd(layer: Layer) -> list[int]:
    return [w for w in layer.widths if w % ALIGNED]


def _reason(cause: str, dense: Layer, now: Layer, share: float, machine: Balance) -> str:
    if cause == KEPT:
        return f"it keeps {now.macs / dense.macs:.0%} of its MACs, the network {share:.0%}"
    if cause == NO_MACS:
        part = now.moved / dense.moved if dense.moved else 1.0
        return f"no multiplications: it moves {now.moved / 1e6:.2f} MB, {part:.0%} of before"
    if cause == START:
        return f"of {1e6 * now.seconds:.0f} µs, {1e6 * now.start:.0f} are starts of calls: a larger batch hides them"
    if cause == BANDWIDTH:
        return (
            f"{_per_byte(now):.1f} MACs a byte (dense {_per_byte(dense):.1f}), and this machine "
            f"does {machine.macs_per_byte:.1f} while it moves one: bandwidth"
        )
    rates = [layer.macs / max(layer.seconds, 1e-12) / 1e9 for layer in (now, dense)]
    rate = f"{rates[0]:.1f} GMACs a second (dense {rates[1]:.1f})"
    if cause == UNALIGNED:
        return (
            f"{rate} at width {', '.join(map(str, _odd(now)))}, no multiple of {ALIGNED}: prune with round_to={ALIGNED}"
        )
    return f"{rate}: its kernel is less busy at this size"
