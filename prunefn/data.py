"""Data that installs with a package: scikit-learn's digits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .errors import PruneError


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
    from sklearn.datasets import load_digits

    data, target = load_digits(return_X_y=True)
    labels = torch.from_numpy(target).long()
    kept, held = _stratified(labels, held_out, seed)
    images = torch.from_numpy(data).float().reshape(-1, 1, 8, 8)
    mean, deviation = images[kept].mean(), images[kept].std()
    images = ((images - mean) / deviation).to(device)
    labels = labels.to(device)
    return Split(images[kept], labels[kept], images[held], labels[held], float(-mean / deviation))


def _stratified(labels: Tensor, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to learn from and held-out ones: the same share of every class, to within one image."""
    generator = torch.Generator().manual_seed(seed)
    kept, held = [], []
    start = 0.5
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        exact = start + held_out * len(members)
        n, start = int(exact), exact - int(exact)
        if not 0 < n < len(members):
            raise PruneError(
                f"held_out={held_out} puts {n} of the {len(members)} images of class {label} aside; "
                "both sides need some: use a share such as 1/3"
            )
        held.append(members[:n])
        kept.append(members[n:])
    return torch.cat(kept).sort().values, torch.cat(held).sort().values
