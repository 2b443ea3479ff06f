"""The folder that a streamed checkpoint is written to: what is there already, whose it is, and what may be replaced."""

from __future__ import annotations

import filecmp
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from ..errors import PruneError
from ..files.folder import INDEX
from ..files.tensors import FormatError, Reader, check_seal
from ..modules.hf_config_file import CONFIG

JOB = "job"
"""Key of the metadata that says what a file was made of."""
UNFINISHED = ".prunefn-unfinished"
"""A file in the target until its first file of tensors is complete; it holds the job."""


def is_ours(target: Path, job: str) -> bool:
    """Whether the target is of this job, finished or not."""
    if (target / UNFINISHED).is_file() and (target / UNFINISHED).read_bytes() == job.encode():
        return True
    for path in target.glob("*.safetensors") if target.is_dir() else ():
        with suppress(FormatError, OSError), Reader(path) as reader:
            if reader.metadata.get(JOB) == job:
                return True
    return False


def check_target(source: Path, target: Path, names: Collection[str], *, overwrite: bool) -> None:
    """Nothing is written over that somebody else wrote.

    Raises:
        PruneError: names the file.
    """
    if target.exists() and not target.is_dir():
        raise PruneError(f"{target} is a file; give a folder")
    for name in (*names, INDEX):
        if (target / name).is_symlink():  # it may lead to the source
            raise PruneError(f"{target / name} is a link, and what is behind it would be replaced; delete the link")
    for path in companions(source) if source.is_dir() else ():
        old = target / path.name
        if old.exists() and (old.samefile(path) or not (overwrite or filecmp.cmp(path, old, shallow=False))):
            raise PruneError(f"{old} exists and is another than {path}; give an empty folder, or overwrite=True")
    for name in (INDEX, CONFIG, f"dense_{CONFIG}"):
        if (target / name).exists() and not overwrite and (name == INDEX or (source / CONFIG).exists()):
            raise PruneError(
                f"{target / name} exists and is of another source, mask, spec or max_shard_bytes than this call; give an empty "
                "folder, or overwrite=True"
            )


def remove_others(target: Path, names: Collection[str], job: str) -> None:
    """Remove a checkpoint of something else: the index first, so that at no time half of one can be loaded."""
    stale = []
    for path in sorted(target.glob("*.safetensors")):
        try:
            mine = _is_mine(path, names, job)
        except (FormatError, OSError):
            mine = False
        stale += [] if mine else [path]
    if stale or len(names) == 1:
        (target / INDEX).unlink(missing_ok=True)
    for path in stale:
        if SHARD.fullmatch(path.name):
            path.unlink()


SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
"""Names of files of tensors, as transformers gives them."""


def _is_mine(path: Path, names: Collection[str], job: str) -> bool:
    """Whether a file is of this job and complete.

    Raises:
        FormatError, OSError: it is damaged.
    """
    with Reader(path) as reader:
        mine = reader.metadata.get(JOB) == job and path.name in names
    if mine:
        check_seal(path)
    return mine


def finished_files(target: Path, names: Collection[str], job: str) -> set[str]:
    """The files of this job that are complete.

    Raises:
        PruneError: a file is of another job, or damaged.
    """
    found = set()
    for path in sorted(target.glob("*.safetensors")):
        try:
            mine = _is_mine(path, names, job)
        except (FormatError, OSError) as error:
            raise PruneError(f"{path} is damaged: {error}; delete it, and call again to write it anew") from error
        if not mine:
            raise PruneError(
                f"{path} is of another source, mask, spec or max_shard_bytes than this call; give an empty folder, delete it, or say "
                "overwrite=True"
            )
        found.add(path.name)
    if len(found) < len(names):
        (target / INDEX).unlink(missing_ok=True)
    return found


def companions(source: Path) -> list[Path]:
    """Files that are copied as they are."""
    return [p for p in sorted(source.iterdir()) if p.is_file() and not _is_weights(p.name) and p.name != CONFIG]


WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".part")


def _is_weights(name: str) -> bool:
    """Whether it holds the dense tensors in some format, or says where they are."""
    return name.endswith((*WEIGHTS, ".index.json"))
