"""The common part of all exports: inputs like the traced ones, a temporary file, and a comparison with `forward`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import trees
from ..display.units import quantity
from ..errors import PruneError
from ..files import atomic
from ..modules.exported import TRACED, Example, example_of
from ..program.run import forward
from ..spec.axis import Leaf
from ..spec.spec import Spec
from ..types import Params

ATOL = 1e-4
"""Default of the largest difference to `forward`; it is multiplied by the largest output if that is above one."""
BATCHES = (1, 2, 5)
"""Default batch sizes of the comparison."""

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Runs a file that was read back: flat tensor inputs → flat tensor outputs."""


class Exported(NamedTuple):
    """An exported file and its differences to `forward`."""

    path: Path
    kind: str
    differences: dict[int, float]
    """Batch size → largest difference of any output."""
    limit: float
    """Upper limit of the differences: the requested limit, multiplied by the largest output if that is above one."""

    def __str__(self) -> str:
        differences = ", ".join(f"{d:.1e} at batch {b}" for b, d in self.differences.items())
        size = quantity(self.path.stat().st_size, "B", 3)
        return f"{self.path} ({self.kind}, {size}): max |Δ| {differences}; limit {self.limit:.1e}"


def export(
    params: Params,
    path: str | os.PathLike[str],
    *,
    spec: Spec,
    kind: str,
    batches: Sequence[int],
    atol: float,
    make: Callable[[Example, Path], Run],
) -> Exported:
    """Write a temporary file, read it back, compare it with `forward`, and only then move it to `path`.

    Args:
        params, path, spec, batches, atol: as for `program`.
        kind: kind of the file, for messages.
        make: (example, file) → a function that runs the file; it writes the file and reads it back.

    Raises:
        PruneError: as for `program`.
    """
    example = example_of(params, spec)
    with written(path) as file:
        differences, effective_limit = verified(
            make(example, file), params, spec, kind=kind, batches=batches, atol=atol
        )
    return Exported(Path(path), kind, differences, effective_limit)


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder; at the end, move the files of that folder to the folder of `path`.

    If there is an error, nothing is moved.

    Raises:
        PruneError: the folder of `path` does not exist.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise PruneError(f"there is no folder {target.parent} to write {target.name} into")
    with atomic.workroom(target) as room:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # exporters warn about their own code
            yield room / target.name
        # the file itself comes last, when the data that it refers to are in place
        for file in sorted(room.iterdir(), key=lambda f: f.name == target.name):
            atomic.move(file, target if file.name == target.name else target.parent / file.name)


def verified(
    run: Run, params: Params, spec: Spec, *, kind: str, batches: Sequence[int], atol: float
) -> tuple[dict[int, float], float]:
    """Compare a file that was read back with `forward`.

    Args:
        run: runs the file.
        params, spec: the exported network.
        kind: kind of the file, for messages.
        batches: batch sizes of the comparison; a spec whose inputs have no batch dim is compared at its traced sizes.
        atol: see `ATOL`.

    Returns:
        Batch size → largest difference, and the smallest limit that was applied at any of the sizes.

    Raises:
        PruneError: an output differs by more than the limit or is missing, or the file does not run at a batch size.
    """
    on_cpu = {n: t.cpu() for n, t in params.items()}
    has_batch = any(isinstance(a, Leaf) for i in spec.program.inputs for a in i.axes[:1])
    differences: dict[int, float] = {}
    effective_limit = float("inf")
    for batch in batches if has_batch else (TRACED,):
        args, kwargs = spec.example.draw(seed=batch, batch=batch)
        with torch.no_grad():
            expected = trees.tensors(forward(on_cpu, *args, spec=spec, **kwargs))
            try:
                actual = list(run(trees.tensors((args, kwargs))))
            except Exception as error:
                reason = str(error).strip().splitlines()[-1][:200]
                raise PruneError(f"the {kind} file does not run at batch {batch}: {reason}") from error
        if len(actual) != len(expected) or any(a.shape != b.shape for a, b in zip(actual, expected, strict=True)):
            shapes = [[tuple(t.shape) for t in ts] for ts in (actual, expected)]
            raise PruneError(
                f"the {kind} file gives outputs of shapes {shapes[0]} at batch {batch}, instead of {shapes[1]}"
            )
        differences[batch] = max((_difference(a, b) for a, b in zip(actual, expected, strict=True)), default=0.0)
        scale = max(
            (float(t.detach().abs().max()) for t in expected if t.numel() and t.dtype != torch.bool), default=1.0
        )
        effective_limit = min(effective_limit, atol * max(1.0, scale))
        if not differences[batch] <= atol * max(1.0, scale):
            raise PruneError(
                f"the {kind} file differs from forward by {differences[batch]:.2e} at batch {batch} (outputs up to {scale:.2g}); the "
                f"limit is {atol:g} times that: nothing was written"
            )
    return differences, effective_limit


def _difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of two tensors; NaN at the same place is none, NaN at one side is infinite."""
    if not a.numel():
        return 0.0
    if b.dtype == torch.bool:
        return float((a.bool() != b).any())
    difference = (a.detach().double() - b.detach().double()).abs()
    both_nan = torch.isnan(a) & torch.isnan(b) if b.is_floating_point() else torch.zeros_like(b, dtype=torch.bool)
    equal = both_nan | (a == b)  # a == b: the difference of two equal infinities would be NaN
    return float(torch.where(equal, 0.0, difference).max().nan_to_num(float("inf")))
