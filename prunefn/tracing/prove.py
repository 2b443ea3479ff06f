"""Prove a program: run it beside its module, at the traced sizes and with every size changed.

The graph of `torch.export` need not compute what the module computes: a loop over samples is unrolled for the traced ones, a
branch on a size is taken once. So the results of the program are compared with those of the module. Sizes at which they differ
become limits of the program's domain, which `forward` and all its callers check.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from .. import trees
from ..errors import TraceError
from ..frozen_dict import FrozenDict
from ..program.build import build
from ..program.compiled import result
from ..spec.axis import Leaf, leaves, size
from ..spec.domain import Domain, Limit, guards_of, refusal, shape_environment
from ..spec.program import target
from ..spec.spec import Spec
from .analyse import Analysis, reason_of
from .capture import Captured, in_mode
from .difference import Result, difference, tensors_differ
from .locate import Outputs, first_difference
from .rules import Value
from .symbols import disagreeing, expression
from .unchanged import Writes, buffer_copies, reseed, seed_torch, unchanged

SAMPLES: tuple[Callable[[int], int], ...] = (lambda n: 2 if n == 3 else 3, lambda n: n + 1, lambda n: 2 * n)
"""Functions of the traced batch that give others to try: a small one, and two larger ones for modules that index samples."""
OTHERS: tuple[Callable[[int], int], ...] = (
    *(lambda n, step=step: n + step for step in (1, -1, 2, 4, 8, 16, 32)),
    lambda n: n // 2,
    lambda n: 2 * n,
)
"""Functions of another traced size that give others to try: small steps, and larger ones for modules that need multiples."""
JOINT = 3
"""Most attempts with all sizes changed at once."""
UNROLLED = ("aten.unbind", "aten.select", "aten.split", "aten.chunk", "aten.slice", "aten.index", "aten.narrow")
"""Ops that read an axis position by position."""


class _Outcome(NamedTuple):
    """The outcome of running both the module and the program at some sizes."""

    who: str
    """`"same"`; `"differs"`; or the one that raised: `"module"`, `"program"`."""
    text: str = ""


def guarded(spec: Spec, captured: Captured) -> Spec:
    """Return the spec with the guards of the export."""
    inputs: dict[str, Any] = {n: captured.nodes[n].meta.get("val") for n in captured.inputs}
    env = shape_environment(inputs.values())
    if env is None:
        return spec
    leaf_of = {
        expr: axis.name
        for i in spec.program.inputs
        for n, axis in zip(inputs[i.name].shape, i.axes, strict=True)
        if (expr := expression(n)) is not None and expr.is_Symbol and isinstance(axis, Leaf)
    }
    guards, unreadable = guards_of(env, leaf_of)
    domain = spec.program.domain
    limits = {leaf: f"the export guards {text}" for leaf, text in unreadable.items()}
    values = ((v, captured.nodes[v[1:]].meta["val"].shape, axes) for v, axes in spec.program.axes.items())
    doubled = {
        **spec.sizes,
        **{leaf: 2 * n for leaf, n in domain.traced.items()},
    }  # most guards hold at twice the sizes
    for leaf, value in disagreeing(values, leaf_of, doubled).items():
        place = _place_text(captured.nodes[value[1:]])
        limits.setdefault(leaf, f"the axes of {value}{place} do not follow it")
    return with_domain(spec, domain._replace(guards=guards).at_traced(limits))


def with_domain(spec: Spec, domain: Domain) -> Spec:
    """Return the spec with another domain."""
    example = spec.example._replace(domain=domain)
    return replace(spec, program=spec.program._replace(domain=domain), example=example)


def proved(trial: Trial) -> Spec:
    """Return the spec with limits to the sizes for which its program agrees with the module.

    Args:
        trial: the model and its spec.

    Raises:
        TraceError: the program differs from the module at the traced sizes, or the module does not run.
    """
    traced_outcome = trial.run({})
    if traced_outcome.who == "module":
        raise TraceError(
            f"the module does not run on the example inputs: {traced_outcome.text}; check=False traces it without running it"
        )
    if traced_outcome.who != "same":
        raise TraceError(
            f"the program captured by torch.export differs from the module{trial.place()}: {traced_outcome.text}"
        )
    domain = trial.spec.program.domain
    limits = dict(domain.limits)
    variable_sizes = {leaf: n for leaf, n in trial.sizes.items() if leaf not in limits}
    if variable_sizes and not _agrees_with_all_changed(trial, variable_sizes, domain):
        limits |= _limits_by_leaf(trial, variable_sizes, domain)
    leaves_to_try = [
        leaf for leaf, n in variable_sizes.items() if leaf not in limits and n != 1 and _is_allowed({leaf: 1}, domain)
    ]
    limits |= _limits_above_one(trial, leaves_to_try)
    return with_domain(trial.spec, domain._replace(limits=FrozenDict(limits)))


def _agrees_with_all_changed(trial: Trial, variable_sizes: Mapping[str, int], domain: Domain) -> bool:
    """Return whether program and module agree when every size is changed; where the module raises, other sizes are tried."""
    outcomes = (trial.run(sizes).who for sizes in _sizes_to_try(variable_sizes, domain)[:JOINT])
    return next((who for who in outcomes if who != "module"), "") == "same"


def _sizes_to_try(traced_sizes: Mapping[str, int], domain: Domain) -> list[dict[str, int]]:
    """Return other sizes to try that the guards allow, near ones first; every size differs from that of the trace."""
    picks = {leaf: _picks(leaf, n, domain) for leaf, n in traced_sizes.items()}
    alone = {leaf: [m for m in ns if _is_allowed({leaf: m}, domain)] or ns for leaf, ns in picks.items()}
    candidates = [
        {leaf: ns[min(k, len(ns) - 1)] for leaf, ns in choice.items()}
        for choice in (alone, picks)
        for k in range(max(map(len, choice.values()), default=0))
    ]
    return [sizes for i, sizes in enumerate(candidates) if sizes not in candidates[:i] and _is_allowed(sizes, domain)]


def _picks(leaf: str, n: int, domain: Domain) -> list[int]:
    """Return other sizes of an axis, by preference."""
    picks = SAMPLES if leaf in domain.batch else OTHERS
    return list(dict.fromkeys(m for pick in picks if (m := pick(n)) != n and m > 0))


def runs(model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Return whether the model can be run: no tensor is on `meta`."""
    tensors = trees.tensors((args, dict(kwargs)))
    return not any(t.is_meta for t in (*model.parameters(), *model.buffers(), *tensors))


