"""Ops that have no rule on purpose: what they touch is frozen, with the reason."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import cache

REASONS = {
    "the op computes a gradient": "*_backward* *_backward_data *_jvp _dirichlet_grad _standard_gamma_grad _fw_primal* _make_dual*",
    "the op works on sparse tensors, whose values have no fixed positions": (
        "*sparse* *hspmm _coalesce* *indices *indices_copy _convert_indices_* values _values values_copy _values_copy "
        "_spdiags _spsolve _cslt_* _to_dense native_norm"
    ),
    "the op works on nested tensors, whose samples have sizes of their own": "*nested* *jagged* to_padded_tensor",
    "the op works on integers that stand for floats": (
        "quantize_* quantized_* dequantize int_repr q_per_channel_* _make_per_* _empty_per_* empty_quantized *int4pack* "
        "*int8pack* _dyn_quant_* _mixed_dtypes_linear _int_mm _scaled_mm* _scaled_grouped_mm*"
    ),
    "the op is a kernel that torch itself calls behind another op": (
        "*cudnn_* *miopen_* *mkldnn_* to_mkldnn *_mps _mps_* *_nnpack_* *slow_conv* *conv_depthwise* convolution_overrideable _thnn_* "
        "batch_norm_* _efficient_attention_forward _flash_attention_forward _triton_* _native_multi_head_attention "
        "_transformer_encoder_layer_fwd _transform_bias_rescale_qkv _masked_softmax _scaled_dot_product_* "
        "_grid_sampler_2d_cpu_fallback _fused_dropout _masked_scale _cholesky_solve_helper _trilinear "
        "_compute_linear_combination _histogramdd_from_bin_tensors"
    ),
    "the op works on lists of tensors, as optimizers do": "_foreach_* _fused_ad* _fused_sgd* _amp_*",
    "the op depends on how a tensor lies in memory": (
        "as_strided* new_empty_strided _reshape_alias* resize* _resize_output set _copy_from* slice_inverse "
        "_new_zeros_with_same_feature_meta _pin_memory"
    ),
    "the op aligns sequences of several lengths": "*ctc_loss",
    "the op reads all positions of a tensor as one list": "put",
    "the op computes a function of a whole matrix": "linalg_lstsq ormqr",
    "the op draws its numbers by their positions": "_philox_* _sample_dirichlet random",
    "the op is a check": "_functional_assert_* _functional_sym_*",
    "the op is for torch's own tests": "_test_* _foobar",
}
"""Reason → names of aten ops, or globs."""


NO_RULE, ON_PURPOSE = "no rule", "no rule on purpose"


@cache
def why_no_rule(op: str) -> str:
    """Return why an op has no rule.

    >>> why_no_rule("aten._sparse_sum.dim")
    'no rule on purpose: the op works on sparse tensors, whose values have no fixed positions'
    >>> why_no_rule("mylib.sparse")
    'no rule'
    """
    namespace, _, name = op.partition(".")
    name = name.partition(".")[0]
    patterns = ((reason, glob) for reason, globs in REASONS.items() for glob in globs.split())
    reason = next((reason for reason, glob in patterns if namespace == "aten" and fnmatchcase(name, glob)), None)
    return NO_RULE if reason is None else f"{ON_PURPOSE}: {reason}"
