"""The table of rules: every op that timm uses has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import prunefn as pf
from prunefn.tracing import rules
from prunefn.tracing.rules import pointwise
from prunefn.tracing.rules.base import TABLE, rule

TIMM = (
    "aten.conv2d.default", "aten.linear.default", "aten.flatten.using_ints", "aten.dropout.default",
    "aten.add.Tensor", "aten.mul.Tensor", "aten.adaptive_avg_pool2d.default", "aten.batch_norm.default",
    "aten.reshape.default", "aten.sym_size.int", "aten.permute.default", "aten.transpose.int", "aten.gelu.default",
    "aten.mean.dim", "aten.layer_norm.default", "aten.cat.default", "aten.relu_.default", "aten.slice.Tensor",
    "aten.unbind.int", "aten.view.default", "aten.scaled_dot_product_attention.default", "aten.max_pool2d.default",
    "aten.matmul.default", "aten.softmax.int", "aten.relu.default", "aten.contiguous.default",
    "aten.unsqueeze.default", "aten.avg_pool2d.default", "aten.sigmoid.default", "aten.pad.default",
    "aten.expand.default", "aten.select.int", "aten.add_.Tensor", "aten.index.Tensor",
    "aten.split_with_sizes.default", "aten.stack.default", "aten._assert_tensor_metadata.default",
    "aten.chunk.default", "aten.div.Tensor", "aten.to.dtype", "aten.arange.default", "aten.sub.Tensor",
    "aten.silu_.default", "aten.silu.default", "aten.sum.dim_IntList", "aten.linalg_vector_norm.default",
    "aten.hardsigmoid.default", "aten.sin.default", "aten.cos.default", "aten.clamp_min.default",
    "aten.expand_as.default", "aten.pow.Tensor_Scalar", "aten.group_norm.default", "aten.neg.default",
    "aten.upsample_bilinear2d.vec", "aten.zeros.default", "aten.to.device", "aten.upsample_nearest2d.vec",
    "aten.alias.default", "aten.split.Tensor", "aten.meshgrid.indexing", "aten.type_as.default",
    "aten.clamp.default", "aten.reshape_as.default", "aten.roll.default", "aten.conv1d.default",
    "aten.repeat.default", "aten.repeat_interleave.self_int", "aten.copy_.default", "aten.hardswish.default",
    "aten.upsample_bicubic2d.vec", "aten.amax.default", "aten.rms_norm.default", "aten.div.Tensor_mode",
    "aten.pow.Scalar", "aten.hardswish_.default", "aten.einsum.default", "aten.hardtanh.default",
    "aten.exp.default", "aten.im2col.default", "aten._upsample_bicubic2d_aa.vec", "aten.unfold.default",
    "aten.squeeze.dim", "aten.rsub.Scalar", "aten.div_.Tensor", "aten.conv2d.padding",
    "aten.lift_fresh_copy.default", "aten.addcmul.default", "aten.bitwise_not.default", "aten.cumsum.default",
    "aten.ones.default", "aten.flip.default", "aten.one_hot.default", "aten.to.dtype_layout", "aten.clamp.Tensor",
    "aten.tile.default", "aten.conv_transpose2d.input", "aten.square.default", "aten.rsqrt.default",
    "aten._upsample_bilinear2d_aa.vec", "aten.avg_pool1d.default", "aten.lstm.input", "aten.dropout_.default",
    "aten.leaky_relu_.default", "aten.col2im.default", "aten.max.dim", "aten.arange.start",
)  # fmt: skip
"""Ops of the exported graphs of one model of every timm family; in-place ones are renamed before the rules see them."""


def operator(name: str) -> torch._ops.OpOverload:
    _, packet, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


NO_RULE = {
    "aten.sym_size.int": "a size, not a tensor",
    "aten._assert_tensor_metadata.default": "a check, which is removed",
}


@pytest.mark.parametrize("name", TIMM)
def test_every_op_of_timm_has_a_rule(name: str) -> None:
    assert (rules.find(operator(name), {}) is None) == (name in NO_RULE)


def test_rules_are_found_from_the_special_to_the_general() -> None:
    def mine(call: rules.Call) -> rules.Axes:
        return call["self"].axes

    relu, flip = torch.ops.aten.relu.default, torch.ops.aten.flip.default
    assert rules.find(relu, {}) is pointwise.pointwise  # by torch's tag
    assert rules.find(torch.ops.aten.relu_.default, {}) is pointwise.pointwise
    assert rules.find(torch.ops.aten.add_.Tensor, {}) is pointwise.pointwise
    assert rules.find(flip, {}) is pointwise.scanned
    for key in ("aten.flip.default", "aten.flip"):
        assert rules.find(flip, {key: mine}) is mine
    assert rules.find(torch.ops.aten.linalg_lstsq.default, {}) is None


def test_two_rules_for_one_op_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two rules for aten\.flip"):
        rule("aten.flip")(pointwise.pointwise)
    assert TABLE["aten.flip"] is pointwise.scanned


# ---- inputs that share dims, and ints that follow axes


class Deformable(nn.Module):
    """Four heads of values are sampled at places of their own, heads and batch in one dim."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.offset, self.out = nn.Linear(6, 4 * 8), nn.Linear(6, 4 * 3 * 2), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        value = self.value(x).view(n, 16, 4, 8).permute(0, 2, 3, 1).reshape(n * 4, 8, 4, 4)
        places = self.offset(x).tanh().view(n, 16, 4, 3, 2).transpose(1, 2).flatten(0, 1)
        sampled = F.grid_sample(value, places, align_corners=False).sum(-1)
        return self.out(sampled.view(n, 32, 16).transpose(1, 2))


