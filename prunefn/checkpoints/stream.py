"""Prune checkpoints larger than memory from file to file, a piece of a tensor at a time."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..display.progress import progress_bar
from ..doors import door
from ..errors import ParamsError, PruneError, nearest
from ..files import atomic
from ..files.folder import INDEX, SINGLE, Shard, shards, verify
from ..files.tensors import PIECE, SEAL, Entry, Reader, Writer
from ..frozen_dict import FrozenDict
from ..modules.hf_config_file import CONFIG, streamed_config
from ..modules.pruned_file import KIND_PARAMS, notes
from ..parameters.transforms import check_mask, shrink
from ..spec.axis import keep
from ..spec.branches import removed_tensors
from ..spec.spec import Spec, removed_branches
from ..types import Mask
from .stream_target import JOB, UNFINISHED, check_target, companions, finished_files, is_ours, remove_others


class Streamed(NamedTuple):
    """The result of `apply_checkpoint`."""

    files: tuple[Path, ...]
    """The files of tensors."""
    written: int
    """Number of files that this call wrote; the others were already complete."""
    nbytes: int
    """Bytes of all tensors together."""
    config: Path | None
    """The transformers config at the new sizes; None if the source has none, or if no config can state the sizes."""


class _TensorJob(NamedTuple):
    """A tensor to prune: its source and the part that is kept."""

    name: str
    """In the file that is written."""
    source: Path
    dense: Entry
    kept: tuple[np.ndarray, ...]
    """For each dim, a bool array of the indices to keep."""

    @property
    def small(self) -> Entry:
        """The entry of the pruned tensor."""
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
    """Apply a mask from file to file, for models larger than memory; only some rows of one tensor are in memory at a time.

    To resume an interrupted run, call the function again. It keeps complete files of the same source (by headers, sizes and
    times of modification), mask and spec after it has checked their hashes.

    Args:
        src: safetensors, as transformers writes them: a folder with `model.safetensors` or its index, or a single file. The names
            are those of `state_dict`; of tied tensors one is enough.
        dst: the target folder, which is created if it does not exist. It gets the tensors as transformers reads them
            (`model.safetensors`, or numbered files with an index, which is written last), and the other files of a source
            folder. If a config of transformers can state the new sizes, it is written as `config.json`; else the config of the
            source is copied as `dense_config.json`.
        mask: group → bool [units] of the spec.
        spec: spec of the checkpoint; it needs no weights, so trace a model on `meta`.
        progress: whether to show a progress bar.
        max_shard_bytes: size in bytes at which a new file begins; a single tensor may be larger.
        overwrite: whether to replace another checkpoint in `dst`, and files with the same names as files of the source; all
            other files in the folder stay.

    Returns:
        The files that were written. `load_params(dst, spec=spec)` and `lazy_params(dst, spec=shrink(spec, mask))` read them.

    Raises:
        ParamsError: the checkpoint does not fit the spec, or is damaged; names file and tensor.
        MaskError: the mask does not fit the spec.
        PruneError: a vocabulary loses tokens, whose ids other files of the folder have, too; `dst` is a file or the folder of the
            source; or, without `overwrite`, it holds another checkpoint or a file
            that differs from the source's file of this name.

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
    options = WriteOptions(progress, max_shard_bytes, overwrite)
    return write_checkpoint(Path(src), Path(dst), mask, spec, Source(shards(src)), options)


class WriteOptions(NamedTuple):
    """How a checkpoint is written; see `apply_checkpoint`."""

    progress: bool = True
    max_shard_bytes: int = 4_000_000_000
    overwrite: bool = False


class Source(NamedTuple):
    """The tensors that are pruned, at the sizes of the spec."""

    files: tuple[Shard, ...]
    rewritten: Mapping[str, tuple[Path, Entry]] = FrozenDict()
    """Tensor → the file that has its new values, of the same shape and type."""
    rename: Callable[[str], str] | None = None
    """Name → the name in the model without the layers that are removed; None: names stay."""


