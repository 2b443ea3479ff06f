"""Interfaces as groups: vocabularies, classes, channels of inputs and outputs, queries; `trace(…, free=)`."""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import importorskip, mark, raises
from torch import Tensor, nn

import prunefn as pf
from prunefn.costs.counted import flop_counter

from .small import Traced, close, masks, mlp, randn, same

IDS = torch.tensor([[5, 6, 9, 1, 3], [8, 5, 2, 9, 9]])
LENGTH = 12
laws = settings(max_examples=5)


class Words(nn.Module):
    """A language model whose head is tied to its table or not, and that masks padding by its id."""

    def __init__(self, vocab: int = LENGTH, tied: bool = True, pad_id: int = 3) -> None:
        super().__init__()
        self.vocab_size, self.pad_id = vocab, pad_id
        self.table = nn.Embedding(vocab, 6, padding_idx=pad_id)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, vocab, bias=not tied)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head((x + self.down(F.relu(self.up(x)))) * (ids != self.pad_id)[..., None])


class Pooled(nn.Module):
    """Bags of words without a head over them."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(LENGTH, 6, mode="sum"), nn.Linear(6, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.bag(ids))


class Queries(nn.Module):
    """Learned queries that attend to each other and to an image, as in DETR; classes and boxes are the outputs."""

    def __init__(self, queries: int = 5) -> None:
        super().__init__()
        self.stem, self.queries = nn.Conv2d(3, 8, 4, 4), nn.Embedding(queries, 8)
        self.qkv, self.q, self.kv = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 16)
        self.classes, self.boxes = nn.Linear(8, 6), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        image = self.stem(x).flatten(2).transpose(1, 2)
        h = self.queries.weight.expand(len(x), -1, -1)
        h = h + F.scaled_dot_product_attention(*self.qkv(h).chunk(3, -1))
        h = h + F.scaled_dot_product_attention(self.q(h), *self.kv(image).chunk(2, -1))
        return self.classes(h), self.boxes(h).sigmoid()


class Registers(nn.Module):
    """A token of the class behind some registers, in a sequence with an image."""

    def __init__(self, registers: int = 4) -> None:
        super().__init__()
        self.n, self.stem = registers, nn.Conv2d(3, 8, 4, 4)
        self.cls, self.registers = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, registers, 8))
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        image = self.stem(x).flatten(2).transpose(1, 2)
        extra = [t.expand(len(x), -1, -1) for t in (self.registers, self.cls)]
        h = torch.cat([*extra, image], 1)
        h = h + F.scaled_dot_product_attention(*self.qkv(h).chunk(3, -1))
        return self.head(h[:, self.n])


def image_net() -> nn.Module:
    """Three channels in, a generator's two channels out."""
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(6, 2, 2, 2))


def traced(model: nn.Module, *inputs: Tensor, free: Any) -> Traced:
    """In float64 and eval mode."""
    torch.manual_seed(0)
    for t in model.parameters():
        nn.init.normal_(t)
    model = model.double().eval()
    return Traced(model, pf.trace(model, inputs, free=free), pf.params(model))


@cache
def words(tied: bool = True) -> Traced:
    return traced(Words(tied=tied), IDS, free="vocabulary")


@cache
def image() -> Traced:
    return traced(image_net(), randn(2, 3, 4, 4), free=["inputs", "outputs"])


def told(spec: pf.Spec) -> dict[str, tuple[str, int]]:
    """Group of an interface → kind and size."""
    return {g: (spec.groups[g].kind, spec.sizes[g]) for g in spec.program.interfaces}


def without(n: int, *removed: int) -> Tensor:
    return torch.tensor([i not in removed for i in range(n)])


# ---- which groups


