"""New weights of the contractions that lose inputs, one layer after the other, in the network whose earlier layers are fitted."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..compensation import methods
from ..compensation.by_layer import Pair, fit_layer, pairs
from ..compensation.repair import Repaired, few_samples, is_unchanged, warn_of_few_samples, warn_of_unchanged
from ..display.progress import progress_bar
from ..errors import ParamsError
from ..files import atomic
from ..files.folder import entries_of, shard
from ..files.tensors import DTYPES, Entry, save_sealed
from ..parameters.transforms import shrink
from ..spec.axis import keep
from ..types import Batch, Compensation, Mask
from .opened import Opened
from .work import Stored, Work

STAGE = "compensation"
DEFAULT = methods.affine(fallback=methods.mean())


def repair_layers(
    opened: Opened, mask: Mask, batches: Sequence[Batch], work: Work, method: Compensation, *, progress: bool
) -> dict[str, tuple[Path, Entry]]:
    """Return tensor → the file and entry of its new values, at its dense shape and in the type of its source.

    Raises:
        ParamsError: the method adds a bias to a contraction whose class has none.
    """
    layers, few, unchanged = layers_to_repair(opened, mask, method), list[str](), list[str]()
    files = [work.file(STAGE, n) for n in range(len(layers))]
    small = shrink(opened.spec, mask)
    total = sum(pair.passes for pair in layers) * len(batches)
    with progress_bar(total=total, text=STAGE, unit=" batches of a layer", show=progress) as bar:
        for n, (pair, file) in enumerate(zip(layers, files, strict=True)):
            if work.is_finished(file):
                bar.update(pair.passes * len(batches))
                continue
            folders = [[work.states(f"{STAGE}-{which}", m) for m in (n - 1, n)] for which in ("dense", "pruned")]
            both = [Stored(before if n else None, after) for before, after in folders]
            layer, repaired = fit_layer(
                (opened.params, opened.spec), small, mask, batches, pair, (both[0], both[1]), method, bar=bar
            )
            _check_biases(repaired, method)
            few += [text for r in repaired for text in few_samples(r, method)]
            unchanged += [r.site.name for r in repaired if is_unchanged(r)]
            write_values(file, _at_dense_shapes(layer, repaired, opened, mask), opened)
            for before, _ in folders:
                shutil.rmtree(before, ignore_errors=True)
    warn_of_few_samples(few, method)
    warn_of_unchanged(unchanged, method)
    return {name: (path, shard(path).entries[name]) for path in files for name in shard(path).entries}


def layers_to_repair(opened: Opened, mask: Mask, method: Compensation) -> list[Pair]:
    """Return the layers up to the last one that has something to repair, which gives nothing to others."""
    found = pairs(opened.spec, mask) if method.repair is not None else []
    last = max((n for n, pair in enumerate(found) if pair.sites or pair.stacked), default=-1)
    return [
        p if n < last else p._replace(dense=p.dense._replace(hands=()), small=p.small._replace(hands=()))
        for n, p in enumerate(found[: last + 1])
    ]


def _check_biases(repaired: Sequence[Repaired], method: Compensation) -> None:
    """Check that no repair needs a bias that its class lacks; raise ParamsError if one does."""
    for r in repaired:
        if r.repair.shift is not None and r.site.bias is None:
            raise ParamsError(
                f"compensation {method.name!r} would add a bias to {r.site.name!r}, which its class has no room for; write "
                "compensation.affine(intercept=False)"
            )


def _at_dense_shapes(
    layer: Mapping[str, Tensor], repaired: Sequence[Repaired], opened: Opened, mask: Mask
) -> dict[str, Tensor]:
    """Return the tensors that were fitted, at their dense shapes, with the dense numbers where units go."""
    spec, out = opened.spec, dict[str, Tensor]()
    for name in dict.fromkeys(
        n for r in repaired for n in (r.site.weight, r.site.bias) if n is not None and n in layer
    ):
        whole = opened.params[name].clone()
        kept = [keep(a, mask, spec.sizes).nonzero()[:, 0] for a in spec.axes[name]]
        whole[torch.meshgrid(*kept, indexing="ij")] = layer[name].to(whole)
        out[name] = whole
    return out


def write_values(file: Path, tensors: Mapping[str, Tensor], opened: Opened) -> None:
    """Write tensors in the types that their files have; of tied ones, that which is in a file."""
    entries, tied = entries_of(opened.files), opened.spec.tied
    named = {
        next((m for m in (n, *(s for s, f in tied.items() if f == n)) if m in entries), n): t
        for n, t in tensors.items()
    }
    converted = {n: t.to(DTYPES[entries[n][1].dtype]).contiguous() for n, t in named.items() if n in entries}
    atomic.write(file, lambda part: save_sealed(part, converted, {"format": "pt"}))
