"""Inputs of any form: what a loader gives is read as the model takes it, or refused with the words of the caller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pytest import mark, raises
from torch import Tensor, nn

import prunefn as pf
from prunefn.program.batches import split
from prunefn.program.inputs import samples
from prunefn.train import Recipe, train
from prunefn.train.objective import call
from prunefn.train.setup import trace_first

from .small import randn


class OneDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(5, 16), nn.Linear(16, 4)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.o(torch.relu(self.a(batch["image"]) * batch["weight"]))


class Pair(NamedTuple):
    image: Tensor
    weight: Tensor


@dataclass
class Record:
    image: Tensor
    weight: Tensor | None = None


torch.export.register_dataclass(Record, serialized_type_name="prunefn.tests.Record")


class OneObject(OneDict):
    def forward(self, batch: Any) -> Tensor:
        h = self.a(batch.image)
        return self.o(torch.relu(h if batch.weight is None else h * batch.weight))


class Flags(OneDict):
    def forward(self, x: Tensor, k: int = 2, mask: Tensor | None = None, *, gate: bool = True) -> Tensor:
        h = self.a(x) * k
        return self.o(h.relu() if gate else h) * (1 if mask is None else mask)


class Lists(OneDict):
    def forward(self, xs: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
        return [self.o(self.a(x).relu() * options["k"]) for x in xs]


def seeded(cls: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return cls().eval().requires_grad_(False)


IMAGE, WEIGHT, Y = randn(6, 5).float(), randn(6, 1, seed=1).float(), torch.arange(6) % 4
INNER = {"image": IMAGE, "weight": WEIGHT}
READ: dict[str, Any] = {
    "(batch, y)": (INNER, Y),
    "[batch, y]": [INNER, Y],
    "((batch,), y)": ((INNER,), Y),
    "((), {name: batch}, y)": ((), {"batch": INNER}, Y),
    "labels beside the inputs": {**INNER, "labels": Y},
    "labels and more beside": {"labels": Y, **INNER, "file": ["a.png"] * 6},
    "labels inside a tuple": ({**INNER, "labels": Y},),
    "arguments by name": {"batch": INNER, "labels": Y},
    "arguments by name, then labels": ({"batch": INNER}, Y),
    "keys in another order": ({"weight": WEIGHT, "image": IMAGE}, Y),
    "tensors one by one": (IMAGE, WEIGHT, Y),
    "tensors by their names in the program": {"batch_image": IMAGE, "batch_weight": WEIGHT, "labels": Y},
}


@mark.parametrize("form", READ)
def test_a_batch_is_read_as_the_loader_gives_it(form: str) -> None:
    model, taylor = seeded(OneDict), pf.criteria.taylor()
    spec, params = pf.trace(model, INNER), pf.params(model)
    assert spec.capture == "exported" and spec == pf.trace(model, (INNER,))
    found = split(READ[form], spec=spec)
    assert [x.shape for x in found.inputs] == [(6, 5), (6, 1)] and torch.equal(found.inputs[1], WEIGHT)
    stats = [pf.collect_stats(params, [b], spec=spec, criterion=taylor) for b in (READ[form], (INNER, Y))]
    scores = [pf.score(s, criterion=taylor)["a"] for s in stats]
    assert stats[0].samples == 6 and torch.equal(scores[0], scores[1]) and float(scores[0].min()) > 0


REFUSED: dict[str, tuple[Any, str]] = {
    "a misspelt key": ({"image": IMAGE, "wieght": WEIGHT}, "the batch has no input 'weight'; did you mean 'wieght'?"),
    "too few": (({"image": IMAGE}, Y), "has 2 tensor inputs (batch[\"image\"], batch[\"weight\"]), but 1 were given"),
    "a number": ({**INNER, "weight": 3}, 'batch["weight"] is 3, but it was traced with a tensor'),
    "a shape": (({**INNER, "weight": IMAGE}, Y), "input 'batch[\"weight\"]' has shape (6, 5); the spec was traced with (batch, 1)"),
    "sizes": (({**INNER, "weight": WEIGHT[:5]}, Y), "input 'batch[\"weight\"]' has batch = 5, but the inputs before it have batch = 6"),
    "numpy": (({**INNER, "weight": WEIGHT.numpy()}, Y), "input 'batch[\"weight\"]' of a batch is a numpy array"),
    "no labels": (INNER, "give batches such as (batch, labels)"),
    "meta": (({**INNER, "image": IMAGE.to("meta")}, Y), "input 'batch[\"image\"]' of a batch is a float32 tensor of shape (6, 5) on meta"),
}  # fmt: skip


@mark.parametrize("what", REFUSED)
def test_messages_have_the_words_of_the_caller(what: str) -> None:
    model, (batch, text) = seeded(OneDict), REFUSED[what]
    with raises(pf.BatchError) as error:
        pf.collect_stats(pf.params(model), [batch], spec=pf.trace(model, (INNER,)), criterion=pf.criteria.taylor())
    assert text in str(error.value) and "batch_" not in str(error.value)


def test_pipelines_and_forward_read_the_same() -> None:
    model = seeded(OneDict)
    spec, params = pf.trace(model, (INNER,)), pf.params(model)
    for asked in (((dict(reversed(INNER.items())),), {}), ((), {"batch": INNER}), ((IMAGE, WEIGHT), {})):
        assert torch.equal(pf.forward(params, *asked[0], spec=spec, **asked[1]), model(INNER))
    prune = pf.pipeline(criterion=pf.criteria.fisher(), ratio=0.5, recalibrate=True)
    pruned = prune(params, [(INNER, Y)], spec=spec)
    assert pruned.spec.sizes["a"] == 8
    module = pf.to_module(pruned.params, spec=pruned.spec, model=model)
    assert torch.equal(module(INNER), pf.forward(pruned.params, INNER, spec=pruned.spec))
    graph = pf.to_module(pruned.params, spec=pruned.spec)
    assert torch.equal(graph({"image": IMAGE[:2], "weight": WEIGHT[:2]}), module(INNER)[:2])


@mark.parametrize("batch", [Pair(IMAGE, WEIGHT), Record(IMAGE, WEIGHT), Record(IMAGE)], ids=["named", "both", "one"])
def test_named_tuples_and_dataclasses(batch: Any) -> None:
    model = seeded(OneObject)
    spec, params = pf.trace(model, (batch,)), pf.params(model)
    assert torch.equal(pf.forward(params, batch, spec=spec), model(batch))
    for b in (batch, (batch, Y), {"batch": batch}):
        assert pf.collect_stats(params, [b], spec=spec).samples == 6
    assert pf.to_module(params, spec=spec, model=model)(batch).shape == (6, 4)
    if isinstance(batch, Record):
        other = Record(IMAGE) if batch.weight is not None else Record(IMAGE, WEIGHT)
        with raises(pf.BatchError, match=r"batch has image, weight, but|but 1 were given \(batch has image, but"):
            pf.forward(params, other, spec=spec)


def test_flags_are_those_of_the_trace() -> None:
    model, mask = seeded(Flags), WEIGHT
    params = pf.params(model)
    spec = pf.trace(model, (IMAGE, 3, None), {"gate": False})
    expected = model(IMAGE, 3, gate=False)
    for args, kwargs in (((IMAGE, 3, None), {"gate": False}), ((IMAGE,), {}), ((), {"x": IMAGE, "k": 3})):
        assert torch.equal(pf.forward(params, *args, spec=spec, **kwargs), expected)
    for args, kwargs, text in (
        ((IMAGE, 2), {}, r"k is 2, but the program is that of k = 3"),
        ((IMAGE,), {"gate": True}, r"gate is True, but the program is that of gate = False"),
        ((IMAGE, 3, mask), {}, r"mask is a tensor, but it was traced with None"),
        ((IMAGE, 3, None, 1, 2), {}, r"5 arguments were given, but the model was traced with 4"),
    ):
        with raises(pf.BatchError, match=text):
            pf.forward(params, *args, spec=spec, **kwargs)
    for batch in (
        (IMAGE, Y),
        (IMAGE, 3, None, Y),
        ((IMAGE, 3, None), {"gate": False}, Y),
        {"x": IMAGE, "k": 3, "y": Y},
    ):
        found = split(batch, spec=spec)
        assert len(found.inputs) == 1 and torch.equal(found.rest[-1], Y)
    with raises(pf.BatchError, match="traced without 'size', so that the program does not follow size=2"):
        pf.forward(params, IMAGE, spec=spec, size=2)


def test_lists_of_tensors_with_options() -> None:
    model, xs = seeded(Lists), [IMAGE, WEIGHT * IMAGE]
    spec, params = pf.trace(model, (xs, {"k": 2, "u": None})), pf.params(model)
    for a, b in zip(pf.forward(params, xs, {"k": 2}, spec=spec), model(xs, {"k": 2}), strict=True):
        assert torch.equal(a, b)
    with raises(pf.BatchError, match=r"xs has 3 elements, but it was traced with 2"):
        pf.forward(params, [*xs, IMAGE], {"k": 2}, spec=spec)
    with raises(pf.BatchError, match=r'options\["k"\] is 3, but the program is that of options\["k"\] = 2'):
        pf.forward(params, xs, {"k": 3}, spec=spec)
    assert [len(split(b, spec=spec).rest) for b in (xs, (xs, Y), (xs, {"k": 2, "u": None}, Y))] == [0, 1, 1]


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 4)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.a(first) - 2 * self.a(second)


def test_inputs_traced_by_name_in_another_order_are_given_by_name() -> None:
    model, (first, second) = seeded(Named), (IMAGE, IMAGE + 1)
    spec, params = pf.trace(model, {"second": second, "first": first}), pf.params(model)
    assert torch.equal(pf.forward(params, first=first, second=second, spec=spec), model(first, second))
    with raises(pf.BatchError, match="give second, first by name"):
        pf.forward(params, first, second, spec=spec)
    with raises(pf.BatchError, match="in another order than it takes them; give a dict"):
        pf.collect_stats(params, [(first, second)], spec=spec)
    assert pf.collect_stats(params, [{"first": first, "second": second}], spec=spec).samples == 6


def test_a_dict_is_the_input_or_the_inputs_by_name() -> None:
    model = seeded(Named)
    with raises(pf.TraceError, match=r"it has no 'labels'.*write trace\(model, \(batch,\)\)"):
        pf.trace(model, {"first": IMAGE, "second": IMAGE, "labels": Y})
    with raises(pf.TraceError, match=r"the dict has no 'second'"):
        pf.trace(model, {"first": IMAGE})
    spec = pf.trace(model, {"first": IMAGE}, {"second": IMAGE})
    assert [i.name for i in spec.program.inputs] == ["first", "second"]


# ---- sizes


class Prompts(nn.Module):
    """One image for many prompts, as a mask decoder has it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, image: Tensor, prompts: Tensor) -> Tensor:
        return self.c((self.a(image) + self.b(prompts)).relu())


