"""Whatever is given to a public function, it works, or it is a PruneError that names the argument."""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

import prunefn as pf
from prunefn import export, recipes, sparse, train
from prunefn.doors.door import arguments_of, door
from prunefn.program import sharded
from prunefn.train import losses, optimizer, regularizers, schedule

from .small import Traced, bits, mlp, randn, traced

ROOMS: dict[str, ModuleType] = {
    "pf": pf,
    "budget": pf.budget,
    "scope": pf.scope,
    "criteria": pf.criteria,
    "distances": pf.distances,
    "gates": pf.gates,
    "compensation": pf.compensation,
    "normalizer": pf.normalizer,
    "reduction": pf.reduction,
    "recipes": recipes,
    "sharded": sharded,
    "sparse": sparse,
    "sparse.criteria": sparse.criteria,
    "sparse.pattern": sparse.pattern,
    "sparse.scope": sparse.scope,
    "train": train,
    "losses": losses,
    "optimizer": optimizer,
    "schedule": schedule,
    "regularizers": regularizers,
    "export": export,
    "nets": pf.nets,
    "data": pf.data,
}


@lru_cache
def net() -> Traced:
    return traced(mlp(3, 4, 5, 2), randn(2, 3))


@lru_cache
def other() -> Traced:
    return traced(mlp(3, 6, 2), randn(2, 3))


@lru_cache
def stats() -> pf.Stats:
    criteria = [pf.criteria.taylor(), sparse.criteria.taylor()]
    batch = (randn(6, 3), torch.arange(6) % 2)
    return pf.collect_stats(net().params, [batch], spec=net().spec, criterion=criteria, covariance=True)


@lru_cache
def wrong() -> dict[str, Any]:
    """What is given in the place of every argument."""
    return {
        "a module": nn.Linear(2, 2),
        "a class": nn.Linear,
        "None": None,
        "a string": "nothing",
        "an empty string": "",
        "a list": [1, 2],
        "a list of strings": ["x"],
        "a list of objects": [object()],
        "a dict by number": {0: torch.ones(4)},
        "a dict of lists": {"0": [1, 2]},
        "a dict of numpy": {"0": np.ones(4)},
        "a dict of ints": {"0": torch.arange(4)},
        "a dict of uint8": {"0": torch.ones(4, dtype=torch.uint8)},
        "a dict of None": {"0": None},
        "a dict on meta": {"0": torch.ones(4, device="meta")},
        "a dict of bools on meta": {"0": torch.ones(4, dtype=torch.bool, device="meta")},
        "a dict of NaN": {"0": torch.full((4,), torch.nan)},
        "a dict of another length": {"0": torch.ones(7)},
        "a dict of a scalar": {"0": torch.tensor(1.0)},
        "numpy": np.ones((2, 3)),
        "a tensor": torch.ones(2, 3),
        "a tensor on meta": torch.ones(2, 3, device="meta"),
        "a list of numpy": [np.ones((2, 3))],
        "a list of integer images": [torch.ones(2, 3, dtype=torch.uint8)],
        "a list of float32": [torch.ones(2, 3)],
        "a list on meta": [torch.ones(2, 3, device="meta")],
        "a list of unbatched": [torch.ones(3)],
        "an empty list": [],
        "NaN": float("nan"),
        "infinity": float("inf"),
        "-1": -1,
        "2.5": 2.5,
        "True": True,
        "text of a number": "0.5",
        "an object": object(),
        "a factory of criteria": pf.criteria.magnitude,
        "a factory of scopes": pf.scope.local,
        "a factory of budgets": pf.budget.macs,
        "a factory of predicates": pf.exact,
        "a factory of compensations": pf.compensation.affine,
        "a factory of normalizers": pf.normalizer.quantile,
        "a factory of schedules": schedule.linear,
        "a scope of weights": sparse.scope.layerwise(),
        "a scope": pf.scope.local(),
        "a criterion": pf.criteria.magnitude(),
        "a dtype": torch.float16,
        "a budget by group": {"0": pf.budget.macs(0.5)},
        "Stats()": pf.Stats(),
        "params on meta": {n: t.to("meta") for n, t in net().params.items()},
        "params as numpy": {n: t.numpy() for n, t in net().params.items()},
        "params of another network": other().params,
        "params with a tensor too many": {**net().params, "x": torch.ones(1)},
        "a spec": net().spec,
        "a spec of another network": other().spec,
        "stats of another network": pf.collect_stats(other().params, [randn(6, 3)], spec=other().spec),
        "scores": pf.score(stats()),
        "a mask": {"0": bits("1011")},
        "a mask of another network": {"0": bits("101100")},
        "a mask that empties": {"0": bits("0000")},
    }


