"""Progress of long loops on stderr: a bar on a terminal or in a notebook, a short line every few seconds elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

SECONDS = 10.0
"""Between two lines."""
LINE = "{desc}: {n_fmt}/{total_fmt}, {remaining} left{postfix}"


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    show: bool,
    text: str,
    total: float | None = None,
    initial: int = 0,
    unit: str = "it",
    scale: bool = False,
) -> tqdm:
    """Return the items with a bar around them, or a bar to be updated; it goes away when it is done.

    Args:
        items: to loop over; None: the caller updates the bar.
        show: whether anything is shown.
        text: what the loop does, in front of the bar.
        total: number of steps; None: the length of the items, if they have one.
        initial: steps that are done already.
        unit: of a step.
        scale: whether numbers are shortened, as 1.2M.

    >>> [n for n in progress_bar([1, 2], show=False, text="batches")]
    [1, 2]
    """
    lines: dict[str, Any] = {}
    if show and not has_bars(sys.stderr):
        lines = {"file": Lines(sys.stderr), "bar_format": LINE, "mininterval": SECONDS, "position": 0}
    return tqdm(
        items,
        desc=text,
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=scale,
        disable=not show,
        leave=False,
        **lines,
    )


def has_bars(stream: Any) -> bool:
    """Return whether a line of a stream can be written over: it is a terminal, or the output of a notebook."""
    return stream is not None and (stream.isatty() or type(stream).__module__.startswith("ipykernel"))


def write_line(text: str, stream: TextIO) -> None:
    """Write a line at once, above the bars of a terminal."""
    tqdm.write(text, file=stream)
    stream.flush()


class Lines:
    """A stream for tqdm where nothing can be written over: what it draws becomes a line each."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        """Write a line, without what is not known yet; leave out what clears a bar."""
        line = text.replace("\r", "").replace("/?", "").replace(", ? left", "").strip()
        if line:
            self.stream.write(line + "\n")

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()
