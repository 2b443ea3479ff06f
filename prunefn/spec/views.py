"""A spec as a text table and as plain data."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from math import prod
from typing import Any

import torch

from ..errors import ParamsError, nearest
from .axis import AnyOf, Axis, Concat, Derived, Fixed, Leaf, Product, einops_form, leaves, size
from .branches import removed_tensors
from .costs import Polynomial
from .data import SpecData
from .expressions import written
from .interface import interface_text
from .parts import Group, Member, Site

FORMAT = 1
"""Version of `to_dict`'s format; it grows when keys change their meaning or are removed."""
COLUMNS = ("group", "kind", "units", "members", "sites", "MACs", "params", "mixed by")
LEFT = ("group", "kind", "mixed by")
"""Left-aligned columns: words; numbers are right-aligned."""
NOTE = "MACs and params: those in which the group's units take part; a weight counts for its inputs and its outputs."


def table(spec: SpecData) -> str:
    """Return a table with one line per group; see `Spec.table`."""
    totals = [max(p(spec.sizes), 1) for p in (spec.costs.macs, spec.costs.params)]
    ratios = [
        {g: n / total for g, n in parts(spec, q).items()} for q, total in zip(("macs", "params"), totals, strict=True)
    ]
    rows = [_row(g, [s[g.name] for s in ratios]) for g in spec.groups.values()]
    if not rows:
        return repr(spec)
    widths = [max(len(r[i]) for r in (COLUMNS, *rows)) for i in range(len(COLUMNS))]

    def line(cells: tuple[str, ...]) -> str:
        padded = (c.ljust(w) if name in LEFT else c.rjust(w) for c, w, name in zip(cells, widths, COLUMNS, strict=True))
        return "  ".join(padded).rstrip()

    rule = "  ".join("─" * w for w in widths)
    return "\n".join([repr(spec), "", line(COLUMNS), rule, *map(line, rows), "", NOTE])


def _row(g: Group, ratios: Sequence[float]) -> tuple[str, ...]:
    mixed = ", ".join(m.removeprefix("aten.").removesuffix(".default") for m in g.mixed_by)
    costs = (f"{100 * s:.1f} %" for s in ratios)
    return (g.name, g.kind, str(g.size), str(len(g.members)), str(len(g.sites)), *costs, mixed)


def parts(spec: SpecData, quantity: str) -> dict[str, int]:
    """Return group → the part of a cost that its units take part in, which removing all of them would save."""
    polynomial: Polynomial = getattr(spec.costs, quantity)
    part_of = dict.fromkeys(spec.groups, 0)
    for c, axes in polynomial.terms:
        value = prod(size(a, spec.sizes) for a in axes)
        for g in {leaf for a in axes for leaf in leaves(a)}:
            without = ChainMap({g: 0}, dict(spec.sizes))
            part_of[g] += c * (value - prod(size(a, without) for a in axes))
    return part_of


def to_dict(spec: SpecData) -> dict[str, Any]:
    """Return the spec as plain data; see `Spec.to_dict` for the keys."""
    from prunefn._version import __version__

    new_biases = spec.slots
    macs, params = parts(spec, "macs"), parts(spec, "params")
    labels = spec.labels()
    return {
        "format": FORMAT,
        "versions": {"prunefn": __version__, "torch": str(torch.__version__)},
        "capture": spec.capture,
        "capture_reason": spec.capture_reason,
        "train": spec.train,
        "inputs": {i.name: [axis_data(a) for a in i.axes] for i in spec.program.inputs},
        "free": {leaf: list(source) for leaf, source in spec.program.free.items()},
        "batch": sorted(spec.program.domain.batch),
        "input_sizes": dict(spec.input_sizes),
        "fixed": dict(spec.program.domain.fixed),
        "limits": {leaf: limit._asdict() for leaf, limit in spec.program.domain.limits.items()},
        "guards": [str(guard) for guard in spec.program.domain.guards],
        "costs": spec.costs(spec.sizes)._asdict(),
        "polynomials": {q: _polynomial(getattr(spec.formulas, q)) for q in spec.formulas._fields},
        "interfaces": {
            n: {"kept": list(i.kept), "inputs": list(i.inputs), "named": {str(k): v for k, v in i.names().items()}}
            for n, i in spec.program.interfaces.items()
        },
        "groups": {n: _group(spec, g, macs[n], params[n]) for n, g in spec.groups.items()},
        "sites": {n: _site(s, labels) for n, s in spec.sites.items()},
        "tensors": {t: _tensor(spec, t, labels) for t in spec.axes if t not in new_biases},
        "new_biases": {t: _dims(spec, spec.axes[t], labels) for t in spec.axes if t in new_biases},
        "constants": {t: _dims(spec, axes, labels) for t, axes in spec.constants.axes.items()},
        "unknown_ops": dict(spec.unknown),
    }


