"""MNIST's idx files, as MNIST and Fashion-MNIST come in: 28 × 28 bytes and ten classes, gzipped or not."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import PruneError

VARIABLE = "PRUNEFN_DATA"
DISTRIBUTION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""
STEMS = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
CLASSES = 10


class Pictures(NamedTuple):
    """Images [n, channels, height, width], uint8 or float from 0 to 1, and their classes [n], int64."""

    images: Tensor
    labels: Tensor


def fashion_mnist_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Where the four files of Fashion-MNIST are.

    Looked for in the folder that is given, else in that of the environment variable PRUNEFN_DATA and then in Debian's; in
    the folder itself, and below it under `fashion-mnist`, `fashion_mnist` and torchvision's `FashionMNIST/raw`.

    Raises:
        PruneError: they are in none of these; says how to install them.
    """
    places = [Path(folder)] if folder is not None else [*environment(), DISTRIBUTION]
    below = [p / b for p in places for b in ("", "fashion-mnist", "fashion_mnist", "FashionMNIST/raw")]
    if (found := first_complete(below)) is None:
        raise PruneError(
            f"Fashion-MNIST: no {STEMS[0]}[.gz] and its three companions in {' or '.join(map(str, places))}; "
            f"apt-get install dataset-fashion-mnist, or set {VARIABLE} to the folder of its four idx files"
        )
    return found


def mnist_folder(folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Where the four files of MNIST are, or None where no folder is given and PRUNEFN_DATA has none.

    Files that lie in the folder of PRUNEFN_DATA itself are Fashion-MNIST's, which have the same names.

    Raises:
        PruneError: a folder is given, and they are not in it.
    """
    places = [Path(folder)] if folder is not None else environment()
    names = ["mnist", "MNIST/raw"] if folder is None else ["", "mnist", "MNIST/raw"]
    found = first_complete(p / b for p in places for b in names)
    if found is None and folder is not None:
        raise PruneError(
            f"MNIST: no {STEMS[0]}[.gz] and its three companions in {folder}; give the folder that has them"
        )
    return found


def read_pictures(where: Path, part: str) -> Pictures:
    """One part (`train` or `t10k`) of the files in a folder, as bytes [n, 1, 28, 28] and classes.

    Raises:
        PruneError: a file is damaged, or the two do not belong together.
    """
    images, labels = (read_idx(_with_suffix(where / f"{part}-{kind}-ubyte")) for kind in ("images-idx3", "labels-idx1"))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise PruneError(
            f"{where}: {part} images of shape {tuple(images.shape)} with labels of shape {tuple(labels.shape)}; "
            "expected [n, height, width] and [n]: copy the files anew"
        )
    if len(labels) and int(labels.max()) >= CLASSES:
        raise PruneError(
            f"{where}: {part} has class {int(labels.max())}; expected 0 to 9: these are files of another data set"
        )
    return Pictures(images[:, None], labels.long())


def read_idx(path: Path) -> Tensor:
    """The bytes of an idx file in their shape; gzipped if its name ends so.

    Raises:
        PruneError: it is damaged, or something else.
    """
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        zero, kind, ndim = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{ndim}I", content, 4)
    except (EOFError, OSError, zlib.error, struct.error) as e:
        raise PruneError(f"{path} is damaged ({type(e).__name__}: {e}); copy it anew") from e
    start = 4 + 4 * ndim
    if (zero, kind) != (0, 8) or math.prod(shape) != len(content) - start:
        raise PruneError(
            f"{path} is no idx file of bytes, or is cut off: its head says type {kind} and shape {shape}, and "
            f"{len(content) - start} bytes follow; copy it anew"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def environment() -> list[Path]:
    """The folder of the environment variable, if set."""
    return [Path(os.environ[VARIABLE])] if os.environ.get(VARIABLE) else []


def first_complete(folders: Iterable[Path]) -> Path | None:
    """The first of these that has all four files."""
    return next((f for f in folders if all(_with_suffix(f / s).exists() for s in STEMS)), None)


def _with_suffix(path: Path) -> Path:
    """The file, or its gzipped twin where there is no other."""
    return path if path.exists() else path.with_name(path.name + ".gz")
