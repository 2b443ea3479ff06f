"""Profiles: whole and by layer, and the reasons for what is not saved. No time is asserted."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import prunefn as pf
from prunefn.report.profile import ALIGNED, OVERHEAD, Layer, Profile, Profiled, Timing, _excess


def networks(kept: int = 9) -> dict[str, tuple[pf.Params, pf.Spec]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(72, 4)
    )
    spec, params = pf.trace(model.eval(), (torch.randn(2, 3, 7, 7),)), pf.params(model)
    mask = {"0": torch.arange(16) < kept}
    return {"dense": (params, spec), "small": (pf.apply(params, mask, spec=spec), pf.shrink(spec, mask))}


def test_layers_add_up() -> None:
    """To the median in time; to torch's own counter in MACs."""
    found = pf.profile(networks(), batch=3, rounds=5)
    for n, (params, spec) in zip(found.networks, networks().values(), strict=True):
        assert sum(layer.seconds for layer in n.layers.values()) == pytest.approx(n.timing.median)
        with FlopCounterMode(display=False) as counter:
            pf.forward(params, torch.randn(3, 3, 7, 7), spec=spec)
        assert 2 * sum(layer.macs for layer in n.layers.values()) == counter.get_total_flops()
        assert n.cost == pf.cost(spec) and 3 * n.cost.macs == sum(layer.macs for layer in n.layers.values())
        assert list(n.layers) == ["0", "1", "2", "3", "4", "5"]
        assert n.timing.p10 <= n.timing.median <= n.timing.p90 <= n.timing.p99 and n.timing.rounds == 5
    assert found.networks[1].layers["0"].width == 9 and found.networks[1].layers["1"].width == 0


def test_bytes_that_are_alive() -> None:
    """Of the layers: the input of ReLU and its output, 16 channels of 5 x 5 in float32, for two samples."""
    found = pf.profile(networks(), batch=2, rounds=2)
    assert found.networks[0].peak == 2 * (2 * 16 * 25 * 4)
    assert found.networks[0].layers["4"].moved == 0  # a view
    assert found.networks[0].layers["2"].moved == 2 * (2 * 16 * 25 * 4)


def test_the_table_compares_with_the_first() -> None:
    timing = Timing(0.002, 0.0021, 0.0001, 0.0019, 0.0022, 0.003, 30)
    half = timing._replace(median=0.001)
    found = Profile(
        (
            Profiled("dense", pf.Cost(4_000_000, 1, 1), timing, {}, 2_000_000),
            Profiled("small", pf.Cost(1_000_000, 1, 1), half, {}, 1_000_000),
        ),
        8,
        "a CPU",
        1,
    )
    table = found.table()
    assert table.title == "a CPU, 1 threads, batch 8"
    assert table.rows[1][1:4] == ["0.001", "75.0%", "1.00"] and table.rows[1][6:] == ["2.00×", "8000.0", "1.0"]


@pytest.mark.parametrize(
    ("dense", "now", "text"),
    [
        (Layer(1e-3, 0, 4_000_000, 0), Layer(1e-3, 0, 2_000_000, 0), "no multiplications: it moves 2.00 MB"),
        (Layer(1e-3, 100, 10, 16), Layer(1e-3, 50, 10, 9), f"its width, 9, is no multiple of {ALIGNED}"),
        (Layer(1e-3, 100, 10, 16), Layer(OVERHEAD / 2, 0, 10, 8), "10 µs are mostly the start of the call"),
        (Layer(1e-3, 100, 10, 16), Layer(1e-3, 50, 20, 8), "2.5 MACs a byte (dense 10.0): bandwidth"),
    ],
)
def test_reasons(dense: Layer, now: Layer, text: str) -> None:
    assert text in _excess("a", dense, now).reason


def test_what_did_not_fall_comes_first() -> None:
    found = pf.profile(networks(), rounds=3).excess("small", most=3)
    assert [e.seconds for e in found] == sorted((e.seconds for e in found), reverse=True) and len(found) <= 3


def test_wrong_calls() -> None:
    with pytest.raises(pf.PruneError, match="a network and at least two rounds; it was given 0 and 30"):
        pf.profile({})
    with pytest.raises(pf.PruneError, match="no network 'tiny' beside 'dense'; there are small"):
        pf.profile(networks(), rounds=2).excess("tiny")