class Repeated(nn.Module):
    """Channels are repeated, with the size of the result written in the call."""

    def __init__(self, dim: int | None) -> None:
        super().__init__()
        self.a, self.b, self.dim = nn.Linear(4, 6), nn.Linear(12 if dim else 24, 3), dim

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.dim is None:
            h = (self.a.weight * x.mean()).repeat_interleave(2, output_size=48)
            return self.b(h.reshape(-1, 24)).mean() + x
        return self.b(h.repeat_interleave(2, dim=1, output_size=12).relu())


def removes_exactly(model: nn.Module, x: Tensor, group: str, units: int) -> pf.Spec:
    """Removing some units is setting them to zero."""
    spec, params = pf.trace(model, (x,)), pf.params(model)
    mask = {group: torch.arange(spec.sizes[group]) >= units}
    removed = pf.forward(pf.apply(params, mask, spec=spec), x, spec=pf.shrink(spec, mask))
    torch.testing.assert_close(removed, pf.forward(pf.zero(params, mask, spec=spec), x, spec=spec))
    return spec


def test_grid_sample_has_one_batch() -> None:
    """The heads of the values are those of the places."""
    spec = removes_exactly(Deformable().double(), torch.randn(2, 16, 6).double(), "value.hidden", 2)
    members = {(m.tensor, m.dim) for m in spec.groups["value.hidden"].members}
    assert {("value.weight", 0), ("offset.weight", 0), ("out.weight", 1)} <= members


@pytest.mark.parametrize("dim", [1, None])
def test_the_size_of_repeated_channels_follows_them(dim: int | None) -> None:
    removes_exactly(Repeated(dim).double(), torch.randn(2, 4).double(), "a", 2)


# ---- rules that fail, and names that are none


class Wide(nn.Module):
    """Two layers with an op between them."""

    def __init__(self, op: Any) -> None:
        super().__init__()
        self.a, self.b, self.c, self.op = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3), op

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.op(self.a(x))).relu())


def failing(call: rules.Call) -> rules.Axes:
    raise KeyError("no such dim")


def test_a_rule_that_fails_freezes_what_the_op_touches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, "aten.flip", failing)
    spec = pf.trace(Wide(lambda x: x.flip(0)), (torch.randn(2, 4),))
    assert list(spec.groups) == ["b"]
    assert "its rule raises KeyError: 'no such dim'" in spec.unknown["aten.flip.default"]
    assert "its rule raises KeyError: 'no such dim' by aten.flip.default at " in spec.explain("a.weight")


