"""What a network costs, counted: of one network, and of several beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .. import trees
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
    """A network; where nothing else is said, of one sample."""

    macs: int
    """Multiply-accumulates of all contractions, those with zeros included."""
    params: int
    """Elements of all parameters, biases that a compensation created included; tied ones count once, buffers do not."""
    activations: int
    """Elements written by all ops that are not views."""
    activation_bytes: int
    """Of these elements."""
    peak_bytes: int
    """Activations that are alive at the same time, op after op; without parameters, inputs and what a kernel needs for itself."""
    weight_bytes: FrozenDict[str, int]
    """Type → bytes of parameters and buffers; tied ones count once. A file of `save` is so large, and a header of some kB."""
    weights: int
    """Elements of the weights of contractions."""
    zeros: int
    """Those of them that are zero."""
    zero_macs: int
    """MACs with a zero weight: part of `macs`, as only a kernel for sparse matrices leaves them out."""

    @property
    def sparsity(self) -> float:
        """Share of the contractions' weights that is zero."""
        return self.zeros / max(self.weights, 1)

    def __str__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in _shown(self).items())


@door
def metrics(params: Params, *, spec: Spec) -> Metrics:
    """Count what a network costs. Only zeros are read; nothing is computed, and nothing is timed (see `profile`).

    Args:
        params: of the spec; with zeros, where weights are masked.
        spec: of the params; `shrink(spec, mask)` for pruned ones.

    Raises:
        ParamsError: the params do not fit the spec, are on `meta`, or are DTensors.
        TraceError: the spec was recorded, so that it has no program.

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
    known = weights(spec)
    if name := next((n for n in known if params[n].is_meta), None):
        raise ParamsError(f"{name!r} is on meta, so that nobody knows its zeros; pf.cost(spec) counts without numbers")
    zeros = {n: w.numel() - int(w.count_nonzero()) for n, w in ((n, params[n].detach()) for n in known)}
    on_meta = torch.device("meta")
    inputs = trees.tensors(draw(params, spec, batch=1, device=on_meta))
    found = counted(machine(spec, {n: t.to(on_meta) for n, t in params.items()}, inputs, on_meta))
    ops = found.ops.values()
    tied = tied_names(params, spec)
    own = {n: t for n, t in params.items() if n not in tied}
    created = spec.slots
    cost = spec.costs(spec.sizes)
    return Metrics(
        cost.macs,
        sum(t.numel() for n, t in own.items() if n in spec.parameters or n in created),
        cost.activations,
        sum(op.written_bytes for op in ops),
        found.peak,
        FrozenDict(_bytes(own)),
        sum(params[n].numel() for n in known),
        sum(zeros.values()),
        sum(times * zeros[n] for op in ops for n, times in op.times.items()),
    )


@door
def compare(networks: Mapping[str, tuple[Params, Spec]]) -> Table:
    """A line for each network: what it costs, and in brackets as a share of the first one.

    Args:
        networks: name → (params, spec), as for `profile`.

    Raises:
        PruneError: there is none.
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
        raise PruneError("compare needs a network at least; it was given none")
    found = {name: metrics(params, spec=spec) for name, (params, spec) in networks.items()}
    first = next(iter(found.values()))
    types = list(dict.fromkeys(t for m in found.values() for t in m.weight_bytes))
    units = {name: _unit(value) for name, value in _numbers(first, types).items()}
    columns = tuple(f"{units[name][1]}{name}" for name in units)
    rows = []
    for name, m in found.items():
        cells = [
            _cell(value, of, units[column][0], alone=m is first)
            for (column, value), of in zip(_numbers(m, types).items(), _numbers(first, types).values(), strict=True)
        ]
        rows.append((name, *cells, f"{m.sparsity:.1%}", f"{m.zero_macs / max(m.macs, 1):.1%}"))
    title = f"one sample; in brackets: share of {next(iter(found))}"
    return Table(title, ("network", *columns, "zeros in\nweights", "MACs with\nzeros"), rows)


def _shown(m: Metrics) -> dict[str, str]:
    numbers = {name.replace("\n", " "): str(value) for name, value in _numbers(m, list(m.weight_bytes)).items()}
    return {**numbers, "zeros in weights": f"{m.sparsity:.1%}", "MACs with zeros": str(m.zero_macs)}


def _numbers(m: Metrics, types: list[str]) -> dict[str, int]:
    """Column → number."""
    return {
        "MACs": m.macs,
        "params": m.params,
        "activations": m.activations,
        "activation\nbytes": m.activation_bytes,
        "peak\nbytes": m.peak_bytes,
        **{f"{t}\nbytes": m.weight_bytes.get(t, 0) for t in types},
    }


def _unit(value: int) -> tuple[float, str]:
    return next(((scale, text) for scale, text in ((1e9, "G "), (1e6, "M ")) if value >= scale), (1.0, ""))


def _cell(value: int, of: int, scale: float, *, alone: bool) -> str:
    text = f"{value / scale:.3f}" if scale > 1 else str(value)
    return text if alone else f"{text} ({value / of:.1%})" if of else f"{text} (–)"


def _bytes(own: Mapping[str, Tensor]) -> dict[str, int]:
    """Type → bytes."""
    out: dict[str, int] = {}
    for t in own.values():
        name = str(t.dtype).removeprefix("torch.")
        out[name] = out.get(name, 0) + t.nbytes
    return out
