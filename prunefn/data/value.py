"""The result of opening data, and the preprocessing of images."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.utils.data import Dataset

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Data(NamedTuple):
    """Datasets with an index; an item is (image, float32 of `input_shape`; class, int).

    Images are normalised: (pixel from 0 to 1 − mean) / std, per channel.
    """

    train: Dataset[Any]
    """Training images; augmentation, if on, draws from the global generators of torch, numpy and random."""
    held_out: Dataset[Any]
    """Images for evaluation, which are never augmented."""
    classes: tuple[str, ...]
    """Names of the classes; the class of an item is an index of this tuple."""
    input_shape: tuple[int, int, int]
    """Channels, height, width."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    """`cifar10`, or the path of the folder."""
    validation: Dataset[Any] | None = None
    """A part of the training images for choosing between models, not in `train` and never augmented."""


class Preprocessing(NamedTuple):
    """Size, crop and normalisation of the images of a folder; the defaults are those of most ImageNet models."""

    image_size: int = 224
    """Pixels of a side after cropping."""
    interpolation: str = "bicubic"
    """`nearest`, `bilinear`, `bicubic`, `lanczos`, …"""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_pct: float = 0.875
    """For evaluation, an image's shorter side becomes image_size / crop_pct before its centre is cropped."""
    crop_mode: str = "center"
    """`center`, `squash` or `border`, as in timm."""
