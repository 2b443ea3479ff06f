"""Every op of the table of rules, with every kind of argument, obeys the laws."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload

import prunefn as pf
from prunefn.program.compiled import compiled
from prunefn.spec.axis import size
from prunefn.tracing import rules
from prunefn.tracing.rules import linalg, pointwise
from prunefn.tracing.rules.base import TABLE

from .op_toys.build import Toy, X
from .op_toys.search import composites, known_calls, names, overloads
from .orders import permuted

CALLS = known_calls()
GATES = "its weights are stacked by gates: tests/test_recurrent.py"
NORM = "it does not check its arguments, and its rule is that of aten.batch_norm"
NO_TOY = {
    "aten._batch_norm_with_update_functional": NORM,
    "aten._native_batch_norm_legit": NORM,
    "aten._native_batch_norm_legit_functional": NORM,
    "aten._native_batch_norm_legit_no_training": NORM,
    "aten.native_batch_norm": NORM,
    "aten.cudnn_batch_norm": NORM,
    "aten.cudnn_convolution": "it runs on GPUs only, and its rule is that of aten.convolution",
    "aten.mkldnn_convolution": "it takes float32 only, and its rule is that of aten.convolution",
    "aten._grouped_mm": "it takes bfloat16 only: tests/test_transformers.py",
    "transformers.grouped_mm_fallback": "transformers adds it: tests/test_transformers.py",
    **dict.fromkeys(
        ("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu", "aten.lstm_cell", "aten.gru_cell"), GATES
    ),
    "aten._pack_padded_sequence": "its lengths must be sorted: tests/test_recurrent.py",
    "aten._pad_packed_sequence": "it does not check its arguments: tests/test_recurrent.py",
    "aten._batch_norm_no_update": NORM,
    "aten.segment_reduce": "its lengths must add up: tests/test_rules.py",
    "aten.linalg_cholesky": "its matrix must be positive: tests/test_rules.py",
    "aten.linalg_cross": "its vectors have three coordinates: tests/test_rules.py",
    "aten.affine_grid_generator": "its size repeats that of its input: tests/test_rules.py",
    "aten.lu_unpack": "its pivots are 32-bit integers: tests/test_rules.py",
    "aten.linalg_lu_solve": "its pivots are 32-bit integers: tests/test_rules.py",
    "aten._scaled_dot_product_flash_attention_for_cpu": "it needs four dims of three roles: tests/test_rules.py",
    **dict.fromkeys(
        (
            "aten._scaled_dot_product_flash_attention.default",
            "aten._scaled_dot_product_efficient_attention",
            "aten._scaled_dot_product_cudnn_attention",
            "aten._scaled_dot_product_fused_attention_overrideable",
        ),
        "it runs on GPUs only: tests/test_rules.py on `meta`",
    ),
    "aten.rrelu_with_noise": "it writes to its noise",
    "aten._weight_norm": "it does not check its arguments: tests/test_toys.py",
    "aten._weight_norm_interface": "it does not check its arguments: tests/test_toys.py",
    "aten.view_as_complex": "its last dim has two positions: tests/test_toys.py",
    "aten.view_as_complex_copy": "its last dim has two positions; its rule is that of aten.view_as_complex",
    **dict.fromkeys(
        ("aten.embedding_bag", "aten._embedding_bag", "aten._embedding_bag_forward_only"),
        "it does not check its offsets: tests/test_rules.py",
    ),
    "aten._fft_c2r": "it does not check its arguments, and its rule is that of aten.fft_irfft",
    "aten._fft_r2c": "it does not check its arguments, and its rule is that of aten.fft_rfft",
    "aten.fractional_max_pool3d": "it takes two lists that must fit each other; its rule is that of fractional_max_pool2d",
    **dict.fromkeys(
        (
            "aten._fake_quantize_learnable_per_channel_affine",
            "aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
            "aten._fused_moving_avg_obs_fq_helper",
            "aten._fused_moving_avg_obs_fq_helper_functional",
            "aten.fake_quantize_per_channel_affine",
            "aten.fake_quantize_per_channel_affine_cachemask",
            *(name for name in TABLE if name.startswith("quantized_decomposed.")),
        ),
        "its zero points are integers of the size of its scales: tests/test_quantize.py",
    ),
    "torchvision.deform_conv2d": "it freezes all of its axes but the batch",
    "torchvision.ps_roi_align": "it does not check its arguments, and freezes all axes",
    "torchvision.ps_roi_pool": "it does not check its arguments, and freezes all axes",
}
"""Why no toy is found from the schema."""
NEWER = ("aten._upsample_lanczos2d_aa",)
"""Ops that the oldest supported torch does not have."""
UNCHECKED = ("aten.empty", "aten.empty_like", "aten.new_empty")
"""Their numbers are what was in memory."""


COMPOSITES = [name for name in composites() if any(str(op) in CALLS for op in overloads(name))]
"""Ops without a rule that are written out."""
NO_LAW = {
    "aten._shape_as_tensor": "it returns sizes",
    "aten._dim_arange": "it returns positions",
    "aten._rowwise_prune": "it picks rows by a mask of integers",
    "aten.chalf": "it returns half precision",
    "aten.feature_alpha_dropout": "a recording of a draw is not replayed",
    "aten._unpack_dual": "a gradient is in it",
    "aten.thnn_conv2d": "a kernel is in it",
    **dict.fromkeys(("aten.linalg_cond", "aten.linalg_slogdet", "aten.slogdet"), "a matrix of zeros has none"),
}
"""Why an op that is written out has no toy."""


def entries() -> list[str]:
    return [name for name in names() if toys_of(name) and name not in COMPOSITES]


def toys_of(name: str) -> list[OpOverload]:
    """The overloads of an entry of the table for which calls are known on this version of torch."""
    return [op for op in overloads(name) if str(op) in CALLS]


def test_every_op_has_a_toy_or_a_reason() -> None:
    without = {name for name in TABLE if not toys_of(name)}
    assert without - {name for name in NEWER if not overloads(name)} == set(NO_TOY)


def masks(spec: pf.Spec, groups: list[str]) -> Iterator[pf.Mask]:
    """Every other unit, and all but the first, of each group."""
    yield {g: torch.arange(spec.sizes[g]) % 2 == 0 for g in groups}
    yield {g: torch.arange(spec.sizes[g]) >= 1 for g in groups}


def close(got: Any, wanted: Any, which: list[int]) -> None:
    for a, b, output in zip(got, wanted, which, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, equal_nan=True, msg=lambda m, i=output: f"call {i}: {m}")


@pytest.mark.filterwarnings("ignore")  # of torch, on what is deprecated
@pytest.mark.parametrize("name", entries())
def test_laws(name: str) -> None:
    """The order of units does not matter; removing is zeroing where nothing mixes; two rounds are one."""
    check_laws(name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in COMPOSITES if name not in NO_LAW])
def test_laws_of_ops_that_are_written_out(name: str) -> None:
    check_laws(name)


def check_laws(name: str) -> None:
    for op in toys_of(name):
        toy = Toy(op, CALLS[str(op)])
        spec, params = toy.trace(), pf.params(toy)
        assert not spec.unknown
        y, again = (pf.forward(params, X, spec=spec) for _ in range(2))
        drawn = name in UNCHECKED or torch.Tag.nondeterministic_seeded in op.tags
        steady = [k for k, (a, b) in enumerate(zip(y, again, strict=True)) if not drawn and torch.equal(a, b)]
        which = [toy.branch_of(k) for k in steady]
        expected = toy(X)
        close([y[k] for k in steady], [expected[k] for k in steady], which)

        def outputs(p: pf.Params, s: pf.Spec, steady: list[int] = steady) -> list[Tensor]:
            out = pf.forward(p, X, spec=s)
            return [out[k] for k in steady]

        close(outputs(*permuted(params, spec, 3)), [y[k] for k in steady], which)
        exact = [g.name for g in spec.groups.values() if g.exact]
        for mask in masks(spec, exact):
            small = outputs(pf.apply(params, mask, spec=spec), pf.shrink(spec, mask))
            close(small, outputs(without(params, mask, spec, op), spec), which)
        check_rounds(params, spec, len(toy.outputs))


def without(params: pf.Params, mask: pf.Mask, spec: pf.Spec, op: OpOverload) -> pf.Params:
    """Params with zeros where the removed units are read: in the head alone, if the op works on each element or
    matrix by itself.

    It may be undefined at zero, as a logarithm and an inverse are.
    """
    zeroed = pf.zero(params, mask, spec=spec)
    rule = rules.find(op, {})
    alone = rule in (pointwise.pointwise, pointwise.untagged) or getattr(rule, "__module__", "") == linalg.__name__
    return {n: params[n] if alone and "_head" not in n else t for n, t in zeroed.items()}


def check_rounds(params: pf.Params, spec: pf.Spec, outputs: int) -> None:
    """All groups in two rounds, and in one; the program runs at these sizes."""
    first = {g: torch.arange(n) % 4 != 1 for g, n in spec.sizes.items()}
    smaller = pf.shrink(spec, first)
    second = {g: torch.arange(n) % 2 == 0 for g, n in smaller.sizes.items()}
    both = pf.compose(first, second)
    twice = pf.apply(pf.apply(params, first, spec=spec), second, spec=smaller)
    once, shrunk = pf.apply(params, both, spec=spec), pf.shrink(spec, both)
    assert all(torch.equal(twice[n], t) for n, t in once.items())
    assert pf.shrink(smaller, second) == shrunk
    assert [t.shape for t in pf.forward(once, X, spec=shrunk)] == [(2, 3)] * outputs


# ---- ints that are sizes

SIZE_LIKE = re.compile(
    r"size|shape|groups?$|heads|chunks|repeats|sections|split|^num_|^n$|^k$|^length|^N$|^C$|^HxW$|dims?$"
    r"|normalized|times|upscale|downscale|reps|step"
)
"""Names of arguments that may say how many units there are, and not only which dim is meant."""
INT_TYPES = ("int", "SymInt", "List[int]", "List[SymInt]", "Optional[int]", "Optional[SymInt]", "Optional[List[int]]")


def sized(op: OpOverload) -> list[str]:
    """The arguments of an op that take sizes."""
    return [a.name for a in op._schema.arguments if str(a.type) in INT_TYPES and SIZE_LIKE.search(a.name)]


SIZED = [name for name in entries() if any(sized(op) for op in toys_of(name))]


def test_ops_that_take_sizes_are_found_by_their_schemas() -> None:
    assert len(SIZED) > 100
    some = (
        "reshape",
        "native_group_norm",
        "chunk",
        "repeat",
        "pixel_shuffle",
        "adaptive_avg_pool2d",
        "narrow",
        "expand",
    )
    assert {f"aten.{n}" for n in some} <= set(SIZED)


@pytest.mark.filterwarnings("ignore")  # of torch, on what is deprecated
@pytest.mark.parametrize("name", SIZED)
def test_sizes_follow_what_is_pruned(name: str) -> None:
    """Of every group, mixed ones, too, units go: each value of the program has the shape that its axes say."""
    for op in (op for op in toys_of(name) if sized(op)):
        toy = Toy(op, CALLS[str(op)])
        spec, params = toy.trace(), pf.params(toy)
        program = spec.program
        values = tuple(program.axes)
        for mask in masks(spec, list(spec.groups)):
            small, fewer = pf.shrink(spec, mask), pf.apply(params, mask, spec=spec)
            run = compiled(small, fewer, ("every value",), lambda _, env, values=values: tuple(env[v] for v in values))
            sizes = {**small.sizes, **{leaf: X.shape[dim] for leaf, (_, dim) in program.free.items()}}
            for value, t in zip(values, run(fewer, [X]), strict=True):
                assert tuple(t.shape) == tuple(size(a, sizes) for a in program.axes[value]), f"{op} {value}"
