"""The command `prunefn demo`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer

from ..command import ended
from ..errors import device_of, need, reported


def demo(
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of weights, batches and augmentation.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the report; made if it is not there.")] = Path("demo"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; the last bits of a result depend on it.")] = 1,
) -> None:
    """Train a small ViT and a small ResNet on scikit-learn's digits, prune them in several ways, write a report.

    Takes about a minute on one core. Exit code 1: the run failed; 2: wrong options.
    """
    need({"sklearn": "scikit-learn", "matplotlib": "matplotlib", "rich": "rich"})
    from rich.console import Console

    from ...data import digits
    from ...tables import terminal
    from .study import RESNET, VIT, DemoError, study
    from .write import Run, check_folder, table, words, write

    where = device_of(device)
    call = ["prunefn", "demo", "--seed", str(seed), "--out", str(out), "--device", device, "--threads", str(threads)]
    with ended(False), reported(DemoError), steady(threads):
        check_folder(out)
        split = digits(device=where)
        studies = [study(network, split, seed=seed) for network in (VIT, RESNET)]
        written = write(studies, Run(shlex.join(call), seed, device, threads), out)
    console = Console()
    for s in studies:
        console.print(terminal(table(s)))
        console.print(words(s), highlight=False)
        console.print()
    console.print(f"Written to {out}: {', '.join(written)}", soft_wrap=True, highlight=False)


@contextmanager
def steady(threads: int) -> Iterator[None]:
    """So many CPU threads, and cuDNN's reproducible kernels; afterwards all is as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            yield
    finally:
        torch.set_num_threads(before)
