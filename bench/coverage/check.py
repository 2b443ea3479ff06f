"""One model through everything: trace, prune half of every group, run, the laws, the original class."""

from __future__ import annotations

import copy
import pickle
import re
import resource
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import prunefn as pf
from prunefn.costs.counted import flop_counter
from prunefn.spec.axis import Leaf
from prunefn.tracing.rules import NO_RULE, ON_PURPOSE
from tests.orders import permuted
from tests.zoo import double, random_mask, randomize

from .cases import Case, Inputs

Result = dict[str, Any]

VARIANTS: dict[str, Callable[[pf.Spec], list[str]]] = {
    "all": lambda s: list(s.groups),
    "heads whole": lambda s: [g.name for g in s.groups.values() if g.kind != "heads"],
    "odd sizes whole": lambda s: [g for g, n in s.sizes.items() if n % 2 == 0],
    "heads, odd sizes whole": lambda s: [g.name for g in s.groups.values() if g.kind != "heads" and g.size % 2 == 0],
    "head_dim whole": lambda s: [g.name for g in s.groups.values() if g.kind != "head_dim"],
    "hidden": lambda s: [g.name for g in s.groups.values() if g.kind == "hidden"],
    "lone axes": lambda s: [
        g.name for g in s.groups.values() if all(isinstance(s.axes[m.tensor][m.dim], Leaf) for m in g.members)
    ],
}
"""What is pruned by half when the original class is rebuilt; the first that the class's own code can run is reported."""


def check(case: Case) -> Result:
    """The verdict on a model; `wrong` names what does not hold and is empty where all does."""
    start = time.process_time()
    torch.manual_seed(0)
    model = randomize(case.build(), 1).eval().requires_grad_(False)
    attempt, x = fitting(model, case)
    at = time.process_time()
    spec = pf.trace(model, *x)
    traced = time.process_time() - at
    out: Result = {"suite": case.suite, "model": case.name, "capture": spec.capture, "groups": len(spec.groups)}
    out |= _shares(model, spec) | {"unknown": " ".join(spec.unknown), "trace_s": round(traced, 2)}
    wrong: list[str] = []
    with torch.no_grad():
        if spec.capture == "exported":
            one = case.inputs(1 if spec.program.domain.batch else 2, attempt)  # nodes of a graph are no samples
            wrong += _laws(model, spec, one, case.inputs(3, attempt))
        wrong += _original_class(model, spec, case.inputs(1, attempt), out)
    out["wrong"] = "; ".join(wrong)
    out["seconds"] = round(time.process_time() - start, 1)
    out["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return out


def fitting(model: nn.Module, case: Case) -> tuple[int, Inputs]:
    """The first inputs that the model takes."""
    for attempt in range(case.attempts):
        args, kwargs = case.inputs(2, attempt)
        try:
            with torch.no_grad():
                model(*args, **kwargs)
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError):
            if attempt == case.attempts - 1:
                raise
        else:
            return attempt, case.inputs(2, attempt)  # drawn again: some models write to their inputs
    raise AssertionError("a case has at least one attempt")


def _shares(model: nn.Module, spec: pf.Spec) -> Result:
    """How many of the parameters are prunable, how many half of every group removes, and why the rest is not."""
    mask = random_mask(spec, 5)
    names = [n for n in spec.parameters if n not in spec.tied]
    touched = {m.tensor for g in spec.groups.values() for m in g.members}
    numel = {n: int(torch.Size(spec.shape(n)).numel()) for n in names}
    small, total = pf.shrink(spec, mask), max(sum(numel.values()), 1)
    left = sum(int(torch.Size(small.shape(n)).numel()) for n in names)
    reasons = Counter[str]()
    for (tensor, _), why in spec.frozen.items():
        if tensor in numel:
            reasons.update({re.split(r" by aten| by torch| at ", why[0])[0]})
    cost, dense = pf.cost(small).macs, pf.cost(spec).macs
    return {
        "kinds": " ".join(f"{k}:{n}" for k, n in Counter(g.kind for g in spec.groups.values()).items()),
        "params": total,
        "prunable": round(sum(numel[n] for n in names if n in touched) / total, 4),
        "removed": round(1 - left / total, 4),
        "macs_removed": round(1 - cost / max(dense, 1), 4),
        "frozen": "; ".join(f"{r}: {n}" for r, n in reasons.most_common()),
    } | without_rule(spec)