def _is_allowed(sizes: Mapping[str, int], domain: Domain) -> bool:
    """Return whether the guards allow these sizes together with the traced sizes of other axes."""
    return not refusal({**domain.traced, **sizes}, (), domain.guards)


def _limits_by_leaf(trial: Trial, variable_sizes: Mapping[str, int], domain: Domain) -> dict[str, Limit]:
    """Change one size at a time, and return limits to the traced size for those that cannot change."""
    limits = {}
    for leaf, n in variable_sizes.items():
        outcome = _Outcome("module", "the guards leave no other size to try")
        for sizes in _sizes_to_try({leaf: n}, domain):
            outcome = trial.run(sizes)
            if outcome.who != "module":
                break
        if outcome.who == "module":
            limits[leaf] = Limit(n, n, f"the module itself was not seen to run at another size ({outcome.text})")
        elif outcome.who != "same":
            limits[leaf] = Limit(n, n, f"{_first_unrolled_op(trial, leaf)}{outcome.text}")
    return limits


def _limits_above_one(trial: Trial, leaves: list[str]) -> dict[str, Limit]:
    """Try sizes of one, which torch's export treats as broadcasting, and return limits to two or more where they fail."""
    if not leaves or trial.run(dict.fromkeys(leaves, 1)).who == "same":
        return {}
    outcomes = {leaf: trial.run({leaf: 1}) for leaf in leaves}
    return {leaf: Limit(2, None, o.text) for leaf, o in outcomes.items() if o.who not in ("same", "module")}


def _first_unrolled_op(trial: Trial, leaf: str) -> str:
    """Return a text with the first op that reads an axis position by position, and its line."""
    captured, a = trial.captured, trial.analysis
    source, dim = trial.spec.program.free[leaf]
    var = a.alg.find(a.values[captured.nodes[source]].axes[dim])
    for node in captured.graph.nodes:
        if node.op != "call_function" or not str(node.target).startswith(UNROLLED):
            continue
        before = [x for n in node.all_input_nodes if isinstance(v := a.values[n], Value) for x in v.axes]
        out = a.values[node]
        after = [x for v in (out if isinstance(out, list) else [out]) if isinstance(v, Value) for x in v.axes]
        if var in map(a.alg.find, before) and var not in map(a.alg.find, after):
            return f"{node.target}{_place_text(node)} reads its positions one by one; "
    return ""


def _place_text(node: fx.Node) -> str:
    source = reason_of(node).source
    return f" at {source}" if source else ""


