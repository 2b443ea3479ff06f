"""Prune checkpoints larger than memory from file to file, a piece of a tensor at a time."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Collection, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ..display.progress import progress_bar
from ..doors import door
from ..errors import ParamsError, PruneError, nearest
from ..files import atomic
from ..files.folder import INDEX, SINGLE, Shard, shards, verify
from ..files.tensors import SEAL, Reader, Writer
from ..modules.hf_config_file import CONFIG, layout_hint, streamed_config
from ..modules.pruned_file import KIND_PARAMS, notes
from ..parameters.transforms import check_mask, shrink
from ..spec.branches import removed_tensors
from ..spec.spec import Spec, removed_branches
from ..types import Mask
from .stream_jobs import Job, Kept, Source, jobs_of
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
    config: str | None = None
    """Text of `config.json` at the new sizes; None: it is derived from that of the source."""


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
    is_renamed = tensors.layout is not None or any(tensors.renamed(n) != n for n in spec.axes)
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
    config = _copy_rest(source, target, small, tensors, options) if source.is_dir() else None
    _write_files(target, files, finished, metadata, progress=options.progress)
    nbytes = sum(j.small.nbytes for jobs in files.values() for j in jobs)
    if len(files) > 1:
        places = {j.name: name for name, jobs in files.items() for j in jobs}
        index = {"metadata": {"total_size": nbytes}, "weight_map": dict(sorted(places.items()))}
        atomic.write_text(target / INDEX, json.dumps(index, indent=2) + "\n")
    return Streamed(tuple(target / n for n in files), len(files) - len(finished), nbytes, config)


def _write_files(
    target: Path,
    files: Mapping[str, list[Job]],
    finished: Collection[str],
    metadata: Mapping[str, str],
    *,
    progress: bool,
) -> None:
    """Write the files of tensors that are not finished."""
    total = sum(j.dense_bytes for jobs in files.values() for j in jobs)
    with progress_bar(total=total, text="pruning", unit="B", scale=True, show=progress) as bar:
        for name, jobs in files.items():
            if name in finished:
                bar.update(sum(j.dense_bytes for j in jobs))
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
                raise ParamsError(
                    f"{s.path}: the spec has no tensor {name!r}{nearest(name, spec.axes)}{layout_hint(source)}"
                )
            if entry.shape != spec.shape(name):
                raise ParamsError(
                    f"{s.path}: {name!r} has shape {entry.shape}, but the spec says {spec.shape(name)} = {spec.einops(name)}; trace "
                    "a model of this checkpoint's config"
                )
    ties = {frozenset(pair) for pair in spec.tied.items()}
    with_ties = present | {n for pair in ties if pair & present for n in pair}
    if lacking := [n for n in spec.axes if n not in with_ties and n not in slots]:
        raise ParamsError(f"{source} lacks {lacking[0]!r}{nearest(lacking[0], present)}{layout_hint(source)}")


def _divide_into_files(tensors: Source, spec: Spec, mask: Mask, limit: int) -> dict[str, list[Job]]:
    """Return file name → the tensors of that file, in the order of the source, at most `limit` bytes a file."""
    gone = removed_tensors(spec, removed_branches(spec, mask))
    kept = Kept(mask, spec)
    files: list[list[Job]] = [[]]
    nbytes = 0
    for s in tensors.files:
        for name in sorted(s.entries.keys() - gone, key=lambda n, s=s: s.entries[n].start):
            for job in jobs_of(s, name, tensors, kept):
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


def _copy_rest(source: Path, target: Path, small: Spec, tensors: Source, options: WriteOptions) -> Path | None:
    """Copy tokenizers and the like unchanged, and write the config at the new sizes; return its path, or None without one."""
    for path in companions(source):
        if not (target / path.name).exists() or not filecmp.cmp(path, target / path.name, shallow=False):
            atomic.write(target / path.name, lambda part, path=path: shutil.copyfile(path, part))
    if not (source / CONFIG).exists():
        return None
    # a config of fewer layers is for tensors whose layers moved up
    has_config = tensors.rename is not None or not small.removed
    text = options.config or (streamed_config(source / CONFIG, small) if has_config else None)
    name, other = (f"dense_{CONFIG}", CONFIG) if text is None else (CONFIG, f"dense_{CONFIG}")
    atomic.write_text(target / name, (source / CONFIG).read_text(encoding="utf-8") if text is None else text)
    (target / other).unlink(missing_ok=True)
    return None if text is None else target / name


# ---- a file, piece by piece


def _write_file(path: str, jobs: list[Job], metadata: Mapping[str, str], bar: tqdm) -> None:
    """Write the pruned tensors of one file, a piece at a time."""
    job_of = {j.name: j for j in jobs}
    with Writer(path, {j.name: j.small for j in jobs}, metadata) as writer:
        for name in writer.entries:
            for piece in job_of[name].pieces():
                writer.write(piece)
            bar.update(job_of[name].dense_bytes)
