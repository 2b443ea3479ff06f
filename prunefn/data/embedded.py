"""Data that comes with a package: scikit-learn's digits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._extras import needs
from ..doors import door
from .splits import stratified


class Split(NamedTuple):
    """Training images and labels, and a held-out part for evaluation."""

    images: Tensor
    """[n, channels, height, width], normalised."""
    labels: Tensor
    """[n], int64."""
    held_out_images: Tensor
    held_out_labels: Tensor
    background: float
    """Value of an empty pixel after normalisation."""


@door
def digits(*, held_out: float = 1 / 3, seed: int = 0, device: torch.device | str = "cpu") -> Split:
    """Return the 1797 handwritten digits of scikit-learn, 8 × 8 grey values, split within each class.

    Pixels are normalised by mean and standard deviation of the training images.

    Args:
        held_out: fraction of every class that is held out, between 0 and 1.
        seed: seed of the split; the same seed gives the same split, whatever the state of torch's generators.
        device: device of the tensors.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        PruneError: the fraction leaves a class without images on one of the two sides.

    >>> split = digits()
    >>> tuple(split.images.shape), tuple(split.held_out_images.shape)
    ((1198, 1, 8, 8), (599, 1, 8, 8))
    """
    images, labels = scikit_learn()
    train_indices, held_indices = stratified(labels, held_out, seed, name="held_out")
    mean, deviation = images[train_indices].mean(), images[train_indices].std()
    images = ((images - mean) / deviation).to(device)
    labels = labels.to(device)
    background = float(-mean / deviation)
    return Split(images[train_indices], labels[train_indices], images[held_indices], labels[held_indices], background)


def scikit_learn() -> tuple[Tensor, Tensor]:
    """Return images [1797, 1, 8, 8] with values from 0 to 16, float32, and classes [1797], int64."""
    with needs("vision", "data.digits"):
        from sklearn.datasets import load_digits
    data, target = load_digits(return_X_y=True)
    return torch.from_numpy(data).float().reshape(-1, 1, 8, 8), torch.from_numpy(target).long()
