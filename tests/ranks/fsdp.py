"""Run by torchrun: a Llama whose parts lie on two processes is measured, pruned and fine-tuned; each rank writes what it found.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.ranks.fsdp FOLDER

The folder has `nets`, which `write_nets` makes: it would take each rank longer to trace them than all the rest.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import prunefn as pf

from ..small import mlp, randn, traced

VOCABULARY, LENGTH = 48, 6
SHARES = ((0, 1, 2), (3,))
"""The batches of each rank."""
METHODS = {"mean": pf.compensation.mean(), "affine": pf.compensation.affine(1e-2)}
CRITERIA = (
    pf.criteria.magnitude(),
    pf.criteria.lamp(),
    pf.criteria.fpgm(),
    pf.criteria.dissimilar(pf.criteria.variance()),
    pf.criteria.weighted_variance(),
    pf.criteria.mac_aware(pf.criteria.normalized(pf.criteria.magnitude(1.0))),
)
"""On weights, wholly or in part."""
BLOCKS = "model.layers.*"


def ids(n: int, seed: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (n, LENGTH), generator=torch.Generator().manual_seed(seed))


def batches() -> list[dict[str, Tensor]]:
    return [{"input_ids": ids(n, i)} for i, n in enumerate((3, 1, 4, 2))]


class Net(NamedTuple):
    """A traced model."""

    spec: pf.Spec
    params: pf.Params


def llama(tied: bool) -> Net:
    """With grouped queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=44,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            use_cache=False,
            tie_word_embeddings=tied,
            initializer_range=0.3,
        )
        model = LlamaForCausalLM(config).eval()
    return Net(pf.trace(model, (), {"input_ids": ids(2, 0)}), pf.params(model))


@cache
def nets() -> dict[str, Net]:
    t = traced(mlp(5, 7, 3), randn(2, 5))
    return {"llama": llama(tied=False), "tied": llama(tied=True), "mlp": Net(t.spec, t.params)}


def write_nets(folder: Path) -> None:
    torch.save({n: tuple(net) for n, net in nets().items()}, folder / "nets")


def read_nets(folder: Path) -> dict[str, Net]:
    return {n: Net(*net) for n, net in torch.load(folder / "nets", weights_only=False).items()}


def chosen(stats: pf.Stats, spec: pf.Spec) -> pf.Mask:
    """A third of the hidden units, and of the heads; sizes that do not divide by two."""
    scores = pf.score(stats, criterion=pf.criteria.magnitude()) | pf.score(stats)
    return pf.select(pf.only(scores, pf.kind("hidden", "heads"), spec=spec), 0.3, spec=spec, scope=pf.scope.local())


