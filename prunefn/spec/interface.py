"""Interfaces: axes whose positions somebody outside of the model counts on, such as a vocabulary or the classes."""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

from torch import Tensor

from ..frozen_dict import FrozenDict

INTERFACES = ("vocabulary", "classes", "inputs", "outputs", "interface")
"""Kinds of the groups that `trace(…, free=)` makes of interfaces; these are pruned only on request."""


class Interface(NamedTuple):
    """An axis whose positions somebody outside of the model counts on, and that is a group on request."""

    kind: str
    kept: range | tuple[int, ...]
    """The units that are left, as positions in the model that was traced, in ascending order."""
    inputs: tuple[str, ...] = ()
    """Inputs of the program whose integers are positions of it, such as ids of tokens."""
    named: FrozenDict[int, str] = FrozenDict()
    """Position in the traced model that must stay → what names it, such as `config.eos_token_id`."""
    joined: str = ""
    """How several tensors have it in common: by a tie, or by equal sizes."""

    def after(self, mask: Tensor) -> Interface:
        """Return the interface after a mask over the units that are left."""
        keep = mask.tolist()
        return self if all(keep) else self._replace(kept=tuple(n for n, k in zip(self.kept, keep, strict=True) if k))

    def whole(self, size: int) -> Interface:
        """Return the interface with all of its units."""
        return self._replace(kept=range(size))

    def position(self, traced: int) -> int | None:
        """Return the present position of a unit of the traced model; None if it was removed.

        >>> Interface("classes", (0, 3, 4)).position(3), Interface("classes", (0, 3, 4)).position(2)
        (1, None)
        """
        i = bisect_left(self.kept, traced)
        return i if i < len(self.kept) and self.kept[i] == traced else None

    def names(self) -> dict[int, str]:
        """Return present position → what names it."""
        found = {self.position(n): text for n, text in self.named.items()}
        return {n: text for n, text in found.items() if n is not None}


def interface_text(group: str, interface: Interface, size: int) -> list[str]:
    """Return what is to be known about a group that is an interface, one line each."""
    lines = [f"  {name}: its integers are positions of {group!r}, 0 to {size - 1}" for name in interface.inputs]
    if interface.joined:
        lines.append(f"  {group}: {interface.joined}")
    if named := [f"{n} ({text})" for n, text in sorted(interface.names().items())]:
        lines.append(f"  {group}: must stay: {', '.join(named)}")
    return lines
