"""Output of a training: a bar over all its epochs, or about twenty lines an epoch; TensorBoard; rows of numbers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from ..display.progress import has_bars, write_line
from .checkpoint import write_lines

LINES = 20
"""Lines an epoch, where there is no terminal."""


class Log:
    """Output of one stage, by the rank that writes.

    Args:
        folder: of the stage; None: no files.
        name: of the stage.
        progress: whether to show anything.
        active: whether this is the rank that writes.
        update: number of updates so far; TensorBoard drops later ones of an earlier process.
    """

    def __init__(self, folder: Path | None, name: str, *, progress: bool, active: bool, update: int = 0) -> None:
        self.folder, self.name = folder, name
        self.progress, self.active = progress and active, active
        self.writer: Any = None
        if folder is not None and active:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "logs"), purge_step=update or None)
        self.bar: tqdm | None = None
        self.title, self.steps, self.every = name, 0, 1

    def start_epoch(self, number: int, epochs: int, steps: int, step: int) -> None:
        """Start an epoch of `steps` updates, `step` of which are done."""
        self.title = f"{self.name} {number}/{epochs}"
        self.steps, self.every = steps, max(1, round(steps / LINES))
        if self.bar is None and self.progress and has_bars(sys.stderr):
            done = (number - 1) * steps + step
            self.bar = tqdm(total=epochs * steps, initial=done, leave=False, mininterval=0.5)
        if self.bar is not None:
            self.bar.set_description_str(self.title, refresh=False)

    def show_step(self, step: int, update: int, values: Mapping[str, float]) -> None:
        """Show the values of an update; call it only where `shows_step` is true."""
        if self.writer is not None:
            for key, value in values.items():
                self.writer.add_scalar(f"{self.name}/{key}", value, update)
        text = ", ".join(f"{k} {v:.4g}" for k, v in values.items())
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
        elif self.progress:
            write_line(f"{self.title}, {step}/{self.steps}: {text}", sys.stderr)

    def shows_step(self, step: int) -> bool:
        """Return whether an update's numbers are shown: reading them waits for the GPU."""
        return self.active and (step % self.every == 0 or step == self.steps)

    def tick(self) -> None:
        """Advance the bar by one update."""
        if self.bar is not None:
            self.bar.update()

    def show_rows(self, rows: list[dict[str, Any]]) -> None:
        """Show the last row, and write all rows."""
        if not self.active:
            return
        row = rows[-1]
        if self.writer is not None:
            for key, value in row.items():
                if isinstance(value, int | float) and key not in ("epoch", "update"):
                    self.writer.add_scalar(f"{self.name}/{key}", value, row["update"])
            self.writer.flush()
        if self.folder is not None:
            write_lines(self.folder / "metrics.jsonl", rows)
        if self.progress:
            shown = {k: v for k, v in row.items() if isinstance(v, float)}
            write_line(f"{self.title}: " + ", ".join(f"{k} {v:.4g}" for k, v in shown.items()), sys.stderr)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.writer is not None:
            self.writer.close()