def sharded(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Block by block, as a user does it."""
    for layer in module.get_submodule("model.layers").children():
        fully_shard(layer, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def trained(module: nn.Module, rank: int = 0, world: int = 1) -> list[float]:
    """Three steps on this rank's share of each batch; the losses."""
    optimizer, losses = torch.optim.AdamW(module.parameters(), lr=1e-3), []
    for step in range(3):
        tokens = ids(4, 10 + step).chunk(world)[rank]
        logits = module(input_ids=tokens)[0]
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


class Live:
    """Counts gathered tensors that are still there."""

    def __init__(self) -> None:
        self.now = self.most = self.elements = self.most_elements = self.all = 0

    def __call__(self, whole: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counting(t: DTensor, *args: Any, **kwargs: Any) -> Tensor:
            out = whole(t, *args, **kwargs)
            self.add(1, out.numel())
            self.all += 1
            weakref.finalize(out, self.add, -1, -out.numel())
            return out

        return counting

    def add(self, n: int, elements: int) -> None:
        self.now, self.elements = self.now + n, self.elements + elements
        self.most, self.most_elements = max(self.most, self.now), max(self.most_elements, self.elements)


def counted(action: Callable[[], Any]) -> tuple[Any, Live]:
    live = Live()
    with patch.object(DTensor, "full_tensor", live(DTensor.full_tensor)):
        return action(), live


def error(action: Callable[[], Any]) -> str:
    try:
        action()
    except pf.PruneError as e:
        return f"{type(e).__name__}: {e}"
    return "none"


def prune(stats: pf.Stats, params: pf.Params, spec: pf.Spec) -> dict[str, pf.Params]:
    """All that changes params."""
    mask = chosen(stats, spec)
    out = {"zero": pf.zero(params, mask, spec=spec)}
    for name, method in METHODS.items():
        filled = pf.compensate(params, stats, mask, spec=spec, method=method)
        out[name] = pf.apply(filled, mask, spec=spec)
        out[f"{name}, expanded"] = pf.expand(out[name], mask, spec=spec)
    return out


def whole(rank: int, world: int, mesh: DeviceMesh, net: Net, folder: Path) -> dict[str, Any]:
    """From a module under `fully_shard` to a smaller one that has been trained."""
    spec, tied = net.spec, bool(net.spec.tied)
    module = sharded(pf.to_module(net.params, spec=spec, blocks=BLOCKS), mesh)
    with torch.no_grad():
        logits = module(**batches()[rank])[0]
        params = pf.params(module)  # right after a forward pass, when FSDP still has some of them in whole
        assert all(isinstance(p, DTensor) for p in params.values())
        assert torch.equal(pf.forward(params, **batches()[rank], spec=spec)[0], logits)
    share = [batches()[i] for i in SHARES[rank]]
    mine, measuring = counted(lambda: pf.collect_stats(params, share, spec=spec, covariance=True))
    stats = pf.sync_stats(mine)
    pf.save_stats(stats, folder / f"{'tied' if tied else 'llama'}.stats.{rank}")
    scored, scoring = counted(lambda: scores(stats))
    pruned, pruning = counted(lambda: prune(stats, params, spec))
    for p in pruned.values():
        assert all(isinstance(v, DTensor) and v.placements == params[n].placements for n, v in p.items() if n in params)
        assert (p["lm_head.weight"] is p["model.embed_tokens.weight"]) == tied
    local = [v.to_local() for v in pruned["mean"].values()]
    assert all(v.untyped_storage().nbytes() <= v.nbytes + 512 for v in local)  # FSDP pads its own
    small = pf.shrink(spec, chosen(stats, spec))
    module = pf.to_module(pruned["mean"], spec=small, blocks=BLOCKS)
    assert all(p.is_meta for p in module.parameters())
    sharded(module, mesh)
    pf.sharded.fill(module, pruned["mean"])
    assert (module.lm_head.weight is module.model.embed_tokens.weight) == tied
    losses = trained(module, rank, world)
    return {
        "logits": logits,
        "measuring": vars(measuring),
        "scoring": vars(scoring),
        "pruning": vars(pruning),
        "scores": scored,
        "losses": losses,
        "trained": pf.sharded.gathered(pf.params(module)),
        "params": pf.sharded.gathered(params),
        "pruned": {n: pf.sharded.gathered(p) for n, p in pruned.items()},
    }


def scores(stats: pf.Stats) -> dict[str, pf.Scores]:
    return {c.name: pf.score(stats, criterion=c) for c in CRITERIA}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    known = read_nets(folder)
    found = {n: whole(rank, world, mesh, known[n], folder) for n in ("llama", "tied")}
    found["cases"] = cases(rank, mesh, known["llama"])
    found["layouts"] = layouts(init_device_mesh("cpu", (world, 1), mesh_dim_names=("a", "b")), known["mlp"])
    torch.save(found, folder / f"found.{rank}")
    dist.destroy_process_group()


def cases(rank: int, mesh: DeviceMesh, net: Net) -> dict[str, Any]:
    """Shares that are empty or broken, and what does not take DTensors."""
    spec = net.spec
    params = pf.params(sharded(pf.to_module(net.params, spec=spec, blocks=BLOCKS), mesh))

    def collect(share: Any, **kwargs: Any) -> pf.Stats:
        return pf.collect_stats(params, share, spec=spec, **kwargs)

    def breaks() -> Iterator[dict[str, Tensor]]:
        yield batches()[0]
        raise pf.BatchError("this file is broken")

    def one() -> pf.Stats:
        return pf.sync_stats(collect([batches()[0]] if rank == 1 else []))

    bad = {"input_ids": ids(2, 0)[:, :, None]}
    nan = {n: distribute_tensor(torch.full(p.shape, torch.nan), mesh) for n, p in params.items()}
    prune = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.3, sequential=True)
    actions: dict[str, Callable[[], Any]] = {
        "nobody": lambda: collect([]),
        "wrong shape": lambda: collect([batches()[0], bad] if rank else batches()),
        "raises": lambda: collect(breaks() if rank else batches()),
        "nan": lambda: pf.collect_stats(nan, batches()[:1] if rank else batches(), spec=spec),
        "empty": lambda: pf.sync_stats(pf.collect_stats(params, None, spec=spec) if rank else pf.Stats()),
        "gradients": lambda: collect([(ids(2, 0), ids(2, 0))], criterion=pf.criteria.taylor()),
        "resume": lambda: collect(batches(), resume="never"),
        "sequential": lambda: prune(params, batches(), spec=spec),
        "recalibrate": lambda: pf.recalibrate(params, batches(), spec=spec),
        "original": lambda: pf.to_module(params, spec=spec, model=nn.Identity()),
        "not sharded": lambda: pf.sharded.fill(pf.to_module(params, spec=spec), params),
    }
    found, pruned = one(), piped(params, batches() if rank else [], spec)
    return {n: error(a) for n, a in actions.items()} | {
        "one": (found.batches, found.samples, {n: m.mean for n, m in found.sites.items()}),
        "piped": pf.sharded.gathered(pruned.params),
    }


def piped(params: pf.Params, share: list[Any], spec: pf.Spec, sync: bool = True) -> pf.Pruned:
    return pf.pipeline(criterion=pf.criteria.variance(), where="*.mlp*", ratio=0.3)(params, share, spec=spec, sync=sync)


def layouts(mesh: DeviceMesh, net: Net) -> dict[str, Any]:
    """A mesh of two dims; tensors that are cut along one dim or another, or copied; a bias that is new."""
    cut: dict[str, Any] = {"0.weight": Shard(1), "0.bias": Shard(0), "2.weight": Replicate(), "2.bias": Shard(0)}
    params: pf.Params = {n: distribute_tensor(v, mesh, [cut[n], Replicate()]) for n, v in net.params.items()}
    mask = pf.mask(net.spec, {"0": [1, 4]})
    stats = pf.sync_stats(pf.collect_stats(params, [randn(4, 5, seed=dist.get_rank())], spec=net.spec))
    small = pf.apply(pf.compensate(params, stats, mask, spec=net.spec), mask, spec=net.spec)
    assert all(isinstance(p, DTensor) and list(p.placements) == [cut[n], Replicate()] for n, p in small.items())
    return {"params": pf.sharded.gathered(small), "means": {n: m.mean for n, m in stats.sites.items()}}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
