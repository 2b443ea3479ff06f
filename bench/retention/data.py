"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747; MIT): 70 000 grey pictures of clothes, 28 × 28, ten classes.

The 60 000 training images are split: the first 55 000 are trained on (calibration takes the first few of them), the last
5 000 are for choices. The 10 000 test images are only ever measured on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from prunefn.data.idx import Pictures, fashion_mnist_folder, read_pictures
from prunefn.errors import PruneError

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
    images, labels = _read(name)
    return Images((images[part].float() / 255 - MEAN) / STD, labels[part])


@cache
def _read(name: str) -> Pictures:
    """Bytes [n, 1, 28, 28] and classes [n].

    Raises:
        SystemExit: the data is not there; says how to install it.
    """
    try:
        return read_pictures(fashion_mnist_folder(), name)
    except PruneError as error:
        raise SystemExit(str(error)) from error