class Trial:
    """A module and its program, which can be run on the example at other sizes.

    Args:
        spec: the spec of the model.
        model: the module.
        args, kwargs: the example inputs.
        captured, analysis: the sources of the spec, which locate the line that causes a difference.
    """

    def __init__(
        self,
        spec: Spec,
        model: nn.Module,
        args: Any,
        kwargs: Mapping[str, Any],
        captured: Captured,
        analysis: Analysis,
    ) -> None:
        self.spec, self.model, self.captured, self.analysis = spec, model, captured, analysis
        names = spec.program.in_spec.children()[1].context or list(kwargs)
        self.flat, self.form = trees.flatten((args, {n: kwargs[n] for n in names}))
        self.places = [i for i, x in enumerate(self.flat) if isinstance(x, Tensor)]
        self.first: Result | None = None
        """Result of the module at the traced sizes."""
        axes = dict(zip(self.places, (i.axes for i in spec.program.inputs), strict=True))
        self.axes = {i: axes[i] for i in self.places}
        self.sizes = {
            axis.name: self.flat[i].shape[d]
            for i in self.places
            for d, axis in enumerate(self.axes[i])
            if isinstance(axis, Leaf) and axis.name in spec.program.free
        }
        self.draws = any(_is_random(i.op) for i in spec.program.instructions)

    def run(self, sizes: Mapping[str, int]) -> _Outcome:
        """Run both at the traced sizes, except for the given ones, and compare their results."""
        flat = [self._resize(i, x, sizes) if i in self.axes else x for i, x in enumerate(self.flat)]
        at = ", ".join(f"{leaf} = {n}" for leaf, n in sizes.items())
        at = f"at {at}, " if at else ""
        try:
            expected = self.module(flat, seed=0)
            self.first = expected if not sizes else self.first
        except Exception as error:  # the model's own code may raise anything
            return _Outcome("module", f"{at}{type(error).__name__}: {_shorten(error)}")
        try:
            inputs = [flat[i] for i in self.places]
            actual = self.program(inputs, seed=0)
        except Exception as error:  # the program may raise at sizes that it was not traced for
            return _Outcome("program", f"{at}the program raises {type(error).__name__}: {_shorten(error)}")
        text = difference(expected, actual)
        if text and self.draws and difference(actual, self.program(inputs, seed=1)):
            # random results: compare shapes only
            text = difference(expected, actual, values=False)
        return _Outcome("differs", f"{at}{text}") if text else _Outcome("same")

    def varies(self) -> str:
        """Return what changes in the module's result with the seeds of Python's and numpy's generators; an empty text if nothing does."""
        try:
            first = self.first or self.module(self.flat, seed=0)
            return difference(first, self.module(self.flat, seed=1))
        except Exception:  # the model's own code may raise anything; other runs report it
            return ""

    def place(self) -> str:
        """Return a text with the first submodule from which the two differ."""
        with Outputs(self.model) as outputs:
            self.module(self.flat, seed=0)
        inputs, instructions = [self.flat[i] for i in self.places], self.spec.program.instructions
        with torch.no_grad():
            values = run_program(
                self.spec, self.model, inputs, lambda env: {i.name: env[f"%{i.name}"] for i in instructions}
            )
        return first_difference(outputs, values, instructions, self.captured.nodes, tensors_differ)

    def _resize(self, i: int, t: Tensor, sizes: Mapping[str, int]) -> Tensor:
        """Return an input at the given sizes, filled with rows of the example in turn, from the second on."""
        for d, axis in enumerate(self.axes[i]):
            if any(leaf in sizes for leaf in leaves(axis)):
                n = size(axis, {**self.spec.sizes, **self.sizes, **sizes})
                t = t.index_select(d, (torch.arange(n, device=t.device) + 1) % t.shape[d])
        return t

    def module(self, flat: list[Any], *, seed: int) -> Result:
        """Run the module with a seed of Python's and numpy's generators; return outputs and the buffers that the program updates."""
        args, kwargs = trees.unflatten([x.clone() if isinstance(x, Tensor) else x for x in flat], self.form)
        with (
            _without_warnings(),
            in_mode(self.model, self.spec.train),
            unchanged(self.model),
            torch.no_grad(),
            Writes(self.model),
        ):
            reseed(seed)
            buffers = buffer_copies(self.model)
            out = trees.leaves(torch.func.functional_call(self.model, buffers, args, kwargs))
            return out, {n: buffers[n] for n, _ in self.spec.program.updates}

    def _results(self, env: Mapping[str, Any]) -> Any:
        """Return outputs and updated buffers, flattened."""
        outputs = result(self.spec, env)
        return outputs, tuple(env[r.name] for _, r in self.spec.program.updates)

    def program(self, inputs: list[Tensor], *, seed: int) -> Result:
        """Run the program with a seed of torch's generator; return outputs and updated buffers."""
        with torch.no_grad(), torch.random.fork_rng({t.device for t in inputs if t.is_cuda}):
            seed_torch(seed)
            out, new_buffers = run_program(self.spec, self.model, inputs, self._results)
        return list(out), dict(zip((n for n, _ in self.spec.program.updates), new_buffers, strict=True))


def run_program(
    spec: Spec, model: nn.Module, inputs: Iterable[Tensor], wanted: Callable[[Mapping[str, Any]], Any]
) -> Any:
    """Run a spec's program on the model's own tensors; `wanted` selects the results from the values by name."""
    program = spec.program
    named_tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    values = {**dict(named_tensors), **spec.constants.tensors}
    input_values = dict(zip((i.name for i in program.inputs), inputs, strict=True))
    names: list[str] = []

    def load(graph: fx.Graph, name: str) -> fx.Node:
        names.append(name)
        return graph.placeholder(f"v_{len(names)}")

    device = next((t.device for _, t in named_tensors), torch.device("cpu"))
    graph = build(program, spec.sizes, present=frozenset(), device=device, load=load, emit=lambda _, env: wanted(env))
    values |= input_values
    return fx.GraphModule(nn.Module(), graph).forward(*(values[n] for n in names))


def _is_random(op: str) -> bool:
    """Return whether an op can draw random numbers; attention can, because of its dropout."""
    tags = getattr(target(op), "tags", ())
    return torch.Tag.nondeterministic_seeded in tags


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence warnings, which the trace has already shown, and disable torch's fused encoder layers, which round differently."""
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
