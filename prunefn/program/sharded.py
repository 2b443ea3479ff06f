"""Models that outgrow one device: params whose tensors are DTensors, such as those of a module under `fully_shard` (FSDP2).

Every process of a group has a part of each tensor. `collect_stats` and `forward` gather a tensor just before it is used first
and drop it after its last use; `apply`, `zero`, `expand`, `compensate` and `score` gather one tensor after the other, and put
what they make of it back on the same mesh with the same placements. So no process ever holds the whole model, and the numbers
are those of one process. All processes must make the same calls in the same order; what needs all tensors at once raises a
ParamsError that says so.

A program for any number of processes, `prune.py`:

    mesh = init_device_mesh("cuda", (dist.get_world_size(),))
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    spec = pf.trace(model, (), {"input_ids": ids})           # needs no weights
    model = …                                                # with weights, under fully_shard(model, mesh=mesh), as in training
    spec = pf.sharded.with_constants(spec, model)            # rotary tables and the like, which `meta` does not have

    params = pf.params(model)                                # of DTensors
    share = batches[dist.get_rank() :: dist.get_world_size()]
    stats = pf.sync_stats(pf.collect_stats(params, share, spec=spec))
    mask = pf.select(pf.score(stats), 0.3, spec=spec)        # the same on every process
    small = pf.apply(pf.compensate(params, stats, mask, spec=spec), mask, spec=spec)
    spec = pf.shrink(spec, mask)

    module = pf.to_module(small, spec=spec, blocks="model.layers.*")
    for layer in module.model.layers.children():             # a block is called as a module, so that its tensors can come and go
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    pf.sharded.fill(module, small)
    optimizer = torch.optim.AdamW(module.parameters())       # and train as usual

On one machine with 8 GPUs, and on two of them (on each of which the same command is given):

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
    """Whether a tensor is a DTensor, whose parts lie on several processes."""
    return isinstance(t, KINDS)


def is_elsewhere(t: Tensor) -> TypeGuard[DTensor | OnDisk]:
    """Whether a tensor is to be gathered before it is used: from other processes, or from disk."""
    return is_sharded(t) or isinstance(t, OnDisk)


def gather(t: Tensor) -> Tensor:
    """The whole of a tensor, on every process of its mesh; all of them must call this. A plain tensor comes back as it is."""
    if isinstance(t, OnDisk):
        return t.read()
    return t.full_tensor() if is_sharded(t) else t


def spread(t: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that all have, on the mesh of another and with its placements; nothing is sent.

    A placement along a dim that the tensor has not (the rows of a matrix, of a new bias) becomes a copy on every process.
    """
    if not is_sharded(like) or is_sharded(t):
        return t
    mesh = like.device_mesh
    fits = [Replicate() if getattr(p, "dim", -1) >= t.ndim else p for p in like.placements]
    return DTensor.from_local(t, mesh, [Replicate()] * mesh.ndim, run_check=False).redistribute(placements=fits)


