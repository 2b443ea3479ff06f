"""Trace a model into a spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from ..doors import door
from ..errors import TraceError, warn
from ..frozen_dict import FrozenDict
from ..spec.branches import ALWAYS, Condition, Needs, factors, needs_of
from ..spec.constants import Constants
from ..spec.costs import Costs, Polynomial, polynomial
from ..spec.example import example_of
from ..spec.spec import Spec, first_sentence
from .analyse import Analysis, WrongRuleError, analyse
from .arguments import arguments, positional
from .caches import without_caches
from .capture import Captured, capture
from .configured import configured_paths
from .depth import Network, children_of_containers, find_depth
from .dynamic import Dynamic, Names, batch_only, names_of, within
from .expert_lists import with_reasons
from .expert_loops import without_expert_loops
from .experts import find_experts, has_router
from .freeze import chosen, freeze_tensors, unwritten
from .groups import Found, find_groups
from .interfaces import Requested, RequestError, free_interfaces
from .lower import lower
from .mixing import mixed_by_weights
from .prove import Trial, guarded, proved, runs, with_domain
from .record import record
from .rules import Contraction, Reason, Rule, Value, checked
from .sites import find_layouts, module_path, value_name

UNUSED = Reason("the program does not use it")
TIME_LIMIT = 120.0
"""Seconds for an export with sizes beyond the batch, which can take minutes: windows of a symbolic height and width do."""
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
    dynamic: Dynamic | None = None,
    free: Requested = (),
    check: bool = True,
) -> Spec:
    """Trace a model once into an immutable spec of its prunable axes.

    Args:
        model: any module, on any device, including `meta`. It is left unchanged. Caches of earlier words are off for the trace
            (`use_cache` of all configs), and no outputs; experts of transformers are computed by grouped products, not in a
            loop. If `torch.export` cannot capture it (control flow that depends on data), one run on the example is recorded:
            see `Spec.capture`.
        args: example inputs, a tuple as for `torch.export`, or a dict by input name; dim 0 of each tensor is the batch. An input
            may be nested: dicts, lists, tuples, and classes that are registered with `torch.export`. A dict whose keys are no
            parameters of `forward` is itself the one input.
        kwargs: example keyword inputs.
        train: trace in train mode, so that `forward_train` returns updated BatchNorm buffers.
        rules: extra rules by op name (`"mylib.op"`, `"mylib::op"` or `"aten.foo.default"`), which override the built-in rules;
            `Call` says how to write one. If one raises, what the op touches is frozen, with a warning.
        freeze: tensors that must not change: names, module paths, or globs for either (`"head"`, `"*.norm?.*"`).
        dynamic: sizes of the inputs that may change from call to call. Default: the batch, and lengths of sequences (all dims of
            integer inputs and masks, and of inputs of up to three dims; nodes and edges of graphs). `"all"` adds channels, depth,
            height and width of images; names (`"batch height width"`) are exactly these; a dict names the dims of an input
            (`{"x": ("batch", "points", None)}`, None: fixed). What the export cannot vary is fixed, and `print(spec)` says why.
        free: axes to prune that are frozen because somebody outside of the model counts on their positions. They become groups of
            these kinds, which are pruned only where `where=` names them, as `pf.kind("vocabulary")` does:

            * `"vocabulary"`: the rows of a table that integers of an input look up, and those of the head that returns numbers
              over them. Table and head are one group if they are tied, or if they have the same size; without such a head, it is
              the rows of the table. Of several tables, give the name: `free="model.embed_tokens"`. Ids that the model compares
              with or that it names (`padding_idx`, `eos_token_id` of its config) must stay;
            * `"classes"`: the rows of the only layer that makes an output; `"outputs"`: those of all layers that do;
            * `"inputs"`: channels and features of inputs that a layer sums over;
            * any other axis by tensor or input and dim: `{"query_position_embeddings.weight": 0}` (kind `interface`).

            In the smaller network, inputs and outputs have the new positions: `remap` renumbers ids and labels, and `kept` says which
            positions of other axes stay. Softmax and attention over a freed axis mix its units, so that it is not `exact`.
        check: prove the program: compare its results with the module's at the traced sizes and with every size changed. If they
            differ at the traced sizes, the run is recorded instead. If they differ at another size, `forward` and statistics
            refuse this size, and `print(spec)` says why. On `meta` nothing is run.

    Returns:
        A `Spec`: groups with kinds, members and sites; the program; exact costs. Hashable, picklable, comparable.

    Raises:
        TraceError: the model can be neither exported nor recorded (the text contains both messages); a rule of `rules` returns
            axes of wrong sizes; torch has no op of its name; or an axis of `free` is frozen for another reason, which the text says.
        ParamsError: a pattern of `freeze` matches nothing, or `free` names nothing.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> spec = trace(model, (torch.randn(2, 4),))
        >>> spec
        Spec(1 groups: 1 hidden; 48 MACs, 58 params, 18 activations)
        >>> spec.einops("0.weight"), spec.einops("2.weight")
        ('hidden 4', '2 hidden')
        >>> print(spec.explain("2.weight"))
        2.weight: 2 hidden
          dim 0, size 2: frozen: it is an output
          dim 1, size 8: 0 (hidden)

        The classes and the input features become groups on request:

        >>> spec = trace(model, (torch.randn(2, 4),), free=["classes", "inputs"])
        >>> spec.einops("0.weight"), spec.einops("2.weight"), list(spec.groups)
        ('hidden inputs', 'classes hidden', ['0', '2.classes', '0.inputs'])
    """
    example = Given(*arguments(model, args, kwargs or {}))
    settings = Settings(train, checked(rules or {}), freeze, free, check)
    with without_caches(model), without_expert_loops(model):
        return _trace(model, example, settings, names_of(model, *example, dynamic), chosen=dynamic is not None)


def _trace(model: nn.Module, example: Given, settings: Settings, names: list[Names], *, chosen: bool) -> Spec:
    """Trace by `torch.export`, or else by recording."""
    try:
        return _trace_by_export(model, example, settings, names, chosen=chosen)
    except (WrongRuleError, RequestError):  # a recording would follow the same rule, and have the same axes
        raise
    except TraceError as error:
        return _trace_by_recording(model, example, settings, " ".join(str(error).split())[:2000])


class Given(NamedTuple):
    """The example inputs."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Settings(NamedTuple):
    """The options of a trace."""

    train: bool
    rules: Mapping[str, Rule]
    freeze: Sequence[str] | str
    free: Requested
    check: bool


