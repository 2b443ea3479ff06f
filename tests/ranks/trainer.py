"""Runs of tests/test_training.py and tests/test_phases.py in a process of their own: `python -m tests.ranks.trainer RUN FOLDER`.

KILL=n in the environment: the process kills itself as it is about to rename its n-th file. DIE=rank: this rank ends in the
middle of an epoch.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunefn as pf
from prunefn.train import Distill, Phases, Setup, pat, regularizers, schedule, train

from ..training import ALL, MEASURED, PLAIN, calibration, net, points


def deadly(after: int) -> None:
    """SIGKILL instead of the n-th rename."""
    rename, left = os.replace, [after]

    def replace(*args: Any) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*args)

    os.replace = replace


def stage(folder: Path) -> nn.Module:
    """Everything at once."""
    model = net()
    setup = MEASURED._replace(loss=Distill(model))
    return train(model, setup, ALL, folder=folder, name="stage").model


def phases(folder: Path) -> nn.Module:
    """All three phases."""
    plan = Phases(
        lambda ratio: pf.recipes.vbp(ratio, where=None, recalibrate=True),
        schedule.geometric(0.5, 2),
        sparse=(lambda spec: regularizers.l1_group(spec, weight=1e-3), PLAIN),
        between=PLAIN,
        tuning=PLAIN,
        distill=(0.7, 2.0),
    )
    return pat(net(drop=0.0), MEASURED, plan, calibration=calibration(), folder=folder).model


def shared(folder: Path) -> nn.Module:
    """Phases that do not depend on how batches are shared: no BatchNorm, no dropout."""
    setup = Setup(
        [(x.double(), y) for x, y in ((points()[i : i + 15]) for i in range(0, 203, 15))],
        [(x.double(), y) for x, y in ((points(61, 1)[i : i + 9]) for i in range(0, 61, 9))],
        device="cpu",
    )
    plan = Phases(
        lambda ratio: pf.recipes.corp(ratio, where=None),
        schedule.linear(0.5, 2),
        sparse=(lambda spec: regularizers.lasso(spec, weight=1e-3), PLAIN),
        between=PLAIN.model_copy(update={"accumulate": 3}),
        tuning=PLAIN,
    )
    batches = [(x.double(), y) for x, y in calibration()]
    return pat(net(norm=False, drop=0.0).double(), setup, plan, calibration=batches, folder=folder).model


def mortal(folder: Path) -> nn.Module:
    """A rank dies on the way."""
    rank, seen = int(os.environ["RANK"]), [0]

    def loss(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen[0] += 1
        if rank == int(os.environ["DIE"]) and seen[0] == 5:
            os._exit(3)
        return torch.nn.functional.cross_entropy(output, labels)

    return train(net(), Setup(points(), loss=loss, device="cpu"), PLAIN, folder=folder).model


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "KILL" in os.environ:
        deadly(int(os.environ["KILL"]))
    run, where = sys.argv[1:]
    model = {"stage": stage, "phases": phases, "shared": shared, "mortal": mortal}[run](Path(where))
    torch.save(model.state_dict(), Path(where) / f"state.{os.environ.get('RANK', 0)}")
