"""Small images in memory, augmented and normalised one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from .._extras import needs
from .idx import Pictures
from .sources import Raw, Source
from .splits import stratified
from .value import Data

Transform = Callable[[Tensor], Tensor]


class InMemory(Dataset[tuple[Tensor, int]]):
    """Images [n, channels, height, width], bytes or floats from 0 to 1; an item is (normalised image, class).

    >>> pictures = Pictures(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), torch.tensor([7]))
    >>> image, label = InMemory(pictures, mean=(0.5,), std=(0.25,))[0]
    >>> image.tolist(), label
    ([[[2.0, 2.0], [2.0, 2.0]]], 7)
    """

    def __init__(
        self,
        pictures: Pictures,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        transform: Transform | None = None,
    ) -> None:
        self.pictures = pictures
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (mean, std))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.pictures.images[index]
        if self.transform is not None:
            image = self.transform(image)
        image = image / 255 if image.dtype == torch.uint8 else image
        return (image - self.mean) / self.std, int(self.pictures.labels[index])


def open_small(
    name: str,
    source: Source,
    folder: str | os.PathLike[str] | None,
    *,
    image_size: int | None,
    augment: bool,
    validation_fraction: float,
    seed: int,
) -> Data:
    """Open datasets over the images of a source; see `open_data`."""
    raw = source.read(folder, seed)
    channels, size = raw.train.images.shape[1], raw.train.images.shape[-1]
    new_size = image_size if image_size not in (None, size) else None
    train = _dataset(raw, raw.train, _transform(size if augment and source.shifts else None, source.mirrors, new_size))
    plain = _transform(None, False, new_size)
    validation = None
    if validation_fraction:
        train_indices, validation_indices = stratified(
            raw.train.labels, validation_fraction, seed, name="validation_fraction"
        )
        train = Subset(train, train_indices.tolist())
        validation = Subset(_dataset(raw, raw.train, plain), validation_indices.tolist())
    shape = (channels, new_size or size, new_size or size)
    return Data(train, _dataset(raw, raw.held_out, plain), raw.classes, shape, raw.mean, raw.std, name, validation)


def _dataset(raw: Raw, pictures: Pictures, transform: Transform | None) -> InMemory:
    """Return pictures as a dataset, normalised by the mean and std of the source."""
    return InMemory(pictures, mean=raw.mean, std=raw.std, transform=transform)


def _transform(size: int | None, mirrors: bool, new_size: int | None) -> Transform | None:
    """Return a transform that augments images of a size, then resizes them to another; None if it would do nothing.

    Augmentation shifts by up to an eighth of the size (4 pixels of 32) and mirrors half of the images.

    Args:
        size: pixels of a side; None: no augmentation.
        mirrors: whether augmentation mirrors.
        new_size: pixels of a side after resizing; None: no resizing.
    """
    if size is None and new_size is None:
        return None
    with needs("vision", "augment=True or image_size"):
        from torchvision.transforms import v2
    steps: list[torch.nn.Module] = []
    if size is not None:
        steps.append(v2.RandomCrop(size, padding=max(1, size // 8)))
        steps += [v2.RandomHorizontalFlip()] if mirrors else []
    if new_size is not None:
        steps.append(v2.Resize([new_size, new_size], antialias=True))
    return v2.Compose(steps)
