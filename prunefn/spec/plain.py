"""Each op as the call that people write: an operator, a method, a function of `torch` or of `torch.nn.functional`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

END = 2**63 - 1
"""End of a slice that has none."""


class Call(NamedTuple):
    """A call of a public function."""

    function: str
    """`F.conv2d`, `torch.cat`, `operator.add`; `.reshape` is a method of the first argument."""
    args: tuple[Any, ...]
    """Values as in nodes of a graph, and nested calls."""
    kwargs: dict[str, Any]


Arguments = Mapping[str, Any]
Form = Callable[[Arguments], Call]
PADDINGS = {"reflection": "reflect", "replication": "replicate"}

INFIX = {
    "add": "add", "sub": "sub", "subtract": "sub", "mul": "mul", "multiply": "mul", "div": "truediv", "true_divide": "truediv",
    "neg": "neg", "pow": "pow", "floor_divide": "floordiv", "remainder": "mod",
    "matmul": "matmul", "mm": "matmul", "bmm": "matmul", "bitwise_not": "invert",
    "bitwise_and": "and_", "bitwise_or": "or_", "bitwise_xor": "xor", "__and__": "and_", "__or__": "or_", "__xor__": "xor",
    **{name: name for name in ("eq", "ne", "lt", "le", "gt", "ge")},
}  # fmt: skip
"""Op → function of `operator`, for overloads that take no more than the operands."""
OPERANDS = frozenset("self other mat2 exponent alpha".split())
FUNCTIONAL = frozenset(
    """conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear bilinear layer_norm group_norm rms_norm
    local_response_norm max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d relu relu6 gelu silu mish hardswish hardsigmoid hardtanh leaky_relu selu celu softplus glu prelu pad
    pixel_shuffle pixel_unshuffle one_hot scaled_dot_product_attention cosine_similarity""".split()
)
"""Ops that are functions of `torch.nn.functional` with the same arguments."""
POSITIONAL = frozenset(
    "normalized_shape num_groups kernel_size output_size pad upscale_factor downscale_factor num_classes".split()
)
"""Numbers that calls of `torch.nn.functional` give by position."""
UNUSED = frozenset("cudnn_enable cudnn_enabled implicit pin_memory layout non_blocking".split())
"""Arguments that do not change the result; given ones are left out."""
SPREAD = frozenset("reshape permute expand repeat flip tile".split())
"""Methods that take a list of numbers one by one."""
RENAMED = {
    "_to_copy": ".to", "to": ".to", "split_with_sizes": ".split", "_unsafe_view": ".reshape", "view": ".reshape",
    "_reshape_copy": ".reshape", "clone": ".clone", "lift_fresh_copy": ".clone", "_conj": ".conj", "mH": ".adjoint",
    "numpy_T": ".t", "scalar_tensor": "torch.tensor", "_unsafe_index_put": "torch.index_put",
    "softmax": "F.softmax", "log_softmax": "F.log_softmax", "log_sigmoid": "F.logsigmoid",
    "_adaptive_avg_pool2d": "F.adaptive_avg_pool2d", "_adaptive_avg_pool3d": "F.adaptive_avg_pool3d",
}  # fmt: skip
"""Op → function of another name with the same arguments."""
RESAMPLING = {
    **{f"upsample_nearest{n}d": "nearest" for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": "nearest-exact" for n in (1, 2, 3)},
    "upsample_linear1d": "linear", "upsample_bilinear2d": "bilinear", "upsample_trilinear3d": "trilinear",
    "upsample_bicubic2d": "bicubic", "_upsample_bilinear2d_aa": "bilinear", "_upsample_bicubic2d_aa": "bicubic",
}  # fmt: skip
"""Op → mode of `F.interpolate`."""


def plain(node: fx.Node) -> Call | None:
    """Return the call that does what a node of a program does; None if no public function of torch does it.

    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x")
    >>> plain(graph.call_function(torch.ops.aten.slice.Tensor, (x, 1, 0, 4)))
    Call(function='operator.getitem', args=(x, (slice(None, None, None), slice(None, 4, None))), kwargs={})
    >>> plain(graph.call_function(torch.ops.aten.mean.dim, (x, [2, 3], True)))
    Call(function='.mean', args=(x, [2, 3]), kwargs={'keepdim': True})
    """
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten" or target._schema.is_mutable:
        return None
    name, values = op_of(target), arguments(node)
    if name in RESAMPLING:
        return _interpolate(name, values)
    if name in FORMS:
        return FORMS[name](values)
    operands = [v for k, v in values.items() if k != "alpha"]
    if name in INFIX and values.keys() <= OPERANDS and values.get("alpha", 1) == 1:
        return Call(f"operator.{INFIX[name]}", tuple(operands), {})
    function = _public_name(name, values)
    return None if function is None else Call(function, *_passed(function, target, values))


def function_of(call: Call) -> Any:
    """Return the function that a call calls; of a method, its name."""
    if call.function.startswith("."):
        return call.function[1:]
    room, _, path = call.function.partition(".")
    return reduce(getattr, path.split("."), {"F": F, "torch": torch, "operator": operator}[room])


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of an op by name, with the defaults."""
    schema: Any = node.target._schema  # type: ignore[union-attr]
    given = {**dict(zip([a.name for a in schema.arguments], node.args, strict=False)), **node.kwargs}
    return {a.name: _short(a, given.get(a.name, a.default_value)) for a in schema.arguments}


