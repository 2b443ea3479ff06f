"""Randomness as a function of where training is: epoch, update and rank give the seed, so that nothing has to be remembered.

Reading the data draws from the global generators, seeded once an epoch; each update draws from generators of its own. So a run
that goes on in the middle of an epoch reads what it has done again, without training, and has the same numbers ahead of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed Python, NumPy and torch by some numbers; near keys give unrelated seeds."""
    seed = int(np.random.SeedSequence([k & 0xFFFFFFFF for k in key]).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def apart(*key: int) -> Iterator[None]:
    """Within, generators seeded by the key; afterwards, the global ones are as they were.

    >>> with apart(0, 1): a = torch.rand(())
    >>> with apart(0, 1): b = torch.rand(())
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