def test_a_rule_of_the_user_that_raises_is_named_and_freezes() -> None:
    text = r"rules\['aten\.relu'\] raises KeyError: 'no such dim' at .*test_rules\.py:\d+; all axes that aten\.relu\.default"
    with pytest.warns(pf.PruneWarning, match=text):
        spec = pf.trace(Wide(torch.relu), (torch.randn(2, 4),), rules={"aten.relu": failing})
    assert not spec.groups and "rules['aten.relu'] raises KeyError: 'no such dim'" in spec.unknown["aten.relu.default"]
    assert "rules['aten.relu'] raises KeyError: 'no such dim' by aten.relu.default at " in spec.explain("a.weight")


WRONG: dict[str, Callable[[rules.Call], Any]] = {
    r"returns axes of sizes \[\(\)\] for outputs of shapes \[\(2, 6\)\]": lambda call: (),
    r"returns axes of sizes \[\(2, 6\), \(2, 6\)\] for outputs": lambda call: [call["self"].axes] * 2,
    r"returns None, which is no tuple of axes": lambda call: None,
    r"returns \[Value\(.*, which is no tuple of axes": lambda call: [call["self"]],
    r"returns \[\(2, 6\)\], which is no tuple of axes": lambda call: call.shape,
}


@pytest.mark.parametrize("text", WRONG)
@pytest.mark.parametrize("capture", ["exported", "recorded"])
def test_a_wrong_result_names_the_rule(text: str, capture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if capture == "recorded":
        monkeypatch.setattr("prunefn.tracing.api.capture", _fails)
    with pytest.raises(pf.TraceError, match=rf"^rules\['aten\.tan'\] {text}.* at .*test_rules\.py:\d+$"):
        pf.trace(Wide(torch.tan), (torch.randn(2, 4),), rules={"aten.tan": WRONG[text]})


def _fails(*args: object, **kwargs: object) -> None:
    raise pf.TraceError("not today")


def same(call: rules.Call) -> rules.Axes:
    """The axes of the first tensor."""
    return call.tensors()[0].axes


@torch.library.custom_op("prunefn_tests::spin", mutates_args=())
def spin(x: Tensor) -> Tensor:
    """An op with a gradient, of whose inside nothing is known."""
    return x.sin()


spin.register_fake(torch.empty_like)
spin.register_autograd(
    lambda ctx, grad: grad * ctx.saved_tensors[0].cos(),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


class Spin(torch.autograd.Function):
    """A function with a gradient of its own, which calls an op of a library."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return spin(x) * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def branch(x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 4, torch.sin, torch.cos, (x,))


OWN = [
    (spin, "prunefn_tests.spin"),
    (spin, "prunefn_tests.spin.default"),
    (Spin.apply, "prunefn_tests.spin"),
    (branch, "higher_order.cond"),
]


@pytest.mark.parametrize("colons", [False, True])
@pytest.mark.parametrize(("op", "name"), OWN)
def test_ops_of_libraries_and_functions_take_rules(op: Callable[[Tensor], Tensor], name: str, colons: bool) -> None:
    model, x = Wide(op).eval(), torch.randn(2, 4)
    assert list(pf.trace(model, (x,)).groups) == ["b"]
    rule = (lambda call: [call["3"][0].axes]) if op is branch else same
    spec = pf.trace(model, (x,), rules={name.replace(".", "::", 1) if colons else name: rule})
    assert list(spec.groups) == ["a", "b"] and not spec.unknown
    mask = {"a": torch.arange(6) < 4}
    small = pf.forward(pf.apply(pf.params(model), mask, spec=spec), x, spec=pf.shrink(spec, mask))
    kept = {**pf.params(model), "b.weight": model.b.weight * mask["a"]}
    if op is not branch:  # which way it goes depends on all units
        torch.testing.assert_close(small, pf.forward(kept, x, spec=spec))


@pytest.mark.parametrize("name", ["aten.renorm", "aten::renorm", "aten.renorm.default", "aten::renorm.default"])
def test_names_of_rules_are_those_of_torch(name: str) -> None:
    def keep(call: rules.Call) -> rules.Axes:
        return call["self"].axes

    spec = pf.trace(Wide(lambda x: torch.renorm(x, 2, 0, 1.0)), (torch.randn(2, 4),), rules={name: keep})
    assert not spec.unknown and list(spec.groups) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("aten.renom", "aten.renorm"),
        ("renorm", "'library.op'"),
        ("mylib::op", "'library.op'"),
        ("aten.renorm.x", "aten.renorm"),
        ("higher_order.con", "higher_order.cond"),
        ("prunefn_tests::spinn", "prunefn_tests.spin"),
        ("prunefn_tests.spin.x", "prunefn_tests.spin"),
    ],
)
def test_a_rule_for_an_op_that_torch_does_not_know_is_refused(name: str, hint: str) -> None:
    with pytest.raises(pf.TraceError, match=f"torch has no op of this name.*{hint}"):
        pf.trace(Wide(torch.relu), (torch.randn(2, 4),), rules={name: failing})


class Bag(nn.Module):
    """Bags of rows, with all that torch's function takes."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.table, self.leave = nn.Parameter(torch.rand(9, 6)), nn.Linear(6, 2)

    def forward(self, ids: Tensor, scales: Tensor | None = None) -> Tensor:
        return self.leave(F.embedding_bag(ids, self.table, per_sample_weights=scales, **self.options))


@pytest.mark.parametrize(
    ("options", "scaled"),
    [({"mode": m}, False) for m in ("sum", "mean", "max")]
    + [({"mode": "sum"}, True), ({"mode": "sum", "padding_idx": 3}, True), ({"mode": "mean", "padding_idx": 3}, False)],
)
def test_a_bag_carries_the_width_of_its_rows(options: dict[str, Any], scaled: bool) -> None:
    model = Bag(**options).double().requires_grad_(False)
    ids = torch.tensor([[1, 3, 8], [3, 0, 2], [5, 5, 7]])
    inputs = (ids, torch.rand(3, 3, dtype=torch.float64)) if scaled else (ids,)
    spec = pf.trace(model, tuple(x[:2] for x in inputs))
    assert not spec.unknown and spec.einops("table") == "9 hidden" and len(spec.groups) == 1
    mask = {next(iter(spec.groups)): torch.tensor([True, False, True, True, False, True])}
    params = pf.params(model)
    small, shrunk = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)
    torch.testing.assert_close(pf.forward(params, *inputs, spec=spec), model(*inputs))
    got, wanted = (
        pf.forward(small, *inputs, spec=shrunk),
        pf.forward(pf.zero(params, mask, spec=spec), *inputs, spec=spec),
    )
    torch.testing.assert_close(got, wanted)


class Deformed(nn.Module):
    """A deformable convolution between two plain ones, with and without a mask."""

    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        self.enter, self.offset = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 18, 3, padding=1)
        self.mask = nn.Conv2d(4, 9, 3, padding=1) if masked else None
        self.deform, self.leave = torchvision.ops.DeformConv2d(4, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.enter(x))
        mask = None if self.mask is None else torch.sigmoid(self.mask(y))
        return self.leave(torch.relu(self.deform(y, self.offset(y), mask)))