@mark.parametrize("tied", [True, False])
def test_a_table_and_its_head_are_one_group(tied: bool) -> None:
    spec = words(tied).spec
    assert told(spec) == {"table.vocabulary": ("vocabulary", LENGTH)}
    members = {(m.tensor, m.dim) for m in spec.groups["table.vocabulary"].members}
    assert members == {("table.weight", 0), ("head.weight", 0), *([] if tied else [("head.bias", 0)])}
    text = spec.explain("table.vocabulary")
    assert ("tied" in text) == tied and ("joined by their equal size, 12" in text) == (not tied)
    assert "must stay: 3 (" in text and "'table.vocabulary', 0 to 11" in str(spec)
    assert spec.to_dict()["interfaces"]["table.vocabulary"]["inputs"] == ["ids"]
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_all_else_is_as_without_free() -> None:
    t = words()
    plain = pf.trace(t.model, (IDS,))
    assert [g for g in t.spec.groups if g not in t.spec.program.interfaces] == list(plain.groups)
    assert pf.cost(plain) == pf.cost(t.spec)
    assert "it is a vocabulary" in plain.explain("table.weight")


@mark.parametrize(
    ("make", "free", "groups"),
    [
        (Pooled, "vocabulary", {"bag.vocabulary": ("vocabulary", LENGTH)}),
        (Words, "table", {"table.vocabulary": ("vocabulary", LENGTH)}),
        (lambda: Words(tied=False), {"table.weight": 0}, {"table.vocabulary": ("vocabulary", LENGTH)}),
        (lambda: Words(tied=False), "classes", {"head.classes": ("classes", LENGTH)}),
    ],
)
def test_words_and_names(make: Any, free: Any, groups: dict[str, tuple[str, int]]) -> None:
    spec = traced(make(), IDS, free=free).spec
    assert told(spec) == groups
    if isinstance(free, dict):  # the rows alone
        assert [m.tensor for m in spec.groups["table.vocabulary"].members] == ["table.weight"]


@mark.parametrize(
    ("free", "groups"),
    [
        (["inputs", "outputs"], {"0.inputs": ("inputs", 3), "2.outputs": ("outputs", 2)}),
        ("input channels", {"0.inputs": ("inputs", 3)}),
        ({"input": 1}, {"input.inputs": ("inputs", 3)}),
        ({"2.weight": 1}, {"2.outputs": ("outputs", 2)}),
    ],
)
def test_channels(free: Any, groups: dict[str, tuple[str, int]]) -> None:
    assert told(traced(image_net(), randn(2, 3, 4, 4), free=free).spec) == groups


# ---- laws


@mark.parametrize("tied", [True, False])
@given(data=st.data())
@laws
def test_removing_tokens_slices_the_outputs(tied: bool, data: st.DataObject) -> None:
    t = words(tied)
    removed = data.draw(st.sets(st.sampled_from([n for n in range(LENGTH) if n != 3]), max_size=LENGTH - 2))
    mask = {"table.vocabulary": without(LENGTH, *removed)}
    kept = pf.kept(mask, t.spec)["table.vocabulary"]
    ids = kept[torch.randint(len(kept), (3, 4), generator=torch.Generator().manual_seed(0))]
    small, spec = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    new = pf.remap(ids, mask, spec=t.spec)
    close(pf.forward(small, new, spec=spec), pf.forward(t.params, ids, spec=t.spec)[..., kept])
    assert torch.equal(kept[new], ids)
    assert (small["head.weight"] is small["table.weight"]) == tied
    assert pf.cost(spec) == pf.cost(t.spec, mask)
    with flop_counter() as counter:
        pf.forward(small, new[:1, :5], spec=spec.at({"length": 4}))
    assert pf.cost(spec.at({"length": 4})).macs == counter.get_total_flops() // 2
    args, _ = spec.example.draw()
    assert int(args[0].max()) < len(kept)


@given(data=st.data())
@laws
def test_two_rounds_are_one(data: st.DataObject) -> None:
    t = image()
    first = data.draw(masks(t.spec))
    mid = pf.shrink(t.spec, first)
    second = data.draw(masks(mid))
    both = pf.compose(first, second)
    same(pf.apply(pf.apply(t.params, first, spec=t.spec), second, spec=mid), pf.apply(t.params, both, spec=t.spec))
    assert pf.shrink(mid, second) == pf.shrink(t.spec, both)
    assert pf.shrink(mid, second).program.interfaces == pf.shrink(t.spec, both).program.interfaces


