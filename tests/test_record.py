"""Models that torch.export cannot take: one real run is recorded."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.models as tv
from pytest import mark, param, raises
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import prunefn as pf
from prunefn.errors import TraceError
from prunefn.spec.axis import leaves
from prunefn.tracing import api
from prunefn.tracing.record import record, tensors_in

from .small import close, mlp, randn
from .zoo import SIDE, build, random_mask, randomize

FEW = {"score_thresh": 0.0, "detections_per_img": 3, "topk_candidates": 3}
ROIS = {"box_score_thresh": 0.0, "box_detections_per_img": 2, "rpn_post_nms_top_n_test": 8}
DETECTION: dict[str, dict[str, Any]] = {
    "ssdlite320_mobilenet_v3_large": {**FEW, "num_classes": 5},
    "fasterrcnn_mobilenet_v3_large_320_fpn": ROIS,
    "maskrcnn_resnet50_fpn": ROIS,
}
MORE: dict[str, dict[str, Any]] = {
    "ssd300_vgg16": {**FEW, "num_classes": 5},
    "retinanet_resnet50_fpn": FEW,
    "retinanet_resnet50_fpn_v2": FEW,
    "fcos_resnet50_fpn": FEW,
    "fasterrcnn_resnet50_fpn": ROIS,
    "fasterrcnn_resnet50_fpn_v2": ROIS,
    "keypointrcnn_resnet50_fpn": ROIS,
}
ALL = [*DETECTION, *(param(n, marks=mark.slow) for n in MORE)]
BLIND = {"keypointrcnn_resnet50_fpn": {"box_score_thresh": 1.1}}
"""It finds nothing, so that sizes of 0 occur."""


def detector(name: str, options: dict[str, Any]) -> nn.Module:
    """For small images, in float64, with random values everywhere."""
    torch.manual_seed(0)
    model = tv.get_model(name, weights=None, weights_backbone=None, **options)
    if "320" not in name:
        transform: Any = model.transform
        transform.min_size, transform.max_size = (96,), 128
    return randomize(model, 1).double().eval().requires_grad_(False)


def image(seed: int = 0) -> Tensor:
    return torch.rand(3, 96, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def share(spec: pf.Spec) -> float:
    """Of the parameters' elements: those in tensors with an axis that can be pruned."""
    count = {t: torch.Size(spec.shape(t)).numel() for t in spec.axes if t in spec.parameters}
    return sum(n for t, n in count.items() if any(True for a in spec.axes[t] for _ in leaves(a))) / sum(count.values())


def resized(model: nn.Module, params: pf.Params) -> nn.Module:
    """A copy of the model at the sizes of its new tensors: torch.nn's layers by the shapes."""
    new = copy.deepcopy(model)
    for path, m in new.named_modules():
        old = {n: t.shape for n, t in m.named_parameters(recurse=False)}
        for n, t in [*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)]:
            name = f"{path}.{n}" if path else n
            if name in params:
                setattr(m, n, nn.Parameter(params[name]) if isinstance(t, nn.Parameter) else params[name])
        if isinstance(m, nn.Conv2d):
            if m.groups > 1:
                m.groups = m.weight.shape[0] // (old["weight"][0] // m.groups)
            m.out_channels, m.in_channels = m.weight.shape[0], m.weight.shape[1] * m.groups
        elif isinstance(m, nn.ConvTranspose2d):
            m.in_channels, m.out_channels = m.weight.shape[:2]
        elif isinstance(m, nn.Linear):
            m.out_features, m.in_features = m.weight.shape
        elif isinstance(m, nn.BatchNorm2d):
            m.num_features = len(m.weight)
        elif isinstance(m, nn.GroupNorm):
            m.num_groups, m.num_channels = len(m.weight) // (old["weight"][0] // m.num_groups), len(m.weight)
    return new


def loaded(model: nn.Module, params: pf.Params) -> nn.Module:
    new = copy.deepcopy(model)
    new.load_state_dict(params, strict=True)
    return new


