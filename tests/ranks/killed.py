"""Measures with `resume=`, and is killed in the middle.

python -m tests.ranks.killed FILE
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

import prunefn as pf

from .nets import batches, net, sums


def until(n: int) -> Iterator[Tensor]:
    """So many batches, and then no process."""
    for i, batch in enumerate(batches("cnn")):
        if i == n:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch


if __name__ == "__main__":
    torch.set_num_threads(1)
    t = net("cnn")
    pf.collect_stats(
        t.params, until(5), spec=t.spec, criterion=sums(), covariance=True, resume=sys.argv[1], save_every=2
    )