def good(folder: Path) -> dict[str, Any]:
    """Values by parameter name, for the arguments that have no default."""
    return {
        "a": stats(), "args": (randn(2, 3),), "b": stats(), "batches": [randn(6, 3)], "block": 1, "budget": pf.budget.macs(0.5),
        "by": pf.criteria.magnitude(), "calibration": [], "cost": lambda sizes, spec: 1.0, "criterion": pf.criteria.magnitude(),
        "data": [], "dense": (net().params, net().spec), "dst": folder / "b", "end": 3, "filters": 4, "first": {"0": bits("1011")},
        "folder": folder / "c",
        "generator": torch.Generator().manual_seed(0), "height": 1, "held_out": [], "ids": torch.tensor([0]),
        "keep": 0.5, "kept": torch.arange(3), "key": lambda group, *_: 0, "labels": torch.arange(2),
        "logits": {"0": torch.zeros(4)}, "m": 4, "mask": {"0": bits("1011")},
        "masks": {"0.weight": torch.ones(4, 3, dtype=torch.bool)}, "means": stats(), "model": net().model, "module": net().model,
        "n": 2, "name_or_folder": "digits", "number": 2, "names": list(net().params), "networks": {"net": (net().params, net().spec)},
        "optimizer": torch.optim.SGD(net().model.parameters(), lr=0.1), "parameters": dict(net().model.named_parameters()),
        "params": net().params, "path": folder / "file", "prune": recipes.vbp, "period": 1, "phases": None, "ratio": 0.25,
        "recipe": None,
        "removed": {"0": [1]}, "schedule": schedule.linear(0.5, 2), "scores": pf.score(stats()), "second": {"0": bits("101")},
        "setup": None, "source": folder / "a",
        "regularizer": regularizers.lasso(net().spec), "spec": net().spec, "src": folder / "a", "start": 0,
        "state": {}, "stats": stats(), "steps": 2, "student": randn(2, 3), "table": Table(), "teacher": randn(2, 3),
        "units": {"0": torch.tensor(2.0)}, "values": "0",
        "variances": {"0": torch.ones(4, requires_grad=True)}, "weight": torch.ones(4, 3), "where": "*", "what": net().model, "width": 1,
    }  # fmt: skip


class Table:
    """Predicts a cost."""

    def predict(self, sizes: Any) -> float:
        return float(sum(sizes.values()))


def base(name: str, folder: Path) -> dict[str, Any]:
    """Arguments of a function that it takes."""
    values = good(folder)
    if name.startswith("criteria."):
        values |= {"a": pf.criteria.magnitude(), "b": pf.criteria.magnitude()}
    if name.startswith("distances."):
        values |= {"a": pf.distances.kl(), "b": pf.distances.auto()}
    if name == "sparse.criteria.movement_since":
        values |= {"start": net().params}
    more = {"spec": net().spec} if name == "pf.save" else {"ratio": 0.5} if name == "sparse.select" else {}
    if name == "sparse.select":
        values |= {"scores": sparse.score(stats())}
    if name == "optimizer.slice_optimizer":
        more = {"model": net().model}
        values |= {"optimizer": torch.optim.SGD(net().model.parameters(), lr=0.1)}
    if name == "pf.prune_submodule":
        values |= {"path": "0", "prune": pf.pipeline()}
    if name == "pf.remap":
        more = {"group": "0"}
    if name == "sharded.fill":  # it writes into its module
        values |= {"module": deepcopy(net().model)}
    parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    return {p.name: values[p.name] for p in parameters if p.default is p.empty and p.kind not in VARIADIC} | more


VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

DOORS_ONLY = (
    *(
        "pf.trace",
        "pf.latency",
        "pf.soft_latency",
        "pf.profile",
        "pf.prune_submodule",
        "pf.perplexity",
        "pf.eliminate",
        "pf.recover",
        "pf.prune_pretrained",
        "pf.recover_pretrained",
        "pf.save_logits",
        "pf.load_logits",
        "gates.learn",
        "sparse.picture",
        "export.",
        "nets.",
        "data.",
    ),
    *("train.train", "train.evaluate", "train.pat", "train.fine_tune", "train.sparse_train"),
    *("pf.shrink_tokenizer", "pf.needed_tokens"),
)
"""Slow to run, or of a folder of other files: only their doors are tried."""

WORDS: dict[str, list[str]] = {
    "args": ["input"],
    "batches": ["batch", "input"],
    "between": ["masks"],
    "initial": ["starts at"],
    "keep": ["is kept"],
    "kwargs": ["keyword argument"],
    "masks": ["mask", "no parameter"],
    "means": ["the mean", "statistics"],
    "model": ["torch.export cannot capture"],
    "module": ["the parameter"],
    "parameters": ["parameter"],
    "params": [
        "the parameters lack",
        "params lack",
        "the spec has no tensor",
        "the spec says",
        "no parameter",
        "there is shape",
        "eval mode",
        "no norm",
    ],
    "removed": ["for '0", "index", "the mask"],
    "source": ["the spec has no tensor", "the state dict"],
    "spec": ["the group has", "eval mode", "no parameter", "no norm", "no weight", "the mask of"],
    "state": ["parameter"],
    "stats": ["statistics", "params"],
    "steps": ["rounds"],
    "weights": ["matches none"],
    "what": ["the spec has no tensor", "the spec says", "the parameters lack"],
    "where": ["matches", "no norm"],
    "within": ["weight masks"],
}
"""What messages say of what is in an argument, where they do not say its name."""


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function of the namespaces, once."""
    seen = set()
    for room, module in ROOMS.items():
        names = getattr(module, "__all__", [n for n in dir(module) if not n.startswith("_")])
        for name in names:
            f = getattr(module, name)
            own = inspect.unwrap(f).__module__.startswith(module.__name__) if inspect.isfunction(f) else False
            if own and id(f) not in seen and hasattr(f, "is_door"):
                seen.add(id(f))
                yield f"{room}.{name}", f


FUNCTIONS = dict(public())


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The type checker of the tests would speak first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def has_door(function: Any) -> bool:
    return getattr(function, "is_door", False)


def test_every_public_function_has_a_door_that_knows_all_its_arguments() -> None:
    for name, f in FUNCTIONS.items():
        parameters = inspect.signature(f).parameters.values()
        if any(p.annotation != "Any" for p in parameters):
            assert has_door(f), name
            known = {a.name for a in arguments_of(f)}
            assert [p.name for p in parameters if p.name not in known and p.annotation != "Any"] == [], name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n, f in FUNCTIONS.items() if inspect.signature(f).parameters])
def test_it_works_or_says_which_argument(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    function, values = FUNCTIONS[name], base(name, tmp_path)
    if not has_door(function):
        return
    for argument in arguments_of(function):
        if inspect.signature(function).parameters[argument.name].kind in VARIADIC:
            continue
        for what, value in wrong().items():
            try:
                if name.startswith(DOORS_ONLY):
                    argument.read(value, values)
                else:
                    call(function, {**values, argument.name: value})
            except pf.PruneError as error:
                said = [argument.name, *WORDS.get(argument.name, [])]
                assert any(word in str(error) for word in said), f"{argument.name} is {what}: {error}"
            except OSError:
                assert argument.kind.write.startswith("a path") or has_path(values), f"{argument.name} is {what}"


def has_path(values: dict[str, Any]) -> bool:
    """Whether the function would read a file, which is not there."""
    return any(n in values for n in ("path", "source", "src"))


def call(function: Callable[..., Any], values: dict[str, Any]) -> Any:
    """With inputs of the model, where it takes any."""
    names = list(inspect.signature(function).parameters)
    if "inputs" in names and "inputs" not in values:
        before = [values.pop(n) for n in names[: names.index("inputs")]]
        return function(*before, randn(2, 3), **values)
    return function(**values)


# ---- what is accepted


def test_names_stand_for_what_the_command_line_means() -> None:
    """The same masks and params, to the bit."""
    batches, given = [randn(6, 3)], {"criterion": "magnitude", "scope": "local", "compensation": "mean"}
    values = {"criterion": pf.criteria.magnitude(), "scope": pf.scope.local(), "compensation": pf.compensation.mean()}
    a, b = (pf.pipeline(**o)(net().params, batches, spec=net().spec) for o in (given, values))  # type: ignore[arg-type]
    assert all(torch.equal(a.params[n], b.params[n]) for n in b.params)
    scores = pf.score(stats())
    for name, scope in (("global", pf.scope.global_()), ("isomorphic", pf.scope.isomorphic())):
        named = pf.select(scores, 0.4, spec=net().spec, scope=name)  # type: ignore[arg-type]
        chosen = pf.select(scores, 0.4, spec=net().spec, scope=scope)
        assert all(torch.equal(named[g], chosen[g]) for g in chosen)
    masks = sparse.select(sparse.score(stats(), criterion="magnitude"), 0.5, spec=net().spec, scope="rows")  # type: ignore[arg-type]
    assert {int((~m).sum()) for m in masks.values()} == {4, 10}


def test_modules_and_tensors_are_frozen_by_their_only_name() -> None:
    model, x = net().model, (randn(2, 3),)
    for given in (model[0], [model[0]], [model[0].weight, "0.bias"]):
        assert pf.trace(model, x, freeze=given) == pf.trace(model, x, freeze="0")  # type: ignore[arg-type]
    with pytest.raises(pf.ParamsError, match=r"freeze\[0\] is a Linear; it has 0 names in the model"):
        pf.trace(model, x, freeze=[nn.Linear(1, 1)])  # type: ignore[list-item]
    twice = nn.Sequential(model[0], nn.ReLU(), nn.Linear(4, 3), model[0]).double()
    with pytest.raises(pf.ParamsError, match="it has 2 names in the model '0' '3'"):
        pf.trace(twice, x, freeze=twice[0])  # type: ignore[arg-type]


def test_numbers_of_numpy() -> None:
    scores = pf.score(stats())
    assert pf.budget.macs(np.float32(0.5)).keep == 0.5  # type: ignore[arg-type]
    a = pf.select(scores, np.float64(0.5), spec=net().spec, round_to=np.int64(2), min_units={"*": np.int32(2)})  # type: ignore
    b = pf.select(scores, 0.5, spec=net().spec, round_to=2, min_units=2)
    assert all(torch.equal(a[g], b[g]) for g in b)


# ---- what is said


def refused(*words: str) -> Any:
    return pytest.raises(pf.PruneError, match="(?s)" + ".*".join(re.escape(w) for w in words))


SLIPS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "module": (lambda: pf.collect_stats(nn.Linear(3, 2), None, spec=net().spec), ("params is a Linear; write pf.params(model)",)),  # type: ignore
    "swapped": (
        lambda: pf.apply({"0": bits("1011")}, net().params, spec=net().spec),
        ("the mask of group '0.weight' has dtype torch.float64", "must be bool"),
    ),
    "spec for mask": (
        lambda: pf.apply(net().params, net().spec, spec=net().spec),  # type: ignore[arg-type]
        ("mask is a Spec", "it fits 'spec': the order is apply(params, mask, *, spec)"),
    ),
    "mask for spec": (lambda: pf.shrink({"0": bits("1011")}, net().spec), ("spec is a dict", "it fits 'mask'")),  # type: ignore
    "pruned": (lambda: pf.cost(pf.pipeline()(net().params, [randn(6, 3)], spec=net().spec)), ("spec is a Pruned; write its spec",)),  # type: ignore
    "misspelt": (lambda: pf.select({}, 0.5, scope="lokal"), ("scope is 'lokal'", "did you mean 'local'")),  # type: ignore
    "l1": (lambda: pf.pipeline(criterion="l1"), ("criterion is 'l1'", "pf.criteria.magnitude(p=1.0)")),  # type: ignore
    "arguments": (lambda: pf.pipeline(scope="by"), ("pf.scope.by(key), which needs its arguments",)),  # type: ignore
    "factory": (lambda: pf.pipeline(scope=pf.scope.local), ("scope is the function pf.scope.local; call it: pf.scope.local()",)),  # type: ignore
    "wrong factory": (lambda: pf.pipeline(scope=pf.criteria.fpgm), ("scope is the function pf.criteria.fpgm; write a scope",)),  # type: ignore
    "indices": (lambda: pf.apply(net().params, {"0": [1]}, spec=net().spec), ("mask['0'] is a list [1]; write pf.mask(spec",)),  # type: ignore
    "budget by group": (lambda: pf.pipeline(ratio={"0": pf.budget.macs(0.5)}), ("ratio['0'] is a Budget; a budget is for the whole",)),  # type: ignore
    "half": (lambda: pf.select({}, 0.5, round_to=2.5), ("round_to is 2.5; write a multiple",)),  # type: ignore[arg-type]
    "bool": (lambda: pf.collect_stats(net().params, [], spec=net().spec, max_batches=True), ("max_batches is True",)),
    "none": (lambda: pf.collect_stats(net().params, [], spec=net().spec, max_batches=0), ("max_batches is 0; it must be 1 or more",)),
    "dtype": (lambda: pf.pipeline(round_to="float16"), ("round_to is 'float16'; write torch.float16",)),  # type: ignore[arg-type]
    "where": (lambda: pf.pipeline(where=["0", "2"]), ("write pf.glob('0', '2')",)),  # type: ignore[arg-type]
    "loss": (lambda: pf.criteria.taylor(nn.CrossEntropyLoss), ("loss is the class CrossEntropyLoss; call it",)),  # type: ignore
    "device": (lambda: pf.data.digits(device="gpu"), ("device is 'gpu'", "write a device, such as 'cpu'")),
    "numpy": (lambda: pf.trace(net().model, np.ones((2, 3))), ("args has a numpy array of shape (2, 3); write torch.from_numpy(…)",)),
    "ridge": (lambda: pf.compensation.affine(float("inf")), ("ridge is inf; write a finite number",)),
}  # fmt: skip


@pytest.mark.parametrize("slip", SLIPS)
def test_messages_say_what_to_write(slip: str) -> None:
    call, words = SLIPS[slip]
    with refused(*words):
        call()


BATCHES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "numpy": (np.ones((2, 3)), ("one of the batches is a numpy array of shape (2, 3); write torch.from_numpy(batch)",)),
    "numpy in a tuple": ((np.ones((2, 3)), 1), ("input 'input' of a batch is a numpy array",)),
    "a number": (3, ("one of the batches is 3", "a batch is a tensor, a tuple")),
    "numbers": ([1.0, 2.0], ("one of the batches is a list [1.0, 2.0], without a tensor",)),
    "float32": (
        torch.ones(2, 3),
        ("input 'input' is torch.float32", "params are torch.float64; write x.to(torch.float64)"),
    ),
    "integers": (torch.ones(2, 3, dtype=torch.uint8), ("input 'input' is torch.uint8", "write x.to(torch.float64)")),
    "meta": (
        torch.ones(2, 3, device="meta"),
        ("input 'input' of a batch is a float32 tensor of shape (2, 3) on meta",),
    ),
    "unbatched": (torch.ones(3), ("input 'input' has shape (3,); the spec was traced with (batch, 3)",)),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_that_do_not_fit(name: str) -> None:
    batch, words = BATCHES[name]
    for use in (pf.collect_stats, pf.pipeline(sequential=True)):
        with pytest.raises(pf.BatchError, match="(?s)" + ".*".join(re.escape(w) for w in words)):
            use(net().params, [batch], spec=net().spec)  # type: ignore[operator]


def test_forward_says_what_torch_means() -> None:
    with pytest.raises(pf.BatchError, match=r"input 'input' is torch\.float32"):
        pf.forward(net().params, torch.ones(2, 3), spec=net().spec)
    with pytest.raises(pf.BatchError, match=r"write torch\.from_numpy"):
        pf.forward(net().params, np.ones((2, 3)), spec=net().spec)
    model = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 1))
    words = Traced(model, pf.trace(model, (torch.arange(4),)), pf.params(model))
    with pytest.raises(pf.BatchError, match="input 'input' has an index that the network's table lacks"):
        pf.forward(words.params, torch.tensor([9]), spec=words.spec)


def test_parameters_without_numbers_measure_nothing() -> None:
    meta = {n: t.to("meta") for n, t in net().params.items()}
    with pytest.raises(pf.ParamsError, match="params are on meta, without numbers"):
        pf.collect_stats(meta, [randn(6, 3)], spec=net().spec)
    with pytest.raises(pf.ParamsError, match=r"what= has '0\.weight' on meta, without numbers to write"):
        pf.save(deepcopy(net().model).to("meta"), "meta.safetensors", spec=net().spec)
    with pytest.raises(pf.ParamsError, match=r"params\['0\.weight'\] is .* on meta; a tensor on meta has no numbers"):
        pf.sharded.fill(deepcopy(net().model), meta)
    with pytest.raises(pf.StatsError, match="stats is of parameters on meta"):
        pf.score(pf.collect_stats(meta, None, spec=net().spec), criterion=pf.criteria.magnitude())
    assert pf.apply(meta, {"0": bits("1011")}, spec=net().spec)["0.weight"].shape == (3, 3)


def test_losses_are_of_parameters_of_the_spec() -> None:
    """A wider network's rows would be read without a word."""
    wide = traced(mlp(3, 6, 5, 2), randn(2, 3))
    for loss in (losses.group_lasso, losses.l21):
        with pytest.raises(pf.ParamsError, match=r"'0\.bias' has shape \(6,\), but the spec says \(4,\)"):
            loss(wide.params, spec=net().spec)


