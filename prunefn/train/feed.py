"""Batches for one of several processes: each process gets a part of the global batch, weighted so that the mean is the global one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from .. import trees
from ..errors import BatchError
from ..tokens.likelihood import IDS

Source = Dataset[Any] | Iterable[Any]
"""A map-style dataset of (image, label), a DataLoader, or a list of batches; each batch is for all processes together."""


class Part(NamedTuple):
    """Part of a global batch that one process reads."""

    batch: Any
    samples: int
    """Number of samples that count; 0 where there are more processes than samples: `batch` then is a dummy of one sample."""
    total: int
    """Number of samples in the global batch."""


class RankSampler(BatchSampler):
    """Sampler of the part of each batch of indices that one rank reads; of the first index where its part is empty."""

    def __init__(self, batches: Iterable[list[int]], rank: int, world: int) -> None:
        self.batches, self.rank, self.world = batches, rank, world
        self.totals: deque[int] = deque()
        """Sizes of the global batches whose indices were drawn, but whose part was not yet returned."""

    def __iter__(self) -> Iterator[list[int]]:
        self.totals.clear()
        for indices in self.batches:
            indices = list(indices)
            self.totals.append(len(indices))
            start, stop = bounds(len(indices), self.rank, self.world)
            yield indices[start:stop] or indices[:1]

    def __len__(self) -> int:
        assert isinstance(self.batches, Sized)
        return len(self.batches)


class Feed:
    """Iterable of the parts of one rank; each iteration reads the source once.

    Args:
        source: the data.
        batch: samples of a global batch, where the source is a dataset.
        shuffle, drop_last, workers: as for a DataLoader, where the source is a dataset.
        rank, world: number of this process and of all processes.

    Raises:
        BatchError: the source has no batch, or cannot be read once an epoch.
    """

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
        self.sampler: RankSampler | None = None
        if isinstance(source, DataLoader):
            if source.batch_sampler is None:
                raise BatchError("the DataLoader has no batches (batch_size=None); give it a batch size")
            self.sampler = RankSampler(source.batch_sampler, rank, world)
            self.source: Any = _copy_loader(source, self.sampler)
        elif isinstance(source, Dataset):
            order = RandomSampler(source) if shuffle else SequentialSampler(source)  # type: ignore[arg-type]
            drop_last = drop_last and len(order) >= batch
            self.sampler = RankSampler(BatchSampler(order, batch, drop_last), rank, world)
            pin = torch.cuda.is_available()
            self.source = DataLoader(source, batch_sampler=self.sampler, num_workers=workers, pin_memory=pin)
        elif isinstance(source, Sequence):
            _check_first(source)
            self.source = source
        else:
            raise BatchError(
                f"training data is a map-style dataset, a DataLoader or a list of batches, not {type(source).__name__}: it is "
                "read once an epoch"
            )
        if not len(self.source):
            raise BatchError("there is no data: the source has no batch; give at least one")

    def __len__(self) -> int:
        return len(self.source)

    def begin(self, seed: int, epoch: int) -> None:
        """Seed the generators of a DataLoader and its samplers; those without one draw from torch's global generator."""
        owners = (self.source, *self._samplers()) if self.sampler else ()
        for generator in {id(g): g for o in owners if (g := getattr(o, "generator", None)) is not None}.values():
            generator.manual_seed(seed + epoch)
        for sampler in self._samplers():
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(epoch)

    def _samplers(self) -> list[Any]:
        if self.sampler is None:
            return []
        return [self.sampler.batches, getattr(self.sampler.batches, "sampler", None)]

    def __iter__(self) -> Iterator[Part]:
        for batch in self.source:
            if self.sampler is None:
                yield _cut_part(batch, self.rank, self.world)
            else:
                total = self.sampler.totals.popleft()
                start, stop = bounds(total, self.rank, self.world)
                yield Part(batch, stop - start, total)


def bounds(n: int, rank: int, world: int) -> tuple[int, int]:
    """Return (start, stop) of a rank's part of n samples; the sizes of parts differ by one at most.

    >>> [bounds(5, r, 3) for r in range(3)]
    [(0, 2), (2, 4), (4, 5)]
    """
    return (n * rank + world - 1) // world, (n * (rank + 1) + world - 1) // world


def group_parts(parts: Iterable[Part], size: int) -> Iterator[list[Part]]:
    """Yield the parts of one update each; the last list may be shorter."""
    group: list[Part] = []
    for part in parts:
        group.append(part)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def count_samples(batch: Any) -> int:
    """Return the number of samples of a batch: the first dim of its first tensor."""
    tensors = [t for t in trees.leaves(to_plain(batch)) if isinstance(t, Tensor) and t.ndim]
    if not tensors:
        raise BatchError(f"a batch is a {type(batch).__name__} without a tensor [samples, …]; give tuples of tensors")
    return len(tensors[0])


def _check_first(batches: Sequence[Any]) -> None:
    """Check that a list holds batches, not samples, by its first element; raise BatchError if not."""
    first = batches[0] if len(batches) else None
    values = tuple(first.values()) if isinstance(first, Mapping) else first if isinstance(first, tuple | list) else ()
    number = len(values) > 1 and all(isinstance(v, int | float) for v in values[1:])
    tokens = isinstance(first, Mapping) and any(isinstance(v := first.get(n), Tensor) and v.ndim == 1 for n in IDS)
    if (values and isinstance(values[0], Tensor) and number) or tokens:
        raise BatchError(
            "the list holds samples, but it is read as a list of batches; write DataLoader(list, batch_size=…), or stack samples to "
            "tensors [samples, …]"
        )


def to_plain(batch: Any) -> Any:
    """Return a batch as a nest that trees can walk: transformers' BatchEncoding is a mapping, but no dict."""
    return dict(batch) if isinstance(batch, Mapping) else batch


def _cut_part(batch: Any, rank: int, world: int) -> Part:
    """Return a rank's part of a batch in memory."""
    total = count_samples(batch)
    start, stop = bounds(total, rank, world)
    at = slice(start, stop) if stop > start else slice(0, 1)

    def cut(t: Any) -> Any:
        return t[at] if isinstance(t, Tensor) and t.ndim and len(t) == total else t

    return Part(trees.map_leaves(cut, to_plain(batch)), stop - start, total)


def _copy_loader(loader: DataLoader[Any], sampler: RankSampler) -> DataLoader[Any]:
    """Return a loader with the same options, and this sampler."""
    return DataLoader(
        loader.dataset,
        batch_sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
    )
