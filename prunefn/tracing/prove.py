"""Prove a program: run it beside its module, at the traced sizes and with every size changed.

What `torch.export` writes down need not be what the module computes: a loop over samples is unrolled for the traced ones, a branch
on a size is taken once. So the program is compared with the module by numbers. Sizes that it does not stand for become limits of
its domain, which `forward` and everything above it check.
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
from ..spec.axis import Leaf
from ..spec.domain import Domain, Limit, guards_of, refusal, shape_environment
from ..spec.program import Ref, target
from ..spec.spec import Spec
from .analyse import Analysis, hints, reason_of
from .capture import Captured, in_mode
from .difference import Result, difference, tensors_differ
from .locate import Outputs, first_difference
from .rules import Value
from .unchanged import Writes, buffer_copies, reseed, seed_torch, unchanged

TRIED: tuple[Callable[[int], int], ...] = (lambda n: 2 if n == 3 else 3, lambda n: n + 1, lambda n: 2 * n)
"""Other sizes than the traced one: a small one, and two that a module may need which indexes what is there."""
UNROLLED = ("aten.unbind", "aten.select", "aten.split", "aten.chunk", "aten.slice", "aten.index", "aten.narrow")
"""Ops that read an axis position by position."""


class _Outcome(NamedTuple):
    """What came of running both at some sizes."""

    who: str
    """`"same"`; `"differs"`; or who raised: `"module"`, `"program"`."""
    text: str = ""


def guarded(spec: Spec, captured: Captured) -> Spec:
    """Return the spec with the guards of the export."""
    inputs: dict[str, Any] = {n: captured.nodes[n].meta.get("val") for n in captured.inputs}
    env = shape_environment(inputs.values())
    if env is None:
        return spec
    sizes = {leaf: inputs[name].shape[dim] for leaf, (name, dim) in spec.program.batch.items()}
    symbols = {leaf: n.node.expr for leaf, n in sizes.items() if isinstance(n, torch.SymInt)}
    known: dict[Any, str] = {symbol: leaf for leaf, symbol in symbols.items() if symbol.is_Symbol}
    traced = FrozenDict({leaf: hints(inputs[name])[dim] for leaf, (name, dim) in spec.program.batch.items()})
    guards, unreadable = guards_of(env, known)
    limits = {leaf: Limit(traced[leaf], traced[leaf], f"the export guards {text}") for leaf, text in unreadable.items()}
    return with_domain(spec, Domain(traced, FrozenDict(limits), guards))


def with_domain(spec: Spec, domain: Domain) -> Spec:
    """Return the spec with another domain."""
    example = spec.example._replace(domain=domain)
    return replace(spec, program=spec.program._replace(domain=domain), example=example)


def proved(trial: Trial) -> Spec:
    """Return the spec with limits to the sizes for which its program agrees with the module.

    Args:
        trial: of a model and its spec.

    Raises:
        TraceError: the program differs from the module at the traced sizes, or the module does not run.
    """
    here = trial.run({})
    if here.who == "module":
        raise TraceError(
            f"the module does not run on the example inputs: {here.text}; check=False traces it without running it"
        )
    if here.who != "same":
        raise TraceError(f"the program of torch.export is not the module's{trial.place()}: {here.text}")
    domain = trial.spec.program.domain
    limits = dict(domain.limits)
    free = {leaf: n for leaf, n in trial.sizes.items() if leaf not in limits}
    changes = _changes(free, domain)
    if free and not (changes and trial.run(changes[0]).who == "same"):
        limits |= _limits(trial, free, domain)
    ones = [leaf for leaf, n in free.items() if leaf not in limits and n != 1 and _allowed({leaf: 1}, domain)]
    limits |= _from_two(trial, ones)
    return with_domain(trial.spec, domain._replace(limits=FrozenDict(limits)))


def _changes(free: Mapping[str, int], domain: Domain) -> list[dict[str, int]]:
    """Other sizes, small ones first, that the guards allow."""
    ways = ({leaf: pick(n) for leaf, n in free.items()} for pick in TRIED)
    return [sizes for sizes in ways if _allowed(sizes, domain)]


def runs(model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Return whether there are numbers to run the model on: nothing is on `meta`."""
    tensors = trees.tensors((args, dict(kwargs)))
    return not any(t.is_meta for t in (*model.parameters(), *model.buffers(), *tensors))


