"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747; MIT): 70 000 grey pictures of clothes, 28 × 28, ten classes.

The 60 000 training images are split: the first 55 000 are trained on (calibration takes the first few of them), the last
5 000 are for choices. The 10 000 test images are only ever measured on.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

VARIABLE = "PRUNEFN_DATA"
DISTRIBUTION = Path("/usr/share/datasets/fashion-mnist")
INSTALL = f"apt-get install dataset-fashion-mnist, or set {VARIABLE} to the folder of its four idx files"
TRAINING = 55_000
MEAN, STD = 0.2860, 0.3530
"""Of the training pixels, from 0 to 1."""
BACKGROUND = -MEAN / STD
"""An empty pixel after normalisation."""


class Images(NamedTuple):
    """Normalised images [n, 1, 28, 28] and their classes [n], int64."""

    images: Tensor
    labels: Tensor

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """In order; the last one may be smaller."""
        return zip(self.images.split(size), self.labels.split(size), strict=True)


def training() -> Images:
    """The 55 000 images that the networks learn from, without augmentation."""
    return _part("train", slice(None, TRAINING))


def validation() -> Images:
    """5 000 images for choices: no network has seen them, and no result is measured on them."""
    return _part("train", slice(TRAINING, None))


def test() -> Images:
    """The 10 000 test images."""
    return _part("t10k", slice(None))


def calibration(n: int = 2048) -> Images:
    """The first n training images, clean."""
    return _part("train", slice(None, n))


def augmented(images: Tensor, generator: torch.Generator, margin: int = 2) -> Tensor:
    """Each image [n, c, h, w] at a random place of its frame widened by a margin of pixels, mirrored half of the time."""
    n, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, [margin] * 4, value=BACKGROUND)
    top, left = torch.randint(2 * margin + 1, (2, n, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    picture = torch.arange(n)[:, None, None]
    return padded[picture, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(network: Callable[[Tensor], Tensor], data: Images, *, batch: int = 250) -> float:
    """Top-1 of anything that gives logits [n, classes] for images; a module should be in eval mode."""
    right = sum(int((network(x).argmax(1) == y).sum()) for x, y in data.batches(batch))
    return right / len(data.labels)


def _part(name: str, part: slice) -> Images:
    images, labels = _read(name, folder())
    return Images((images[part].float() / 255 - MEAN) / STD, labels[part].long())


@cache
def _read(name: str, where: Path) -> tuple[Tensor, Tensor]:
    """Bytes [n, 1, 28, 28] and classes [n]."""
    images = _idx(where / f"{name}-images-idx3-ubyte", header=16).reshape(-1, 1, 28, 28)
    return images, _idx(where / f"{name}-labels-idx1-ubyte", header=8)


def _idx(path: Path, *, header: int) -> Tensor:
    """The bytes of an idx file, gzipped or not."""
    content = path.read_bytes() if path.exists() else gzip.decompress(path.with_name(path.name + ".gz").read_bytes())
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy())


def folder() -> Path:
    """Where the data is: the folder of the environment variable if set, else the distribution's.

    Raises:
        SystemExit: it is not there; says how to install it.
    """
    where = Path(os.environ.get(VARIABLE) or DISTRIBUTION)
    stems = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    missing = [s for s in stems if not (where / s).exists() and not (where / f"{s}.gz").exists()]
    if missing:
        raise SystemExit(f"Fashion-MNIST: no {missing[0]}[.gz] in {where}; {INSTALL}")
    return where