def without_rule(spec: pf.Spec) -> Result:
    """How many axes of parameters are frozen for want of a rule, and how many ops of the program have none."""
    axes = [(t, d) for t in spec.parameters if t not in spec.tied for d in range(len(spec.shape(t)))]
    wanted = [a for a in axes if any(re.match(rf"{NO_RULE} by ", why) for why in spec.frozen.get(a, ()))]
    ops = [i for i in spec.program.instructions if not i.is_size and i.op != "operator.getitem"]
    missing = [i for i in ops if spec.unknown.get(i.op) is not None and ON_PURPOSE not in spec.unknown[i.op]]
    return {"axes": len(axes), "axes_without_rule": len(wanted), "ops": len(ops), "ops_without_rule": len(missing)}


def _laws(model: nn.Module, spec: pf.Spec, one: Inputs, y: Inputs) -> list[str]:
    params, wrong = pf.params(model), []
    gap = distance(pf.forward(params, *y[0], spec=spec, **y[1]), model(*y[0], **y[1]))
    if not gap <= 1e-5:
        wrong.append(f"forward differs from the module by {gap:.1e}")
    try:
        wide, inputs, limit = double(params), _double(one), 1e-5  # some compute norms in float32 all the same
        reference = pf.forward(wide, *inputs[0], spec=spec, **inputs[1])
    except RuntimeError:  # the model casts to float32 inside
        wide, inputs, limit = params, one, 1e-3
        reference = pf.forward(wide, *inputs[0], spec=spec, **inputs[1])
    if not _tensors(reference) or not all(bool(t.isfinite().all()) for t in _tensors(reference)):
        wrong.append("the output is not finite, so that nothing can be said of it")

    def run(p: pf.Params, s: pf.Spec) -> Any:
        return pf.forward(p, *inputs[0], spec=s, **inputs[1])

    exact = random_mask(spec, 4, groups=[g.name for g in spec.groups.values() if g.exact])
    gap = distance(
        run(pf.apply(wide, exact, spec=spec), pf.shrink(spec, exact)), run(pf.zero(wide, exact, spec=spec), spec)
    )
    if not gap <= limit:
        wrong.append(f"law 3 (removed is zeroed) is off by {gap:.1e}")
    gap = distance(run(*permuted(wide, spec, 6)), reference)
    if not gap <= limit:
        wrong.append(f"the order of the units changes the output by {gap:.1e}")
    return wrong + _costs(wide, spec, inputs) + _other_sizes(model, spec)


