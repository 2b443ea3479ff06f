"""The command `prunefn inspect`."""

from __future__ import annotations

from collections.abc import Iterable

from ...pipeline import cost
from ..command import Command, Job, Result
from ..opened import network_of, wanted_data, write_json
from ..sections import Config


def run(job: Job) -> Result:
    """Show what of a model can be pruned: groups, kinds, costs, and what is frozen and why.

    With --out, the folder gets spec.json and pictures (spec.svg, spec.html). To look at one tensor or group, name it:
    prunefn inspect timm/deit_tiny_patch16_224 blocks.0.attn.qkv.weight
    """
    network = network_of(job.config, wanted_data(job.config))
    spec = network.spec()
    if job.files:
        told = {name: spec.explain(name) for name in job.files}
        job.show("\n\n".join(told.values()))
        return {"model": network.name, "explain": told}
    c = cost(spec)
    job.show(str(spec))
    job.show()
    job.show(spec.table())
    if job.out is not None:
        write_json(job.out / "spec.json", spec.to_dict())
        spec.picture(job.out / "spec.svg")
        spec.picture(job.out / "spec.html")
        job.show(f"\nWritten to {job.out}: spec.json, spec.svg, spec.html")
    groups = {
        g.name: {"kind": g.kind, "units": spec.sizes[g.name], "exact": g.exact, "macs": spec.macs_of(g.name)}
        for g in spec.groups.values()
    }
    frozen = [{"tensor": tensor, "dim": dim, "why": list(why)} for (tensor, dim), why in spec.frozen.items() if why]
    return {
        "model": network.name,
        "macs": c.macs,
        "params": c.params,
        "activations": c.activations,
        "capture": spec.capture,
        "groups": groups,
        "frozen": frozen,
        "unknown": dict(spec.unknown),
    }


def plan(config: Config) -> Iterable[str]:
    """Lines."""
    yield f"build {config.model.name}" + (f", load {config.model.checkpoint}" if config.model.checkpoint else "")
    yield "trace it once"
    yield "print its groups, costs and what is frozen"


COMMAND = Command("inspect", run, plan, ("model", "data"), own="model", files="Tensors or groups to explain.")