@pytest.mark.parametrize("masked", [False, True])
def test_a_deformable_convolution_keeps_all_of_its_channels(masked: bool) -> None:
    model, x = Deformed(masked=masked), torch.randn(2, 2, 5, 5)
    spec = pf.trace(model, (x,))
    assert not spec.groups and not spec.unknown
    assert torch.equal(pf.forward(pf.params(model), x[:1], spec=spec), model(x[:1]))


# ---- rules whose ops no toy can be drawn for: tests/test_op_toys.py


class Between(nn.Module):
    """A function of [batch, 12] and of a parameter [12, 12], between two layers."""

    def __init__(self, middle: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.w, self.middle = nn.Linear(4, 12), nn.Parameter(torch.rand(12, 12)), middle
        self.b = nn.Linear(middle(torch.rand(2, 12), self.w).shape[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.middle(self.a(x), self.w))


def pixels(h: Tensor) -> Tensor:
    """[batch, 12] as 3 channels of 2 × 2 pixels."""
    return h.view(-1, 3, 2, 2)


def grid(h: Tensor, w: Tensor) -> Tensor:
    places = F.affine_grid(w[:2, :3].expand(len(h), 2, 3), [len(h), 3, 2, 2], align_corners=False)
    return F.grid_sample(pixels(h), places, align_corners=False).flatten(1)


def lu(h: Tensor, w: Tensor) -> Tensor:
    return torch.linalg.lu_solve(*torch.linalg.lu_factor(w[:4, :4] + torch.eye(4)), h.view(-1, 3, 4).mT).mT.flatten(1)


def kernel(h: Tensor, w: Tensor) -> Tensor:
    q, k, v = ((h @ m).view(-1, 2, 2, 3).transpose(1, 2) for m in (w, w, w.T))
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0].transpose(1, 2).flatten(1)


def segments(h: Tensor, w: Tensor) -> Tensor:
    return torch.segment_reduce(torch.cat([h, 2 * h]), "sum", lengths=torch.full((h.shape[0],), 2))


def masked_rows(h: Tensor, w: Tensor) -> Tensor:
    rows = torch.stack([h, 2 * h], 1)
    mask = torch.tensor([False, True]).view(1, 2, 1).expand_as(rows)
    return rows.masked_scatter(mask, h @ w).sum(1)


MIDDLES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], set[int]]] = {
    "cross": (lambda h, w: torch.linalg.cross(h.view(-1, 4, 3), w[:4, :3][None]).flatten(1), {4}),
    "affine_grid": (grid, {3}),
    "lu_solve": (lu, {3}),
    "lu_unpack": (lambda h, w: h + torch.linalg.lu(w)[1].sum(), {12}),
    "attention_kernel": (kernel, {2, 3}),
    "segment_reduce": (segments, {12}),
    "masked_scatter": (masked_rows, {12}),
    "diagonal": (lambda h, w: torch.diagonal(pixels(h), dim1=2, dim2=3).flatten(1), {3}),
    "diagonal_scatter": (
        lambda h, w: torch.diagonal_scatter(pixels(h), pixels(2 * h)[:, :, 0], 0, 2, 3).flatten(1),
        {3},
    ),
    "rot90": (lambda h, w: torch.rot90(pixels(h), 1, [2, 3]).flatten(1), {3}),
    "index_reduce": (lambda h, w: h.index_reduce(0, torch.tensor([0, 1]), 2 * h[:2], "amax"), {12}),
    "block_diag": (lambda h, w: torch.block_diag(w[:2].sum(0), h)[1:, 12:], {12}),
    "cholesky": (lambda h, w: torch.linalg.cholesky(pixels(h) @ pixels(h).mT + torch.eye(2)).flatten(1), {3}),
    "inverse": (lambda h, w: (torch.linalg.inv(pixels(h) + torch.eye(2))).flatten(1), {3}),
}
"""Function → its sizes that may be pruned."""


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("name", MIDDLES)
def test_channels_pass(name: str) -> None:
    """Removing is zeroing where the next layer reads, and some groups are there."""
    middle, sizes = MIDDLES[name]
    torch.manual_seed(0)
    model, x = Between(middle).double().eval(), torch.randn(3, 4, dtype=torch.float64)
    spec, params = pf.trace(model, (x,)), pf.params(model)
    assert not spec.unknown
    assert sizes <= {g.size for g in spec.groups.values()}
    torch.testing.assert_close(pf.forward(params, x, spec=spec), model(x))
    mask = {g.name: torch.arange(g.size) > 0 for g in spec.groups.values() if g.exact}
    zeroed = {n: t if n.startswith("a.") else pf.zero(params, mask, spec=spec)[n] for n, t in params.items()}
    if name in ("attention_kernel", "cholesky"):  # products of two activations read the units, too
        zeroed = pf.zero(params, mask, spec=spec)
    small = pf.forward(pf.apply(params, mask, spec=spec), x, spec=pf.shrink(spec, mask))
    torch.testing.assert_close(small, pf.forward(zeroed, x, spec=spec))


@pytest.mark.parametrize(
    "op", ["flash_attention", "efficient_attention", "cudnn_attention", "fused_attention_overrideable"]
)
def test_attention_kernels_of_gpus(op: str) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 3 * 32), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.a(x).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
            options = {} if "flash" in op else {"attn_bias": None}
            options |= {"compute_log_sumexp": False} if op in ("efficient_attention", "cudnn_attention") else {}
            y = getattr(torch.ops.aten, f"_scaled_dot_product_{op}")(q, k, v, **options)[0]
            return self.b(y.transpose(1, 2).flatten(2))

    spec = pf.trace(Attention().to("meta"), (torch.randn(2, 5, 8, device="meta"),))
    assert not spec.unknown and {g.kind for g in spec.groups.values()} == {"heads", "head_dim"}
