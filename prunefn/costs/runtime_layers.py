"""Layers of networks in a runtime that fuses ops: each contraction with the ops that compute on its result."""

from __future__ import annotations

from collections.abc import Mapping

from ..spec.spec import Spec
from .counted import Counted
from .excess import NOTHING, Layer
from .timing.compiled_forwards import program_parts
from .timing.loaded import Loaded


def layers_of_parts(spec: Spec, counts: Counted, loaded: Loaded, repeats: int, whole: float) -> dict[str, Layer]:
    """Return module of a weight → its layer, with seconds scaled so that all layers together take `whole` seconds.

    Ops before the first contraction are under the empty name. The starts of calls are not known, so they are 0.

    Args:
        spec: of the network.
        counts: of its program.
        loaded: the network in the runtime.
        repeats: number of profiled forwards.
        whole: seconds of a whole forward.
    """
    parts, numbers = program_parts(spec)
    layers: dict[str, Layer] = {}
    for ins in spec.program.instructions:
        op, module = counts.ops[ins.name], parts[numbers[ins.name]].module
        layer = layers.get(module, NOTHING)
        widths = tuple(dict.fromkeys((*layer.widths, *op.widths)))
        layers[module] = Layer(0.0, layer.macs + op.macs, layer.moved + op.moved, widths, 0.0)
    seconds = _seconds_of_modules(loaded, repeats)
    scale = whole / max(sum(seconds.values()), 1e-12)
    for module, s in seconds.items():
        layers[module] = layers.get(module, NOTHING)._replace(seconds=scale * s)
    return layers


def _seconds_of_modules(loaded: Loaded, repeats: int) -> Mapping[str, float]:
    """Return module → seconds of its kernels."""
    out: dict[str, float] = {}
    for number, s in loaded.profile(repeats).items():
        module = loaded.parts[number].module
        out[module] = out.get(module, 0.0) + s
    return out
