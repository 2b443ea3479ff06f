"""params + spec → nn.Module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from ..batches import device_of
from ..forward import result
from ..params import check_names
from ..trace.program import build
from ..trace.spec import Spec
from ..types import Params


def to_module(params: Params, *, spec: Spec) -> fx.GraphModule:
    """A graph module at the spec's sizes whose parameters have their original names.

    It takes and returns what the traced model does; it trains, compiles, exports, and `load_state_dict` works. It runs in the
    mode that was traced, whatever `train()` or `eval()` says; traced with `train=True`, it updates its BatchNorm buffers.
    Tied parameters stay tied. The params are copied: training the module does not write to them.

    Raises:
        ParamsError: the params do not fit the spec.

    >>> import prunefn as pf
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> module = pf.to_module(pf.params(model), spec=spec)
    >>> sorted(module.state_dict()) == sorted(model.state_dict())
    True
    """
    check_names(params, spec)
    root = nn.Module()
    once: dict[int, Tensor] = {}
    slots = {s.tensor for s in spec.program.slots}
    for name, t in params.items():
        if id(t) not in once:
            copy = t.detach().clone()
            once[id(t)] = (
                nn.Parameter(copy, copy.is_floating_point()) if name in spec.parameters or name in slots else copy
            )
        _register(root, name, once[id(t)], persistent=True)
    device = device_of(params)
    constants = {n: f"_constants.{n.replace('.', '_')}" for n in spec.program.constants}
    for n, path in constants.items():
        _register(root, path, spec.constants.tensors[n].to(device).clone(), persistent=False)
    inputs = [i.name for i in spec.program.inputs]

    def load(graph: fx.Graph, name: str) -> fx.Node:
        return graph.placeholder(name) if name in inputs else graph.get_attr(constants.get(name, name))

    def emit(graph: fx.Graph, env: Any) -> Any:
        for name, ref in spec.program.updates:
            graph.call_function(torch.ops.aten.copy_.default, (env[name], env[ref.name]))
        return list(result(spec, env))

    present = frozenset(s for s in slots if s in params)
    graph = _inputs_first(build(spec.program, spec.sizes, present=present, device=device, load=load, emit=emit))
    graph.set_codegen(_signature(spec, inputs))
    return fx.GraphModule(root, graph)


def _register(root: nn.Module, path: str, t: Tensor, *, persistent: bool) -> None:
    *parents, leaf = path.split(".")
    for p in parents:
        if not hasattr(root, p):
            root.add_module(p, nn.Module())
        root = getattr(root, p)
    if isinstance(t, nn.Parameter):
        root.register_parameter(leaf, t)
    else:
        root.register_buffer(leaf, t, persistent=persistent)


def _inputs_first(graph: fx.Graph) -> fx.Graph:
    first = next(iter(graph.nodes))
    for node in [n for n in graph.nodes if n.op == "placeholder"]:
        if node is not first:
            first.prepend(node)
    return graph


def _signature(spec: Spec, inputs: list[str]) -> _PyTreeCodeGen:
    """Arguments and results nested as in the traced model."""
    args, kwargs = spec.program.in_spec.children()
    names = [f"arg_{i}" for i in range(args.num_children)] + list(kwargs.context or [])
    return _PyTreeCodeGen(_PyTreeInfo(names, spec.program.in_spec, spec.program.out_spec))


__all__ = ["pytree", "to_module"]
