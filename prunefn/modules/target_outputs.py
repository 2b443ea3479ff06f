"""Targets that size outputs, such as the last hidden states of an encoder, which a model returns besides its logits."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..spec.spec import Spec
from ..tracing.analyse import OUTPUT
from .fields import Outline
from .target_fields import field_of, source_of


def sized_outputs(spec: Spec, model: nn.Module, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return tensor → dim of the axes that a target sizes and that are frozen for being outputs alone.

    Who states the width of a model in its config wants outputs of this width. Traced with `free=` of these, they are groups.

    Args:
        spec, model: as for `target`.
        sizes: field of the config → number.
    """
    source = source_of(model, spec)
    outline = Outline(source.build, source.config, {n: spec.shape(n) for n in spec.axes if n not in spec.slots})
    shapes = outline.shapes({field_of(name, source.config): n for name, n in sizes.items()})
    if isinstance(shapes, str) or isinstance(outline.dense, str):
        return {}  # the target says so
    found: dict[str, int] = {}
    for (name, d), reasons in spec.frozen.items():
        before, after = outline.dense.get(name, ()), shapes.get(name, ())
        if reasons == (str(OUTPUT),) and len(before) == len(after) > d and before[d] != after[d]:
            found.setdefault(name, d)
    return found
