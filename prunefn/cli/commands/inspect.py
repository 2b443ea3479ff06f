"""The command `prunefn inspect`."""

from __future__ import annotations

from collections.abc import Iterable

from ...costs.analytic import cost
from ...spec.spec import Spec
from ..command import Job, Result
from ..resources import network_of, optional_data, write_json
from ..sections import Config

REASONS = 12
"""Maximal number of reasons that are shown; --json has all."""


def run(job: Job) -> Result:
    """Run the command."""
    network = network_of(job.config, optional_data(job.config))
    spec = network.spec()
    if job.files:
        explanations = {name: spec.explain(name) for name in job.files}
        job.show("\n\n".join(explanations.values()))
        return {"model": network.name, "explain": explanations}
    c = cost(spec)
    job.show(spec.table())
    job.show()
    job.show(*_frozen(spec))
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


def _frozen(spec: Spec) -> list[str]:
    """Return the reasons why dims are frozen, the most frequent first, each with its places."""
    places: dict[str, list[str]] = {}
    for (tensor, dim), reasons in spec.frozen.items():
        for reason in reasons:
            places.setdefault(reason.partition(" at ")[0], []).append(f"{tensor} dim {dim}")
    lines = [f"  {len(at):4} × {reason}: {', '.join(at[:2])}{', …' * (len(at) > 2)}" for reason, at in places.items()]
    order = sorted(range(len(lines)), key=lambda i: -len(list(places.values())[i]))
    head = "frozen dims and why (name a tensor to see where):" if lines else "no dim is frozen"
    unknown = [f"  {op}, at {where}" for op, where in spec.unknown.items()]
    tail = ["ops without a rule, which freeze all that they touch:", *unknown] if unknown else []
    return ["\n".join([head, *(lines[i] for i in order[:REASONS]), *tail])]


def plan(config: Config) -> Iterable[str]:
    """Yield the steps."""
    yield f"build {config.model.name}" + (f", load {config.model.checkpoint}" if config.model.checkpoint else "")
    yield "trace it once"
    yield "print its groups, costs and what is frozen"
