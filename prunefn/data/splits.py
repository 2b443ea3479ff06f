"""Split a dataset with the same fraction of every class."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PruneError


def stratified(labels: Tensor, fraction: float, seed: int, *, name: str) -> tuple[Tensor, Tensor]:
    """Return the indices that stay and those put aside, both ascending: the same fraction of every class, to within one image.

    Args:
        labels: classes [n].
        fraction: fraction of every class that is put aside.
        seed: the same seed gives the same split, whatever the state of torch's generators.
        name: name of the fraction, for the error.

    Raises:
        PruneError: the fraction leaves a class without images on one of the two sides.

    >>> stay, aside = stratified(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, 0, name="held_out")
    >>> len(stay), len(aside)
    (6, 2)
    """
    generator = torch.Generator().manual_seed(seed)
    stay, aside = [], []
    remainder = 0.5  # carried from class to class, so that the parts have the right sizes in total
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        exact = remainder + fraction * len(members)
        n, remainder = int(exact), exact - int(exact)
        if not 0 < n < len(members):
            raise PruneError(
                f"{name}={fraction} puts {n} of the {len(members)} images of class {label} aside; "
                "both sides need some: use a fraction such as 1/3"
            )
        aside.append(members[:n])
        stay.append(members[n:])
    return torch.cat(stay).sort().values, torch.cat(aside).sort().values
