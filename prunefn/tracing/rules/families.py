"""Families of ops for readers of a traced program: ops that move values, ops that scale, ops that normalise over batches."""

from __future__ import annotations


def _aten(names: str) -> frozenset[str]:
    return frozenset(f"aten.{name}" for name in names.split())


MOVES = _aten(
    "view _unsafe_view reshape view_as reshape_as flatten unflatten t mT transpose permute movedim swapaxes numpy_T squeeze "
    "unsqueeze expand expand_as repeat chunk split split_with_sizes unbind slice select narrow index index_select roll flip cat "
    "stack pad constant_pad_nd clone contiguous detach alias lift_fresh_copy to _to_copy type_as"
) | {"operator.getitem"}
"""Ops that only move values: their result represents the tensor that they read."""
LINEAR = _aten(
    "reshape view permute transpose t unbind split split_with_sizes chunk slice select expand squeeze unsqueeze flatten "
    "unflatten clone contiguous to _to_copy alias roll flip cat stack add sub mul div neg view_as_complex view_as_real "
    "matmul bmm einsum repeat repeat_interleave index index_select movedim constant_pad_nd dropout type_as"
) | {"operator.getitem"}
"""Ops whose result scales with their first active argument."""
HOMOGENEOUS = LINEAR | _aten(
    "amax amin max_pool1d max_pool2d max_pool3d adaptive_max_pool2d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d mean sum relu leaky_relu abs linalg_vector_norm upsample_nearest2d upsample_bilinear2d"
)
"""Ops whose result scales with their first active argument by any positive factor."""
BILINEAR = _aten("matmul bmm einsum scaled_dot_product_attention")
"""Ops whose result, or scores of attention, scale with their first two active arguments."""
MERGES = _aten("cat stack add sub")
"""The ops of `LINEAR` whose result scales only if all their active arguments scale."""
SCALES = _aten("mul div scaled_dot_product_attention")
"""Ops that multiply by a number."""
DIVIDES = _aten("div")
SCALABLE = {
    "aten.linear": (1, 2, -1),
    "aten.addmm": (2, 0, -1),
    "aten.layer_norm": (2, 3, -1),
    "aten.rms_norm": (2, None, -1),
    "aten.group_norm": (2, 3, 1),
    "aten.batch_norm": (1, 2, 1),
    "aten.conv1d": (1, 2, 1),
    "aten.conv2d": (1, 2, 1),
    "aten.conv3d": (1, 2, 1),
}
"""Op whose result scales with its own weight and bias → their positions, and the channel dim of the result."""
TRANSPOSED = _aten("addmm")
"""The ops of `SCALABLE` whose weight is [in, out]."""
RELU = "aten.relu"
DROPOUT = _aten("dropout feature_dropout alpha_dropout")
MAXIMA = _aten("max_pool1d max_pool2d max_pool3d adaptive_max_pool2d")
"""Ops whose results are values that they read."""
BATCH_NORM = "aten.batch_norm.default"
ADD, MULTIPLY, CAST_AS = "aten.add.Tensor", "aten.mul.Tensor", "aten.type_as.default"
"""Ops that extend a program."""


def family(op: str) -> str:
    """Return an op's name without its overload.

    >>> family("aten.add.Tensor"), family("operator.getitem")
    ('aten.add', 'operator.getitem')
    """
    return op if op.startswith("operator.") else op.rpartition(".")[0]


def is_batch_norm(op: str) -> bool:
    """Return whether an op normalises each channel over the batch or by running statistics, in eval or in train mode.

    >>> is_batch_norm(BATCH_NORM), is_batch_norm("aten._native_batch_norm_legit_functional.default"), is_batch_norm("aten.layer_norm")
    (True, True, False)
    """
    return "batch_norm" in op
