"""The command `prunefn profile`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...costs.profiling import profile
from ...parameters.transforms import params as params_of
from ...tables import Table, terminal
from ..command import Job, Result
from ..resources import device_of, network_of, optional_data, write_json
from ..sections import Config

MOST = 6
"""Maximal number of layers that are shown."""


def run(job: Job) -> Result:
    """Run the command."""
    config = job.config
    data = optional_data(config)
    networks = {"dense": network_of(config, data, dense=bool(job.files))}
    for file in job.files:
        one = config.model_copy(update={"model": config.model.model_copy(update={"checkpoint": file})})
        networks[_name(file, networks)] = network_of(one, data)
    pairs = {name: (params_of(n.model), n.spec()) for name, n in networks.items()}
    p = config.profile
    device = device_of(config, p.runtime)
    options: dict[str, Any] = {"batch": p.batch_size, "rounds": p.rounds, "runtime": p.runtime}
    profiled = profile(pairs, device=device, progress=not job.quiet, **options)
    job.show(terminal(_shown(profiled.table())))
    result: Result = {n: getattr(profiled, n) for n in ("device", "threads", "batch", "runtime")} | {"networks": {}}
    for n in profiled.networks:
        entry: dict[str, Any] = {"macs": n.cost.macs, "params": n.cost.params, "peak_bytes": n.peak}
        entry |= {"latency_ms": {k: 1e3 * v for k, v in n.timing._asdict().items() if k != "rounds"}}
        entry["throughput_fps"] = profiled.batch / n.timing.median
        entry["layers"] = {
            name: {"ms": 1e3 * one.seconds, "macs": one.macs, "bytes": one.moved} for name, one in n.layers.items()
        }
        result["networks"][n.name] = entry
    for name in list(networks)[1:]:
        excess = profiled.excess(name, MOST)
        rows = [[e.layer or "(the model itself)", f"{1e3 * e.seconds:.3f}", e.reason] for e in excess]
        if rows:
            job.show(
                terminal(Table(f"{name}: layers that save less time than MACs", ["layer", "ms too many", "why"], rows))
            )
        result["networks"][name]["excess"] = [e._asdict() for e in excess]
    if job.out is not None:
        write_json(job.out / "profile.json", result)
    return result


def _shown(table: Table) -> Table:
    """Return the columns that fit a terminal; profile.json has all."""
    few = [i for i, name in enumerate(table.columns) if not name.startswith(("p10", "weights", "peak"))]
    return Table(table.title, [table.columns[i] for i in few], [[row[i] for i in few] for row in table.rows])


def _name(file: str, names: Iterable[str]) -> str:
    """Return the file's name, with its folder's if the name is taken."""
    path = Path(file)
    return path.stem if path.stem not in names else f"{path.parent.name}/{path.stem}"


def plan(config: Config) -> Iterable[str]:
    """Yield the steps."""
    p = config.profile
    yield f"build {config.model.name}, load each checkpoint that is given"
    runtime = "" if p.runtime == "eager" else f", runtime {p.runtime}"
    yield f"time all of them in turns, {p.rounds} rounds of batch {p.batch_size}{runtime}, then layer by layer"
