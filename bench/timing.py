"""Interleaved timing, and the table that the results go into."""

from __future__ import annotations

import csv
import io
import platform
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

CLOCK = time.process_time
"""CPU seconds of this process: with one thread, what wall time would be on a machine of one's own."""

PACKAGES = (
    "torch",
    "onnxruntime",
    "openvino",
    "torchvision",
    "timm",
    "transformers",
    "torch-pruning",
    "foolbox",
    "scikit-image",
)


class Row(NamedTuple):
    """One measurement beside its goal."""

    goal: str
    case: str
    ours: str
    reference: str
    value: float
    """What the goal is about: a ratio, seconds or bytes."""
    limit: float
    at_least: bool = False
    unit: str = "×"
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def cells(self) -> list[str]:
        """The row as text."""
        sign = "≥" if self.at_least else "≤"
        number = f"{self.value:.2f} {self.unit}"
        goal = f"{sign} {self.limit:.3g} {self.unit}"
        return [self.goal, self.case, self.ours, self.reference, number, goal, "yes" if self.met else "NO", self.note]


HEADER = ["what", "case", "ours", "reference", "measured", "goal", "met", "note"]


def interleaved(
    functions: dict[str, Callable[[], Any]], *, rounds: int, warm_up: int = 1, text: str = ""
) -> dict[str, list[float]]:
    """Seconds of each call by `CLOCK`, A B A B …; the order turns from round to round."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for i in tqdm(range(-warm_up, rounds), desc=text, leave=False):
        for name in names if i % 2 else reversed(names):
            start = CLOCK()
            functions[name]()
            if i >= 0:
                times[name].append(CLOCK() - start)
    return times


def ratio_row(goal: str, case: str, times: dict[str, list[float]], limit: float, note: str = "") -> Row:
    """Ours over the reference: the median of the ratios of the rounds."""
    (_, ours), (_, reference) = times.items()
    value = median(a / b for a, b in zip(ours, reference, strict=True))
    return Row(goal, case, seconds(median(ours)), seconds(median(reference)), value, limit, note=note)


def seconds(s: float) -> str:
    """A duration in s or ms."""
    return f"{s:.2f} s" if s >= 1 else f"{s * 1e3:.1f} ms"


def versions() -> str:
    """What was measured with; no paths and no host names."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return f"Python {platform.python_version()}, {', '.join(found)}; CPU, threads: {torch.get_num_threads()}"


def markdown(header: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def write(folder: Path, name: str, title: str, header: list[str], rows: list[list[str]], remarks: str) -> None:
    """`name`.csv and `name`.md in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    (folder / f"{name}.csv").write_text(text.getvalue(), encoding="utf-8")
    page = f"# {title}\n\n{remarks}\n\n{markdown(header, rows)}\n\n{versions()}\n"
    (folder / f"{name}.md").write_text(page, encoding="utf-8")