def test_two_rounds_of_a_vocabulary() -> None:
    t = words()
    first, second = {"table.vocabulary": without(12, 0, 7)}, {"table.vocabulary": without(10, 0, 9)}
    mid, both = pf.shrink(t.spec, first), pf.compose(first, second)
    end = pf.shrink(mid, second)
    assert end == pf.shrink(t.spec, both)
    assert end.program.interfaces["table.vocabulary"].kept == (2, 3, 4, 5, 6, 8, 9, 10)
    with raises(pf.MaskError, match=r"removes unit 2 of group 'table.vocabulary', which aten.ne"):
        pf.shrink(mid, {"table.vocabulary": without(10, 2)})  # token 3 of the dense network
    small = pf.apply(t.params, both, spec=t.spec)
    ids = torch.tensor([[2, 3, 10, 8]])
    kept = pf.kept(both, t.spec)["table.vocabulary"]
    close(pf.forward(small, pf.remap(ids, both, spec=t.spec), spec=end), t.model(ids)[..., kept])


@given(data=st.data())
@laws
def test_channels_of_inputs_and_outputs(data: st.DataObject) -> None:
    t, x = image(), randn(2, 3, 4, 4, seed=1)
    mask = data.draw(masks(t.spec))
    kept, spec = pf.kept(mask, t.spec), pf.shrink(t.spec, mask)
    zeroed = x * mask.get("0.inputs", torch.ones(3))[:, None, None]
    gone = {g: m for g, m in mask.items() if t.spec.groups[g].kind == "hidden"}
    dense = pf.forward(pf.zero(t.params, gone, spec=t.spec), zeroed, spec=t.spec)
    small = pf.apply(t.params, mask, spec=t.spec)
    close(pf.forward(small, x[:, kept["0.inputs"]], spec=spec), dense[:, kept["2.outputs"]])
    assert tuple(spec.example.draw()[0][0].shape) == (2, len(kept["0.inputs"]), 4, 4)
    assert pf.cost(spec) == pf.cost(t.spec, mask)
    if len(kept["0.inputs"]) < 3:
        with raises(pf.BatchError, match="has shape"):
            pf.forward(small, x, spec=spec)


def test_the_order_of_tokens_does_not_matter() -> None:
    t = words(tied=False)
    order = torch.tensor([2, 0, 1, 3, 11, 4, 5, 6, 7, 8, 9, 10])
    other = {n: p[order] if n in ("table.weight", "head.weight", "head.bias") else p for n, p in t.params.items()}
    new = torch.argsort(order)[IDS]
    close(pf.forward(other, new, spec=t.spec), pf.forward(t.params, IDS, spec=t.spec)[..., order])


@mark.parametrize(
    ("make", "free", "group"),
    [(Queries, {"queries.weight": 0}, "queries.interface"), (Registers, {"registers": 1}, "registers.interface")],
)
def test_positions_that_attend_to_each_other_give_the_natively_smaller_model(make: Any, free: Any, group: str) -> None:
    x = randn(2, 3, 8, 8)
    t = traced(make(), x, free=free)
    assert not t.spec.groups[group].exact
    mask = {group: without(t.spec.sizes[group], 1, 3)}
    small, spec = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    native = make(t.spec.sizes[group] - 2).double().eval()
    native.load_state_dict(small)
    actual, expected = (y if isinstance(y, tuple) else (y,) for y in (pf.forward(small, x, spec=spec), native(x)))
    for a, b in zip(actual, expected, strict=True):
        close(a, b)
    with flop_counter() as counter:
        pf.forward(small, x[:1], spec=spec)
    assert pf.cost(spec).macs == counter.get_total_flops() // 2
    rebuilt = pf.to_module(small, spec=spec, model=t.model)(x)
    close(rebuilt if isinstance(rebuilt, Tensor) else rebuilt[0], expected[0])


