"""Layers of `torch.nn` that do what one op does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from .plain import Arguments, arguments, op_of

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each tensor of a layer by its name in it; without a tensor, the name is absent."""


class Layer(NamedTuple):
    """How a layer is built."""

    kind: str
    """Class of `torch.nn`."""
    sizes: tuple[Any, ...] = ()
    """Arguments by position."""
    options: tuple[tuple[str, Any], ...] = ()
    """Arguments by name that are not the defaults."""

    def build(self) -> nn.Module:
        """Return the layer, without values."""
        with torch.device("meta"):
            return getattr(nn, self.kind)(*self.sizes, **dict(self.options))

    def tensors(self) -> set[str]:
        """Return the names of the layer's tensors.

        >>> sorted(Layer("Linear", (4, 3)).tensors())
        ['bias', 'weight']
        """
        return set(self.build().state_dict())


class Use(NamedTuple):
    """A node that does what a layer does."""

    path: str
    """Path of the module whose tensors the node reads; empty if it reads none."""
    layer: Layer
    inputs: tuple[fx.Node, ...]


Rule = Callable[[Arguments, Shapes, int], Layer | None]
"""Arguments of the op by name, shapes of the layer's tensors, number of dims of the result → layer; None if no layer does this."""
ROLES = ("weight", "bias", "running_mean", "running_var")
"""Arguments of ops that are tensors of the layer under the same name."""


def layer_use(node: fx.Node, shape: Callable[[str], tuple[int, ...]], dims: int) -> Use | None:
    """Return the layer that does what a node does with tensors of one module; None if no layer of `torch.nn` does.

    Args:
        node: of a program; tensors of modules are `get_attr` nodes.
        shape: name of a tensor → its shape.
        dims: number of dims of the node's result.

    >>> graph = fx.Graph()
    >>> x, w = graph.placeholder("x"), graph.get_attr("head.weight")
    >>> layer_use(graph.call_function(torch.ops.aten.linear.default, (x, w)), {"head.weight": (3, 4)}.get, 2)
    Use(path='head', layer=Layer(kind='Linear', sizes=(4, 3), options=(('bias', False),)), inputs=(x,))
    """
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    rule = LAYERS.get(op_of(target))
    if rule is None:
        return None
    values = arguments(node)
    tensors = {role: values[role] for role in ROLES if values.get(role) is not None}
    names = {role: str(t.target) for role, t in tensors.items() if isinstance(t, fx.Node) and t.op == "get_attr"}
    paths = {name.rpartition(".")[0] for name in names.values()}
    if len(names) < len(tensors) or len(paths) > 1 or any(n.rpartition(".")[2] != role for role, n in names.items()):
        return None
    path = next(iter(paths), "")
    others = [v for k, v in values.items() if isinstance(v, fx.Node) and k not in ROLES]
    if (
        len(others) != 1
        or (names and not path)
        or any(_has_node(v) for k, v in values.items() if v is not others[0] and k not in ROLES)
    ):
        return None
    layer = rule(values, {role: shape(name) for role, name in names.items()}, dims)
    return None if layer is None else Use(path, layer, tuple(others))


def _has_node(value: Any) -> bool:
    return isinstance(value, fx.Node) or (isinstance(value, list) and any(isinstance(v, fx.Node) for v in value))


def _given(v: Arguments, **defaults: Any) -> tuple[tuple[str, Any], ...]:
    """Return the arguments that are not the defaults of the layer."""
    return tuple((n, _hashable(v[n])) for n, default in defaults.items() if _hashable(v[n]) != default)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _one(sizes: tuple[int, ...]) -> Any:
    """Return one number for equal sizes."""
    return sizes[0] if len(set(sizes)) == 1 else sizes


def _no_bias(shapes: Shapes) -> tuple[tuple[str, Any], ...]:
    return () if "bias" in shapes else (("bias", False),)


def _linear(v: Arguments, shapes: Shapes, dims: int) -> Layer | None:
    out, width = shapes["weight"] if len(shapes.get("weight", ())) == 2 else (0, 0)
    return Layer("Linear", (width, out), _no_bias(shapes)) if out else None