def op_of(target: Any) -> str:
    """Return the name of an op without its namespace and overload."""
    return target._schema.name.partition("::")[2]


def _short(argument: Any, value: Any) -> Any:
    """Return one number for a list of equal numbers, where the op takes both."""
    if (
        isinstance(value, list | tuple)
        and len(value) == argument.N
        and all(v is value[0] or v == value[0] for v in value)
    ):
        return value[0]
    return list(value) if isinstance(value, tuple) else value


def _public_name(name: str, values: Arguments) -> str | None:
    """Return the public function of an op without a form of its own."""
    if name in RENAMED:
        return RENAMED[name]
    if name in FUNCTIONAL:
        return f"F.{name}"
    for prefix in ("linalg", "fft", "special"):
        if name.startswith(f"{prefix}_") and hasattr(getattr(torch, prefix), name.removeprefix(f"{prefix}_")):
            return f"torch.{prefix}.{name.removeprefix(f'{prefix}_')}"
    if name.startswith("_"):
        return None
    if (
        next(iter(values), "") == "self"
        and isinstance(values["self"], fx.Node)
        and callable(getattr(Tensor, name, None))
    ):
        return f".{name}"
    return f"torch.{name}" if hasattr(torch, name) else f"F.{name}" if hasattr(F, name) else None


