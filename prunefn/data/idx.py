"""Read idx files, the format of MNIST and Fashion-MNIST: images of 28 × 28 bytes and ten classes, gzipped or not."""

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
"""Environment variable for the folder of the data."""
DISTRIBUTION = Path("/usr/share/datasets/fashion-mnist")
"""Folder of Debian's package dataset-fashion-mnist."""
STEMS = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
"""Names of the four files, without the ending .gz."""
CLASSES = 10


class Pictures(NamedTuple):
    """Images [n, channels, height, width], uint8 or float from 0 to 1, and their classes [n], int64."""

    images: Tensor
    labels: Tensor


def fashion_mnist_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of the four files of Fashion-MNIST.

    The search covers `folder`; if that is None, the folder of the environment variable PRUNEFN_DATA, then Debian's. It looks
    in the folder itself and in its subfolders `fashion-mnist`, `fashion_mnist` and torchvision's `FashionMNIST/raw`.

    Raises:
        PruneError: none of these has the files; says how to install them.
    """
    roots = [Path(folder)] if folder is not None else [*environment(), DISTRIBUTION]
    folders = [p / b for p in roots for b in ("", "fashion-mnist", "fashion_mnist", "FashionMNIST/raw")]
    if (complete := first_complete(folders)) is None:
        raise PruneError(
            f"Fashion-MNIST: no {STEMS[0]}[.gz] and its three companions in {' or '.join(map(str, roots))}; "
            f"apt-get install dataset-fashion-mnist, or set {VARIABLE} to the folder of its four idx files"
        )
    return complete


def mnist_folder(folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the folder of the four files of MNIST; None if `folder` is None and PRUNEFN_DATA has no such files.

    Files directly in the folder of PRUNEFN_DATA belong to Fashion-MNIST, whose files have the same names.

    Raises:
        PruneError: `folder` does not have the files.
    """
    roots = [Path(folder)] if folder is not None else environment()
    names = ["mnist", "MNIST/raw"] if folder is None else ["", "mnist", "MNIST/raw"]
    complete = first_complete(p / b for p in roots for b in names)
    if complete is None and folder is not None:
        raise PruneError(
            f"MNIST: no {STEMS[0]}[.gz] and its three companions in {folder}; give the folder that has them"
        )
    return complete


def read_pictures(where: Path, part: str) -> Pictures:
    """Read one part (`train` or `t10k`) of the files in a folder, as bytes [n, 1, height, width] and classes [n].

    Raises:
        PruneError: a file is damaged, or images and labels do not belong together.
    """
    images, labels = (read_idx(_with_suffix(where / f"{part}-{kind}-ubyte")) for kind in ("images-idx3", "labels-idx1"))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise PruneError(
            f"{where}: {part} images of shape {tuple(images.shape)} with labels of shape {tuple(labels.shape)}; "
            "expected [n, height, width] and [n]: copy the files again"
        )
    if len(labels) and int(labels.max()) >= CLASSES:
        raise PruneError(
            f"{where}: {part} has class {int(labels.max())}; expected 0 to 9: these are files of another data set"
        )
    return Pictures(images[:, None], labels.long())


def read_idx(path: Path) -> Tensor:
    """Return the bytes of an idx file in their shape; a file whose name ends in .gz is unzipped.

    Raises:
        PruneError: the file is damaged, or no idx file of bytes.
    """
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        zero, kind, ndim = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{ndim}I", content, 4)
    except (EOFError, OSError, zlib.error, struct.error) as e:
        raise PruneError(f"{path} is damaged ({type(e).__name__}: {e}); copy it again") from e
    start = 4 + 4 * ndim
    if (zero, kind) != (0, 8) or math.prod(shape) != len(content) - start:
        raise PruneError(
            f"{path} is no idx file of bytes, or is cut off: its head says type {kind} and shape {shape}, and "
            f"{len(content) - start} bytes follow; copy it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def environment() -> list[Path]:
    """Return the folder of the environment variable in a list; empty if it is not set."""
    return [Path(os.environ[VARIABLE])] if os.environ.get(VARIABLE) else []


def first_complete(folders: Iterable[Path]) -> Path | None:
    """Return the first folder that has all four files; None if none has."""
    return next((f for f in folders if all(_with_suffix(f / s).exists() for s in STEMS)), None)


def _with_suffix(path: Path) -> Path:
    """Return the path, or that of the gzipped file if the plain one does not exist."""
    return path if path.exists() else path.with_name(path.name + ".gz")
