"""What a run says while it goes on: a bar, or about twenty lines an epoch; TensorBoard; rows of numbers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from .checkpoint import write_lines

LINES = 20
"""An epoch, where there is no terminal."""


class Log:
    """Of one stage, by the rank that writes; other ranks say nothing."""

    def __init__(self, folder: Path | None, name: str, *, progress: bool, active: bool, done: int = 0) -> None:
        self.folder, self.name = folder, name
        self.progress, self.active = progress and active, active
        self.writer: Any = None
        if folder is not None and active:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "logs"), purge_step=done or None)
        self.bar: tqdm | None = None
        self.steps, self.every = 0, 1

    def epoch(self, number: int, epochs: int, steps: int, done: int) -> None:
        """A new epoch of so many updates, some of which may be done."""
        self.title = f"{self.name} {number}/{epochs}"
        self.steps, self.every = steps, max(1, round(steps / LINES))
        if self.progress and sys.stderr.isatty():
            self.bar = tqdm(total=steps, initial=done, desc=self.title, leave=False, mininterval=0.5)

    def step(self, step: int, update: int, values: Mapping[str, float]) -> None:
        """After an update; the values are only looked at when they are shown: see `wanted`."""
        if self.writer is not None:
            for key, value in values.items():
                self.writer.add_scalar(f"{self.name}/{key}", value, update)
        text = ", ".join(f"{k} {v:.4g}" for k, v in values.items())
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
        elif self.progress:
            tqdm.write(f"{self.title}, {step}/{self.steps}: {text}", file=sys.stderr)

    def wanted(self, step: int) -> bool:
        """Whether this update's numbers are shown; fetching them from a GPU makes it wait."""
        return self.active and (step % self.every == 0 or step == self.steps)

    def tick(self) -> None:
        """An update is done."""
        if self.bar is not None:
            self.bar.update()

    def row(self, rows: list[dict[str, Any]]) -> None:
        """The last row is new: show it, and write them all."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
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
            tqdm.write(f"{self.title}: " + ", ".join(f"{k} {v:.4g}" for k, v in shown.items()), file=sys.stderr)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.writer is not None:
            self.writer.close()