class States(nn.Module):
    """The batch is dim 1 of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.r, self.c = nn.Linear(4, 8), nn.GRU(8, 6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return self.c(self.r(self.a(x).relu(), state)[0][:, -1])


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, table: Tensor, rows: Tensor) -> Tensor:
        return self.c(self.a(table)[rows].relu())


class TimeFirst(nn.Module):
    """The batch is dim 1 of the input, and dim 0 of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x).relu().mean(0))


SIZES: dict[str, tuple[type[nn.Module], tuple[Any, ...], tuple[Any, ...], int]] = {
    "prompts": (Prompts, (randn(1, 4), randn(3, 6)), (randn(1, 4), randn(5, 6)), 5),
    "states": (States, (randn(3, 5, 4), randn(2, 3, 6)), (randn(4, 5, 4), randn(2, 4, 6)), 4),
    "time first": (TimeFirst, (randn(5, 3, 4),), (randn(7, 4, 4),), 4),
    "table": (Table, (randn(7, 4), torch.tensor([6, 2, 3])), (randn(9, 4), torch.tensor([8, 2, 3, 4])), 4),
}


@mark.parametrize("name", SIZES)
def test_samples_are_counted_where_the_outputs_have_them(name: str) -> None:
    """Gradients of single samples sum up to that of the batch, times its size."""
    cls, traced, inputs, n = SIZES[name]
    model = seeded(cls).double()
    spec, params, labels = pf.trace(model, traced), pf.params(model), torch.arange(n) % 2
    torch.testing.assert_close(pf.forward(params, *inputs, spec=spec), model(*inputs))
    assert samples(spec, inputs) == n
    fisher = pf.criteria.fisher()
    squares = pf.collect_stats(params, [(*inputs, labels)], spec=spec, criterion=fisher).sums
    expected = torch.zeros(8, dtype=torch.float64)
    for i in range(n):
        one = [x[i : i + 1] if len(x) == n else x[:, i : i + 1] if x.ndim == 3 else x for x in inputs]
        taylor = pf.criteria.taylor()
        (sums,) = pf.collect_stats(params, [(*one, labels[i : i + 1])], spec=spec, criterion=taylor).sums.values()
        expected += sums["a"].square()
    (measured,) = squares.values()
    torch.testing.assert_close(measured["a"], expected)
    assert float(expected.max()) > 0


