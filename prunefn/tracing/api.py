"""`trace`: model → Spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..doors import door
from ..errors import TraceError, warn
from ..frozen_dict import FrozenDict
from ..spec.constants import Constants
from ..spec.costs import Costs, Polynomial, polynomial
from ..spec.example import example_of
from ..spec.spec import Spec
from .analyse import Analysis, analyse
from .capture import Captured, capture
from .freeze import chosen, freeze_tensors, unwritten
from .groups import Found, find_groups
from .lower import lower
from .mixing import mixed_by_weights
from .prove import Trial, guarded, proved, runs
from .record import record
from .rules import Contraction, Reason, Rule, Value, checked
from .sites import find_layouts, module_path, value_name

UNUSED = Reason("the program does not use it")
TIED = Reason("two tied tensors of it have different axes")


@door
def trace(
    model: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    train: bool = False,
    rules: Mapping[str, Rule] | None = None,
    freeze: Sequence[str] | str = (),
    check: bool = True,
) -> Spec:
    """Trace a model once into an immutable spec of its prunable axes.

    Args:
        model: any module, on any device, `meta` included. It comes back as it was. Where `torch.export` cannot capture it
            (control flow that depends on data), one run on the example is recorded: see `Spec.capture`.
        args: example inputs, a tuple as for `torch.export`, or a dict by input name; dim 0 of each tensor is the batch, of any size.
        kwargs: example keyword inputs.
        train: trace in train mode, so that `forward_train` returns updated BatchNorm buffers.
        rules: extra rules by op name (`"mylib.op"`, `"mylib::op"` or `"aten.foo.default"`), before the built-in ones.
        freeze: tensors that stay as they are in every dim: names, module paths, or globs for either (`"head"`, `"*.norm?.*"`).
        check: prove the program: run it beside the module at the traced sizes and with every size changed. Where they differ at
            the traced sizes the run is recorded instead; another size at which they differ is refused by `forward` and statistics,
            and `print(spec)` says why. On `meta` nothing is run.

    Returns:
        A `Spec`: groups with kinds, members and sites; the program; exact costs. Hashable, picklable, comparable.

    Raises:
        TraceError: the model can be neither exported nor recorded; both messages are passed on.
            A rule of `rules` fails or returns wrong sizes, or torch has no op of its name.
        ParamsError: a pattern of `freeze` matches nothing.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> spec = trace(model, (torch.randn(2, 4),))
        >>> spec
        Spec(1 groups: 1 hidden; 4.8e-08 GMACs, 5.8e-05 M params, 1.8e-05 M activations)
        >>> spec.einops("0.weight"), spec.einops("2.weight")
        ('hidden 4', '2 hidden')
        >>> print(spec.explain("2.weight"))
        2.weight: 2 hidden
          dim 0, size 2: frozen: it is an output
          dim 1, size 8: 0 (hidden)
    """
    if isinstance(args, Mapping) and not kwargs:
        args, kwargs = (), {str(name): value for name, value in args.items()}
    if not isinstance(args, tuple):
        args = (args,)
    given, own = (args, kwargs or {}), checked(rules or {})
    try:
        trial = _exported(model, given, train, own, freeze)
        if not check or not runs(model, *given):
            return trial.spec
        spec = proved(trial)
    except TraceError as error:
        return _recorded(model, given, train, own, freeze, " ".join(str(error).split())[:2000])
    if changes := trial.varies():
        warn(
            f"{type(model).__name__} draws random numbers outside of torch: with the same inputs and other states of Python's and "
            f"numpy's generators, {changes}. What it drew while it was traced is a constant of the program; draw with torch, or "
            "take the numbers as inputs",
        )
    return spec


Given = tuple[tuple[Any, ...], Mapping[str, Any]]
"""(args, kwargs)"""


def _exported(
    model: nn.Module, given: Given, train: bool, rules: Mapping[str, Rule], freeze: Sequence[str] | str
) -> Trial:
    """By `torch.export`; not proved yet."""
    captured = capture(model, *given, train)
    analysis = analyse(captured, rules)
    spec = guarded(_spec(model, given, train, captured, analysis, freeze), captured)
    return Trial(spec, model, *given, captured, analysis)


def _recorded(
    model: nn.Module, given: Given, train: bool, rules: Mapping[str, Rule], freeze: Sequence[str] | str, reason: str
) -> Spec:
    """By recording a run, for the reason that there is no export."""
    try:
        captured = record(model, *given, train)
        analysis = analyse(captured, rules)
    except Exception as error:  # the model's own code may raise anything
        raise TraceError(
            f"{reason}; and a run on the example inputs cannot be recorded: {type(error).__name__}: {error}"
        ) from error
    return replace(_spec(model, given, train, captured, analysis, freeze), capture_reason=reason)


def _spec(
    model: nn.Module, given: Given, train: bool, captured: Captured, analysis: Analysis, freeze: Sequence[str] | str
) -> Spec:
    tied = _tie(model, analysis)
    fixed = chosen(freeze, analysis.tensors)
    freeze_tensors(captured, analysis, fixed)
    found = find_groups(captured, analysis)
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    program = lower(captured, analysis, found, device)
    parameters = frozenset(n for n, _ in model.named_parameters(remove_duplicate=False))
    exported = captured.how == "exported"
    spec = Spec(
        program=program,
        axes=found.axes,
        sizes=found.sizes,
        traced=found.sizes,
        groups=mixed_by_weights(program, found.axes, found.groups),
        sites=found.sites,
        constants=_constants(captured, analysis, found, program.constants),
        costs=_costs(analysis, found, parameters, tied),
        parameters=parameters,
        tied=tied,
        frozen=found.frozen,
        unknown=FrozenDict(analysis.unknown),
        example=example_of(*given, captured.in_spec, program.inputs if exported else ()),
        train=train,
        capture=captured.how,
        layers=_layers(captured, analysis, found),
        layouts=find_layouts(captured, analysis, found.axis_of),
        scales=tuple(dict.fromkeys(value_name(captured, v.name) for v in analysis.scales)),
    )
    return unwritten(spec, fixed) if fixed else spec


def _tie(model: nn.Module, a: Analysis) -> FrozenDict[str, str]:
    """Second name → first name of every tied tensor; their axes are made one."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    named = [(name, t) for name, t in named if _persistent(model, name)]
    for name, t in named:
        if first.setdefault(id(t), name) != name:
            tied[name] = first[id(t)]
    for second, name in tied.items():
        if second in a.tensors:
            for x, y in zip(a.tensors.setdefault(name, a.tensors[second]), a.tensors[second], strict=True):
                a.alg.unify(x, y, TIED)
    for name, t in named:
        if name not in a.tensors and name not in tied:
            a.tensors[name] = tuple(a.alg.leaf(n, UNUSED) for n in t.shape)
    a.tensors.update({second: a.tensors[name] for second, name in tied.items()})
    return FrozenDict(tied)


