"""New weights of the contractions that lose inputs, one layer after the other; no layer gets a bias that its class does not have."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from ..compensation import methods
from ..compensation.repair import (
    Repaired,
    affected,
    few_samples,
    repaired_by,
    site_inputs,
    warn_of_few_samples,
    written,
)
from ..errors import ParamsError, warn
from ..files import atomic
from ..files.folder import entries_of, shard
from ..files.tensors import DTYPES, Entry, save_sealed
from ..program.compiled import site_weight
from ..spec.parts import Site
from ..stats.by_layer import Measure, measures
from ..types import Batch, Compensation, Mask, Stats
from .opened import Opened
from .work import Work, run_layers, until_last

RIDGE = 0.1
"""Of the default compensation: the one of lowest perplexity in bench/results/smollm2.md."""


def method_of(site: Site, given: Compensation | None) -> Compensation:
    """Return the compensation of a site: least squares, with an intercept where the contraction has a bias."""
    if given is not None:
        return given
    has_bias = site.bias is not None
    return methods.affine(RIDGE, intercept=has_bias, fallback=methods.mean() if has_bias else methods.none())


def repair_layers(
    opened: Opened,
    mask: Mask,
    batches: list[Batch],
    work: Work,
    start: Stats,
    method: Compensation | None,
    *,
    progress: bool,
) -> dict[str, tuple[Path, Entry]]:
    """Return tensor → the file and entry of its new values, at its dense shape and in the type of its source.

    The statistics of a layer are measured in the dense network, and dropped when its weights are written.

    Raises:
        ParamsError: the method adds a bias to a contraction whose class has none.
    """
    planned = measures_of_repair(opened, mask, method)
    write = partial(_write_repairs, opened=opened, mask=mask, method=method)
    files = run_layers(work, "compensation", planned, batches, start, write, progress=progress)
    return {name: (path, shard(path).entries[name]) for path in files for name in shard(path).entries}


def measures_of_repair(opened: Opened, mask: Mask, method: Compensation | None) -> list[Measure]:
    """Return what is measured in each layer to repair the sites that lose inputs."""
    sites = [s for s in affected(opened.spec, mask) if method_of(s, method).repair is not None]
    needs = {n for s in sites for n in method_of(s, method).needs}
    planned = measures(opened.spec, sites, blocks=False, needs=needs)
    calls = {s.name: sum(s.name == part.name for m in planned for part in m.sites) for s in sites}
    if several := [n for n, times in calls.items() if times > 1]:
        warn(f"{several[0]!r} and {len(several) - 1} others are called in several layers, and are not compensated")
    return until_last([m._replace(sites=tuple(s for s in m.sites if s.name not in several)) for m in planned])


def _write_repairs(path: Path, stats: Stats, *, opened: Opened, mask: Mask, method: Compensation | None) -> None:
    """Write the new weights of the sites of a layer."""
    spec, params, few = opened.spec, dict(opened.params), list[str]()
    for name in stats.sites:
        site = spec.sites[name]
        inputs = site_inputs(site, stats.sites, mask, params, spec)
        r = repaired_by(method_of(site, method), site, site_weight(params, site, spec=spec), inputs, spec)
        _check_bias(r, method)
        few += few_samples(r, method_of(site, method))
        params = written(params, [r], spec)
    changed = {n: t for n, t in params.items() if t is not opened.params.get(n)}
    atomic.write(path, lambda part: save_sealed(part, _in_source_types(changed, opened), {"format": "pt"}))
    if few:
        warn_of_few_samples(few, method or methods.affine(RIDGE))


def _check_bias(r: Repaired, method: Compensation | None) -> None:
    """Check that a repair needs no bias that the class lacks; raise ParamsError if it does."""
    if r.repair.shift is not None and r.site.bias is None and method is not None:
        raise ParamsError(
            f"compensation {method.name!r} would add a bias to {r.site.name!r}, which its class has no room for; write "
            "compensation.affine(intercept=False)"
        )


def _in_source_types(tensors: Mapping[str, Tensor], opened: Opened) -> dict[str, Tensor]:
    """Return tensors in the types that their files have; of tied ones, that which is in a file."""
    entries = entries_of(opened.files)
    return {n: t.to(DTYPES[entries[n][1].dtype]).contiguous() for n, t in tensors.items() if n in entries}
