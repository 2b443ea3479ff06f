"""Random numbers as a function of epoch, update and rank, so that checkpoints need no state of generators.

Reading the data draws from the global generators, seeded once an epoch. Each update draws from generators seeded for it alone. A
run that resumes within an epoch reads the earlier batches again without training on them, and then draws the same numbers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed Python, NumPy and torch by a key of numbers; similar keys give unrelated seeds."""
    seed = int(np.random.SeedSequence([k & 0xFFFFFFFF for k in key]).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def isolate_rng(*key: int) -> Iterator[None]:
    """Seed the global generators by a key within a `with` block, and restore their state afterwards.

    >>> with isolate_rng(0, 1): a = torch.rand(())
    >>> with isolate_rng(0, 1): b = torch.rand(())
    >>> bool(a == b)
    True
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        seed_all(*key)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