def _persistent(model: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    return leaf not in model.get_submodule(path)._non_persistent_buffers_set


def _constants(captured: Captured, a: Analysis, found: Found, used: tuple[str, ...]) -> Constants:
    axes = {}
    for name in used:
        value = a.values[captured.nodes[name]]
        assert isinstance(value, Value)
        axes[name] = tuple(found.axis_of(x) for x in value.axes)
    tensors = FrozenDict({n: captured.constants[n].detach() for n in used})
    return Constants(
        tensors, FrozenDict(axes), FrozenDict({n: captured.sources[n] for n in used if n in captured.sources})
    )


def _costs(a: Analysis, found: Found, parameters: frozenset[str], tied: Mapping[str, str]) -> Costs:
    macs = polynomial(([found.axis_of(t) for t in c.macs] for c in a.contractions), found.batch)
    params = polynomial(found.axes[n] for n in found.axes if n in parameters and n not in tied)
    written = polynomial(([found.axis_of(t) for t in axes] for axes in a.written), found.batch)
    return Costs(macs, params, written)


def _layers(captured: Captured, a: Analysis, found: Found) -> FrozenDict[str, Polynomial]:
    """The MACs, each with the module whose parameters they are done with, or in which two activations meet."""
    layers: dict[str, list[list[Any]]] = {}
    for c in a.contractions:
        layers.setdefault(_layer(captured, c), []).append([found.axis_of(t) for t in c.macs])
    return FrozenDict({name: polynomial(products, found.batch) for name, products in layers.items()})


def _layer(captured: Captured, c: Contraction) -> str:
    tensor = captured.tensors.get(c.weight.name) if c.weight is not None else None
    return module_path(captured.nodes[c.node]) if tensor is None else tensor.rpartition(".")[0]
