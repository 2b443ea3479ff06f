"""Data that installs with a package: scikit-learn's digits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._extras import needs
from ..doors import door
from .splits import stratified


class Split(NamedTuple):
    """Images and labels to learn from, and a held-out part to measure on."""

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
    """The 1797 handwritten digits of scikit-learn, 8 × 8 grey values, split within each class.

    Pixels are normalised by mean and standard deviation of the images to learn from.

    Args:
        held_out: share of every class that is held out, between 0 and 1.
        seed: of the split; the same seed gives the same split, whatever the state of torch's generators.
        device: where the tensors go.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        PruneError: the share leaves a class without images on one of the two sides.

    >>> split = digits()
    >>> tuple(split.images.shape), tuple(split.held_out_images.shape)
    ((1198, 1, 8, 8), (599, 1, 8, 8))
    """
    images, labels = scikit_learn()
    kept, held = stratified(labels, held_out, seed, name="held_out")
    mean, deviation = images[kept].mean(), images[kept].std()
    images = ((images - mean) / deviation).to(device)
    labels = labels.to(device)
    return Split(images[kept], labels[kept], images[held], labels[held], float(-mean / deviation))


def scikit_learn() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 8, 8] with values from 0 to 16, float32, and classes [1797]."""
    with needs("vision", "data.digits"):
        from sklearn.datasets import load_digits
    data, target = load_digits(return_X_y=True)
    return torch.from_numpy(data).float().reshape(-1, 1, 8, 8), torch.from_numpy(target).long()