def _allowed(sizes: Mapping[str, int], domain: Domain) -> bool:
    """Whether the guards allow these sizes beside the traced ones."""
    return not refusal({**domain.traced, **sizes}, (), domain.guards)


def _limits(trial: Trial, free: Mapping[str, int], domain: Domain) -> dict[str, Limit]:
    """Size by size: those that cannot be changed alone stay as they were traced."""
    limits = {}
    for leaf, n in free.items():
        outcome = _Outcome("module", "the guards leave no other size to try")
        for sizes in _changes({leaf: n}, domain):
            outcome = trial.run(sizes)
            if outcome.who != "module":
                break
        if outcome.who == "module":
            limits[leaf] = Limit(n, n, f"the module itself was not seen to run at another size ({outcome.text})")
        elif outcome.who != "same":
            limits[leaf] = Limit(n, n, f"{_line(trial, leaf)}{outcome.text}")
    return limits


def _from_two(trial: Trial, free: list[str]) -> dict[str, Limit]:
    """Sizes of one, where torch's export takes everything for broadcasting."""
    if not free or trial.run(dict.fromkeys(free, 1)).who == "same":
        return {}
    outcomes = {leaf: trial.run({leaf: 1}) for leaf in free}
    return {leaf: Limit(2, None, o.text) for leaf, o in outcomes.items() if o.who not in ("same", "module")}


def _line(trial: Trial, leaf: str) -> str:
    """The first op that reads an axis position by position."""
    captured, a = trial.captured, trial.analysis
    source, dim = trial.spec.program.batch[leaf]
    var = a.alg.find(a.values[captured.nodes[source]].axes[dim])
    for node in captured.graph.nodes:
        if node.op != "call_function" or not str(node.target).startswith(UNROLLED):
            continue
        before = [x for n in node.all_input_nodes if isinstance(v := a.values[n], Value) for x in v.axes]
        out = a.values[node]
        after = [x for v in (out if isinstance(out, list) else [out]) if isinstance(v, Value) for x in v.axes]
        if var in map(a.alg.find, before) and var not in map(a.alg.find, after):
            return f"{node.target}{_at(node)} reads its positions one by one; "
    return ""


def _at(node: fx.Node) -> str:
    source = reason_of(node).source
    return f" at {source}" if source else ""


