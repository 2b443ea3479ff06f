"""Batches for one of several processes: the global batch is cut into shares, and weights make their mean that of the whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from .. import trees
from ..errors import BatchError

Source = Dataset[Any] | Iterable[Any]
"""A map-style dataset of (image, label), a DataLoader, or a list of batches; a batch is that of all processes."""


class Part(NamedTuple):
    """This process's share of a global batch."""

    batch: Any
    samples: int
    """In the share; none where there are fewer samples than processes, and then the batch is one to go through the motions."""
    total: int
    """In the global batch."""


class Shares(BatchSampler):
    """The part of each batch of indices that one rank reads; where there is nothing for it, the first index."""

    def __init__(self, batches: Iterable[list[int]], rank: int, world: int) -> None:
        self.batches, self.rank, self.world = batches, rank, world
        self.totals: deque[int] = deque()
        """Sizes of the global batches that were handed out and not yet taken."""

    def __iter__(self) -> Iterator[list[int]]:
        self.totals.clear()
        for indices in self.batches:
            indices = list(indices)
            self.totals.append(len(indices))
            start, stop = share(len(indices), self.rank, self.world)
            yield indices[start:stop] or indices[:1]

    def __len__(self) -> int:
        assert isinstance(self.batches, Sized)
        return len(self.batches)


class Feed:
    """A source, read as often as one likes: an iterable of the parts of one rank."""

    def __init__(
        self,
        source: Source,
        *,
        batch: int,
        shuffle: bool = False,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        self.rank, self.world = rank, world
        self.shares: Shares | None = None
        if isinstance(source, DataLoader):
            if source.batch_sampler is None:
                raise BatchError("the DataLoader has no batches (batch_size=None); give it a batch size")
            self.shares = Shares(source.batch_sampler, rank, world)
            self.source: Any = _like(source, self.shares)
        elif isinstance(source, Dataset):
            order = RandomSampler(source) if shuffle else SequentialSampler(source)  # type: ignore[arg-type]
            drop_last = drop_last and len(order) >= batch
            self.shares = Shares(BatchSampler(order, batch, drop_last), rank, world)
            self.source = DataLoader(source, batch_sampler=self.shares, num_workers=workers, pin_memory=_pins())
        elif isinstance(source, Sequence):
            self.source = source
        else:
            raise BatchError(
                f"training data is a map-style dataset, a DataLoader or a list of batches, not {type(source).__name__}: it is "
                "read once an epoch"
            )
        if not len(self.source):
            raise BatchError("there is no training data: it has no batch")

    def __len__(self) -> int:
        return len(self.source)

    def begin(self, seed: int, epoch: int) -> None:
        """Seed generators that a DataLoader has of its own; what has none draws from torch's."""
        owners = (self.source, *self._samplers()) if self.shares else ()
        for generator in {id(g): g for o in owners if (g := getattr(o, "generator", None)) is not None}.values():
            generator.manual_seed(seed + epoch)
        for sampler in self._samplers():
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(epoch)

    def _samplers(self) -> list[Any]:
        if self.shares is None:
            return []
        return [self.shares.batches, getattr(self.shares.batches, "sampler", None)]

    def __iter__(self) -> Iterator[Part]:
        for batch in self.source:
            if self.shares is None:
                yield _part(batch, self.rank, self.world)
            else:
                total = self.shares.totals.popleft()
                start, stop = share(total, self.rank, self.world)
                yield Part(batch, stop - start, total)


def share(n: int, rank: int, world: int) -> tuple[int, int]:
    """(start, stop) of a rank's share of n samples; shares differ by one at most.

    >>> [share(5, r, 3) for r in range(3)]
    [(0, 2), (2, 4), (4, 5)]
    """
    return (n * rank + world - 1) // world, (n * (rank + 1) + world - 1) // world


def grouped(parts: Iterable[Part], size: int) -> Iterator[list[Part]]:
    """Parts of one update each; the last may have fewer."""
    group: list[Part] = []
    for part in parts:
        group.append(part)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def samples(batch: Any) -> int:
    """How many samples a batch has: the first dim of its first tensor."""
    tensors = [t for t in trees.leaves(plain(batch)) if isinstance(t, Tensor) and t.ndim]
    if not tensors:
        raise BatchError(f"a batch has no tensor with samples: {type(batch).__name__}")
    return len(tensors[0])


def plain(batch: Any) -> Any:
    """A nest that torch's pytree goes through: transformers' BatchEncoding is a mapping, but no dict."""
    return dict(batch) if isinstance(batch, Mapping) else batch


def _part(batch: Any, rank: int, world: int) -> Part:
    total = samples(batch)
    start, stop = share(total, rank, world)
    at = slice(start, stop) if stop > start else slice(0, 1)

    def cut(t: Any) -> Any:
        return t[at] if isinstance(t, Tensor) and t.ndim and len(t) == total else t

    return Part(trees.map_leaves(cut, plain(batch)), stop - start, total)


def _like(loader: DataLoader[Any], shares: Shares) -> DataLoader[Any]:
    """The same loader, for one rank."""
    return DataLoader(
        loader.dataset,
        batch_sampler=shares,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
    )


def _pins() -> bool:
    return torch.cuda.is_available()
