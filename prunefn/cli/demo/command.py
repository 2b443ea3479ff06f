"""The command `prunefn demo`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ..command import report_errors
from ..errors import need

VALIDATION = 0.1
"""Fraction of the training images by which the epoch is chosen."""
PACKAGES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "rich": "rich", "torchvision": "torchvision"}
PACKAGES |= {"timm": "timm", "accelerate": "accelerate", "pydantic": "pydantic"}


def demo(
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of weights and batches.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the report; it is created if necessary.")] = Path("demo"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; the last bits of a result depend on it.")] = 1,
) -> None:
    """Train a small ViT and a small ResNet on scikit-learn's digits, prune them in several ways, write a report.

    Takes about a minute on one core. Exit code 1: the run failed; 2: wrong options.
    """
    need(PACKAGES)
    from rich.console import Console

    from ...data import open_data
    from ...tables import terminal
    from ..devices import device_of
    from .study import networks, study
    from .write import Run, check_folder, summary, table, write

    device_of(device)
    call = ["prunefn", "demo", "--seed", str(seed), "--out", str(out), "--device", device, "--threads", str(threads)]
    with report_errors(False), fixed_threads(threads):
        check_folder(out)
        data = open_data("digits", validation_fraction=VALIDATION)
        studies = [study(network, data, seed=seed, device=device) for network in networks()]
        files = write(studies, Run(shlex.join(call), seed, device, threads), out)
        console = Console()
        for s in studies:
            console.print(terminal(table(s)))
            console.print(summary(s), highlight=False)
            console.print()
        console.print(f"Written to {out}: {', '.join(files)}", soft_wrap=True, highlight=False)


@contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """Set the number of CPU threads, and cuDNN to reproducible kernels; restore both afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            yield
    finally:
        torch.set_num_threads(before)