def write_checkpoint(
    source: Path, target: Path, mask: Mask, spec: Spec, tensors: Source, options: WriteOptions
) -> Streamed:
    """Write the kept part of each tensor, and the other files of the source; see `apply_checkpoint`."""
    check_mask(mask, spec)
    if options.max_shard_bytes < 1:
        raise PruneError(f"max_shard_bytes must be 1 or more, not {options.max_shard_bytes}")
    _check_vocabularies(source, spec, mask)
    _check_names(tensors.files, source, spec)
    verify(tensors.files)
    files = _divide_into_files(tensors, spec, mask, options.max_shard_bytes)
    is_renamed = tensors.rename is not None and any(tensors.rename(n) != n for n in spec.axes)
    small = shrink(spec, mask)
    # names in the file are not those of the spec where layers moved up, so that the sizes of its groups would mislead
    metadata = notes(KIND_PARAMS) if is_renamed else notes(KIND_PARAMS, sizes=small.sizes, masks=(mask,))
    metadata[JOB] = _fingerprint(tensors, notes(KIND_PARAMS, sizes=small.sizes, masks=(mask,)), options.max_shard_bytes)
    if target.resolve() == (source if source.is_dir() else source.parent).resolve():
        raise PruneError(f"{target} is the folder of the source; give another")
    check_target(source, target, files, overwrite=options.overwrite or is_ours(target, metadata[JOB]))
    target.mkdir(parents=True, exist_ok=True)
    if options.overwrite:
        remove_others(target, files, metadata[JOB])
    finished = finished_files(target, files, metadata[JOB])
    if not finished:
        atomic.write_text(target / UNFINISHED, metadata[JOB])
    config = _copy_rest(source, target, small, tensors.rename is not None) if source.is_dir() else None
    _write_files(target, files, finished, metadata, progress=options.progress)
    nbytes = sum(j.small.nbytes for jobs in files.values() for j in jobs)
    if len(files) > 1:
        places = {j.name: name for name, jobs in files.items() for j in jobs}
        index = {"metadata": {"total_size": nbytes}, "weight_map": dict(sorted(places.items()))}
        atomic.write_text(target / INDEX, json.dumps(index, indent=2) + "\n")
    return Streamed(tuple(target / n for n in files), len(files) - len(finished), nbytes, config)


def _write_files(
    target: Path,
    files: Mapping[str, list[_TensorJob]],
    finished: Collection[str],
    metadata: Mapping[str, str],
    *,
    progress: bool,
) -> None:
    """Write the files of tensors that are not finished."""
    total = sum(j.dense.nbytes for jobs in files.values() for j in jobs)
    with progress_bar(total=total, text="pruning", unit="B", scale=True, show=progress) as bar:
        for name, jobs in files.items():
            if name in finished:
                bar.update(sum(j.dense.nbytes for j in jobs))
            else:
                atomic.write(target / name, lambda part, jobs=jobs: _write_file(part, jobs, metadata, bar))
                (target / UNFINISHED).unlink(missing_ok=True)


# ---- the plan: which tensors go into which file


def _check_vocabularies(source: Path, spec: Spec, mask: Mask) -> None:
    """Check that no vocabulary of a folder of transformers loses tokens, whose ids stand in more of its files.

    Raises:
        PruneError: one does.
    """
    kinds = {g: i.kind for g, i in spec.program.interfaces.items()}
    lost = [g for g, m in mask.items() if kinds.get(g) == "vocabulary" and not bool(m.all())]
    if lost and source.is_dir() and (source / CONFIG).exists():
        raise PruneError(
            f"group {lost[0]!r} loses tokens, whose ids are in the tokenizer and the generation config of {source}, which are copied as "
            "they are; use to_module(params, spec=…, model=model).save_pretrained(folder) and pf.shrink_tokenizer"
        )


def _check_names(source_shards: tuple[Shard, ...], source: Path, spec: Spec) -> None:
    """Check that the checkpoint has the spec's tensors, at its sizes.

    Raises:
        ParamsError: a tensor is unknown, missing or of another shape; names the file and the tensor.
    """
    slots = spec.slots
    present = {n for s in source_shards for n in s.entries}
    for s in source_shards:
        for name, entry in s.entries.items():
            if name not in spec.axes:
                raise ParamsError(f"{s.path}: the spec has no tensor {name!r}{nearest(name, spec.axes)}")
            if entry.shape != spec.shape(name):
                raise ParamsError(
                    f"{s.path}: {name!r} has shape {entry.shape}, but the spec says {spec.shape(name)} = {spec.einops(name)}; trace "
                    "a model of this checkpoint's config"
                )
    ties = {frozenset(pair) for pair in spec.tied.items()}
    with_ties = present | {n for pair in ties if pair & present for n in pair}
    if lacking := [n for n in spec.axes if n not in with_ties and n not in slots]:
        raise ParamsError(f"{source} lacks {lacking[0]!r}{nearest(lacking[0], present)}")


def _tensor_job(
    s: Shard, name: str, tensors: Source, spec: Spec, mask: Mask, kept: dict[object, np.ndarray]
) -> _TensorJob:
    """Return the job of a tensor; `kept` caches the kept indices of each axis."""
    axes = spec.axes[name]
    for axis in axes:
        if axis not in kept:
            kept[axis] = keep(axis, mask, spec.sizes).numpy()
    path, entry = tensors.rewritten.get(name, (s.path, s.entries[name]))
    if (entry.dtype, entry.shape) != (s.entries[name].dtype, s.entries[name].shape):
        raise ParamsError(f"{path}: {name!r} is {entry.dtype} {entry.shape}, but it is another in {s.path}")
    return _TensorJob(
        name if tensors.rename is None else tensors.rename(name), path, entry, tuple(kept[a] for a in axes)
    )


