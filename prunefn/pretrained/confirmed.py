"""The last step: what was written loads into its class, and computes what the spec's program computes with the same tensors."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import trees
from ..errors import PruneError
from ..files.folder import shards
from ..modules.confirm import ROUNDING, silent_transformers
from ..modules.hf_config_file import CONFIG
from ..program.run import forward
from ..spec.axis import size
from ..spec.spec import Spec
from .conversions import conversions, tensors_on_disk
from .opened import Opened

log = logging.getLogger(__name__)


def confirm_folder(
    folder: Path, opened: Opened, small: Spec, rename: Callable[[str], str], batch: Mapping[str, Tensor]
) -> float | None:
    """Load the model of a folder afresh, and return how far its outputs are from those of the program.

    Args:
        folder: that was written.
        opened: the model that it was made of.
        small: its spec at the new sizes.
        rename: name in the spec → name in the folder.
        batch: inputs by name, for the comparison.

    Returns:
        The largest difference; None if the model does not fit into memory, so that nothing could be compared.

    Raises:
        PruneError: it does not load into its class without a rest, or computes something else.
    """
    needed = sum(_elements(small, n) for n in small.axes if n not in small.slots) * opened.dtype.itemsize
    if needed > (available := available_memory()):
        log.warning("%s would take %d bytes of memory, but %d are free: it was not loaded", folder, needed, available)
        return None
    module = load_folder(folder, opened.cls, opened.dtype)
    params = _params_on_disk(folder, opened, small, rename)
    with torch.no_grad():
        actual = module(**batch)
        expected = forward(params, spec=small, **batch)
    return _difference(actual, expected, opened.cls.__name__)


def available_memory() -> int:
    """Return the bytes of memory that are free, or that the machine has if this is not known."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return (
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_PHYS_PAGES" in os.sysconf_names else 1 << 62
        )


def _elements(spec: Spec, name: str) -> int:
    total = 1
    for axis in spec.axes[name]:
        total *= size(axis, spec.sizes)
    return total


def load_folder(folder: Path, cls: Any, dtype: torch.dtype) -> Any:
    """Return the model of a folder, in eval mode and without a cache.

    Raises:
        PruneError: it does not load, or tensors are left over or missing.
    """
    try:
        with silent_transformers():
            module, info = cls.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True)
    except Exception as error:  # the class and the loader of transformers may raise anything
        raise PruneError(f"{cls.__name__} does not load {folder}: {str(error)[:500]}") from error
    if refused := [f"{what}: {sorted(map(str, names))[:3]}" for what, names in info.items() if names]:
        raise PruneError(f"{cls.__name__} does not load {folder} without a rest: {'; '.join(refused)}")
    module.config.use_cache = False  # of this object, not of the file: caches are no results
    return module.eval()


def _params_on_disk(folder: Path, opened: Opened, small: Spec, rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Return the tensors of a folder under the names of the spec, without reading them."""
    files = shards(folder)
    tensors = tensors_on_disk(
        files, conversions(opened.model_of((folder / CONFIG).read_text("utf-8")), files), opened.dtype
    )
    params = {name: tensors[new] for name in small.axes if (new := rename(name)) in tensors}
    for second, first in small.tied.items():
        source = params.get(first, params.get(second))
        if source is not None:
            params[first] = params[second] = source
    return params


def _difference(actual: Any, expected: Any, name: str) -> float:
    """Return the largest difference of two outputs.

    Raises:
        PruneError: it is more than rounding.
    """
    pairs = zip(trees.tensors(actual), trees.tensors(expected), strict=True)
    worst = 0.0
    for x, y in ((x.float(), y.float()) for x, y in pairs if x.is_floating_point()):
        gap, largest = float((x - y).abs().max()), float(y.abs().max())
        eps = torch.finfo(next(t.dtype for t in trees.tensors(expected) if t.is_floating_point())).eps
        if x.shape != y.shape or not gap <= min(ROUNDING * eps, 0.01) * largest:
            raise PruneError(
                f"{name} loads what was written, but its outputs differ by {gap:.3g} (of {largest:.3g}) from those of the pruned "
                "program, so that nothing was kept"
            )
        worst = max(worst, gap)
    return worst
