"""The command `prunefn analyze`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ...errors import PruneError
from ...report import plots
from ...report.norms import analyze
from ...tables import Table, terminal
from ..command import Job, Result
from ..resources import network_of, optional_data, write_json
from ..sections import Config

SMALL = 0.05
"""A unit below this fraction of its group's median norm is as good as gone."""


def run(job: Job) -> Result:
    """Run the command."""
    if not job.files:
        raise PruneError("give the folder of a run, such as runs/train/train, or checkpoints")
    network = network_of(job.config, optional_data(job.config), dense=True)
    one = len(job.files) == 1 and Path(job.files[0]).is_dir()
    norms_by_checkpoint = analyze(Path(job.files[0]) if one else [Path(f) for f in job.files], spec=network.spec())
    plots.norms(norms_by_checkpoint, job.folder / "norms.png")
    result = {name: _summary(groups) for name, groups in norms_by_checkpoint.items()}
    write_json(job.folder / "norms.json", result)
    rows = [[n, *(f"{v:.4g}" for v in list(s.values())[:3]), f"{s['near_zero']:.1%}"] for n, s in result.items()]
    job.show(terminal(Table("", ["checkpoint", "p10", "median", "p90", f"below {SMALL:.0%} of the median"], rows)))
    job.show(f"Written to {job.folder}: norms.png, norms.json")
    return result


def _summary(groups: Mapping[str, torch.Tensor]) -> Result:
    norms = torch.cat(list(groups.values()))
    p10, p50, p90 = torch.quantile(norms, torch.tensor([0.1, 0.5, 0.9], dtype=norms.dtype)).tolist()
    near = sum(int((g < SMALL * g.median()).sum()) for g in groups.values())
    return {"p10": p10, "median": p50, "p90": p90, "near_zero": near / len(norms)}


def plan(config: Config) -> Iterable[str]:
    """Yield the steps."""
    yield f"build {config.model.name}, trace it once"
    yield "compute the L2 norm of every unit at every checkpoint, draw them"
