"""Prune models that do not fit on one device: params of DTensors, such as those of a module under `fully_shard` (FSDP2).

Every process of a group has a part of each tensor. `collect_stats` and `forward` gather a tensor just before its first use and
drop it after its last use. `apply`, `zero`, `expand`, `compensate` and `score` gather one tensor at a time, and place the result
on the same mesh with the same placements. So no process ever holds the whole model, and the results equal those of one process.
All processes must make the same calls in the same order. A function that needs all tensors at once raises a ParamsError.

A program for any number of processes, `prune.py`:

    mesh = init_device_mesh("cuda", (dist.get_world_size(),))
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    spec = pf.trace(model, (), {"input_ids": ids})           # needs no weights
    model = …                                                # with weights, under fully_shard(model, mesh=mesh), as in training
    spec = pf.sharded.with_constants(spec, model)            # rotary tables and the like, which have no values on `meta`

    params = pf.params(model)                                # of DTensors
    share = batches[dist.get_rank() :: dist.get_world_size()]
    stats = pf.sync_stats(pf.collect_stats(params, share, spec=spec))
    mask = pf.select(pf.score(stats), 0.3, spec=spec)        # identical on every process
    small = pf.apply(pf.compensate(params, stats, mask, spec=spec), mask, spec=spec)
    spec = pf.shrink(spec, mask)

    module = pf.to_module(small, spec=spec, blocks="model.layers.*")
    for layer in module.model.layers.children():             # a block is called as a module, so FSDP2 can gather and free its tensors
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    pf.sharded.fill(module, small)
    optimizer = torch.optim.AdamW(module.parameters())       # and train as usual

Run it on one machine with 8 GPUs, or on two such machines (with the same command on each):

    torchrun --standalone --nproc-per-node 8 prune.py
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-id prune --rdzv-endpoint first-machine:29500 prune.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..doors import door
from ..errors import BatchError, ParamsError, StatsError, TraceError
from ..files.on_disk import OnDisk
from ..frozen_dict import FrozenDict
from ..spec.spec import Spec
from ..types import Params

__all__ = ["fill", "gather", "gathered", "is_sharded", "spread", "with_constants"]


if dist.is_available():
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor, Replicate

    KINDS = (DTensor,)
else:
    KINDS = ()

T = TypeVar("T")
S = TypeVar("S")


def is_sharded(t: Tensor) -> TypeGuard[DTensor]:
    """Return whether a tensor is a DTensor, whose parts lie on several processes."""
    return isinstance(t, KINDS)


def is_elsewhere(t: Tensor) -> TypeGuard[DTensor | OnDisk]:
    """Return whether a tensor must be gathered before use: from other processes, or from disk."""
    return is_sharded(t) or isinstance(t, OnDisk)


def gather(t: Tensor) -> Tensor:
    """Return the whole tensor on every process of its mesh, all of which must call this; a plain tensor is returned unchanged."""
    if isinstance(t, OnDisk):
        return t.read()
    return t.full_tensor() if is_sharded(t) else t


def spread(t: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a tensor that all processes hold, on the mesh and with the placements of `like`.

    Nothing is sent. A placement along a dim that the tensor lacks (a new bias beside a matrix) becomes a copy on every process.
    """
    if not is_sharded(like) or is_sharded(t):
        return t
    mesh = like.device_mesh
    placements_of_t = [Replicate() if getattr(p, "dim", -1) >= t.ndim else p for p in like.placements]
    return DTensor.from_local(t, mesh, [Replicate()] * mesh.ndim, run_check=False).redistribute(
        placements=placements_of_t
    )