def changed(t: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """What a function makes of a tensor; a DTensor is gathered for it, unless the function would give it back as it is."""
    if not is_elsewhere(t):
        return change(t)
    probe = outline(t)
    return t if change(probe) is probe else spread(change(gather(t)), t)


def outline(t: Tensor) -> Tensor:
    """Shape and type of a tensor, without its numbers."""
    return torch.empty(t.shape, dtype=t.dtype, device="meta")


def gathered(params: Mapping[str, Tensor]) -> Params:
    """All tensors in whole on every process, for what takes plain tensors only; tied ones stay tied.

    >>> gathered({"a": torch.ones(2)})
    {'a': tensor([1., 1.])}
    """
    once: dict[int, Tensor] = {}
    for t in params.values():
        if id(t) not in once:
            once[id(t)] = gather(t)
    return {n: once[id(t)] for n, t in params.items()}


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same memory, on this process."""
    if is_sharded(a) and is_sharded(b):
        return a.placements == b.placements and a.to_local().is_set_to(b.to_local())
    return not is_elsewhere(a) and not is_elsewhere(b) and a.is_set_to(b)


def check_plain(params: Mapping[str, Tensor], what: str, instead: str) -> None:
    """None of the tensors is a DTensor.

    Raises:
        ParamsError: names one, and says what to do instead.
    """
    if name := next((n for n, t in params.items() if is_sharded(t)), None):
        raise ParamsError(
            f"{what} needs whole tensors, but {name!r} is a DTensor: {instead}, or, where the model fits on each process, give it "
            "pf.sharded.gathered(params)"
        )


def resharded(model: nn.Module) -> None:
    """What FSDP2 left gathered after a forward pass is put back, since its memory would be freed under us."""
    if dist.is_available() and any(isinstance(m, FSDPModule) for m in model.modules()):
        model.state_dict()  # its hooks do so at any time; `FSDPModule.reshard` does not after a pass without gradients


class Gathering(Mapping[str, Tensor]):
    """Params that are gathered one by one, whenever one is read; whoever reads it must not keep it."""

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
    """Give a module under `fully_shard` the values of params, where `to_module` left its parameters on `meta`.

    Args:
        module: of `to_module(params, …)`; shard it first, and make the optimizer afterwards.
        params: the same. They are copied; a tensor whose mesh or placements are others than the module's is gathered for it.

    Raises:
        ParamsError: the module is not sharded, or has other tensors than the params; params on meta.
    """
    once: dict[int, Tensor] = {}
    state = module.state_dict()
    if odd := sorted(params.keys() ^ state.keys()):
        has, lacks = ("params have", "the module lacks") if odd[0] in params else ("the module has", "params lack")
        raise ParamsError(f"{has} {odd[0]!r}, which {lacks}; give the params that the module was made of")
    for name, t in params.items():
        if is_sharded(t) and not is_sharded(state[name]):
            raise ParamsError(
                f"{name!r} is a DTensor, but not in the module: call fully_shard on its blocks and on it first"
            )
        if id(t) not in once:
            once[id(t)] = _placed(t.detach(), state[name])
    values = {n: once[id(t)] for n, t in params.items()}
    parameters = {n for n, _ in module.named_parameters(remove_duplicate=False)}
    wrapped = {id(t): nn.Parameter(t) for n, t in values.items() if n in parameters and t.is_floating_point()}
    module.load_state_dict({n: wrapped.get(id(t), t) for n, t in values.items()}, assign=True)


def _placed(t: Tensor, like: Tensor) -> Tensor:
    """A copy, placed as another tensor is."""
    if is_sharded(t) and is_sharded(like) and (t.device_mesh, t.placements) == (like.device_mesh, like.placements):
        return t.clone()
    return spread(gather(t).clone(), like)


@door
def with_constants(spec: Spec, model: nn.Module) -> Spec:
    """The spec of a model on `meta`, with what is in no state dict (rotary tables, position grids) from one that has numbers.

    Args:
        spec: not yet shrunk.
        model: of the same class; its parameters are not looked at.

    Raises:
        TraceError: the model lacks one of them, or has none of this shape and type.
    """
    tensors = dict(spec.constants.tensors)
    for name, t in tensors.items():
        path = spec.constants.sources.get(name, name)
        found: object = model
        for part in path.split("."):
            found = getattr(found, part, None)
        if not isinstance(found, Tensor) or found.is_meta or (found.shape, found.dtype) != (t.shape, t.dtype):
            has = f"{found.dtype} {tuple(found.shape)} on {found.device}" if isinstance(found, Tensor) else "none"
            raise TraceError(
                f"the spec's constant {path!r} is {t.dtype} {tuple(t.shape)}, but the model has {has}; trace a model of this class "
                "and these sizes, with its buffers on a device"
            )
        tensors[name] = gather(found).detach().clone()
    return replace(spec, constants=replace(spec.constants, tensors=FrozenDict(tensors)))


# ---- processes in step


def agreed(names: list[str], params: Mapping[str, Tensor]) -> list[str]:
    """Names that any process gives, on all of those that share the params, so that all of them raise or none."""
    mesh = next((t.device_mesh for t in params.values() if is_sharded(t)), None)
    for group in [] if mesh is None else mesh.get_all_groups():
        found: list[list[str]] = [[] for _ in range(dist.get_world_size(group))]
        dist.all_gather_object(found, names, group=group)
        names = sorted({n for part in found for n in part})
    return names


DONE, MORE, FAILED = range(3)


def together(step: Callable[[S, T | None], S], stream: Iterator[T], start: S, params: Mapping[str, Tensor]) -> S:
    """Reduce a stream on every process at once: all make the same number of steps, since each step gathers tensors.

    Args:
        step: (total, item) → total; without an item where this process has no more, but others have.
        stream: what this process has.
        start: the first total.
        params: whose meshes say which processes.

    Raises:
        BatchError: on every process, if none has anything.
        StatsError: where another process raised an error.
    """
    total, failure, steps = start, None, 0
    while True:
        item = None
        if failure is None:
            try:
                item = next(stream, None)
            except Exception as e:
                failure = e
        state = _most(FAILED if failure else DONE if item is None else MORE, params)
        if failure is not None:
            raise failure
        if state == FAILED:
            raise StatsError("the statistics of another process failed; its own message says why")
        if state == DONE:
            break
        steps += 1
        try:
            total = step(total, item)
        except StatsError as e:  # of what was measured: after the last tensor was gathered
            failure = e
    if not steps:
        raise BatchError(
            "there are no batches: the iterables of all processes are empty (a generator can be read only once)"
        )
    return total


def _most(state: int, params: Mapping[str, Tensor]) -> int:
    """The largest of the numbers of all processes."""
    meshes: dict[DeviceMesh, None] = dict.fromkeys(t.device_mesh for t in params.values() if is_sharded(t))
    for mesh in meshes:
        flag = torch.tensor(state, device=mesh.device_type)
        for dim in range(mesh.ndim):
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=mesh.get_group(dim))
        state = int(flag)
    return state


def __dir__() -> list[str]:
    return __all__