def _conv(kind: str) -> Rule:
    def rule(v: Arguments, shapes: Shapes, dims: int) -> Layer | None:
        if "weight" not in shapes:
            return None
        first, second, *kernel = shapes["weight"]
        transposed, groups = "Transpose" in kind, v["groups"]
        width, out = (first, second * groups) if transposed else (second * groups, first)
        more = {"output_padding": 0} if transposed else {}
        options = _given(v, stride=1, padding=0, **more, dilation=1, groups=1)
        return Layer(kind, (width, out, _one(tuple(kernel))), (*options, *_no_bias(shapes)))

    return rule


def _batch_norm(v: Arguments, shapes: Shapes, dims: int) -> Layer | None:
    if (
        "running_mean" not in shapes
        or v["training"]
        or ("weight" in shapes) != ("bias" in shapes)
        or not 2 <= dims <= 5
    ):
        return None
    affine = () if "weight" in shapes else (("affine", False),)
    return Layer(f"BatchNorm{max(dims - 2, 1)}d", shapes["running_mean"], (*_given(v, eps=1e-5, momentum=0.1), *affine))


def _layer_norm(v: Arguments, shapes: Shapes, dims: int) -> Layer | None:
    shape, eps = v["normalized_shape"], _given(v, eps=1e-5)
    if "weight" not in shapes:
        return (
            Layer("LayerNorm", (_one_of(shape),), (*eps, ("elementwise_affine", False)))
            if "bias" not in shapes
            else None
        )
    return Layer("LayerNorm", (_one_of(shape),), (*eps, *_no_bias(shapes)))


def _rms_norm(v: Arguments, shapes: Shapes, dims: int) -> Layer | None:
    affine = () if "weight" in shapes else (("elementwise_affine", False),)
    return Layer("RMSNorm", (_one_of(v["normalized_shape"]),), (*_given(v, eps=None), *affine))


def _one_of(shape: list[int]) -> Any:
    return shape[0] if len(shape) == 1 else tuple(shape)


def _group_norm(v: Arguments, shapes: Shapes, dims: int) -> Layer | None:
    if shapes.keys() != {"weight", "bias"}:
        return None
    return Layer("GroupNorm", (v["num_groups"], *shapes["weight"]), _given(v, eps=1e-5))


def _embedding(v: Arguments, shapes: Shapes, dims: int) -> Layer | None:
    if len(shapes.get("weight", ())) != 2:
        return None
    padding = () if v["padding_idx"] == -1 else (("padding_idx", v["padding_idx"]),)
    return Layer("Embedding", shapes["weight"], (*padding, *_given(v, scale_grad_by_freq=False, sparse=False)))


def _prelu(v: Arguments, shapes: Shapes, dims: int) -> Layer | None:
    return (
        Layer("PReLU", () if shapes["weight"] == (1,) else shapes["weight"])
        if len(shapes.get("weight", ())) == 1
        else None
    )


def _plain(kind: str, *positional: str, **defaults: Any) -> Rule:
    """Return the rule of a layer without tensors."""
    return lambda v, shapes, dims: Layer(kind, tuple(_hashable(v[n]) for n in positional), _given(v, **defaults))


LAYERS: dict[str, Rule] = {
    "linear": _linear,
    **{f"conv{n}d": _conv(f"Conv{n}d") for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _conv(f"ConvTranspose{n}d") for n in (1, 2, 3)},
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "embedding": _embedding,
    "prelu": _prelu,
    "relu": _plain("ReLU"),
    "relu6": _plain("ReLU6"),
    "gelu": _plain("GELU", approximate="none"),
    "silu": _plain("SiLU"),
    "hardswish": _plain("Hardswish"),
    "hardsigmoid": _plain("Hardsigmoid"),
    "sigmoid": _plain("Sigmoid"),
    "tanh": _plain("Tanh"),
    "leaky_relu": _plain("LeakyReLU", negative_slope=0.01),
}
"""Op → the layer that does it."""