def same_results(a: Any, b: Any) -> int:
    """Equal up to rounding; the number of elements that were compared."""
    a, b = pytree.tree_leaves(a), pytree.tree_leaves(b)
    assert [x.shape for x in a] == [x.shape for x in b]
    for x, y in zip(a, b, strict=True):
        if x.numel():
            close(x.double(), y.double(), 1e-8)
    return sum(x.numel() for x in a)


@mark.parametrize("name", ALL)
def test_detection_with_its_post_processing(name: str) -> None:
    model = detector(name, {**DETECTION, **MORE}[name])
    spec, params = pf.trace(model, ([image()],)), pf.params(model)
    assert spec.capture == "recorded"
    assert "torch.export cannot capture" in spec.capture_reason
    assert "recorded from one run" in str(spec)
    assert not spec.unknown
    assert share(spec) > 0.99
    assert all(t in spec.program.tensors for t in spec.parameters)
    mask = random_mask(spec, 4, groups=[g.name for g in spec.groups.values() if g.exact])
    lean_params, lean_spec = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)
    small, zeroed = resized(model, lean_params), loaded(model, pf.zero(params, mask, spec=spec))
    rebuilt = pf.to_module(lean_params, spec=lean_spec, model=model)
    for images in ([image()], [image(1), image(2)]):
        expected = zeroed(images)
        assert same_results(small(images), expected) > 0
        assert same_results(rebuilt(images), expected) > 0
    lean = pf.cost(spec, mask)
    assert lean == pf.cost(lean_spec)
    assert lean.params == sum(p.numel() for p in small.parameters())
    assert lean.macs < 0.5 * pf.cost(spec).macs


@mark.parametrize("name", BLIND)
def test_nothing_is_detected(name: str) -> None:
    model = detector(name, BLIND[name])
    spec = pf.trace(model, ([image()],))
    assert len(model([image()])[0]["boxes"]) == 0
    assert share(spec) > 0.99
    assert spec.einops("roi_heads.keypoint_predictor.kps_score_lowres.bias") == "17"
    mask = random_mask(spec, 4)
    resized(model, pf.apply(pf.params(model), mask, spec=spec))([image()])


# ---- the same as what export shows


def forced(model: nn.Module, x: Tensor, monkeypatch: Any) -> pf.Spec:
    """Recorded although it could be exported."""

    def refuse(*_: Any) -> Any:
        raise TraceError("not today")

    with monkeypatch.context() as m:
        m.setattr(api, "capture", refuse)
        return pf.trace(model, (x,))


SAME = ["resnet18", "mobilenet_v3_small", "deit_tiny_patch16_224"]
SAME_SLOW = ["swin_t", "densenet121", "shufflenet_v2_x0_5", "vit_b_16", "googlenet", "levit_128s"]


@mark.parametrize("name", [*SAME, *(param(n, marks=mark.slow) for n in SAME_SLOW)])
def test_recorded_groups_are_the_exported_ones(name: str, monkeypatch: Any) -> None:
    model, x = build(name).eval(), torch.randn(2, 3, SIDE, SIDE)
    exported, recorded = pf.trace(model, (x,)), forced(model, x, monkeypatch)
    assert (exported.capture, recorded.capture) == ("exported", "recorded")
    assert recorded.capture_reason == "not today"
    assert recorded.groups == exported.groups
    assert list(recorded.groups) == list(exported.groups)
    assert recorded.axes == exported.axes
    assert list(recorded.sites) == list(exported.sites)
    assert pf.cost(recorded).macs == 2 * pf.cost(exported).macs  # all of the example, not one sample
    assert pf.cost(recorded).params == pf.cost(exported).params


# ---- control flow that depends on data


class Item(nn.Module):
    """A number is read, and steps in the computation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        return self.b(h * (2.0 if h.max().item() > 0 else 3.0))


class Branch(Item):
    """Which way it goes depends on data."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if (h > 0).any():
            h = F.relu(h)
        return self.b(h)


