"""Count the costs of one network, and compare those of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .. import trees
from ..display.units import scale_of
from ..doors import door
from ..errors import ParamsError, PruneError
from ..frozen_dict import FrozenDict
from ..parameters.transforms import check_names, tied_names
from ..program.sharded import check_plain
from ..sparse.layouts import weights
from ..spec.spec import Spec, check_runnable
from ..tables import Table
from ..types import Params
from .counted import counted, draw
from .timing.walk import machine


class Metrics(NamedTuple):
    """The counted costs of a network, for one sample unless stated otherwise."""

    macs: int
    """Multiply-accumulates of all contractions, those with zeros included."""
    params: int
    """Elements of all parameters, biases that a compensation created included; tied ones count once, buffers do not."""
    activations: int
    """Elements written by all ops that are not views."""
    activation_bytes: int
    """Bytes of these elements."""
    peak_bytes: int
    """Maximal bytes of activations alive at the same time; without parameters, inputs and the scratch memory of kernels."""
    weight_bytes: FrozenDict[str, int]
    """Type → bytes of parameters and buffers; tied ones count once. A file of `save` has this size plus a header of some kB."""
    weights: int
    """Elements of the weights of contractions."""
    zeros: int
    """Number of these elements that are zero."""
    zero_macs: int
    """MACs with a zero weight. `macs` includes them, because only a kernel for sparse matrices skips them."""

    @property
    def sparsity(self) -> float:
        """Share of the contractions' weights that is zero."""
        return self.zeros / max(self.weights, 1)

    def __str__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in _texts(self).items())


@door
def metrics(params: Params, *, spec: Spec) -> Metrics:
    """Count the costs of a network. It reads the params only to count zeros, computes nothing and times nothing (see `profile`).

    Args:
        params: params of the spec, with zeros for masked weights.
        spec: spec of the params; `shrink(spec, mask)` for pruned params.

    Raises:
        ParamsError: the params do not fit the spec, are on `meta`, or are DTensors.
        TraceError: the spec was recorded, so it has no program.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32, 2))
    >>> spec, params = pf.trace(model, (torch.randn(2, 3, 4, 4),)), pf.params(model)
    >>> params["0.weight"][:, :, 0] = 0  # the upper row of each 3 × 3 kernel
    >>> print(metrics(params, spec=spec))
    MACs: 928
    params: 290
    activations: 66
    activation bytes: 264
    peak bytes: 256
    float32 bytes: 1160
    zeros in weights: 25.7%
    MACs with zeros: 288
    """
    check_runnable(spec)
    check_plain(params, "metrics", "gather them first")
    check_names(params, spec)
    layouts = weights(spec)
    if name := next((n for n in layouts if params[n].is_meta), None):
        raise ParamsError(f"{name!r} is on meta, so its zeros cannot be counted; pf.cost(spec) counts without numbers")
    zeros = {n: w.numel() - int(w.count_nonzero()) for n, w in ((n, params[n].detach()) for n in layouts)}
    on_meta = torch.device("meta")
    inputs = trees.tensors(draw(params, spec, batch=1, device=on_meta))
    counts = counted(machine(spec, {n: t.to(on_meta) for n, t in params.items()}, inputs, on_meta))
    ops = counts.ops.values()
    tied = tied_names(params, spec)
    own = {n: t for n, t in params.items() if n not in tied}
    created = spec.slots
    cost = spec.costs(spec.sizes)
    return Metrics(
        cost.macs,
        sum(t.numel() for n, t in own.items() if n in spec.parameters or n in created),
        cost.activations,
        sum(op.written_bytes for op in ops),
        counts.peak,
        FrozenDict(_bytes_by_type(own)),
        sum(params[n].numel() for n in layouts),
        sum(zeros.values()),
        sum(times * zeros[n] for op in ops for n, times in op.times.items()),
    )


@door
def compare(networks: Mapping[str, tuple[Params, Spec]]) -> Table:
    """Return a table with the costs of each network, and in brackets their shares of the first network's costs.

    Args:
        networks: name → (params, spec), as for `profile`.

    Raises:
        PruneError: there is no network.
        ParamsError, TraceError: as for `metrics`.

    >>> import prunefn as pf
    >>> from prunefn.tables import markdown
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8))
    >>> spec, params = pf.trace(model, (torch.randn(2, 64),)), pf.params(model)
    >>> mask = {"0": torch.arange(256) < 64}
    >>> small = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)
    >>> table = compare({"dense": (params, spec), "small": small})
    >>> table.columns[:2], [row[:2] for row in table.rows]
    (('network', 'MACs'), [('dense', '18432'), ('small', '4608 (25.0%)')])
    """
    if not networks:
        raise PruneError("compare needs at least one network; networks is empty")
    by_name = {name: metrics(params, spec=spec) for name, (params, spec) in networks.items()}
    first = next(iter(by_name.values()))
    types = list(dict.fromkeys(t for m in by_name.values() for t in m.weight_bytes))
    units = {name: _unit(value) for name, value in _numbers(first, types).items()}
    columns = tuple(f"{units[name][1]}{name}" for name in units)
    rows = []
    references = _numbers(first, types)
    for name, m in by_name.items():
        cells = [
            _cell(value, references[column], units[column][0], alone=m is first)
            for column, value in _numbers(m, types).items()
        ]
        rows.append((name, *cells, f"{m.sparsity:.1%}", f"{m.zero_macs / max(m.macs, 1):.1%}"))
    title = f"one sample; in brackets: share of {next(iter(by_name))}"
    return Table(title, ("network", *columns, "zeros in\nweights", "MACs with\nzeros"), rows)


def _texts(m: Metrics) -> dict[str, str]:
    """Return name → text of every cost, for `str`."""
    numbers = {name.replace("\n", " "): str(value) for name, value in _numbers(m, list(m.weight_bytes)).items()}
    return {**numbers, "zeros in weights": f"{m.sparsity:.1%}", "MACs with zeros": str(m.zero_macs)}


def _numbers(m: Metrics, types: list[str]) -> dict[str, int]:
    """Return column → number."""
    return {
        "MACs": m.macs,
        "params": m.params,
        "activations": m.activations,
        "activation\nbytes": m.activation_bytes,
        "peak\nbytes": m.peak_bytes,
        **{f"{t}\nbytes": m.weight_bytes.get(t, 0) for t in types},
    }


def _unit(value: int) -> tuple[float, str]:
    """Return the scale and the prefix in which to show a value; a million or less is shown to the last digit."""
    scale, prefix = scale_of(value if value >= 1e6 else 0)
    return scale, f"{prefix} " if prefix else ""


def _cell(value: int, reference: int, scale: float, *, alone: bool) -> str:
    """Return a scaled value, and unless `alone`, its share of the reference in brackets."""
    text = f"{value / scale:.3f}" if scale > 1 else str(value)
    return text if alone else f"{text} ({value / reference:.1%})" if reference else f"{text} (–)"


def _bytes_by_type(own: Mapping[str, Tensor]) -> dict[str, int]:
    """Return type → bytes of the tensors."""
    out: dict[str, int] = {}
    for t in own.values():
        name = str(t.dtype).removeprefix("torch.")
        out[name] = out.get(name, 0) + t.nbytes
    return out
