"""Interfaces that lost units, and the numbers in attributes that state their sizes by name."""

from __future__ import annotations

import re

from ..spec.interface import Interface
from ..spec.spec import Spec
from .places import Place

FOLLOWERS = {
    "vocabulary": re.compile(r"vocab|num_embeddings|n_?tokens$|num_tokens$"),
    "classes": re.compile(r"class|label|^out_(features|dim|chans|channels)$|^nc$"),
    "outputs": re.compile(r"class|label|^out(put)?_?(features|dim|size|chans|channels|planes)$|^nc$"),
    "inputs": re.compile(r"^in(put)?_?(features|dim|size|chans|channels|planes)$|num_channels|n_channels|^c_in$"),
}
"""Kind of an interface → names of numbers that state its size, also where no code reads them."""


def lost_interfaces(spec: Spec) -> dict[str, Interface]:
    """Return the interfaces that lost units."""
    return {g: i for g, i in spec.program.interfaces.items() if spec.sizes[g] != spec.traced[g]}


def following_size(place: Place, spec: Spec) -> int | None:
    """Return the new size of the interface whose size a number states by its name; None if it states none."""
    for g, i in lost_interfaces(spec).items():
        words = FOLLOWERS.get(i.kind)
        if words is not None and place.value == spec.traced[g] and words.search(str(place.names[-1])):
            return spec.sizes[g]
    return None
