"""Checkpoints larger than memory: pruned from file to file, a piece of a tensor at a time."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..doors import door
from ..errors import ParamsError, PruneError, nearest
from ..files import atomic
from ..files.folder import INDEX, SINGLE, Shard, shards, verify
from ..files.tensors import PIECE, Entry, Reader, Writer
from ..modules.hf_config_file import CONFIG, streamed_config
from ..modules.pruned_file import KIND_PARAMS, notes
from ..parameters.transforms import check_mask, shrink
from ..spec.axis import keep
from ..spec.spec import Spec
from ..types import Mask
from .stream_target import JOB, UNFINISHED, check_target, companions, finished_files, is_ours, remove_others


class Streamed(NamedTuple):
    """What `apply_checkpoint` did."""

    files: tuple[Path, ...]
    """The files of tensors."""
    written: int
    """How many of them it wrote; the others were there already."""
    nbytes: int
    """Of all tensors."""
    config: Path | None
    """The transformers config at the new sizes; None where there was none, or no config can say them."""


class _Job(NamedTuple):
    """A tensor: where it comes from, and what it becomes."""

    name: str
    source: Path
    dense: Entry
    kept: tuple[np.ndarray, ...]
    """Of each dim, bool."""

    @property
    def small(self) -> Entry:
        return Entry(self.dense.dtype, tuple(int(k.sum()) for k in self.kept))


@door
def apply_checkpoint(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    mask: Mask,
    *,
    spec: Spec,
    progress: bool = True,
    max_shard_bytes: int = 4_000_000_000,
    overwrite: bool = False,
) -> Streamed:
    """`apply` from file to file, for models larger than memory: no more than some rows of one tensor are held at a time.

    A run that was interrupted goes on when it is called again: files that are complete and were made of the same source (by
    headers, sizes and times of modification), mask and spec are kept, once their hashes are checked.

    Args:
        src: safetensors, as transformers writes them: a folder with `model.safetensors` or its index, or a single file. The names
            are those of `state_dict`; of tied tensors one is enough.
        dst: a folder, made if it is not there. It gets the tensors as transformers reads them (`model.safetensors`, or numbered
            files with an index, which is written last), and the other files of a source folder. Where a config of transformers
            can say the new sizes, `config.json` does; else it is not copied under this name, but as `dense_config.json`.
        mask: group → bool [units] of the spec.
        spec: of the checkpoint; it needs no weights, so trace a model on `meta`.
        progress: show a bar.
        max_shard_bytes: at which a new file begins; a single tensor may be larger.
        overwrite: replace a checkpoint of something else in `dst`, and files there that have names of the source's; all else
            that is in the folder stays.

    Returns:
        What was written. `load_params(dst, spec=spec)` and `lazy_params(dst, spec=shrink(spec, mask))` read it.

    Raises:
        ParamsError: the checkpoint is not of this spec, or is damaged; names file and tensor.
        MaskError: the mask does not fit the spec.
        PruneError: `dst` is a file, the folder of the source, or holds a checkpoint of something else or a file that differs from
            the source's of this name (without `overwrite`).

    >>> import tempfile, torch, prunefn as pf
    >>> from safetensors.torch import save_file
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec, mask = pf.trace(model, (torch.randn(2, 4),)), {"0": torch.tensor([True, False, True])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file(pf.params(model), f"{folder}/large.safetensors")
    ...     done = pf.apply_checkpoint(f"{folder}/large.safetensors", f"{folder}/small", mask, spec=spec, progress=False)
    ...     small = pf.load_params(f"{folder}/small", spec=spec)
    >>> done.files[0].name, small.params["0.weight"].shape, small.params["2.weight"].shape
    ('model.safetensors', torch.Size([2, 4]), torch.Size([2, 2]))
    """
    check_mask(mask, spec)
    if max_shard_bytes < 1:
        raise PruneError(f"max_shard_bytes must be 1 or more, not {max_shard_bytes}")
    source, target = Path(src), Path(dst)
    found = shards(source)
    _check_names(found, source, spec)
    verify(found)
    rooms = _divided(found, spec, mask, max_shard_bytes)
    metadata = notes(KIND_PARAMS, sizes=shrink(spec, mask).sizes, masks=(mask,))
    metadata[JOB] = _fingerprint(found, metadata, max_shard_bytes)
    if target.resolve() == (source if source.is_dir() else source.parent).resolve():
        raise PruneError(f"{target} is the folder of the source; give another")
    check_target(source, target, rooms, overwrite=overwrite or is_ours(target, metadata[JOB]))
    target.mkdir(parents=True, exist_ok=True)
    if overwrite:
        remove_others(target, rooms, metadata[JOB])
    there = finished_files(target, rooms, metadata[JOB])
    if not there:
        atomic.write_text(target / UNFINISHED, metadata[JOB])
    config = _copy_rest(source, target, spec, mask) if source.is_dir() else None
    total = sum(j.dense.nbytes for room in rooms.values() for j in room)
    with tqdm(total=total, desc="pruning", unit="B", unit_scale=True, disable=not progress) as bar:
        for name, room in rooms.items():
            if name in there:
                bar.update(sum(j.dense.nbytes for j in room))
            else:
                atomic.write(target / name, lambda part, room=room: _write(part, room, metadata, bar))
                (target / UNFINISHED).unlink(missing_ok=True)
    nbytes = sum(j.small.nbytes for room in rooms.values() for j in room)
    if len(rooms) > 1:
        places = {j.name: name for name, room in rooms.items() for j in room}
        index = {"metadata": {"total_size": nbytes}, "weight_map": dict(sorted(places.items()))}
        atomic.write_text(target / INDEX, json.dumps(index, indent=2) + "\n")
    return Streamed(tuple(target / n for n in rooms), len(rooms) - len(there), nbytes, config)


# ---- what is to be done


def _check_names(found: tuple[Shard, ...], source: Path, spec: Spec) -> None:
    """The checkpoint has the spec's tensors, at its sizes."""
    slots = spec.slots
    there = {n for s in found for n in s.entries}
    for s in found:
        for name, entry in s.entries.items():
            if name not in spec.axes:
                raise ParamsError(f"{s.path}: the spec has no tensor {name!r}{nearest(name, spec.axes)}")
            if entry.shape != spec.shape(name):
                raise ParamsError(
                    f"{s.path}: {name!r} has shape {entry.shape}, but the spec says {spec.shape(name)} = {spec.einops(name)}; trace "
                    "a model of this checkpoint's config"
                )
    ties = {frozenset(pair) for pair in spec.tied.items()}
    have = there | {n for pair in ties if pair & there for n in pair}
    if lacking := [n for n in spec.axes if n not in have and n not in slots]:
        raise ParamsError(f"{source} lacks {lacking[0]!r}{nearest(lacking[0], there)}")


def _job(s: Shard, name: str, spec: Spec, mask: Mask, known: dict[object, np.ndarray]) -> _Job:
    axes = spec.axes[name]
    for axis in axes:
        if axis not in known:
            known[axis] = keep(axis, mask, spec.sizes).numpy()
    return _Job(name, s.path, s.entries[name], tuple(known[a] for a in axes))


def _divided(found: tuple[Shard, ...], spec: Spec, mask: Mask, limit: int) -> dict[str, list[_Job]]:
    """File name → what goes into it: at most so many bytes, in the order of the source."""
    kept: dict[object, np.ndarray] = {}
    rooms: list[list[_Job]] = [[]]
    nbytes = 0
    for s in found:
        for name in sorted(s.entries, key=lambda n, s=s: s.entries[n].start):
            job = _job(s, name, spec, mask, kept)
            if rooms[-1] and nbytes + job.small.nbytes > limit:
                rooms.append([])
                nbytes = 0
            rooms[-1].append(job)
            nbytes += job.small.nbytes
    if len(rooms) == 1:
        return {SINGLE: rooms[0]}
    return {f"model-{i:05}-of-{len(rooms):05}.safetensors": room for i, room in enumerate(rooms, 1)}


def _fingerprint(found: tuple[Shard, ...], metadata: Mapping[str, str], limit: int) -> str:
    """The same for the same source and mask, and the same division into files."""
    digest = blake2b(digest_size=32)
    for s in found:
        stat = s.path.stat()
        digest.update(repr((s.path.name, stat.st_size, stat.st_mtime_ns, sorted(s.entries.items()))).encode())
    digest.update(repr((metadata["sizes"], metadata["masks"], limit)).encode())
    return digest.hexdigest()


def _copy_rest(source: Path, target: Path, spec: Spec, mask: Mask) -> Path | None:
    """Tokenizers and the like as they are, and the config at the new sizes; where it is."""
    for path in companions(source):
        if not (target / path.name).exists() or not filecmp.cmp(path, target / path.name, shallow=False):
            atomic.write(target / path.name, lambda part, path=path: shutil.copyfile(path, part))
    if not (source / CONFIG).exists():
        return None
    new = streamed_config(source / CONFIG, shrink(spec, mask))
    name = f"dense_{CONFIG}" if new is None else CONFIG
    atomic.write_text(target / name, (source / CONFIG).read_text(encoding="utf-8") if new is None else new)
    (target / (CONFIG if new is None else f"dense_{CONFIG}")).unlink(missing_ok=True)
    return None if new is None else target / name


# ---- a file, piece by piece


def _write(path: str, room: list[_Job], metadata: Mapping[str, str], bar: tqdm) -> None:
    jobs = {j.name: j for j in room}
    with Writer(path, {j.name: j.small for j in room}, metadata) as writer:
        for name in writer.entries:
            with Reader(jobs[name].source) as reader:
                for piece in _pieces(reader, jobs[name]):
                    writer.write(piece)
            bar.update(jobs[name].dense.nbytes)


def _pieces(reader: Reader, job: _Job) -> Iterator[memoryview]:
    """The kept part of a tensor, some rows at a time."""
    dense, (rows, *rest) = job.dense, job.kept or (np.ones(1, dtype=bool),)
    if not job.small.nbytes:
        return
    row = dense.nbytes // len(rows)
    step = max(PIECE // row, 1)
    columns = [None if k.all() else k.nonzero()[0] for k in rest]
    for first in range(0, len(rows), step):
        wanted = rows[first : first + step].nonzero()[0]
        if not len(wanted):
            continue
        low, high = int(wanted[0]), int(wanted[-1]) + 1
        data = np.empty((high - low, *dense.shape[1:]), dtype=f"u{dense.itemsize}")
        reader.fill(data.reshape(-1).view(np.uint8).data, dense.start + (first + low) * row)
        if len(wanted) < high - low:
            data = data[wanted - low]
        for d, index in enumerate(columns, 1):
            if index is not None:
                data = np.take(data, index, axis=d)
        yield np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