def _passed(function: str, target: Any, values: Arguments) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments that a call passes: without defaults, by position as far as people do."""
    args, kwargs, by_position = list[Any](), dict[str, Any](), True
    method = function.removeprefix(".")
    for a in target._schema.arguments:
        value = values[a.name]
        is_default = a.has_default_value() and _same(value, _short(a, a.default_value))
        if (is_default and a.name not in ("self", "input")) or a.name in UNUSED:
            by_position = False
            continue
        if method in SPREAD and isinstance(value, list):
            args += value
            continue
        by_position &= not a.kwarg_only and _goes_by_position(function, a.name, value)
        if by_position:
            args.append(value)
        elif value is not None or not a.has_default_value():
            kwargs[a.name] = value
    return tuple(args), kwargs


def _goes_by_position(function: str, name: str, value: Any) -> bool:
    if isinstance(value, fx.Node) or (isinstance(value, list) and any(isinstance(v, fx.Node) for v in value)):
        return True
    if isinstance(value, torch.dtype):
        return function == ".to"
    if function.startswith("F."):
        return name in POSITIONAL
    return (
        value is not None
        and not isinstance(value, bool | torch.device | torch.memory_format)
        and (not isinstance(value, str) or name == "equation")
    )


def _same(value: Any, default: Any) -> bool:
    """Return whether a value is the default; a node never is."""
    return not isinstance(value, fx.Node) and type(value) is type(default) and value == default


# ---- ops whose public function takes other arguments


def _index(x: Any, dim: Any, key: Any) -> Call:
    """Return the indexing of one dim, counted from either side."""
    whole = slice(None)
    index: tuple[Any, ...] = (*[whole] * dim, key) if dim >= 0 else (..., key, *[whole] * (-dim - 1))
    return Call("operator.getitem", (x, index if len(index) > 1 else key), {})


def _slice(v: Arguments) -> Call:
    start = None if _same(v["start"], 0) else v["start"]
    end = None if isinstance(v["end"], int) and v["end"] >= END else v["end"]
    return _index(v["self"], v["dim"], slice(start, end, None if _same(v["step"], 1) else v["step"]))


def _index_tensors(v: Arguments) -> Call:
    index: Any = tuple(slice(None) if i is None else i for i in v["indices"])
    return Call("operator.getitem", (v["self"], index if len(index) > 1 else index[0]), {})


def _options(v: Arguments, **defaults: Any) -> dict[str, Any]:
    """Return the arguments that are not the defaults of the public function."""
    return {n: v[n] for n, default in defaults.items() if not _same(v[n], default)}


def _norm(function: str, flag: str, default: bool) -> Form:
    """Return the form of a norm with running statistics."""

    def form(v: Arguments) -> Call:
        tensors = tuple(v[n] for n in ("input", "running_mean", "running_var", "weight", "bias"))
        return Call(function, tensors, _options(v, **{flag: default}, momentum=0.1, eps=1e-5))

    return form


def _embedding(v: Arguments) -> Call:
    padding = {} if _same(v["padding_idx"], -1) else {"padding_idx": v["padding_idx"]}
    flags = {new: True for n, new in (("scale_grad_by_freq", "scale_grad_by_freq"), ("sparse", "sparse")) if v[n]}
    return Call("F.embedding", (v["indices"], v["weight"]), {**padding, **flags})


def _interpolate(name: str, v: Arguments) -> Call | None:
    """Return the resampling, unless it has both a size and scales."""
    size, scales = v["output_size"], [v[n] for n in v if n.startswith("scale") and v[n] is not None]
    if size is not None and scales:
        return None
    to = {"size": size} if size is not None else {"scale_factor": scales[0]}
    options = {"align_corners": True} if v.get("align_corners") else {}
    antialias = {"antialias": True} if name.endswith("_aa") else {}
    return Call(
        "F.interpolate", (v.get("input", v.get("self")),), {**to, "mode": RESAMPLING[name], **options, **antialias}
    )


def _grid_sample(v: Arguments) -> Call:
    mode = ("bilinear", "nearest", "bicubic")[v["interpolation_mode"]]
    padding = ("zeros", "border", "reflection")[v["padding_mode"]]
    options = {"mode": mode, "padding_mode": padding, "align_corners": v["align_corners"]}
    return Call("F.grid_sample", (v["input"], v["grid"]), options)


def _convolution(v: Arguments) -> Call | None:
    """Return a convolution of any number of dims; None if this number is not known."""
    sizes = v["stride"]
    if not isinstance(sizes, list):
        return None
    name = f"F.conv{'_transpose' if v['transposed'] else ''}{len(sizes)}d"
    one, zero = [1] * len(sizes), [0] * len(sizes)
    more = {"output_padding": zero} if v["transposed"] else {}
    options = _options(v, stride=one, padding=zero, dilation=one, groups=1, **more)
    return Call(name, (v["input"], v["weight"], v["bias"]), options)


def _elu(v: Arguments) -> Call | None:
    alpha = {} if _same(v["alpha"], 1) or v["alpha"] == 1.0 else {"alpha": v["alpha"]}
    return Call("F.elu", (v["self"],), alpha) if v["scale"] == v["input_scale"] == 1 else None


def _weight_norm(v: Arguments) -> Call:
    norm = Call("torch.norm_except_dim", (v["v"], 2, v["dim"]), {})
    return Call("operator.mul", (v["v"], Call("operator.truediv", (v["g"], norm), {})), {})


def _fill(v: Arguments) -> Call:
    if isinstance(v["value"], fx.Node):
        return Call("operator.add", (Call("torch.zeros_like", (v["self"],), {}), v["value"]), {})
    return Call("torch.full_like", (v["self"], v["value"]), {})


def _softmax(function: str) -> Form:
    """Return the form of a decomposed softmax."""
    return lambda v: Call(
        function, (v["self"],), {"dim": v["dim"], **({"dtype": torch.float32} if v["half_to_float"] else {})}
    )


def _pad(mode: str, dims: int) -> Form:
    """Return the form of a padding by values of the input."""
    return lambda v: Call(
        "F.pad",
        (v["self"], v["padding"] if isinstance(v["padding"], list) else [v["padding"]] * 2 * dims),
        {"mode": mode},
    )


FORMS: dict[str, Callable[[Arguments], Call | None]] = {
    "slice": _slice,
    "select": lambda v: _index(v["self"], v["dim"], v["index"]),
    "index": _index_tensors,
    "_unsafe_index": _index_tensors,
    "batch_norm": _norm("F.batch_norm", "training", False),
    "instance_norm": _norm("F.instance_norm", "use_input_stats", True),
    "embedding": _embedding,
    "grid_sampler": _grid_sample,
    "grid_sampler_2d": _grid_sample,
    "grid_sampler_3d": _grid_sample,
    "affine_grid_generator": lambda v: Call("F.affine_grid", (v["theta"], v["size"]), _options(v, align_corners=None)),
    "convolution": _convolution,
    "elu": _elu,
    "_softmax": _softmax("F.softmax"),
    "_log_softmax": _softmax("F.log_softmax"),
    "_weight_norm": _weight_norm,
    "fill": _fill,
    "copy": lambda v: Call(".expand_as", (Call(".to", (v["src"], v["self"]), {}), v["self"]), {}),
    "dropout": lambda v: Call("F.dropout", (v["input"],), {"p": v["p"], "training": v["train"]}),
    "im2col": lambda v: Call("F.unfold", (v["self"], v["kernel_size"]), _options(v, dilation=1, padding=0, stride=1)),
    "col2im": lambda v: Call(
        "F.fold", (v["self"], v["output_size"], v["kernel_size"]), _options(v, dilation=1, padding=0, stride=1)
    ),
    "constant_pad_nd": lambda v: Call("F.pad", (v["self"], v["pad"]), {"value": v["value"]} if v["value"] else {}),
    **{f"{op}_pad{n}d": _pad(mode, n) for n in (1, 2, 3) for op, mode in PADDINGS.items()},
    "rsub": lambda v: Call("operator.sub", (v["other"], v["self"]), {}) if v["alpha"] == 1 else None,
    **dict.fromkeys(("alias", "lift_fresh"), lambda v: Call(".view_as", (v["self"], v["self"]), {})),
    "mT": lambda v: Call(".transpose", (v["self"], -2, -1), {}),
}
"""Op → its public form, from its arguments by name."""