def test_labels_of_other_samples_are_refused() -> None:
    model, x = seeded(TimeFirst).double(), randn(5, 3, 4)
    spec, params = pf.trace(model, (x,)), pf.params(model)
    for other in (randn(7, 3, 4), randn(5, 4, 4)):
        torch.testing.assert_close(pf.forward(params, other, spec=spec), model(other))
    with raises(pf.BatchError, match="the inputs have 3 samples and what follows them has 5"):
        pf.collect_stats(params, [(x, torch.arange(5) % 3)], spec=spec, criterion=pf.criteria.fisher())


def test_training_reads_dicts_as_loaders_give_them() -> None:
    model, labelled = seeded(OneDict), {**INNER, "labels": Y}
    for batch, rest in ((labelled, Y), ({"batch": INNER, "labels": Y}, Y), ((INNER, Y), Y)):
        output, others = call(model, batch)
        assert torch.equal(output, model(INNER)) and torch.equal(others[0], rest)
    named, both = seeded(Named), {"first": IMAGE, "second": IMAGE + 1}
    output, others = call(named, both)
    assert torch.equal(output, named(**both)) and others[0] is both
    output, others = call(named, {**both, "y": Y})
    assert torch.equal(output, named(**both)) and torch.equal(others[0], Y)
    assert [i.name for i in trace_first(named, [{**both, "y": Y}], 1).program.inputs] == ["first", "second"]
    assert len(trace_first(model, [labelled], 1).program.inputs) == 3  # the whole dict is the input
    trained = train(model.requires_grad_(True), [(INNER, Y)] * 4, Recipe(epochs=3, lr=0.05))
    after, before = (F.cross_entropy(m(INNER), Y).item() for m in (trained.model, model))
    assert after < before


def test_masks_inside_a_dict_weigh_positions() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.b(self.a(batch["x"]).relu()) * batch["attention_mask"][..., None]

    model, x, kept = seeded(Masked).double(), randn(4, 5, 3), torch.arange(5) < torch.tensor([5, 2, 3, 1])[:, None]
    batch = {"x": x, "attention_mask": kept.long()}
    spec, params = pf.trace(model, (batch,)), pf.params(model)
    moments = pf.collect_stats(params, [batch], spec=spec).sites["b"]
    inner = model.a(x).relu()[kept]
    assert moments.count == 11 == len(inner)
    torch.testing.assert_close(moments.mean, inner.mean(0))
