"""Export the state dict of the original class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ..checkpoints.checkpoint import load, save
from ..doors import door
from ..modules.convert import to_module
from ..modules.exported import Example
from ..spec.spec import Spec
from ..types import Params
from .compiled import Flat
from .verify import ATOL, BATCHES, Exported, Run, export


@door
def state_dict(
    params: Params,
    path: str | os.PathLike[str],
    *,
    spec: Spec,
    model: nn.Module,
    batches: Sequence[int] = BATCHES,
    atol: float = ATOL,
) -> Exported:
    """Write the state dict of the original class, for `prunefn.load` into a freshly built model.

    Args:
        params, spec, batches, atol: as for `program`.
        path: the file, whose name ends in .safetensors.
        model: the module that was traced, at its traced sizes; it is not changed.

    Raises:
        PruneError: as for `program`, or the class cannot run at these sizes.

    >>> import tempfile, torch, prunefn as pf
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> spec, mask = pf.trace(model, (torch.randn(2, 4),)), {"0": torch.tensor([True, False, True])}
    >>> small = pf.apply(pf.params(model), mask, spec=spec)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = state_dict(small, f"{folder}/small.safetensors", spec=pf.shrink(spec, mask), model=model)
    ...     again = pf.load(model, done.path)
    >>> max(done.differences.values()) < 1e-6, again[0].out_features
    (True, 2)
    """

    def make(example: Example, file: Path) -> Run:
        save(to_module(params, spec=spec, model=model), file)
        return Flat(load(model, file).cpu().eval(), example)

    return export(params, path, spec=spec, kind="state dict", batches=batches, atol=atol, make=make)