def _other_sizes(model: nn.Module, spec: pf.Spec) -> list[str]:
    """The same with every other size of the inputs changed, as far as the program accepts it."""
    for name, n in spec.input_sizes.items():
        for other in (n + 8, n + 1, 2 * n, n + 32, n - 1):
            try:
                spec = spec.at({name: other})
            except pf.TraceError:
                continue
            break
    args, kwargs = spec.example.draw(batch=2)
    if spec.input_sizes == {n: spec.program.domain.traced[n] for n in spec.input_sizes}:
        return []
    try:
        expected = model(*args, **kwargs)
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError):
        return []  # the module itself does not run there
    params, wrong = pf.params(model), []
    gap = distance(pf.forward(params, *args, spec=spec, **kwargs), expected)
    if not gap <= 1e-5:
        wrong.append(f"forward differs from the module by {gap:.1e} at {dict(spec.input_sizes)}")
    exact = random_mask(spec, 4, groups=[g.name for g in spec.groups.values() if g.exact])
    less, zeroed = pf.apply(params, exact, spec=spec), pf.zero(params, exact, spec=spec)
    small = pf.shrink(spec, exact)
    gap = distance(pf.forward(less, *args, spec=small, **kwargs), pf.forward(zeroed, *args, spec=spec, **kwargs))
    if not gap <= 1e-3:
        wrong.append(f"law 3 (removed is zeroed) is off by {gap:.1e} at {dict(spec.input_sizes)}")
    args, kwargs = spec.example.draw(batch=1)
    with flop_counter() as counter:  # of one sample: products of weights alone count once, whatever the batch
        pf.forward(less, *args, spec=small, **kwargs)
    unseen = any(u in i.op for i in spec.program.instructions for u in ("grouped_mm", "aten.lstm", "aten.gru"))
    if not unseen and pf.cost(spec, exact).macs != (counted := counter.get_total_flops() // 2):
        wrong.append(
            f"cost says {pf.cost(spec, exact).macs} MACs at {dict(spec.input_sizes)}, a counter says {counted}"
        )
    return wrong


def _costs(params: pf.Params, spec: pf.Spec, one: Inputs) -> list[str]:
    mask = random_mask(spec, 5)
    small, less, wrong = pf.shrink(spec, mask), pf.apply(params, mask, spec=spec), []
    with flop_counter() as counter:
        pf.forward(less, *one[0], spec=small, **one[1])
    cost, counted = pf.cost(spec, mask), counter.get_total_flops() // 2
    single = any(t.dtype == torch.float32 for t in params.values())
    unseen = ("grouped_mm", "aten.lstm") if single else ("grouped_mm",)  # the counter does not look into them
    uncounted = any(u in i.op for i in spec.program.instructions for u in unseen)
    if cost.macs != counted and not uncounted:
        wrong.append(f"cost says {cost.macs} MACs, a counter says {counted}")
    numel = sum(t.numel() for n, t in less.items() if n in spec.parameters and n not in spec.tied)
    if cost.params != numel:
        wrong.append(f"cost says {cost.params} parameters, there are {numel}")
    return wrong


def _original_class(model: nn.Module, spec: pf.Spec, y: Inputs, out: Result) -> list[str]:
    """The first variant that the class can run, with everything that a rebuilt module must be able to do."""
    params = pf.params(model)
    out["class"], out["class_error"] = "", ""
    for variant, groups in VARIANTS.items():
        if not (chosen := groups(spec)):
            continue
        mask = random_mask(spec, 5, groups=chosen)
        small, less = pf.shrink(spec, mask), pf.apply(params, mask, spec=spec)
        try:
            new = pf.to_module(less, spec=small, model=model)
        except pf.PruneError as e:
            out["class_error"] = out["class_error"] or str(e)
            continue
        out["class"] = variant
        return _rebuilt(new, model, less, small, y)
    return []


def _rebuilt(new: nn.Module, model: nn.Module, params: pf.Params, spec: pf.Spec, y: Inputs) -> list[str]:
    wrong = []
    (args, kwargs), again_inputs = y, pytree.tree_map_only(Tensor, Tensor.clone, y)  # some write to their inputs
    reference = pf.forward(params, *args, spec=spec, **kwargs) if spec.capture == "exported" else None
    torch.manual_seed(0)
    got = new(*args, **kwargs)
    if reference is not None and not (gap := distance(got, reference)) <= 1e-3:
        wrong.append(f"the rebuilt class is off by {gap:.1e}")
    if list(new.state_dict()) != list(model.state_dict()) or type(new) is not type(model):
        wrong.append("the rebuilt class has another state dict")
    torch.manual_seed(0)  # some draw noise in eval mode, too
    if distance(copy.deepcopy(new)(*again_inputs[0], **again_inputs[1]), got) > 1e-6:
        wrong.append("a deep copy of the rebuilt class differs")
    try:
        pickle.dumps(model)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError):
        pass
    else:
        pickle.dumps(new)
    args, kwargs = spec.example.draw()
    again = pf.trace(new, args, kwargs)
    if 1 not in spec.sizes.values() and (again.axes != spec.axes or again.sizes != spec.sizes):
        wrong.append("a trace of the rebuilt class gives another spec")
    return wrong


def distance(a: Any, b: Any) -> float:
    """Largest difference of all floating outputs, relative to the largest value."""
    pairs = list(zip(_tensors(a), _tensors(b), strict=True))
    return max((_gap(x, y) for x, y in pairs if y.numel()), default=0.0)


def _gap(x: Tensor, y: Tensor) -> float:
    """Overflow at the same places is no difference: the laws are checked in float64, too."""
    if torch.equal(x.isfinite(), y.isfinite()):
        x, y = x[x.isfinite()], y[y.isfinite()]
    return float((x - y).abs().max()) / max(float(y.abs().max()), 1e-6) if y.numel() else 0.0


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(tree) if isinstance(t, Tensor) and t.is_floating_point()]


def _double(x: Inputs) -> Inputs:
    return pytree.tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, x)