def changed(t: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the result of a function of a tensor; gather a DTensor for it, unless the function would return it unchanged."""
    if not is_elsewhere(t):
        return change(t)
    probe = outline(t)
    return t if change(probe) is probe else spread(change(gather(t)), t)


def outline(t: Tensor) -> Tensor:
    """Return a tensor on meta with the same shape and dtype."""
    return torch.empty(t.shape, dtype=t.dtype, device="meta")


def gathered(params: Mapping[str, Tensor]) -> Params:
    """Return all tensors as whole, plain tensors on every process; tied tensors stay tied.

    >>> gathered({"a": torch.ones(2)})
    {'a': tensor([1., 1.])}
    """
    whole_of_id: dict[int, Tensor] = {}
    for t in params.values():
        if id(t) not in whole_of_id:
            whole_of_id[id(t)] = gather(t)
    return {n: whole_of_id[id(t)] for n, t in params.items()}


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors share the same memory on this process."""
    if is_sharded(a) and is_sharded(b):
        return a.placements == b.placements and a.to_local().is_set_to(b.to_local())
    return not is_elsewhere(a) and not is_elsewhere(b) and a.is_set_to(b)


def check_plain(params: Mapping[str, Tensor], what: str, instead: str) -> None:
    """Check that none of the tensors is a DTensor.

    Raises:
        ParamsError: one is; the message names it, and says what to do `instead`.
    """
    if name := next((n for n, t in params.items() if is_sharded(t)), None):
        raise ParamsError(
            f"{what} needs whole tensors, but {name!r} is a DTensor: {instead}, or, if the model fits on each process, pass "
            "pf.sharded.gathered(params)"
        )


def resharded(model: nn.Module) -> None:
    """Reshard parameters that FSDP2 left gathered after a forward pass, since it would free their memory during use."""
    if dist.is_available() and any(isinstance(m, FSDPModule) for m in model.modules()):
        model.state_dict()  # its hooks always reshard; `FSDPModule.reshard` does not after a pass without gradients


class Gathering(Mapping[str, Tensor]):
    """Params whose tensors are gathered one by one when read; the reader must not keep a tensor."""

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        self.params = params

    def __getitem__(self, name: str) -> Tensor:
        return gather(self.params[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.params)

    def __len__(self) -> int:
        return len(self.params)


@door
def fill(module: nn.Module, params: Params) -> None:
    """Fill a module under `fully_shard` with the values of params, where `to_module` left its parameters on `meta`.

    Args:
        module: result of `to_module(params, …)`; shard it first, and create the optimizer afterwards.
        params: the params passed to `to_module`. They are copied; a tensor whose mesh or placements differ from the module's
            is gathered first.

    Raises:
        ParamsError: the module is not sharded, its tensors are not those of the params, or params are on meta.
    """
    copy_of_id: dict[int, Tensor] = {}
    state = module.state_dict()
    if unmatched := sorted(params.keys() ^ state.keys()):
        has, lacks = (
            ("params have", "the module lacks") if unmatched[0] in params else ("the module has", "params lack")
        )
        raise ParamsError(f"{has} {unmatched[0]!r}, which {lacks}; pass the params that the module was built from")
    for name, t in params.items():
        if is_sharded(t) and not is_sharded(state[name]):
            raise ParamsError(
                f"{name!r} is a DTensor, but not in the module: call fully_shard on its blocks and on the module first"
            )
        if id(t) not in copy_of_id:
            copy_of_id[id(t)] = _copy_like(t.detach(), state[name])
    values = {n: copy_of_id[id(t)] for n, t in params.items()}
    parameters = {n for n, _ in module.named_parameters(remove_duplicate=False)}
    parameter_of_id = {id(t): nn.Parameter(t) for n, t in values.items() if n in parameters and t.is_floating_point()}
    module.load_state_dict({n: parameter_of_id.get(id(t), t) for n, t in values.items()}, assign=True)


def _copy_like(t: Tensor, like: Tensor) -> Tensor:
    """Return a copy of a tensor with the placement of another."""
    if is_sharded(t) and is_sharded(like) and (t.device_mesh, t.placements) == (like.device_mesh, like.placements):
        return t.clone()
    return spread(gather(t).clone(), like)


@door
def with_constants(spec: Spec, model: nn.Module) -> Spec:
    """Return the spec of a model on `meta` with constants (rotary tables, position grids) from a model that has values.

    Args:
        spec: the spec, before `shrink`.
        model: a model of the same class; its parameters are not read.

    Raises:
        TraceError: the model lacks a constant, or has it with another shape or dtype, or on meta.
    """
    tensors = dict(spec.constants.tensors)
    for name, t in tensors.items():
        path = spec.constants.sources.get(name, name)
        attribute: object = model
        for part in path.split("."):
            attribute = getattr(attribute, part, None)
        if attribute is None and not t.is_meta:
            continue  # `forward` creates it, with values
        if (
            not isinstance(attribute, Tensor)
            or attribute.is_meta
            or (attribute.shape, attribute.dtype) != (t.shape, t.dtype)
        ):
            has = (
                f"{attribute.dtype} {tuple(attribute.shape)} on {attribute.device}"
                if isinstance(attribute, Tensor)
                else "none"
            )
            raise TraceError(
                f"the spec's constant {path!r} is {t.dtype} {tuple(t.shape)}, but the model has {has}; trace a model of this class "
                "and these sizes, with its buffers on a device"
            )
        tensors[name] = gather(attribute).detach().clone()
    return replace(spec, constants=replace(spec.constants, tensors=FrozenDict(tensors)))


# ---- processes in step


def agreed(names: list[str], params: Mapping[str, Tensor]) -> list[str]:
    """Return the union of `names` over all processes that share the params, so that all of them raise or none does."""
    mesh = next((t.device_mesh for t in params.values() if is_sharded(t)), None)
    for group in [] if mesh is None else mesh.get_all_groups():
        names_of_rank: list[list[str]] = [[] for _ in range(dist.get_world_size(group))]
        dist.all_gather_object(names_of_rank, names, group=group)
        names = sorted({n for part in names_of_rank for n in part})
    return names


DONE, MORE, FAILED = range(3)


def together(step: Callable[[S, T | None], S], stream: Iterator[T], start: S, params: Mapping[str, Tensor]) -> S:
    """Reduce a stream on every process in step: all make the same number of steps, since each step gathers tensors.

    Args:
        step: (total, item) → total; item is None if this process has no more items, but others have.
        stream: the items of this process.
        start: the initial total.
        params: params whose meshes determine the processes.

    Raises:
        BatchError: no process has an item; raised on every process.
        StatsError: another process raised an error.
    """
    total, failure, steps = start, None, 0
    while True:
        item = None
        if failure is None:
            try:
                item = next(stream, None)
            except Exception as e:
                failure = e
        # every process learns of a failure anywhere before the next step, which would wait for the failed one
        state = _maximum_state(FAILED if failure else DONE if item is None else MORE, params)
        if failure is not None:
            raise failure
        if state == FAILED:
            raise StatsError("the statistics of another process failed; its own message says why")
        if state == DONE:
            break
        steps += 1
        try:
            total = step(total, item)
        except (
            StatsError
        ) as e:  # of the measured values: raised after the last tensor was gathered, so processes stay in step
            failure = e
    if not steps:
        raise BatchError(
            "there are no batches: the iterables of all processes are empty (a generator can be read only once)"
        )
    return total


def _maximum_state(state: int, params: Mapping[str, Tensor]) -> int:
    """Return the maximum of the states of all processes."""
    meshes: dict[DeviceMesh, None] = dict.fromkeys(t.device_mesh for t in params.values() if is_sharded(t))
    for mesh in meshes:
        flag = torch.tensor(state, device=mesh.device_type)
        for dim in range(mesh.ndim):
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=mesh.get_group(dim))
        state = int(flag)
    return state


def __dir__() -> list[str]:
    return __all__