def test_softmax_and_a_loss_inside_mix_classes() -> None:
    class Probabilities(nn.Module):
        def __init__(self, classes: int = 5) -> None:
            super().__init__()
            self.fc, self.out = nn.Linear(4, 6), nn.Linear(6, classes)

        def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            y = self.out(F.relu(self.fc(x)))
            return F.cross_entropy(y, labels), y.softmax(-1)

    x, labels = randn(3, 4), torch.tensor([0, 4, -100])
    t = traced(Probabilities(), x, labels, free="classes")
    group = t.spec.groups["out.classes"]
    assert [m.partition(".")[2].partition(".")[0] for m in group.mixed_by] == [
        "log_softmax",
        "nll_loss_forward",
        "softmax",
    ]
    assert t.spec.program.interfaces["out.classes"].inputs == ("labels",)
    mask = {"out.classes": without(5, 1, 2)}
    small, native = pf.apply(t.params, mask, spec=t.spec), Probabilities(3).double().eval()
    native.load_state_dict(small)
    new = pf.remap(labels, mask, spec=t.spec)
    assert new.tolist() == [0, 2, -100]
    for a, b in zip(pf.forward(small, x, new, spec=pf.shrink(t.spec, mask)), native(x, new), strict=True):
        close(a, b)
    with raises(pf.MaskError, match=r"id 1 of group 'out.classes' was removed"):
        pf.remap(torch.tensor([1]), mask, spec=t.spec)
    assert pf.remap(torch.tensor([1, 4]), mask, spec=t.spec, unknown=-100).tolist() == [-100, 2]


# ---- nothing is pruned unless it is named


def test_only_where_prunes_an_interface() -> None:
    t, x = image(), randn(8, 3, 4, 4)
    prune = pf.pipeline(criterion=pf.criteria.magnitude(), ratio=0.5, compensation=pf.compensation.none())
    assert set(prune(t.params, None, spec=t.spec).mask) == {"0"}
    stats = pf.collect_stats(t.params, [x], spec=t.spec)
    assert set(stats.sites) == {"2"}
    assert set(pf.score(stats, criterion=pf.criteria.magnitude())) == {"0"}
    channels = pf.kind("inputs", "outputs")
    assert set(pf.score(stats, criterion=pf.criteria.magnitude(), where=channels)) == {"0.inputs", "2.outputs"}
    scores = {"0.inputs": torch.tensor([1.0, 2.0, 3.0])}
    by_hand = pf.pipeline(criterion=pf.criteria.given(scores), ratio=0.4, compensation=pf.compensation.none())
    assert by_hand(t.params, None, spec=t.spec).mask["0.inputs"].tolist() == [False, True, True]


def test_removed_inputs_are_compensated() -> None:
    t = traced(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), randn(2, 4), free="inputs")
    x = randn(64, 4)
    x[:, 1] = 3.0  # constant: its mean makes up for it
    prune = pf.pipeline(criterion=pf.criteria.variance(), where=pf.kind("inputs"), ratio=0.25)
    small = prune(t.params, [x], spec=t.spec)
    assert small.mask == {"0.inputs": small.mask["0.inputs"]} and not small.mask["0.inputs"][1]
    close(pf.forward(small.params, x[:, small.mask["0.inputs"]], spec=small.spec), t.model(x))


@mark.parametrize(
    "where", [None, "*", "table*", ~pf.kind("hidden"), pf.module("table"), pf.exact(), pf.touches("table")]
)
def test_what_does_not_name_an_interface(where: Any) -> None:
    spec = words().spec
    scores = {g: torch.ones(n) for g, n in spec.sizes.items()}
    rest = scores if where is None else _only(scores, where, spec)
    assert where is None or "table.vocabulary" not in rest


def _only(scores: pf.Scores, where: Any, spec: pf.Spec) -> pf.Scores:
    try:
        return pf.only(scores, where, spec=spec)
    except pf.PruneError:
        return {}


@mark.parametrize(
    "where",
    ["*.vocabulary", pf.kind("vocabulary"), pf.kind("vocabulary") & pf.module("table"), lambda g: g.size == LENGTH],
)
def test_what_names_an_interface(where: Any) -> None:
    spec = words().spec
    assert list(pf.only({g: torch.ones(n) for g, n in spec.sizes.items()}, where, spec=spec)) == ["table.vocabulary"]


