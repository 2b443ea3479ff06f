"""A spec as a text table and as plain data."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from ..trace.cost import Polynomial
from ..trace.expr import Axis, Concat, Fixed, Leaf, Product, einops_form, leaves, size
from ..types import Group, Member, Site

if TYPE_CHECKING:
    from ..trace.spec import Spec

FORMAT = 1
"""Grows when keys of `to_dict` change their meaning or go."""
COLUMNS = ("group", "kind", "units", "members", "sites", "MACs", "params", "mixed by")
LEFT = ("group", "kind", "mixed by")
"""Columns of words; numbers stand to the right."""
NOTE = (
    "MACs and params: the share in which the group's units take part; a weight counts for its inputs and its outputs."
)


def table(spec: Spec) -> str:
    """One line per group; see `Spec.table`."""
    totals = [max(p(spec.sizes), 1) for p in (spec.costs.macs, spec.costs.params)]
    shares = [
        {g: n / total for g, n in parts(spec, q).items()} for q, total in zip(("macs", "params"), totals, strict=True)
    ]
    rows = [_row(g, [s[g.name] for s in shares]) for g in spec.groups.values()]
    if not rows:
        return repr(spec)
    widths = [max(len(r[i]) for r in (COLUMNS, *rows)) for i in range(len(COLUMNS))]

    def line(cells: tuple[str, ...]) -> str:
        padded = (c.ljust(w) if name in LEFT else c.rjust(w) for c, w, name in zip(cells, widths, COLUMNS, strict=True))
        return "  ".join(padded).rstrip()

    rule = "  ".join("─" * w for w in widths)
    return "\n".join([repr(spec), "", line(COLUMNS), rule, *map(line, rows), "", NOTE])


def _row(g: Group, shares: Sequence[float]) -> tuple[str, ...]:
    mixed = ", ".join(m.removeprefix("aten.").removesuffix(".default") for m in g.mixed_by)
    costs = (f"{100 * s:.1f} %" for s in shares)
    return (g.name, g.kind, str(g.size), str(len(g.members)), str(len(g.sites)), *costs, mixed)


def parts(spec: Spec, quantity: str) -> dict[str, int]:
    """Group → what of a cost its units take part in, which would go with all of them; from the terms that it stands in."""
    polynomial: Polynomial = getattr(spec.costs, quantity)
    out = dict.fromkeys(spec.groups, 0)
    for c, axes in polynomial.terms:
        value = prod(size(a, spec.sizes) for a in axes)
        for g in {leaf for a in axes for leaf in leaves(a)}:
            without = ChainMap({g: 0}, dict(spec.sizes))
            out[g] += c * (value - prod(size(a, without) for a in axes))
    return out


def to_dict(spec: Spec) -> dict[str, Any]:
    """The spec as plain data; see `Spec.to_dict` for the keys."""
    from prunefn import __version__

    made = {s.tensor for s in spec.program.slots}
    macs, params = parts(spec, "macs"), parts(spec, "params")
    labels = spec.labels()
    return {
        "format": FORMAT,
        "versions": {"prunefn": __version__, "torch": str(torch.__version__)},
        "capture": spec.capture,
        "capture_reason": spec.capture_reason,
        "train": spec.train,
        "inputs": {i.name: [axis_data(a) for a in i.axes] for i in spec.program.inputs},
        "batch": {leaf: list(source) for leaf, source in spec.program.batch.items()},
        "limits": {leaf: limit._asdict() for leaf, limit in spec.program.domain.limits.items()},
        "guards": [str(guard) for guard in spec.program.domain.guards],
        "costs": spec.costs(spec.sizes)._asdict(),
        "polynomials": {q: _polynomial(getattr(spec.costs, q)) for q in spec.costs._fields},
        "groups": {n: _group(spec, g, macs[n], params[n]) for n, g in spec.groups.items()},
        "sites": {n: _site(s, labels) for n, s in spec.sites.items()},
        "tensors": {t: _tensor(spec, t, labels) for t in spec.axes if t not in made},
        "new_biases": {t: _dims(spec, spec.axes[t], labels) for t in spec.axes if t in made},
        "constants": {t: _dims(spec, axes, labels) for t, axes in spec.constants.axes.items()},
        "unknown_ops": dict(spec.unknown),
    }


def axis_data(axis: Axis) -> Any:
    """An axis as plain data: a name, a number, or `{"product": […]}` or `{"concat": […]}` of these.

    >>> axis_data(Product((Fixed(3), Leaf("heads"), Leaf("head_dim"))))
    {'product': [3, 'heads', 'head_dim']}
    """
    match axis:
        case Leaf(name):
            return name
        case Fixed(n):
            return n
        case Product(factors):
            return {"product": [axis_data(f) for f in factors]}
        case Concat(parts):
            return {"concat": [axis_data(p) for p in parts]}


def _polynomial(p: Polynomial) -> list[dict[str, Any]]:
    return [{"times": c, "axes": [axis_data(a) for a in axes]} for c, axes in p.terms]


def _group(spec: Spec, g: Group, macs: int, params: int) -> dict[str, Any]:
    return {
        "kind": g.kind,
        "label": g.label,
        "units": g.size,
        "exact": g.exact,
        "mixed_by": list(g.mixed_by),
        "members": [_member(spec, m) for m in g.members],
        "sites": list(g.sites),
        "macs": macs,
        "params": params,
    }


def _member(spec: Spec, m: Member) -> dict[str, Any]:
    return {**m._asdict(), "size": size(spec.axes[m.tensor][m.dim], spec.sizes)}


def _site(s: Site, labels: Mapping[str, str]) -> dict[str, Any]:
    computed = s.weight.startswith("%")
    return {
        "axis": axis_data(s.axis),
        "out": axis_data(s.out),
        "einops": einops_form(s.axis, labels),
        "weight": None if computed else s.weight,
        "pattern": s.pattern,
        "bias": s.bias,
        "norm": s.norm,
        "new_bias": s.slot or None,
        "calls": len(s.calls),
    }


def _dims(spec: Spec, axes: tuple[Axis, ...], labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "shape": [size(a, spec.sizes) for a in axes],
        "axes": [axis_data(a) for a in axes],
        "einops": " ".join(einops_form(a, labels) for a in axes),
    }


def _tensor(spec: Spec, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        **_dims(spec, spec.axes[name], labels),
        "parameter": name in spec.parameters,
        "tied_to": spec.tied.get(name),
        "frozen": [list(spec.frozen.get((name, d), ())) for d in range(len(spec.axes[name]))],
    }
