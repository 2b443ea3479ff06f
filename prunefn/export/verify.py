"""What all exports share: inputs like the traced ones, a file that is written aside, and a comparison with `forward`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.export import Dim

from .. import trees
from ..errors import PruneError
from ..files import atomic
from ..modules.graph import graph_module
from ..program.run import forward
from ..spec.axis import Leaf
from ..spec.spec import Spec, check_runnable
from ..types import Params

LIMIT = 1e-4
"""Largest difference to `forward`, times the largest output where that is above one."""
BATCHES = (1, 2, 5)
TRACED = 2
"""Batch size of the example: torch.export takes 0 and 1 for constants."""

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Flat tensor inputs → flat tensor outputs, as read back from the file."""


class Exported(NamedTuple):
    """A file, and how near it is to `forward`."""

    path: Path
    kind: str
    differences: dict[int, float]
    """Batch size → largest difference of any output."""
    limit: float
    """What these must not exceed: the limit that was asked for, times the largest output where that is above one."""

    def __str__(self) -> str:
        found = ", ".join(f"{d:.1e} at batch {b}" for b, d in self.differences.items())
        size = f"{self.path.stat().st_size / 1e6:.1f} MB"
        return f"{self.path} ({self.kind}, {size}): max |Δ| {found}; limit {self.limit:.1e}"


class Example(NamedTuple):
    """What an exporter takes."""

    module: fx.GraphModule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic: tuple[Any, ...]
    """Like args, then kwargs: tensor → dim → free, for dims that are a batch."""


def example_of(params: Params, spec: Spec) -> Example:
    """The graph module on the CPU, and random inputs.

    Raises:
        PruneError: the spec was traced in train mode.
        TraceError: it was recorded.
    """
    check_runnable(spec)
    if spec.train:
        raise PruneError("this spec was traced in train mode; export what trace(model, args) in eval mode gives")
    args, kwargs = spec.example.draw(batch=TRACED)
    free = [{d: Dim.AUTO for d, a in enumerate(i.axes) if isinstance(a, Leaf)} for i in spec.program.inputs]
    given = iter(free)
    shapes = trees.map_leaves(lambda x: next(given) if isinstance(x, Tensor) else None, (args, kwargs))
    on_cpu = {n: t.cpu() for n, t in params.items()}
    module = graph_module(on_cpu, spec).eval().requires_grad_(False)
    return Example(module, tuple(args), dict(kwargs), shapes)


def export(
    params: Params,
    path: str | os.PathLike[str],
    *,
    spec: Spec,
    kind: str,
    batches: Sequence[int],
    limit: float,
    make: Callable[[Example, Path], Run],
) -> Exported:
    """What every format does: make a file aside, read it back, compare it with `forward`, and only then give it its name.

    Args:
        params, path, spec, batches, limit: as for `program`.
        kind: of the file, for messages.
        make: (example, file) → what was read back from the file that it wrote.
    """
    example = example_of(params, spec)
    with written(path) as file:
        found, held = verified(make(example, file), params, spec, kind=kind, batches=batches, limit=limit)
    return Exported(Path(path), kind, found, held)


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name in a folder beside `path`, with its ending; what is there at the end takes its place, and nothing if there is an error.

    Raises:
        PruneError: the folder does not exist.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise PruneError(f"there is no folder {target.parent} to write {target.name} into")
    with atomic.workroom(target) as room:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of exporters about themselves
            yield room / target.name
        for file in sorted(room.iterdir(), key=lambda f: f.name == target.name):  # data beside the graph first
            atomic.move(file, target if file.name == target.name else target.parent / file.name)


def verified(
    run: Run, params: Params, spec: Spec, *, kind: str, batches: Sequence[int], limit: float
) -> tuple[dict[int, float], float]:
    """Compare a file that was read back with `forward`: (batch size → largest difference, the limit for all of them).

    Args:
        run: the file.
        params, spec: what was exported.
        kind: of the file, for messages.
        batches: sizes to compare at; a spec whose inputs have no batch dim is compared as traced.
        limit: see `LIMIT`.

    Raises:
        PruneError: an output differs by more than the limit, is missing, or the file does not run at a size.
    """
    on_cpu = {n: t.cpu() for n, t in params.items()}
    free = any(isinstance(a, Leaf) for i in spec.program.inputs for a in i.axes[:1])
    found: dict[int, float] = {}
    held = float("inf")
    for batch in batches if free else (TRACED,):
        args, kwargs = spec.example.draw(seed=batch, batch=batch)
        with torch.no_grad():
            wanted = trees.tensors(forward(on_cpu, *args, spec=spec, **kwargs))
            try:
                got = list(run(trees.tensors((args, kwargs))))
            except Exception as error:
                reason = str(error).strip().splitlines()[-1][:200]
                raise PruneError(f"the {kind} file does not run at batch {batch}: {reason}") from error
        if len(got) != len(wanted) or any(a.shape != b.shape for a, b in zip(got, wanted, strict=True)):
            shapes = [[tuple(t.shape) for t in ts] for ts in (got, wanted)]
            raise PruneError(
                f"the {kind} file gives outputs of shapes {shapes[0]} at batch {batch}, instead of {shapes[1]}"
            )
        found[batch] = max((_difference(a, b) for a, b in zip(got, wanted, strict=True)), default=0.0)
        scale = max((float(t.detach().abs().max()) for t in wanted if t.numel() and t.dtype != torch.bool), default=1.0)
        held = min(held, limit * max(1.0, scale))
        if not found[batch] <= limit * max(1.0, scale):
            raise PruneError(
                f"the {kind} file differs from forward by {found[batch]:.2e} at batch {batch} (outputs up to {scale:.2g}); the limit is "
                f"{limit:g} times that: nothing was written"
            )
    return found, held


def _difference(a: Tensor, b: Tensor) -> float:
    if not a.numel():
        return 0.0
    if b.dtype == torch.bool:
        return float((a.bool() != b).any())
    difference = (a.detach().double() - b.detach().double()).abs()
    both = torch.isnan(a) & torch.isnan(b) if b.is_floating_point() else torch.zeros_like(b, dtype=torch.bool)
    return float(torch.where(both | (a == b), 0.0, difference).max().nan_to_num(float("inf")))
