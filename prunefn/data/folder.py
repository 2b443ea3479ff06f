"""Folders in ImageNet's layout, by torchvision's ImageFolder and timm's transforms; the import needs both packages."""

from __future__ import annotations

import copy
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader, find_classes

from ..errors import PruneError
from .listing import samples
from .splits import stratified
from .value import Data, Preprocessing

HELD_OUT = ("val", "validation")
"""Possible names of the held-out folder."""
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""Errors that Pillow's decoders raise."""


class ListedFolder(ImageFolder):
    """An ImageFolder whose list of images is cached on disk, and whose errors name the image."""

    def __init__(self, root: Path, transform: Callable[[Any], Any], cache: str | os.PathLike[str] | None) -> None:
        self.cache = cache
        super().__init__(root, transform, loader=load)

    def make_dataset(self, directory: str | Path, class_to_idx: dict[str, int], *_: Any, **__: Any):  # pyright: ignore
        """Return the cached list of images after an update."""
        return samples(Path(directory), class_to_idx, IMG_EXTENSIONS, self.cache)

    def transformed(self, transform: Callable[[Any], Any]) -> ListedFolder:
        """Return the same images with another transform; both share the list."""
        out = copy.copy(self)
        out.transform = transform
        return out


def load(path: str) -> Any:
    """Read an RGB image.

    Raises:
        PruneError: the image cannot be decoded.
    """
    try:
        return default_loader(path)
    except UNREADABLE as e:
        raise PruneError(f"the image {path} cannot be read ({type(e).__name__}: {e}); replace or remove it") from e


def open_folder(
    folder: Path,
    preprocessing: Preprocessing,
    *,
    augment: bool,
    validation_fraction: float,
    seed: int,
    cache: str | os.PathLike[str] | None,
) -> Data:
    """Open datasets over the images of a folder; see `open_data`."""
    train_folder, held_folder = sides(folder)
    classes = agreed(train_folder, held_folder)
    size = (3, preprocessing.image_size, preprocessing.image_size)
    options = {k: v for k, v in preprocessing._asdict().items() if k != "image_size"}
    plain: Any = create_transform(size, is_training=False, **options)
    augmented: Any = create_transform(size, is_training=True, **options) if augment else plain
    train = ListedFolder(train_folder, augmented, cache)
    held_out = ListedFolder(held_folder, plain, cache)
    validation = None
    if validation_fraction:
        targets = torch.tensor(train.targets)
        train_indices, validation_indices = stratified(targets, validation_fraction, seed, name="validation_fraction")
        validation = Subset(train.transformed(plain), validation_indices.tolist())
        train = Subset(train, train_indices.tolist())
    return Data(train, held_out, classes, size, preprocessing.mean, preprocessing.std, str(folder), validation)


def sides(folder: Path) -> tuple[Path, Path]:
    """Return the training folder and the held-out folder.

    Raises:
        PruneError: one is missing, or there are two held-out folders.
    """
    held = [folder / name for name in HELD_OUT if (folder / name).is_dir()]
    if not (folder / "train").is_dir() or not held:
        names = sorted(e.name for e in os.scandir(folder) if e.is_dir())
        raise PruneError(
            f"{folder} has the folders {', '.join(names[:8]) or '(none)'}{' …' if len(names) > 8 else ''}; expected train/ "
            "and val/ (or validation/), each with one folder per class"
        )
    if len(held) > 1:
        raise PruneError(f"{folder} has both val/ and validation/; rename one, so that it is clear which to measure on")
    return folder / "train", held[0]


def agreed(train: Path, held_out: Path) -> tuple[str, ...]:
    """Return the classes that both sides have.

    Raises:
        PruneError: a side has no classes, or the sides have different classes.
    """
    try:
        classes, held_classes = (find_classes(side)[0] for side in (train, held_out))
    except FileNotFoundError as e:
        raise PruneError(f"{e} Expected one folder of images per class.") from e
    if difference := sorted(set(classes) ^ set(held_classes)):
        where = [f"{c!r} only in {train.name if c in classes else held_out.name}/" for c in difference]
        raise PruneError(
            f"{train.parent}: {train.name}/ and {held_out.name}/ have different classes: {', '.join(where[:6])}"
            f"{f' and {len(where) - 6} more' if len(where) > 6 else ''}; both need the same folders"
        )
    return tuple(classes)