def _trace_by_export(model: nn.Module, example: Given, settings: Settings, names: list[Names], *, chosen: bool) -> Spec:
    """Trace by `torch.export` with these sizes that vary, or with the batch alone where the others cannot.

    `chosen` is whether the user chose the sizes, who is then warned.
    """
    fewer = batch_only(names)
    if names == fewer:
        return _trace_with_sizes(model, example, settings, names)
    try:
        with within(TIME_LIMIT):
            return _trace_with_sizes(model, example, settings, names)
    except RequestError:
        raise
    except TraceError as error:
        spec = _trace_with_sizes(model, example, settings, fewer)
        reason = f"with more sizes that vary: {first_sentence(' '.join(str(error).split()))}"
        if chosen:
            warn(f"only the batch may vary, all other sizes are those of the example; {reason}")
        others = {n for dims, kept in zip(names, fewer, strict=True) for n in dims if n is not None and n not in kept}
        domain = spec.program.domain
        return with_domain(spec, domain._replace(fixed=FrozenDict({**domain.fixed, **dict.fromkeys(others, reason)})))


def _trace_with_sizes(model: nn.Module, example: Given, settings: Settings, names: list[Names]) -> Spec:
    """Trace by `torch.export` with these sizes that may vary, and prove the program."""
    captured = capture(model, *example, settings.train, names, settings.rules)
    lenient = bool(settings.free) or has_router(captured)
    analysis = analyse(captured, settings.rules, lenient=lenient)
    spec = guarded(_build_spec(model, example, settings, captured, analysis), captured)
    if not settings.check or not runs(model, *example):
        return spec
    trial = Trial(spec, model, *example, captured, analysis)
    spec = proved(trial)
    if changes := trial.varies():
        warn(
            f"{type(model).__name__} draws random numbers outside of torch: with the same inputs and other states of Python's and "
            f"numpy's generators, {changes}. What it drew while it was traced is a constant of the program; draw with torch, or "
            "take the numbers as inputs",
        )
    return spec


def _trace_by_recording(model: nn.Module, example: Given, settings: Settings, reason: str) -> Spec:
    """Trace by recording a run; `reason` says why there is no export."""
    try:
        captured = record(model, *example, settings.train, settings.rules)
        analysis = analyse(captured, settings.rules, lenient=bool(settings.free))
    except WrongRuleError:
        raise
    except Exception as error:  # the model's own code may raise anything
        raise TraceError(
            f"{reason}; and a run on the example inputs cannot be recorded: {type(error).__name__}: {error}"
        ) from error
    spec = replace(_build_spec(model, example, settings, captured, analysis), capture_reason=reason)
    program, flow = spec.program, spec.program.recorded
    if flow is None or flow.refusal or not settings.check or not runs(model, *example):
        return spec
    outcome = Trial(spec, model, *example, captured, analysis).run({})
    refusal = "" if outcome.who == "same" else f"replaying the recorded ops on the example differs: {outcome.text}"
    return replace(spec, program=program._replace(recorded=flow._replace(refusal=refusal)))


