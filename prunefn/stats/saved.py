"""Files of statistics, and passes over batches that resume after an interruption.

A file is in the safetensors format: the tensors, and a plain-text header that names them, their spec and their parameters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..errors import StatsError
from ..files import atomic
from ..files.tensors import Reader, check_seal, save_sealed
from ..frozen_dict import FrozenDict
from ..program.batches import device_of
from ..types import Batch, Moments
from .fingerprint import Origin, difference, fingerprint, origin

if TYPE_CHECKING:
    from ..types import Stats

FORMAT = "stats 3"


class Mark(NamedTuple):
    """Progress of a pass over batches."""

    batches: tuple[str, ...] = ()
    """Fingerprints of the measured batches, 64 bits each; empty in a file of `save_stats`."""
    finished: bool = False
    """Whether the pass reached the end of the batches."""
    weights: str = ""
    """Name of the weights of positions; empty in a file of `save_stats`."""


class Plan(NamedTuple):
    """Sites and statistics that a pass measures; a pass cannot resume from a file of another plan."""

    sites: Collection[str]
    needs: Collection[str]
    collectors: Collection[str]
    weights: str
    """Name of the weights of positions."""


# ---- writing and reading


def write(path: str | os.PathLike[str], stats: Stats, known: Origin, mark: Mark | None = None) -> None:
    """Write statistics to a temporary file and rename it, so that the file at `path` is always complete.

    Args:
        path: in an existing folder.
        stats: not empty.
        known: fingerprints of its spec and parameters.
        mark: progress of the pass.
    """
    table = _Table()
    header = {
        "versions": _versions(),
        "batches": str(stats.batches),
        "samples": str(stats.samples),
        "spec": known.spec,
        "params": known.params,
        "sites": {name: _moments_entry(table, name, m) for name, m in stats.sites.items()},
        "sums": {
            c: {g: [table.key(t, f"sums/{c}/{g}"), t.device.type] for g, t in groups.items()}
            for c, groups in stats.sums.items()
        },
        "mark": list(mark or Mark()),
    }
    metadata = {"prunefn": FORMAT, "header": json.dumps(header)}
    atomic.write(path, lambda name: save_sealed(name, table.tensors, metadata))


class _Table:
    """Tensors by key; a tensor that is used in several places has one key."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.keys: dict[int, str] = {}

    def key(self, t: Tensor, name: str) -> str:
        """Return the key of a tensor, which is `name` when it is added first."""
        if id(t) not in self.keys:
            self.tensors[name] = t
            self.keys[id(t)] = name
        return self.keys[id(t)]


def _moments_entry(table: _Table, site: str, m: Moments) -> dict[str, str]:
    """Return the header entry of a site's moments: counts as text, tensors by their keys."""
    return {
        field: table.key(v, f"sites/{site}/{field}") if isinstance(v, Tensor) else str(v)
        for field, v in m._asdict().items()
        if v is not None
    }


def _versions() -> dict[str, str]:
    from .._version import __version__

    return {"prunefn": __version__, "torch": str(torch.__version__)}


def read(path: str | os.PathLike[str], start: Stats, known: Origin) -> tuple[Stats, Mark]:
    """Read statistics that `write` wrote.

    Args:
        path: of the file.
        start: statistics that hold the spec and the parameters, and nothing else.
        known: fingerprints of these.

    Raises:
        StatsError: the file holds no statistics, is damaged, or is of another spec or other parameters.
    """
    try:
        with Reader(path) as f:
            header = _header(path, f.metadata)
            check_seal(path)
            if other := difference(Origin(header["spec"], header["params"]), known):
                raise StatsError(
                    f"{path} was measured on {other}{_versions_text(header)}; load it with the spec and params that it was "
                    "measured with, or measure again"
                )
            return _read_contents(f, header, start)
    except StatsError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
        raise StatsError(f"{path} is damaged, or no file of pf.save_stats: {e}; measure again") from e