# ---- what stays


def test_a_door_keeps_name_signature_text_and_pickle() -> None:
    for f in (pf.apply, pf.forward, pf.scope.local, pf.scope.global_, sparse.select):
        assert inspect.getdoc(f) and pickle.loads(pickle.dumps(f)) is f
    assert str(inspect.signature(pf.apply)) == "(params: 'Params', mask: 'Mask', *, spec: 'Spec') -> 'Params'"
    assert (pf.apply.__name__, pf.apply.__module__) == ("apply", "prunefn.parameters.transforms")


def test_what_python_says_stays() -> None:
    with pytest.raises(TypeError, match=r"apply\(\) missing 1 required keyword-only argument: 'spec'"):
        pf.apply(net().params, {})  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'scopes'"):
        pf.pipeline(scopes=pf.scope.local())  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3"):
        pf.apply(net().params, {}, net().spec)  # type: ignore[misc]


def test_positional_keyword_and_variadic_arguments_are_read() -> None:
    @door
    def read(a: int, *more: int, b: float = 2.0) -> tuple[Any, ...]:
        return a, more, b

    assert read(np.int64(1), np.int64(2), b=3) == (1, (2,), 3.0)  # type: ignore[arg-type]
    assert [type(v) for v in (read(np.int64(1), b=3)[0], read(1, b=3)[2])] == [int, float]  # type: ignore[arg-type]
    with refused("more is 'x'"):
        read(1, 2, "x")  # type: ignore[arg-type]