def _build_spec(model: nn.Module, example: Given, settings: Settings, captured: Captured, analysis: Analysis) -> Spec:
    tied = _unify_tied(model, analysis)
    frozen_tensors = chosen(settings.freeze, analysis.tensors)
    freeze_tensors(captured, analysis, frozen_tensors)
    if settings.free:
        free_interfaces(model, captured, analysis, settings.free)
    analysis.alg.settle({*analysis.freed, *find_experts(captured, analysis)})
    solution = find_groups(captured, analysis)
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    program = lower(captured, analysis, solution, device)
    parameters = frozenset(n for n, _ in model.named_parameters(remove_duplicate=False))
    network = Network(
        axes=solution.axes,
        contractions={c.node: solution.axis_of(c.out) for c in analysis.contractions},
        children=children_of_containers(model),
        tied=tied,
        frozen=frozenset(frozen_tensors),
        names=solution.groups,
    )
    depth = find_depth(program, network)
    program = program._replace(slots=(*program.slots, *depth.slots))
    stays = (needs := needs_of(program, depth.branches)).tensors(solution.axes, tied)
    sizes = FrozenDict({**solution.sizes, **dict.fromkeys(depth.groups, 1)})
    is_exported = captured.how == "exported"
    spec = Spec(
        program=program,
        axes=FrozenDict({**solution.axes, **{s.tensor: (s.axis,) for s in depth.slots}}),
        sizes=sizes,
        traced=sizes,
        groups=FrozenDict({**mixed_by_weights(program, solution.axes, solution.groups), **depth.groups}),
        sites=solution.sites,
        constants=_constants(captured, analysis, solution, program.constants),
        formulas=_cost_polynomials(analysis, solution, parameters.difference(tied), needs, stays),
        parameters=parameters,
        tied=tied,
        frozen=with_reasons(solution, model),
        unknown=FrozenDict(analysis.unknown),
        example=example_of(
            *example, captured.in_spec, program.inputs if is_exported else (), program.domain, positional(model)
        ),
        train=settings.train,
        capture=captured.how,
        layer_formulas=_macs_by_module(captured, analysis, solution, needs.runs),
        input_sizes=FrozenDict({n: m for n, m in program.domain.traced.items() if n not in program.domain.batch}),
        layouts=find_layouts(captured, analysis, solution.axis_of),
        scales=tuple(dict.fromkeys(value_name(captured, v.name) for v in analysis.scales)),
        branches=depth.branches,
        configured=tuple(configured_paths(model)),
        without_grad=frozenset(n for n, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad),
    )
    return unwritten(spec, frozen_tensors) if frozen_tensors else spec


def _unify_tied(model: nn.Module, a: Analysis) -> FrozenDict[str, str]:
    """Unify the axes of tied tensors, and return second name → first name of each."""
    first_names: dict[int, str] = {}
    tied: dict[str, str] = {}
    named_tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    named_tensors = [(name, t) for name, t in named_tensors if _is_persistent(model, name)]
    for name, t in named_tensors:
        if first_names.setdefault(id(t), name) != name:
            tied[name] = first_names[id(t)]
    for second, name in tied.items():
        if second in a.tensors:
            for x, y in zip(a.tensors.setdefault(name, a.tensors[second]), a.tensors[second], strict=True):
                a.alg.unify(x, y, TIED)
    for name, t in named_tensors:
        if name not in a.tensors and name not in tied:
            a.tensors[name] = tuple(a.alg.leaf(n, UNUSED) for n in t.shape)
    a.tensors.update({second: a.tensors[name] for second, name in tied.items()})
    return FrozenDict(tied)


def _is_persistent(model: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    return leaf not in model.get_submodule(path)._non_persistent_buffers_set


def _constants(captured: Captured, a: Analysis, solution: Found, names: tuple[str, ...]) -> Constants:
    axes = {}
    for name in names:
        value = a.values[captured.nodes[name]]
        assert isinstance(value, Value)
        axes[name] = tuple(solution.axis_of(x) for x in value.axes)
    tensors = FrozenDict({n: captured.constants[n].detach() for n in names})
    return Constants(
        tensors, FrozenDict(axes), FrozenDict({n: captured.sources[n] for n in names if n in captured.sources})
    )


def _cost_polynomials(
    a: Analysis, solution: Found, parameters: frozenset[str], needs: Needs, stays: Mapping[str, Condition]
) -> Costs:
    """Return the costs; each term is multiplied by the branches without which it is not incurred."""
    axis_of, runs = solution.axis_of, needs.runs
    macs = ([*map(axis_of, c.macs), *factors(runs.get(c.node, ALWAYS))] for c in a.contractions)
    params = ([*axes, *factors(stays[n])] for n, axes in solution.axes.items() if n in parameters)
    written = ([*map(axis_of, axes), *factors(runs.get(node, ALWAYS))] for node, axes in a.written)
    batch = solution.free.batch
    return Costs(polynomial(macs, batch), polynomial(params), polynomial(written, batch))


def _macs_by_module(
    captured: Captured, a: Analysis, solution: Found, runs: Mapping[str, Condition]
) -> FrozenDict[str, Polynomial]:
    """Return module → MACs that use its parameters, or that multiply two activations inside it."""
    layers: dict[str, list[list[Any]]] = {}
    for c in a.contractions:
        product = [*map(solution.axis_of, c.macs), *factors(runs.get(c.node, ALWAYS))]
        layers.setdefault(_module_of(captured, c), []).append(product)
    return FrozenDict({name: polynomial(products, solution.free.batch) for name, products in layers.items()})


def _module_of(captured: Captured, c: Contraction) -> str:
    tensor = captured.tensors.get(c.weight.name) if c.weight is not None else None
    return module_path(captured.nodes[c.node]) if tensor is None else tensor.rpartition(".")[0]