def _divide_into_files(tensors: Source, spec: Spec, mask: Mask, limit: int) -> dict[str, list[_TensorJob]]:
    """Return file name → the tensors of that file, in the order of the source, at most `limit` bytes a file."""
    gone = removed_tensors(spec, removed_branches(spec, mask))
    kept: dict[object, np.ndarray] = {}
    files: list[list[_TensorJob]] = [[]]
    nbytes = 0
    for s in tensors.files:
        for name in sorted(s.entries.keys() - gone, key=lambda n, s=s: s.entries[n].start):
            job = _tensor_job(s, name, tensors, spec, mask, kept)
            if files[-1] and nbytes + job.small.nbytes > limit:
                files.append([])
                nbytes = 0
            files[-1].append(job)
            nbytes += job.small.nbytes
    if len(files) == 1:
        return {SINGLE: files[0]}
    return {f"model-{i:05}-of-{len(files):05}.safetensors": jobs for i, jobs in enumerate(files, 1)}


def _fingerprint(tensors: Source, metadata: Mapping[str, str], limit: int) -> str:
    """Return a hash of the source, the mask and the division into files."""
    digest = blake2b(digest_size=32)
    for s in tensors.files:
        digest.update(repr((*_stamp(s.path), sorted(s.entries.items()))).encode())
    for name, (path, _) in sorted(tensors.rewritten.items()):
        digest.update(repr((name, *_stamp(path))).encode())
    digest.update(repr((metadata["sizes"], metadata["masks"], limit)).encode())
    return digest.hexdigest()


def _stamp(path: Path) -> tuple[str | int, ...]:
    """Return the name of a file and its seal; without one, its size and time of modification."""
    with Reader(path) as reader:
        seal = reader.metadata.get(SEAL)
    stat = path.stat()
    return (path.name, seal) if seal is not None else (path.name, stat.st_size, stat.st_mtime_ns)


def _copy_rest(source: Path, target: Path, small: Spec, moves_layers: bool) -> Path | None:
    """Copy tokenizers and the like unchanged, and write the config at the new sizes; return its path, or None without one."""
    for path in companions(source):
        if not (target / path.name).exists() or not filecmp.cmp(path, target / path.name, shallow=False):
            atomic.write(target / path.name, lambda part, path=path: shutil.copyfile(path, part))
    if not (source / CONFIG).exists():
        return None
    # a config of fewer layers is for tensors whose layers moved up
    text = streamed_config(source / CONFIG, small) if moves_layers or not small.removed else None
    name, other = (f"dense_{CONFIG}", CONFIG) if text is None else (CONFIG, f"dense_{CONFIG}")
    atomic.write_text(target / name, (source / CONFIG).read_text(encoding="utf-8") if text is None else text)
    (target / other).unlink(missing_ok=True)
    return None if text is None else target / name


# ---- a file, piece by piece


def _write_file(path: str, jobs: list[_TensorJob], metadata: Mapping[str, str], bar: tqdm) -> None:
    """Write the pruned tensors of one file, a piece at a time."""
    job_of = {j.name: j for j in jobs}
    with Writer(path, {j.name: j.small for j in jobs}, metadata) as writer:
        for name in writer.entries:
            with Reader(job_of[name].source) as reader:
                for piece in _pieces(reader, job_of[name]):
                    writer.write(piece)
            bar.update(job_of[name].dense.nbytes)


def _pieces(reader: Reader, job: _TensorJob) -> Iterator[memoryview]:
    """Yield the bytes of the kept part of a tensor, some rows at a time."""
    dense, (rows, *rest) = job.dense, job.kept or (np.ones(1, dtype=bool),)
    if not job.small.nbytes:
        return
    row = dense.nbytes // len(rows)
    step = max(PIECE // row, 1)
    columns = [None if k.all() else k.nonzero()[0] for k in rest]
    for first in range(0, len(rows), step):
        kept_rows = rows[first : first + step].nonzero()[0]
        if not len(kept_rows):
            continue
        low, high = int(kept_rows[0]), int(kept_rows[-1]) + 1
        # unsigned integers of the same width, because numpy lacks bfloat16 and float8
        data = np.empty((high - low, *dense.shape[1:]), dtype=f"u{dense.itemsize}")
        reader.fill(data.reshape(-1).view(np.uint8).data, dense.start + (first + low) * row)
        if len(kept_rows) < high - low:
            data = data[kept_rows - low]
        for d, index in enumerate(columns, 1):
            if index is not None:
                data = np.take(data, index, axis=d)
        yield np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
