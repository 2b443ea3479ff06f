"""Run by torchrun: each rank measures its share of the batches, and writes what it has after `sync_stats`.

python -m torch.distributed.run --standalone --nproc-per-node 3 -m tests.ranks.shares FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import prunefn as pf

from .nets import batches, collect, net, sharing, tensors

COUNTS = {2: (1, 5), 3: (3, 1, 2)}
"""Ranks → how many of the batches each gets."""


def share(name: str, rank: int, world: int) -> list[Tensor]:
    ends = list(accumulate(COUNTS[world], initial=0))
    return batches(name)[ends[rank] : ends[rank + 1]]


def uneven(rank: int, world: int) -> pf.Stats:
    return collect("cnn", share("cnn", rank, world))


def shared(rank: int, world: int) -> pf.Stats:
    return collect("shared", share("shared", rank, world))


def first_empty(rank: int, world: int) -> pf.Stats:
    return pf.Stats() if rank == 0 else collect("cnn", batches("cnn")[rank - 1 :: world - 1])


def last_empty(rank: int, world: int) -> pf.Stats:
    return collect("cnn", batches("cnn")[rank :: world - 1]) if rank < world - 1 else pf.Stats()


def no_batches(rank: int, world: int) -> pf.Stats:
    t = net("shared")
    return pf.collect_stats(t.params, None, spec=t.spec) if rank == 0 else shared(rank, world)


def plain(rank: int, world: int) -> pf.Stats:
    """Without covariance, magnitudes or sums."""
    return collect("cnn", share("cnn", rank, world), covariance=False, criterion=())


def some_sites(rank: int, world: int) -> pf.Stats:
    return collect("cnn", share("cnn", rank, world), where="0.*" if rank == 0 else "[36]*")


def nobody(rank: int, world: int) -> pf.Stats:
    return pf.Stats()


GOOD = (uneven, shared, first_empty, last_empty, no_batches, plain, some_sites, nobody)


def other_spec(rank: int, world: int) -> pf.Stats:
    name = "wide" if rank == 1 else "mlp"
    return collect(name, share(name, rank, world))


def other_params(rank: int, world: int) -> pf.Stats:
    params = net("mlp").params
    params = params if rank != 1 else params | {"2.bias": params["2.bias"] + 1}
    return collect("mlp", share("mlp", rank, world), params=params)


def other_fields(rank: int, world: int) -> pf.Stats:
    return collect("mlp", share("mlp", rank, world), covariance=rank != 1)


def other_sums(rank: int, world: int) -> pf.Stats:
    stats = collect("mlp", share("mlp", rank, world))
    some = dict(stats.sums["some"])
    return stats._replace(sums={"some": some | {"count": some["count"].double()} if rank == 1 else some})


def broken(rank: int, world: int) -> pf.Stats:
    stats = collect("mlp", share("mlp", rank, world))
    m = stats.sites["2"]
    return stats._replace(sites={"2": m._replace(m2=m.m2[1:]) if rank == 1 else m})


BAD = (other_spec, other_params, other_fields, other_sums, broken)


def whole(case: Callable[[int, int], pf.Stats]) -> pf.Stats:
    """What one process has over all batches."""
    if case in (shared, no_batches):
        return collect("shared", batches("shared"))
    return collect("cnn", batches("cnn"), **({"covariance": False, "criterion": ()} if case is plain else {}))


def main(folder: Path) -> None:
    """Every case on every rank; a barrier that hangs would run into the time limit."""
    torch.set_num_threads(1)
    alone = shared(0, 2)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    found: dict[str, Any] = {"alone": pf.sync_stats(alone) is not alone}
    for case in BAD:
        try:
            pf.sync_stats(case(rank, world))
        except pf.StatsError as e:
            found[case.__name__] = str(e)
    for case in GOOD:
        before = case(rank, world)
        old = {n: t.clone() for n, t in tensors(before).items()}
        after = pf.sync_stats(before)
        assert all(torch.equal(t, old[n]) for n, t in tensors(before).items())
        if after.spec is not None:
            pf.save_stats(after, folder / f"{case.__name__}.{rank}")
            found[case.__name__] = sharing(after)
        else:
            found[case.__name__] = after == pf.Stats()
    if world == 3:
        last_two = dist.new_group([1, 2])
        mine = shared(rank, world)
        pf.save_stats(pf.sync_stats(mine, group=last_two), folder / f"group.{rank}")
        try:
            pf.sync_stats(collect("shared", share("shared", rank, world), covariance=rank != 2), group=last_two)
        except pf.StatsError as e:
            found["group"] = str(e)
    dist.barrier()
    (folder / f"found.{rank}").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