def _header(path: Any, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the parsed header of a file; raise StatsError for another format."""
    if metadata.get("prunefn") != FORMAT:
        actual = f"its format is {metadata['prunefn']!r}" if "prunefn" in metadata else "it has no format"
        raise StatsError(f"{path} holds no statistics that this version can read: {actual} instead of {FORMAT!r}")
    return json.loads(metadata["header"])


def _versions_text(header: Mapping[str, Any]) -> str:
    current = _versions()
    other = [f"{n} {v} instead of {current[n]}" for n, v in header["versions"].items() if current.get(n, v) != v]
    return f" (by {', '.join(other)})" if other else ""


def _read_contents(f: Reader, header: Mapping[str, Any], start: Stats) -> tuple[Stats, Mark]:
    """Return the statistics and the progress that a file holds, on the device of the parameters."""
    device, tensors = device_of(dict(start.params)), {}

    def tensor(key: str, home: str = "") -> Tensor:
        """Return the tensor of a key, read once, so that shared covariances stay shared."""
        if key not in tensors:
            tensors[key] = f.tensor(key) if home == "cpu" else f.tensor(key).to(device)
        return tensors[key]

    def moments(entry: Mapping[str, str]) -> Moments:
        counts = ("count", "tap_count")
        values: dict[str, Any] = {k: _count(v) if k in counts else tensor(v) for k, v in entry.items()}
        return Moments(**values)

    sites = {name: moments(entry) for name, entry in header["sites"].items()}
    sums = {c: FrozenDict({g: tensor(*v) for g, v in groups.items()}) for c, groups in header["sums"].items()}
    stats = start._replace(
        sites=FrozenDict(sites),
        sums=FrozenDict(sums),
        batches=int(header["batches"]),
        samples=int(header["samples"]),
    )
    batches, finished, weights = header["mark"]
    return stats, Mark(tuple(batches), bool(finished), weights)


def _count(text: str) -> float:
    return int(text) if text.isdigit() else float(text)


# ---- resuming


def resumed(
    step: Callable[[Stats, Batch], Stats],
    batches: Iterable[Batch],
    start: Stats,
    *,
    path: str | os.PathLike[str],
    every: int,
    most: int | None,
    plan: Plan,
) -> Stats:
    """Return `reduce(step, batches, start)`, saved every few batches and resumed after the last batch of an existing file.

    Args:
        step: (statistics so far, batch) → statistics.
        batches: at most `most` of them, in the same order each time.
        start: statistics with the spec and the parameters, of no batches.
        path: of the file; it need not exist.
        every: number of batches between two writes.
        most: number of batches to measure; None: all.
        plan: what `step` measures.

    Raises:
        StatsError: the file is of another spec, other params or another plan, or was measured on other batches.
    """
    if every < 1:
        raise StatsError(f"save_every must be 1 or more, not {every}")
    if not Path(path).parent.is_dir():
        raise StatsError(f"there is no folder {Path(path).parent} to save statistics in; make it first")
    assert start.spec is not None
    known = origin(start.spec, start.params, start.fingerprints)
    total, mark = read(path, start, known) if Path(path).exists() else (start, Mark())
    done = total.batches
    if done:
        _check_plan(path, total, plan, mark)
        if most is not None and done > most:
            raise StatsError(f"{path} is of {done} batches, but max_batches={most}; ask for as many, or save elsewhere")
        if mark.finished or done == most:
            return total
    n, marks = 0, [*mark.batches]
    for n, batch in enumerate(batches, 1):
        if n <= done:
            _check_batch(path, n, batch, mark)
            continue
        if len(marks) == n - 1:  # a file of `save_stats` has no fingerprints of its batches: then none are added
            marks.append(fingerprint(batch)[:16])
        total = step(total, batch)
        if n % every == 0 and n != most:
            write(path, total, known, Mark(tuple(marks), weights=plan.weights))
    if n < done:
        raise StatsError(
            f"{path} is of {done} batches, but there are only {n}; give the batches that it was started with"
        )
    write(path, total, known, Mark(tuple(marks), most is None or n < most, plan.weights))
    return total


def _check_batch(path: Any, n: int, batch: Batch, mark: Mark) -> None:
    """Check that the n-th batch (from 1) is the one that the file was measured on; raise StatsError if not."""
    if n <= len(mark.batches) and fingerprint(batch)[:16] != mark.batches[n - 1]:
        raise StatsError(
            f"batch {n} is not the one that {path} was measured on, so that some samples would count twice and others never; "
            "give the batches in the same order each time (without shuffling, or seeded), or save elsewhere"
        )


def _check_plan(path: Any, stats: Stats, plan: Plan, mark: Mark) -> None:
    """Check that the file holds exactly what the plan measures; raise StatsError if not."""
    if mark.weights not in ("", plan.weights):
        raise StatsError(
            f"{path} was measured with weights={mark.weights} of positions, not {plan.weights}; give those, or save elsewhere"
        )
    planned = {"sites": set(plan.sites), "sums of collectors": set(plan.collectors)}
    measured = {"sites": set(stats.sites), "sums of collectors": set(stats.sums)}
    for what, names in planned.items():
        if other := sorted(names ^ measured[what]):
            verb = "lacks" if other[0] in names else "has"
            raise StatsError(
                f"{path} {verb} {what} such as {other[0]!r}; give the criterion and `where` that it was started with, or save elsewhere"
            )
    for need, field in (("absolute", "absolute"), ("covariance", "scatter")):
        for site, m in stats.sites.items():
            if (need in plan.needs) != (getattr(m, field) is not None):
                verb = "lacks" if need in plan.needs else "has"
                raise StatsError(
                    f"{path} {verb} what was measured for {need!r} at site {site!r}; give the criterion and covariance= that "
                    "it was started with, or save elsewhere"
                )