def test_rare_tokens_go_first_and_padding_stays() -> None:
    t, batches = words(), [IDS, torch.tensor([[0, 0, 5]])]
    criterion = pf.criteria.frequency()
    stats = pf.collect_stats(t.params, batches, spec=t.spec, criterion=criterion)
    counts = pf.score(stats, criterion=criterion)["table.vocabulary"]
    assert counts.tolist() == [2, 1, 1, 1, 0, 3, 1, 0, 1, 3, 0, 0]
    mask = pf.select({"table.vocabulary": counts}, 0.75, spec=t.spec)["table.vocabulary"]
    assert mask.nonzero()[:, 0].tolist() == [3, 5, 9]  # 3 is padding
    prune = pf.pipeline(criterion=criterion, where=pf.kind("vocabulary"), ratio=0.75)
    small = prune(t.params, batches, spec=t.spec)
    assert torch.equal(small.mask["table.vocabulary"], mask)
    with raises(pf.BudgetError, match="ratio up to"):
        pf.select({"table.vocabulary": counts}, 0.95, spec=t.spec, scope=pf.scope.global_(), min_units=2)
    with raises(pf.BatchError, match=r"frequency.*free="):
        pf.collect_stats(t.params, batches, spec=pf.trace(t.model, (IDS,)), criterion=criterion)


# ---- ids


def test_removed_ids_are_errors() -> None:
    t = words()
    with raises(pf.MaskError, match=r"removes unit 3 .*aten.ne.Scalar"):
        pf.apply(t.params, {"table.vocabulary": without(12, 3)}, spec=t.spec)
    mask = {"table.vocabulary": without(12, 0, 11)}
    small, spec = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    with raises(pf.BatchError, match=r"input 'ids'.*'table.vocabulary', 0 to 9: pf.remap"):
        pf.forward(small, torch.tensor([[1, 10]]), spec=spec)
    with raises(pf.MaskError, match=r"id 11 of group 'table.vocabulary' was removed"):
        pf.remap(torch.tensor([11]), mask, spec=t.spec)
    with raises(pf.MaskError, match="id 12 is out of range"):
        pf.remap(torch.tensor([12]), mask, spec=t.spec)
    with raises(pf.MaskError, match="unknown=0 was removed, too"):
        pf.remap(torch.tensor([11]), mask, spec=t.spec, unknown=0)
    with raises(pf.MaskError, match="must be integers"):
        pf.remap(torch.tensor([1.0]), mask, spec=t.spec)
    with raises(pf.MaskError, match="no interface"):
        pf.remap(IDS, {}, spec=pf.trace(t.model, (IDS,)))
    new = pf.remap(torch.tensor([11, 4], dtype=torch.int32), mask, spec=t.spec, unknown=2)
    assert new.tolist() == [1, 3] and new.dtype == torch.int32


class Shifted(Words):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids * 1)


class Summed(Words):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) + ids.sum()


class Greedy(Words):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).argmax(-1)


