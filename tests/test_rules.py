"""The table of rules: every op that timm uses has one."""

from __future__ import annotations

import pytest
import torch

from prunefn.trace import rules
from prunefn.trace.rules import pointwise
from prunefn.trace.rules.base import TABLE, rule

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
    assert rules.find(torch.ops.aten.fft_rfft2.default, {}) is None


def test_two_rules_for_one_op_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two rules for aten\.flip"):
        rule("aten.flip")(pointwise.pointwise)
    assert TABLE["aten.flip"] is pointwise.scanned
