"""The work folder beside a target: finished layers of a job, sealed, so that the same call resumes after an interruption."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from ..display.progress import progress_bar
from ..errors import FormatError, PruneError
from ..files import atomic
from ..files.folder import read_all, shard
from ..files.tensors import check_seal, save_sealed
from ..stats.by_layer import Measure, Values, collect_segment
from ..types import Batch, Stats

ENDING = ".prunefn-work"
JOB = "job.txt"


class Work:
    """A work folder.

    Args:
        target: the folder that the job writes in the end.
        job: hash of the inputs and options.

    Raises:
        PruneError: the target exists, or the folder is of another job.
    """

    def __init__(self, target: Path, job: str) -> None:
        self.folder = target.with_name(target.name + ENDING)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise PruneError(f"{target} exists; give a new folder, or delete it")
        existing = self.folder / JOB
        if existing.exists() and existing.read_text("utf-8") != job:
            raise PruneError(
                f"{self.folder} is what an interrupted run left, with another model, other batches or other options; repeat that "
                "call, or delete the folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(existing, job)

    def file(self, stage: str, number: int) -> Path:
        """Return the path of what a stage keeps of a segment."""
        return self.folder / f"{stage}-{number:04}.safetensors"

    def states(self, stage: str, number: int) -> Path:
        """Return the folder of what a segment gives to the next."""
        return self.folder / f"{stage}-states-{number:04}"

    def is_finished(self, file: Path) -> bool:
        """Return whether a file is there, whole.

        Raises:
            PruneError: it is damaged.
        """
        if not file.exists():
            return False
        try:
            check_seal(file)
        except (FormatError, OSError) as error:
            raise PruneError(f"{file} is damaged: {error}; call again") from error
        return True

    @contextlib.contextmanager
    def removed_after_errors(self) -> Iterator[None]:
        """Remove the folder after an error that the same call would meet again; keep it after an interruption or a full disk."""
        try:
            yield
        except (OSError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:
            self.remove()
            raise

    def finish(self, result: Path, target: Path) -> None:
        """Move the result to the target, and remove the folder."""
        if target.exists():  # and is empty
            target.rmdir()
        result.rename(target)
        self.remove()

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)


class Stored:
    """States on disk: those of the segment before, and those of this one.

    Args:
        before: folder of the states to read; None for the first segment.
        after: folder of the states to write.
    """

    def __init__(self, before: Path | None, after: Path) -> None:
        self.before, self.after = before, after
        after.mkdir(exist_ok=True)

    def read(self, batch: int) -> Values:
        """Return the states of a batch.

        Raises:
            PruneError: their file is missing or damaged.
        """
        if self.before is None:
            return {}
        file = self.before / f"{batch:06}.safetensors"
        try:
            check_seal(file)
            return read_all((shard(file),))
        except (FormatError, OSError) as error:
            raise PruneError(f"{file} is damaged: {error}; call again") from error

    def write(self, batch: int, values: Values) -> None:
        """Keep the states of a batch."""
        save_sealed(self.after / f"{batch:06}.safetensors", {n: t.contiguous() for n, t in values.items()}, {})


def run_layers(
    work: Work,
    stage: str,
    measures: Sequence[Measure],
    batches: Sequence[Batch],
    start: Stats,
    write: Callable[[Path, Stats], None],
    *,
    progress: bool,
) -> list[Path]:
    """Run all segments in order, and return the file that `write` makes of the statistics of each.

    Segments whose file is there are skipped. The states of a segment are removed when the next one is finished.
    """
    files = [work.file(stage, n) for n in range(len(measures))]
    total = len(measures) * len(batches)
    with progress_bar(total=total, text=stage, unit=" batches of a layer", show=progress) as bar:
        for n, (measure, file) in enumerate(zip(measures, files, strict=True)):
            before, after = work.states(stage, n - 1) if n else None, work.states(stage, n)
            if work.is_finished(file):
                bar.update(len(batches))
                continue
            states = Stored(before, after)
            write(file, collect_segment(dict(start.params), batches, states, measure, start=start, bar=bar))
            if before is not None:
                shutil.rmtree(before)
    return files


def until_last(measures: Sequence[Measure]) -> list[Measure]:
    """Return the segments up to the last one in which something is measured, which gives nothing to others."""
    last = max((n for n, m in enumerate(measures) if m.sites or m.places or m.stacked or m.routes), default=-1)
    return [
        m if n < last else m._replace(segment=m.segment._replace(hands=())) for n, m in enumerate(measures[: last + 1])
    ]