class Positions(nn.Module):
    """Rows that are looked up by place, and by two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.one, self.two = nn.Embedding(5, 4), nn.Embedding(7, 4), nn.Embedding(9, 4)

    def forward(self, ids: Tensor, kinds: Tensor) -> Tensor:
        return self.one(ids) + self.two(kinds) + self.place(torch.arange(ids.shape[1]))


@mark.parametrize(
    ("make", "inputs", "free", "text"),
    [
        (Shifted, (IDS,), "table", "no integers of an input, but computed by aten.mul"),
        (Summed, (IDS,), "vocabulary", "computes with 'ids' by aten.sum"),
        (Greedy, (IDS,), "vocabulary", "positions along it are returned by aten.argmax"),
        (Positions, (IDS % 5, IDS % 5), "vocabulary", r"may mean 'one' \(7\) or 'two' \(9\)"),
        (Positions, (IDS % 5, IDS % 5), "place", "no integers of an input"),
        (lambda: mlp(4, 6, 2), (randn(2, 4),), "vocabulary", "no table is looked up"),
        (lambda: mlp(4, 6, 2), (randn(2, 4),), {"0.weight": 0}, "free already"),
        (lambda: mlp(4, 6, 2), (randn(2, 4),), {"0.weight": 2}, "has 2 dims"),
        (image_net, (randn(2, 3, 4, 4),), {"0.weight": 2}, "it is a kernel dim by aten.conv2d"),
        (image_net, (randn(2, 3, 4, 4),), {"input": 2}, "a convolution runs along it by aten.conv2d"),
        (Queries, (randn(2, 3, 8, 8),), "classes", r"may mean 'classes' \(6\) or 'boxes' \(4\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_freed(make: Any, inputs: tuple[Tensor, ...], free: Any, text: str) -> None:
    with raises(pf.TraceError, match=text):
        traced(make(), *inputs, free=free)


def test_names_that_do_not_exist() -> None:
    with raises(pf.ParamsError, match="did you mean 'vocabulary'"):
        words_of = traced(Words(), IDS, free="vocabular")
        assert words_of is None
    with raises(pf.TraceError, match="by the caller"):
        pf.trace(Words().eval(), (IDS,), free="vocabulary", freeze="table")
    with raises(pf.PruneError, match="free"):
        pf.trace(Words().eval(), (IDS,), free=3)  # type: ignore[arg-type]


# ---- modules and files


def test_the_class_has_the_new_ids_and_sizes(tmp_path: Path) -> None:
    t, ids = words(), torch.tensor([[2, 3, 10, 8]])
    mask = {"table.vocabulary": without(12, 0, 7)}
    small, spec, new = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask), pf.remap(ids, mask, spec=t.spec)
    expected = pf.forward(small, new, spec=spec)
    module: Any = pf.to_module(small, spec=spec, model=t.model)
    numbers = (module.pad_id, module.table.padding_idx, module.vocab_size, module.table.num_embeddings)
    assert numbers == (2, 2, 10, 10) and module.head.out_features == 10
    assert module.head.weight is module.table.weight
    assert (t.model.pad_id, t.model.table.padding_idx, t.model.vocab_size) == (3, 3, 12)
    close(module(new), expected)
    close(pf.to_module(small, spec=spec)(new), expected)
    pf.save(module, tmp_path / "module.safetensors")
    loaded: Any = pf.load(Words().double().eval(), tmp_path / "module.safetensors")
    assert loaded.pad_id == loaded.table.padding_idx == 2
    close(loaded(new), expected)
    pf.save(small, tmp_path / "params.safetensors", spec=spec, masks=mask)
    assert pf.load_params(tmp_path / "params.safetensors", spec=t.spec).spec == spec
    pf.save(small, tmp_path / "bare.safetensors", spec=spec)
    with raises(pf.ParamsError, match="is an interface, and the shapes do not say"):
        pf.load_params(tmp_path / "bare.safetensors", spec=t.spec)


def test_numbers_that_no_code_reads_follow_by_name() -> None:
    class Net(nn.Module):
        def __init__(self, in_chans: int = 3, num_classes: int = 7) -> None:
            super().__init__()
            self.in_chans, self.num_classes, self.depth = in_chans, num_classes, 3
            self.stem, self.fc = nn.Conv2d(in_chans, 6, 3), nn.Linear(6, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.stem(x)).mean((2, 3)))

    x = randn(2, 3, 5, 5)
    t = traced(Net(), x, free=["inputs", "classes"])
    mask = {"stem.inputs": without(3, 0), "fc.classes": without(7, 1, 2, 5)}
    small, spec = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    module: Any = pf.to_module(small, spec=spec, model=t.model)
    assert (module.in_chans, module.num_classes, module.depth) == (2, 4, 3)
    assert (module.stem.in_channels, module.fc.out_features) == (2, 4)
    close(module(x[:, 1:]), pf.forward(small, x[:, 1:], spec=spec))


# ---- transformers

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
SPECIAL = {"bos_token_id": 3, "eos_token_id": 6, "pad_token_id": 4}


def transformer(name: str) -> Any:
    hf = importorskip("transformers")
    torch.manual_seed(0)
    return {
        "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(vocab_size=50, max_position_embeddings=16, **SIZES, pad_token_id=4)),
        "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(vocab_size=50, max_position_embeddings=16, **SIZES)),
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=50, **SIZES, **{**SPECIAL, "eos_token_id": [6, 8]})),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, **SPECIAL)),
        "gpt2_classes": lambda: hf.GPT2ForSequenceClassification(
            hf.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, num_labels=3, **SPECIAL)
        ),
    }[name]().eval()  # fmt: skip


@mark.parametrize("name", ["bert", "llama", "gpt2", "gpt2_classes"])
def test_a_transformer_with_fewer_tokens(name: str, tmp_path: Path) -> None:
    model, ids = transformer(name), torch.tensor([[9, 12, 30, 41], [10, 49, 11, 4]])
    spec, params = pf.trace(model, {"input_ids": ids}, free="vocabulary"), pf.params(model)
    ((group, interface),) = spec.program.interfaces.items()
    assert set(interface.named) >= {4} and interface.inputs == ("input_ids",)
    mask = {group: without(50, 0, 1, 5, 7, 33)}
    small, after, new = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask), pf.remap(ids, mask, spec=spec)
    module: Any = pf.to_module(small, spec=after, model=model)
    with torch.no_grad():
        dense, pruned = model(ids).logits, module(new).logits
    kept = pf.kept(mask, spec)[group]
    torch.testing.assert_close(pruned, dense if name == "gpt2_classes" else dense[..., kept], rtol=1e-5, atol=1e-5)
    assert module.config.vocab_size == module.get_input_embeddings().num_embeddings == 45
    assert module.config.pad_token_id == 2 and model.config.pad_token_id == 4
    if name in ("llama", "gpt2"):
        ends = [3, 4] if name == "llama" else 3
        assert module.config.eos_token_id == module.generation_config.eos_token_id == ends
        said = module.generate(new[:1], max_new_tokens=3, do_sample=False, pad_token_id=2)
        dense_said = model.generate(
            ids[:1], max_new_tokens=3, do_sample=False, suppress_tokens=[0, 1, 5, 7, 33], pad_token_id=4
        )
        assert kept[said].tolist() == dense_said.tolist()
    module.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert again.config.vocab_size == 45 and again.config.pad_token_id == 2
    torch.testing.assert_close(again(new).logits, pruned)


def test_positions_that_a_class_counts_from_padding_are_refused_where_its_id_moves() -> None:
    model, ids = transformer("roberta"), torch.tensor([[9, 12, 30, 41], [10, 49, 11, 1]])
    spec, params = pf.trace(model, {"input_ids": ids}, free="vocabulary"), pf.params(model)
    (group,) = spec.program.interfaces
    with raises(pf.MaskError, match=r"removes unit 1 .*which config.pad_token_id|which aten.ne"):
        pf.shrink(spec, {group: without(50, 1)})
    mask = {group: without(50, 5, 7)}
    module: Any = pf.to_module(pf.apply(params, mask, spec=spec), spec=pf.shrink(spec, mask), model=model)
    kept, new = pf.kept(mask, spec)[group], pf.remap(ids, mask, spec=spec)
    torch.testing.assert_close(module(new).logits, model(ids).logits[..., kept], rtol=1e-5, atol=1e-5)


def test_names_of_classes() -> None:
    hf = importorskip("transformers")
    names = {0: "bad", 1: "fair", 2: "good", 3: "best"}
    config = hf.BertConfig(
        vocab_size=20, max_position_embeddings=8, **SIZES, id2label=names, label2id={v: k for k, v in names.items()}
    )
    model, ids = hf.BertForSequenceClassification(config).eval(), torch.tensor([[9, 12], [10, 4]])
    spec = pf.trace(model, {"input_ids": ids}, free="classes")
    mask = {"classifier.classes": without(4, 1)}
    module: Any = pf.to_module(pf.apply(pf.params(model), mask, spec=spec), spec=pf.shrink(spec, mask), model=model)
    assert (
        module.config.id2label == {0: "bad", 1: "good", 2: "best"}
        and module.config.num_labels == module.num_labels == 3
    )
    assert module.config.label2id == {"bad": 0, "good": 1, "best": 2} and model.config.num_labels == 4
    torch.testing.assert_close(module(ids).logits, model(ids).logits[:, [0, 2, 3]], rtol=1e-5, atol=1e-6)


def test_a_folder_whose_vocabulary_shrinks_is_refused(tmp_path: Path) -> None:
    model = transformer("gpt2")
    model.save_pretrained(tmp_path / "dense")
    spec = pf.trace(model, {"input_ids": IDS}, free="vocabulary")
    with raises(pf.PruneError, match=r"loses tokens.*shrink_tokenizer"):
        pf.apply_checkpoint(
            tmp_path / "dense", tmp_path / "small", {"transformer.wte.vocabulary": without(50, 0)}, spec=spec
        )