class Nested(Item):
    """Inputs in a dict of lists, results in a dict."""

    def forward(self, batch: dict[str, Any], *, scale: list[Tensor]) -> dict[str, Any]:
        out = [self.b(F.relu(self.a(x)))[: int(x.sum().abs().item()) % 2 + 1] for x in batch["x"]]
        return {"out": [y * scale[0] for y in out], "n": len(out), "why": "because"}


class Experts(nn.Module):
    """Tokens are routed; only experts that are hit run."""

    def __init__(self, width: int = 6, hidden: int = 5, experts: int = 3) -> None:
        super().__init__()
        self.stem, self.router, self.head = nn.Linear(4, width), nn.Linear(width, experts), nn.Linear(width, 2)
        self.experts = nn.ModuleList(mlp(width, hidden, width) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        choice = self.router(h).argmax(-1)
        out = torch.zeros_like(h)
        for e in choice.unique().tolist():
            at = torch.where(choice == e)[0]
            out[at] += self.experts[e](h[at])
        return self.head(h + out)


class Writes(nn.Module):
    """A slice, a chunk and a whole are written to; views from before are read after; a number is read between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        early = h.unsqueeze(0)
        left, right = h.chunk(2, -1)
        left.mul_(2)
        h[:, 5] = float(right.mean().item())
        right.relu_()
        h.t().add_(1)
        return self.b(early[0] + h)


class Unread(Item):
    """It stops at the sizes of what it has computed."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        spare = self.b(h)
        return x * len(spare) if bool(h.isfinite().all()) else x


X = randn(3, 4)


def recorded(model: nn.Module, *args: Any, train: bool = False, **kwargs: Any) -> pf.Spec:
    spec = pf.trace(model.double().train(train), args, kwargs, train=train)
    assert spec.capture == "recorded"
    assert not spec.unknown
    return spec


@mark.parametrize("make", [Item, Branch])
def test_a_number_or_a_branch(make: type[Item]) -> None:
    torch.manual_seed(0)
    model = make()
    spec, params = recorded(model, X), pf.params(model)
    assert [(g.name, g.size, [m.tensor for m in g.members]) for g in spec.groups.values()] == [
        ("a", 6, ["a.weight", "a.bias", "b.weight"])
    ]
    mask = {"a": torch.tensor([True, True, False, True, False, True])}
    zeroed, lean = loaded(model, pf.zero(params, mask, spec=spec)), pf.apply(params, mask, spec=spec)
    assert same_results(resized(model, lean)(X), zeroed(X)) == 9
    assert same_results(pf.to_module(lean, spec=pf.shrink(spec, mask), model=model)(X), zeroed(X)) == 9
    scores = pf.score(pf.collect_stats(params, None, spec=spec), criterion=pf.criteria.magnitude())
    assert int(pf.select(scores, 0.5, spec=spec)["a"].sum()) == 3


def test_inputs_and_results_in_dicts_and_lists() -> None:
    spec = recorded(Nested(), {"x": [X, randn(2, 4, seed=1)]}, scale=[torch.tensor(2.0)])
    assert list(spec.groups) == ["a"]
    assert len(spec.program.inputs) == 3
    assert spec.program.outputs[2:4] == (2, "because")
    assert spec.einops("b.weight") == "3 hidden"


def test_experts_that_are_hit() -> None:
    torch.manual_seed(1)
    model, x = Experts(), randn(30, 4)
    spec = recorded(model, x)
    assert sorted(spec.widths) == ["experts.0.0", "experts.1.0", "experts.2.0", "stem"]
    assert spec.groups["stem"].kind == "residual"
    assert spec.einops("router.weight") == "3 residual"
    assert "did not use" not in str(spec)
    params, mask = pf.params(model), random_mask(spec, 3)
    mask["stem"] = torch.ones(6, dtype=torch.bool)  # zeros in the stream would route alike, but not to the bit
    zeroed = loaded(model, pf.zero(params, mask, spec=spec))
    assert same_results(resized(model, pf.apply(params, mask, spec=spec))(x), zeroed(x)) == 60


def test_experts_that_are_not_hit_are_named() -> None:
    torch.manual_seed(1)
    model = Experts()
    model.router.bias.data[0] = 100.0
    spec = recorded(model, X)
    assert "parameters that this run did not use, and that stay as they are: experts.1.0.weight" in str(spec)
    assert "the program does not use it" in spec.explain("experts.1.0.weight")


def test_what_nothing_reads_still_has_to_run() -> None:
    spec = recorded(Unread(), X)
    assert spec.einops("b.weight") == "3 hidden"
    assert spec.groups["a"].members[-1] == ("b.weight", 1, "in")


@mark.parametrize("by_hand", [Tensor.tolist, Tensor.numpy])
def test_values_that_python_reads_are_frozen(by_hand: Any) -> None:
    class Leaves(Item):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(torch.as_tensor(by_hand(h.detach()), dtype=h.dtype))

    spec = recorded(Leaves(), X)
    assert not spec.groups
    assert spec.einops("a.weight") == "6 4"


def test_an_attribute_that_python_reads() -> None:
    class Steps(Item):
        def __init__(self) -> None:
            super().__init__()
            self.steps, self.scale = torch.tensor([1, 2]), torch.ones(6, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x) * self.scale
            for n in self.steps.tolist():
                h = h * n if h.max().item() > 0 else h
            return self.b(h)

    spec = recorded(Steps(), X)
    assert spec.groups["a"].size == 6
    assert set(spec.constants.sources.values()) == {"scale", "steps"}


# ---- writes


def rerun(model: nn.Module, *args: Any) -> list[Any]:
    """What the recorded graph computes."""
    c = record(model, args, {}, model.training)
    leaves_, state = iter(tensors_in(args)), {**dict(model.named_parameters()), **dict(model.named_buffers())}
    names = {n: state[t].clone() for n, t in c.tensors.items()} | {n: t.clone() for n, t in c.constants.items()}
    values = [names[n.name] if n.name in names else next(leaves_) for n in c.graph.nodes if n.op == "placeholder"]
    c.graph.lint()
    with torch.no_grad():
        return list(fx.Interpreter(fx.GraphModule(nn.Module(), c.graph)).run(*values))


def test_writes_are_functional() -> None:
    model = Writes().double().requires_grad_(False)
    spec = recorded(model, X)
    assert torch.equal(rerun(model, X)[0], model(X))
    assert spec.einops("b.weight") == "6 6"  # one position of it is set to a number


def _scaled(h: Tensor) -> Tensor:
    parts = h.split([1, 2, 3], -1)
    parts[1].mul_(3)
    return h


def _unbound(h: Tensor) -> Tensor:
    h.unbind(0)[1].zero_()
    return h


def _viewed(h: Tensor) -> Tensor:
    v, w = h.view(-1), h.permute(1, 0).unsqueeze(1)
    v.add_(1)
    w.mul_(2)
    return v.reshape(3, 6) + w.squeeze(1).t()


def _data(h: Tensor) -> Tensor:
    h.data.clamp_(0)
    h.detach()[0].fill_(7)
    return h


def _masked(h: Tensor) -> Tensor:
    h[h > 0.5] = 0.0
    h.masked_fill_(h < 0, 2.0)
    return h


def _stepped(h: Tensor) -> Tensor:
    before = h[1:]
    h[::2, 1:3].copy_(h[::2, 3:5].clone())
    return before + h[:2]


def _diagonal(h: Tensor) -> Tensor:
    h.diagonal().zero_()
    h.as_strided((3, 3), (6, 1), 2).add_(1)
    return h


@mark.parametrize("write", [_scaled, _unbound, _viewed, _data, _masked, _stepped, _diagonal])
def test_each_kind_of_write(write: Callable[[Tensor], Tensor]) -> None:
    class Model(Item):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(write(self.a(x)))

    model = Model().double().requires_grad_(False)
    assert torch.equal(rerun(model, X)[0], model(X))


def test_an_axis_that_stays_prunable_under_writes() -> None:
    class Model(Item):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            v = h.unsqueeze(0).transpose(0, 1)
            flat = h.view(-1)
            v.relu_()
            h[:2].mul_(2.0 if h.sum().item() > 0 else 3.0)
            return self.b(v[:, 0] + flat.view(3, 6))

    model = Model().double().requires_grad_(False)
    assert torch.equal(rerun(model, X)[0], model(X))
    spec = recorded(model, X)
    assert [(g.name, g.exact) for g in spec.groups.values()] == [("a", False)]  # a sum runs over it, and is read
    assert spec.groups["a"].members == (("a.weight", 0, "out"), ("a.bias", 0, "out"), ("b.weight", 1, "in"))


def test_a_write_that_cannot_be_followed_freezes() -> None:
    class Model(Item):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            h.expand(2, 3, 6)[0].add_(1.0 if x.sum().item() > 0 else 2.0)
            return self.b(h)

    spec = pf.trace(Model().double().requires_grad_(False), (X,))
    assert not spec.groups
    assert list(spec.unknown) == ["aten.as_strided_scatter.default"]


# ---- the model comes back as it was


class Busy(Item):
    """It writes to buffers, attributes, parameters and its input, draws numbers, and reads one."""

    seen: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("table", torch.ones(6), persistent=False)
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen, self.cache["x"], self.table = x, x, self.table * 2
        h = self.drop(self.norm(self.a(x.add_(1)))) * self.table
        return self.b(h if float(h.max()) > 0 else -h)


@mark.parametrize("train", [False, True])
def test_the_model_comes_back_as_it_was(train: bool) -> None:
    model = Busy().double().train(not train)
    model.register_forward_hook(lambda *_: None)
    state = {n: (t, t._version, t.clone()) for n, t in model.state_dict(keep_vars=True).items()}
    table, attributes, x, rng = model.table, dict(vars(model)), X.clone(), torch.get_rng_state()
    call, fused = nn.Module.__call__, torch.backends.mha.get_fastpath_enabled()
    spec = pf.trace(model, (x,), train=train)
    assert (spec.capture, spec.train) == ("recorded", train)
    for n, t in model.state_dict(keep_vars=True).items():
        assert t is state[n][0]
        assert t._version == state[n][1]
        assert torch.equal(t, state[n][2])
    assert model.table is table
    assert list(vars(model)) == list(attributes)
    assert all(vars(model)[k] is v for k, v in attributes.items())
    assert not model.cache
    assert torch.equal(x, X)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(m.training == (not train) for m in model.modules())
    assert nn.Module.__call__ is call
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert {m.tensor for m in spec.groups["a"].members} >= {"a.weight", "norm.running_var", "b.weight"}


def test_neither_exported_nor_recorded() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum().item() < 1e9:
                raise KeyError("no such thing")
            return x

    call = nn.Module.__call__
    with raises(
        TraceError, match=r"torch.export cannot capture Broken.* cannot be recorded: KeyError: 'no such thing'"
    ):
        pf.trace(Broken(), (X,))
    assert nn.Module.__call__ is call


def test_there_is_no_program_to_run() -> None:
    model = Item().double()
    spec, params = recorded(model, X), pf.params(model)
    for run in (
        lambda: pf.forward(params, X, spec=spec),
        lambda: pf.forward_train(params, X, spec=spec),
        lambda: pf.collect_stats(params, [X], spec=spec),
        lambda: pf.to_module(params, spec=spec),
    ):
        with raises(TraceError, match=r"recorded from one run.*to_module\(params, spec=spec, model=model\)"):
            run()


@mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # torch 2.11 unpickles it so
def test_a_recorded_spec_is_a_value() -> None:
    model = Item().double()
    spec = recorded(model, X)
    assert spec == recorded(model, X)
    assert hash(spec) == hash(recorded(model, X))
    again = pickle.loads(pickle.dumps(spec))
    assert again == spec
    assert again.capture_reason == spec.capture_reason
    mask = {"a": torch.tensor([True, False, True, False, True, False])}
    assert pf.shrink(spec, mask).capture == "recorded"
    assert pf.shrink(spec, mask).sizes == {"a": 3}


# ---- replaying


class Longest(nn.Module):
    """Cuts its input at the longest of the lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        n = int(lengths.max())
        inside = torch.arange(n, device=x.device) < lengths[:, None]
        return self.b((self.a(x[:, :n]).relu() * inside[:, :, None]).sum(1))


class PackedLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.a, self.b = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        h, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.b(self.a(h).relu())


class Boxes(nn.Module):
    """Keeps the positions with a high score, however many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        chosen = x[x[:, 0] > 0]
        return self.b(self.a(chosen).relu()) if len(chosen) else chosen.new_zeros(0, 2)


def replayed(model: nn.Module, spec: pf.Spec, *inputs: Tensor) -> None:
    with torch.no_grad():
        # a slice lies in memory otherwise than its copy, which may round otherwise
        assert torch.allclose(pf.forward(pf.params(model), *inputs, spec=spec), model(*inputs), atol=1e-6)


@mark.parametrize("make", [Longest, PackedLSTM])
def test_a_recorded_run_is_replayed_where_its_flow_is_the_same(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    x, lengths = torch.randn(3, 9, 4), torch.tensor([5, 7, 2])
    spec, params = pf.trace(model, (x, lengths)), pf.params(model)
    assert spec.capture == "recorded"
    assert [i.name for i in spec.program.inputs] == ["x", "lengths"]
    y, others = torch.randn(3, 9, 4), torch.tensor([7, 1, 6])
    replayed(model, spec, x, lengths)
    replayed(model, spec, y, others)
    stats = pf.collect_stats(params, [(x, lengths), {"x": y, "lengths": others}], spec=spec, weights=False)
    assert stats.batches == 2
    with torch.no_grad():
        hidden = [model.a(model.rnn(v)[0]).relu() for v in (x, y)] if make is PackedLSTM else None
    assert hidden is None or stats.sites["b"].count == 2 * 3 * 7
    small = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.5, weights=False)(
        params, [(x, lengths), (y, others)], spec=spec
    )
    with raises(pf.BatchError, match="a fixed number of positions"):
        pf.collect_stats(params, [(x, lengths)], spec=spec)
    lean = pf.to_module(small.params, spec=small.spec, model=model)
    replayed(lean, small.spec, y, others)
    with raises(pf.BatchError, match="take another way through the model: "):
        pf.forward(params, x, torch.tensor([8, 1, 6]), spec=spec)


def test_shapes_that_follow_the_data_are_compared() -> None:
    torch.manual_seed(0)
    model = Boxes().eval()
    x = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])[:, None] * torch.rand(5, 4)
    spec = pf.trace(model, (x,))
    assert spec.capture == "recorded"
    replayed(model, spec, x.flip(0))
    with raises(pf.BatchError, match="instead of"):
        pf.forward(pf.params(model), x.abs(), spec=spec)


def test_why_a_run_cannot_be_replayed() -> None:
    class Float(Longest):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).relu()
            return self.b(h * 2 if float(h.sum()) > 1e9 else h)

    spec, params = pf.trace(Float().eval(), (X.float(),)), pf.params(Float())
    with raises(TraceError, match=r"cannot be replayed on other inputs: Python reads floats.*test_record.py:\d+"):
        pf.collect_stats(params, [X.float()], spec=spec)
    assert "recorded" in repr(spec)