def axis_data(axis: Axis) -> Any:
    """Return an axis as plain data: a name, a number, `{"size": expression}`, or `{"product": […]}` or `{"concat": […]}` of these.

    >>> axis_data(Product((Fixed(3), Leaf("heads"), Leaf("head_dim"))))
    {'product': [3, 'heads', 'head_dim']}
    """
    match axis:
        case Leaf(name):
            return name
        case Fixed(n):
            return n
        case Derived(expr):
            return {"size": written(expr)}
        case Product(factors):
            return {"product": [axis_data(f) for f in factors]}
        case Concat(parts):
            return {"concat": [axis_data(p) for p in parts]}
        case AnyOf(alternatives):
            return {"any": [axis_data(a) for a in alternatives]}


def _polynomial(p: Polynomial) -> list[dict[str, Any]]:
    return [{"times": c, "axes": [axis_data(a) for a in axes]} for c, axes in p.terms]


def _group(spec: SpecData, g: Group, macs: int, params: int) -> dict[str, Any]:
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


def _member(spec: SpecData, m: Member) -> dict[str, Any]:
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


def _dims(spec: SpecData, axes: tuple[Axis, ...], labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "shape": [size(a, spec.sizes) for a in axes],
        "axes": [axis_data(a) for a in axes],
        "einops": " ".join(einops_form(a, labels) for a in axes),
    }


def _tensor(spec: SpecData, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        **_dims(spec, spec.axes[name], labels),
        "parameter": name in spec.parameters,
        "tied_to": spec.tied.get(name),
        "frozen": [list(spec.frozen.get((name, d), ())) for d in range(len(spec.axes[name]))],
    }


def explain(spec: SpecData, name: str) -> str:
    """Return why each dim of a tensor is prunable or not, or where a group occurs; see `Spec.explain`."""
    slots = spec.slots
    if name in spec.groups:  # a bare parameter may have the name of its group
        return "\n".join(
            [*_explain_group(spec, spec.groups[name]), *(_explain_tensor(spec, name) if name in spec.axes else [])]
        )
    existing = [t for t in spec.axes if t not in slots]
    tensors = [t for t in existing if t == name or t.startswith(f"{name}.") or fnmatch(t, name)]
    if not tensors:
        raise ParamsError(f"no tensor or group is called {name!r}{nearest(name, [*spec.groups, *spec.axes])}")
    return "\n".join(line for t in tensors for line in _explain_tensor(spec, t))


def _explain_group(spec: SpecData, g: Group) -> list[str]:
    units = "1 unit" if g.size == 1 else f"{g.size} units"
    head = f"{g.name}: {units}, {g.kind}" + (f", mixed by {', '.join(g.mixed_by)}" if g.mixed_by else "")
    if g.name in spec.branches:
        own = sorted(removed_tensors(spec, (g.name,)) - spec.slots)
        return [head, f"  without it, these tensors go: {', '.join(own) or 'none, since others share them'}"]
    members = [f"  {m.tensor} dim {m.dim} ({m.role}): {spec.einops(m.tensor)}" for m in g.members]
    interface = spec.program.interfaces.get(g.name)
    told = [] if interface is None else interface_text(g.name, interface, spec.sizes[g.name])
    return [head, *members, *(f"  measured at {s}" for s in g.sites), *told]


def _explain_tensor(spec: SpecData, tensor: str) -> list[str]:
    lines = [f"{tensor}: {spec.einops(tensor) or '()'}"]
    for d, axis in enumerate(spec.axes[tensor]):
        groups = list(dict.fromkeys(leaves(axis)))
        reasons = list(spec.frozen.get((tensor, d), ()))
        notes = [f"{g} ({spec.groups[g].kind})" for g in groups if g in spec.groups]
        notes += [f"frozen: {w}" for w in reasons]
        lines.append(
            f"  dim {d}, size {size(axis, spec.sizes)}: {'; '.join(notes) or 'frozen: it has one position, or meets no other tensor'}"
        )
    return lines
