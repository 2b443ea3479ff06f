"""The target folder of a streamed checkpoint: which files exist, which job wrote them, and which may be replaced."""

from __future__ import annotations

import filecmp
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from ..errors import FormatError, PruneError
from ..files.folder import INDEX
from ..files.tensors import Reader, check_seal
from ..modules.hf_config_file import CONFIG

JOB = "job"
"""Key of the metadata for the fingerprint of source, mask and division into files."""
UNFINISHED = ".prunefn-unfinished"
"""A file in the target until its first file of tensors is complete; it holds the job."""


def is_ours(target: Path, job: str) -> bool:
    """Return whether this job wrote the target, finished or not."""
    if (target / UNFINISHED).is_file() and (target / UNFINISHED).read_bytes() == job.encode():
        return True
    for path in target.glob("*.safetensors") if target.is_dir() else ():
        with suppress(FormatError, OSError), Reader(path) as reader:
            if reader.metadata.get(JOB) == job:
                return True
    return False


def check_target(source: Path, target: Path, names: Collection[str], *, overwrite: bool) -> None:
    """Check that no file of another origin would be overwritten.

    Raises:
        PruneError: a file would be; names it.
    """
    if target.exists() and not target.is_dir():
        raise PruneError(f"{target} is a file; give a folder")
    for name in (*names, INDEX):
        if (target / name).is_symlink():  # it may lead to the source
            raise PruneError(
                f"{target / name} is a link, and the file that it points to would be replaced; delete the link"
            )
    for path in companions(source) if source.is_dir() else ():
        existing = target / path.name
        if existing.exists() and (
            existing.samefile(path) or not (overwrite or filecmp.cmp(path, existing, shallow=False))
        ):
            raise PruneError(f"{existing} exists and differs from {path}; give an empty folder, or overwrite=True")
    for name in (INDEX, CONFIG, f"dense_{CONFIG}"):
        if (target / name).exists() and not overwrite and (name == INDEX or (source / CONFIG).exists()):
            raise PruneError(
                f"{target / name} exists and is of another source, mask, spec or max_shard_bytes than this call; give an empty "
                "folder, or overwrite=True"
            )


def remove_others(target: Path, names: Collection[str], job: str) -> None:
    """Remove the checkpoint of another job: the index first, so that half a checkpoint can never be loaded."""
    stale = []
    for path in sorted(target.glob("*.safetensors")):
        try:
            finished = _is_finished(path, names, job)
        except (FormatError, OSError):
            finished = False
        stale += [] if finished else [path]
    if stale or len(names) == 1:
        (target / INDEX).unlink(missing_ok=True)
    for path in stale:
        if SHARD.fullmatch(path.name):
            path.unlink()


SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
"""Names of files of tensors, as transformers gives them."""


def _is_finished(path: Path, names: Collection[str], job: str) -> bool:
    """Return whether this job wrote a file completely.

    Raises:
        FormatError, OSError: the file is damaged.
    """
    with Reader(path) as reader:
        is_of_job = reader.metadata.get(JOB) == job and path.name in names
    if is_of_job:
        check_seal(path)
    return is_of_job


def finished_files(target: Path, names: Collection[str], job: str) -> set[str]:
    """Return the names of the files that this job wrote completely.

    Raises:
        PruneError: a file is damaged, or another job wrote it.
    """
    finished = set()
    for path in sorted(target.glob("*.safetensors")):
        try:
            is_finished = _is_finished(path, names, job)
        except (FormatError, OSError) as error:
            raise PruneError(f"{path} is damaged: {error}; delete it, and call again to write it again") from error
        if not is_finished:
            raise PruneError(
                f"{path} is of another source, mask, spec or max_shard_bytes than this call; give an empty folder, delete it, or pass "
                "overwrite=True"
            )
        finished.add(path.name)
    if len(finished) < len(names):
        (target / INDEX).unlink(missing_ok=True)
    return finished


def companions(source: Path) -> list[Path]:
    """Return the files that are copied unchanged: all but weights and the config."""
    return [p for p in sorted(source.iterdir()) if p.is_file() and not _is_weights(p.name) and p.name != CONFIG]


WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".part")
"""Endings of files that hold weights."""


def _is_weights(name: str) -> bool:
    """Return whether a file holds the dense tensors in some format, or is an index of them."""
    return name.endswith((*WEIGHTS, ".index.json"))
