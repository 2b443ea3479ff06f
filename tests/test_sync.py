"""Statistics of several processes, by torchrun on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch

import prunefn as pf

from .ranks import shares
from .ranks.nets import identical, net, sharing, tensors
from .small import close

ROOT = Path(__file__).parent.parent
LIMIT = 300
"""Seconds; a collective that hangs runs into it."""


@pytest.fixture(scope="module", params=[2, 3], ids="{} ranks".format)
def launch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """One launch serves all tests: (ranks, folder of what they found)."""
    world, folder = request.param, tmp_path_factory.mktemp("ranks")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    done = subprocess.run(
        [*run, "-m", "tests.ranks.shares", str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return world, folder


def found(launch: tuple[int, Path]) -> list[dict[str, Any]]:
    world, folder = launch
    return [json.loads((folder / f"found.{r}").read_text()) for r in range(world)]


def of_ranks(launch: tuple[int, Path], case: str, like: pf.Stats) -> list[pf.Stats]:
    world, folder = launch
    assert like.spec is not None
    return [pf.load_stats(folder / f"{case}.{r}", spec=like.spec, params=dict(like.params)) for r in range(world)]


def alike(a: pf.Stats, b: pf.Stats, tolerance: float = 1e-10) -> None:
    """The same numbers, relative to the largest of each tensor; sums in narrow types to their own precision."""
    assert (a.spec, a.batches, a.samples) == (b.spec, b.batches, b.samples)
    x, y = tensors(a), tensors(b)
    assert set(x) == set(y)
    for name, t in x.items():
        assert t.dtype == y[name].dtype, name
        exact = t.dtype in (torch.float64, torch.int64)
        scale = max(float(y[name].abs().max()), 1e-30)
        close(t.double() / scale, y[name].double() / scale, tolerance if exact else 8 * torch.finfo(t.dtype).eps)


COVERING = [c for c in shares.GOOD if c not in (shares.some_sites, shares.nobody)]


@pytest.mark.parametrize("case", COVERING, ids=lambda c: c.__name__)
def test_shares_are_as_one_process_over_all_batches(launch: tuple[int, Path], case: Any) -> None:
    world, _ = launch
    expected = shares.whole(case)
    if case is shares.no_batches:
        expected = reduce(pf.merge_stats, [case(r, world) for r in range(world)])
    first, *others = of_ranks(launch, case.__name__, expected)
    alike(first, expected)
    for other in others:
        identical(first, other)


def test_sites_of_some_ranks_only(launch: tuple[int, Path]) -> None:
    world, _ = launch
    parts = [shares.some_sites(r, world) for r in range(world)]
    assert len({tuple(p.sites) for p in parts}) == 2
    expected = reduce(pf.merge_stats, parts)
    first, *others = of_ranks(launch, "some_sites", expected)
    alike(first, expected)
    for other in others:
        identical(first, other)


def test_covariances_and_taps_are_there_and_shared(launch: tuple[int, Path]) -> None:
    moments = of_ranks(launch, "uneven", shares.whole(shares.uneven))[0].sites
    assert all(m.scatter is not None and m.absolute is not None for m in moments.values())
    assert any(m.taps is not None and m.tap_count > 0 for m in moments.values())
    for rank in found(launch):
        assert rank["shared"] == [["q", "k", "v"]]
        assert all(len(names) == 1 for names in rank["uneven"])
    assert sharing(of_ranks(launch, "shared", shares.whole(shares.shared))[0]) == [["q", "k", "v"]]


def test_sums_that_some_ranks_have_not(launch: tuple[int, Path]) -> None:
    world, _ = launch
    late = ["late" in shares.uneven(r, world).sums["some"] for r in range(world)]
    assert late.count(True) == 1 and not late[0]
    stats = of_ranks(launch, "uneven", shares.whole(shares.uneven))[0]
    assert {n: t.dtype for n, t in stats.sums["some"].items()} == {
        "count": torch.int64,
        "float": torch.float32,
        "narrow": torch.bfloat16,
        "late": torch.float64,
    }
    assert int(stats.sums["some"]["count"]) == stats.samples


def test_nobody_has_anything(launch: tuple[int, Path]) -> None:
    assert all(rank["nobody"] is True for rank in found(launch))


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("other_spec", r"rank 1 has another spec: .*sizes.* differ from rank 0's; all ranks must measure the same"),
        ("other_params", r"rank 1 has other parameters: '2.bias' differs from rank 0's"),
        ("other_fields", r"site '2': rank 1 has no 'scatter', but rank 0 has 'scatter' of shape \(5, 5\)"),
        (
            "other_sums",
            r"collector 'some', 'count': rank 1 has torch.float64 of shape \(\), but rank 0 has torch.int64",
        ),
        (
            "broken",
            r"rank 1 cannot take part: StatsError: the moments of site '2' have shapes .* do not fit each other",
        ),
    ],
)
def test_what_differs_is_an_error_on_every_rank(launch: tuple[int, Path], case: str, text: str) -> None:
    messages = {rank[case] for rank in found(launch)}
    assert len(messages) == 1
    with pytest.raises(pf.StatsError, match=text):
        raise pf.StatsError(messages.pop())


def test_a_group_of_some_ranks(launch: tuple[int, Path]) -> None:
    world, _ = launch
    if world == 2:
        assert all("group" not in rank for rank in found(launch))
        return
    parts = [shares.shared(r, 3) for r in range(3)]
    outside, *inside = of_ranks(launch, "group", parts[0])
    identical(outside, parts[0])
    identical(*inside)
    alike(inside[0], pf.merge_stats(parts[1], parts[2]))
    errors = [rank.get("group") for rank in found(launch)]
    assert errors[0] is None and errors[1] == errors[2]
    assert "rank 2 has no 'scatter', but rank 1 has" in errors[1]


def test_without_other_processes_nothing_happens(tmp_path: Path) -> None:
    t = net("mlp")
    stats = pf.collect_stats(t.params, None, spec=t.spec)
    assert pf.sync_stats(stats) is stats
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert pf.sync_stats(stats) is stats
        assert pf.sync_stats(pf.Stats()) == pf.Stats()
    finally:
        torch.distributed.destroy_process_group()
