"""Save statistics to disk and load them."""

from __future__ import annotations

import os

from ..doors import door
from ..frozen_dict import FrozenDict
from ..program.sharded import is_sharded
from ..spec.spec import Spec
from ..stats import check_stats
from ..stats.fingerprint import origin, spec_of, taken
from ..stats.saved import read, write
from ..types import Params, Stats


@door
def save_stats(stats: Stats, path: str | os.PathLike[str]) -> None:
    """Write statistics as safetensors, to a new file or over an existing one.

    The file holds neither the spec nor the parameters, but fingerprints of both, taken at the measurement, which `load_stats`
    checks.

    Args:
        stats: the result of `collect_stats`, `merge_stats` or `sync_stats`.
        path: the file. A temporary file in the same folder is written first and then renamed, so `path` is never half-written.

    Raises:
        StatsError: the statistics are empty.

    >>> import torch, prunefn as pf, tempfile
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec, params = pf.trace(model, (torch.randn(2, 4),)), pf.params(model)
    >>> stats = pf.collect_stats(params, [torch.randn(8, 4)], spec=spec)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_stats(stats, f"{folder}/stats.safetensors")
    ...     again = load_stats(f"{folder}/stats.safetensors", spec=spec, params=params)
    >>> torch.equal(again.sites["2"].m2, stats.sites["2"].m2), again.samples
    (True, 8)
    """
    spec = spec_of(stats)
    if any(is_sharded(t) for t in stats.params.values()):
        # the file gets hashes of the gathered tensors, so they must be the tensors that were measured
        check_stats(stats, spec)
    write(path, stats, origin(spec, stats.params, stats.fingerprints))


@door
def load_stats(path: str | os.PathLike[str], *, spec: Spec, params: Params) -> Stats:
    """Load statistics that are bit-identical to the saved ones; sites share covariances as before.

    Args:
        path: a file of `save_stats`, or of `collect_stats(…, resume=path)`, finished or not.
        spec: the spec of the measurement; in another process, trace the same model again.
        params: the params of the measurement. The statistics are put on their device.

    Raises:
        StatsError: the file holds no statistics, is damaged, or belongs to another spec or other parameters (names the
            difference).
    """
    start = Stats(spec, FrozenDict(params), fingerprints=FrozenDict(taken(params)))
    return read(path, start, origin(spec, params, start.fingerprints))[0]