class Trial:
    """A module and its program, ready to be run on the example at other sizes.

    Args:
        spec: of the model.
        model: the module.
        args, kwargs: the example inputs.
        captured, analysis: what the spec was made from; they tell the line that is at fault.
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
        """Of the module, at the traced sizes."""
        axes = dict(zip(self.places, (i.axes for i in spec.program.inputs), strict=True))
        self.axes = {i: [x.name if isinstance(x, Leaf) else None for x in axes[i]] for i in self.places}
        self.sizes = {
            leaf: self.flat[i].shape[d] for i in self.places for d, leaf in enumerate(self.axes[i]) if leaf is not None
        }
        self.draws = any(_draws(i.op) for i in spec.program.instructions)

    def run(self, sizes: Mapping[str, int]) -> _Outcome:
        """Both at the traced sizes, but for those that are given."""
        flat = [self._resized(i, x, sizes) if i in self.axes else x for i, x in enumerate(self.flat)]
        at = ", ".join(f"{leaf} = {n}" for leaf, n in sizes.items())
        at = f"at {at}, " if at else ""
        try:
            expected = self.module(flat, seed=0)
            self.first = expected if not sizes else self.first
        except Exception as error:  # the model's own code may raise anything
            return _Outcome("module", f"{at}{type(error).__name__}: {_short(error)}")
        try:
            inputs = [flat[i] for i in self.places]
            got = self.program(inputs, seed=0)
        except Exception as error:  # so may its program at a size that it was not made for
            return _Outcome("program", f"{at}the program raises {type(error).__name__}: {_short(error)}")
        text = difference(expected, got)
        if text and self.draws and difference(got, self.program(inputs, seed=1)):
            # of what is random, only the shapes are compared
            text = difference(expected, got, values=False)
        return _Outcome("differs", f"{at}{text}") if text else _Outcome("same")

    def varies(self) -> str:
        """What of the module's result changes with the states of Python's and numpy's generators; an empty text for nothing."""
        try:
            first = self.first or self.module(self.flat, seed=0)
            return difference(first, self.module(self.flat, seed=1))
        except Exception:  # the model's own code may raise anything; that it does is found elsewhere
            return ""

    def place(self) -> str:
        """Where the two part."""
        with Outputs(self.model) as outputs:
            self.module(self.flat, seed=0)
        inputs, made = [self.flat[i] for i in self.places], self.spec.program.instructions
        with torch.no_grad():
            values = run_program(self.spec, self.model, inputs, lambda env: {i.name: env[f"%{i.name}"] for i in made})
        return first_difference(outputs, values, made, self.captured.nodes, tensors_differ)

    def _resized(self, i: int, t: Tensor, sizes: Mapping[str, int]) -> Tensor:
        """Rows of the example, in turns and starting from the second."""
        for d, leaf in enumerate(self.axes[i]):
            if leaf is not None and leaf in sizes:
                t = t.index_select(d, (torch.arange(sizes[leaf], device=t.device) + 1) % t.shape[d])
        return t

    def module(self, flat: list[Any], *, seed: int) -> Result:
        """Outputs, and the buffers that the program says are written to; `seed` is of Python's and numpy's generators."""
        args, kwargs = trees.unflatten([x.clone() if isinstance(x, Tensor) else x for x in flat], self.form)
        with (
            _quietly(),
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
        """Outputs and updated buffers, flat."""
        outputs = tuple(env[o.name] if isinstance(o, Ref) else o for o in self.spec.program.outputs)
        return outputs, tuple(env[r.name] for _, r in self.spec.program.updates)

    def program(self, inputs: list[Tensor], *, seed: int) -> Result:
        """The same of the program; `seed` is of torch's generator."""
        with torch.no_grad(), torch.random.fork_rng({t.device for t in inputs if t.is_cuda}):
            seed_torch(seed)
            out, new = run_program(self.spec, self.model, inputs, self._results)
        return list(out), dict(zip((n for n, _ in self.spec.program.updates), new, strict=True))


def run_program(
    spec: Spec, model: nn.Module, inputs: Iterable[Tensor], wanted: Callable[[Mapping[str, Any]], Any]
) -> Any:
    """Run a spec's program on the model's own tensors; `wanted` chooses the results among the values by name."""
    program = spec.program
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    values = {**dict(named), **spec.constants.tensors}
    given = dict(zip((i.name for i in program.inputs), inputs, strict=True))
    names: list[str] = []

    def load(graph: fx.Graph, name: str) -> fx.Node:
        names.append(name)
        return graph.placeholder(f"v_{len(names)}")

    device = next((t.device for _, t in named), torch.device("cpu"))
    graph = build(program, spec.sizes, present=frozenset(), device=device, load=load, emit=lambda _, env: wanted(env))
    values |= given
    return fx.GraphModule(nn.Module(), graph).forward(*(values[n] for n in names))


def _draws(op: str) -> bool:
    """Whether an op can draw random numbers: attention can, where it drops out."""
    tags = getattr(target(op), "tags", ())
    return torch.Tag.nondeterministic_seeded in tags


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """What the model warns of, it has warned of before; and the fused kernel of torch's encoder layers rounds differently."""
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
