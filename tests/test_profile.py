"""Profiles: whole and by layer, and the reasons for what is not saved. No time is asserted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunefn as pf
from prunefn.costs.counted import flop_counter
from prunefn.costs.excess import (
    ALIGNED,
    BANDWIDTH,
    CAUSES,
    FASTER,
    KEPT,
    NO_MACS,
    SMALLER,
    START,
    UNALIGNED,
    Balance,
    Layer,
    account,
    balance,
    excess,
)
from prunefn.costs.profiling import Profile, Profiled, Timing


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
        with flop_counter() as counter:
            pf.forward(params, torch.randn(3, 3, 7, 7), spec=spec)
        assert 2 * sum(layer.macs for layer in n.layers.values()) == counter.get_total_flops()
        assert n.cost == pf.cost(spec) and 3 * n.cost.macs == sum(layer.macs for layer in n.layers.values())
        assert list(n.layers) == ["0", "1", "2", "3", "4", "5"]
        assert n.timing.p10 <= n.timing.median <= n.timing.p90 <= n.timing.p99 and n.timing.rounds == 5
    assert found.networks[1].layers["0"].widths == (3, 9) and found.networks[1].layers["1"].widths == ()
    assert found.networks[1].layers["3"].widths == (9, 8)
    for n in found.networks:
        assert n.throughput == pytest.approx(3 / n.timing.median)
        assert all(layer.start > 0 for layer in n.layers.values())


@pytest.mark.parametrize("runtime", ["onnx", "openvino", pytest.param("compiled", marks=pytest.mark.slow)])
def test_layers_of_another_runtime_are_contractions_with_what_follows(runtime: str) -> None:
    """In time they add up to the median; in MACs to those of the network."""
    if runtime != "compiled":
        pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime))
    found = pf.profile(
        networks() if runtime != "compiled" else {"dense": networks()["dense"]}, rounds=3, runtime=runtime
    )
    assert found.runtime.lower().startswith({"onnx": "onnx runtime", "compiled": "torch.compile"}.get(runtime, runtime))
    assert found.runtime in str(found)
    for n in found.networks:
        assert {name for name in n.layers if name} == {"0", "3", "5"}
        assert sum(layer.seconds for layer in n.layers.values()) == pytest.approx(n.timing.median)
        assert sum(layer.macs for layer in n.layers.values()) == n.cost.macs
        assert all(n.layers[name].seconds > 0 and n.layers[name].widths for name in ("0", "3", "5"))
        assert all(layer.start == 0.0 for layer in n.layers.values())
    if runtime != "compiled":
        account = found.account("small")
        assert sum(account.causes.values()) == pytest.approx(account.latency - account.expected)


def test_bytes_that_are_alive() -> None:
    """Of the layers: the input of ReLU and its output, 16 channels of 5 x 5 in float32, for two samples."""
    found = pf.profile(networks(), batch=2, rounds=2)
    assert found.networks[0].peak == 2 * (2 * 16 * 25 * 4)
    assert found.networks[0].layers["4"].moved == 0  # a view
    assert found.networks[0].layers["2"].moved == 2 * (2 * 16 * 25 * 4)


def test_weights_are_bytes_of_all_tensors() -> None:
    dense, small = pf.profile(networks(), batch=1, rounds=2).networks
    for n, (params, _) in zip((dense, small), networks().values(), strict=True):
        assert n.weights == sum(t.nbytes for t in params.values())


def test_half_precision_gets_inputs_of_its_type() -> None:
    params, spec = networks()["dense"]
    found = pf.profile({"half": ({n: t.bfloat16() for n, t in params.items()}, spec)}, batch=2, rounds=2)
    assert found.networks[0].peak == 2 * (2 * 16 * 25 * 2)


def test_recurrent_layers_have_macs() -> None:
    """torch's counter does not see into the kernel of float32 LSTMs."""
    spec = pf.trace(nn.LSTM(3, 4, batch_first=True).eval(), (torch.randn(2, 5, 3),))
    params = {n: torch.ones(spec.shape(n)) for n in spec.parameters}
    found = pf.profile({"lstm": (params, spec)}, batch=2, rounds=2).networks[0]
    assert sum(layer.macs for layer in found.layers.values()) == 2 * found.cost.macs == 2 * 5 * 16 * 7


def profiled(name: str, macs: int, timing: Timing, layers: dict[str, Layer]) -> Profiled:
    return Profiled(name, pf.Cost(macs, 1, 1), timing, 8 / timing.median, layers, 4_000_000, 2_000_000)


def test_the_table_compares_with_the_first() -> None:
    timing = Timing(0.002, 0.0021, 0.0001, 0.0019, 0.0022, 0.003, 30)
    both = profiled("dense", 4_000_000, timing, {}), profiled("small", 1_000_000, timing._replace(median=0.004), {})
    table = Profile(both, 8, "a CPU", 1, "wall time").table()
    assert table.title == "a CPU, 1 threads, batch 8, wall time"
    assert table.rows[1][1:4] == ["1", "75.0%", "4.00"]
    assert table.rows[1][6:] == ["0.50×", "2000.0", "4 MB", "2 MB"]  # slower, and shown as it is


MACHINE = Balance(1e9, 1e8)
DENSE = Layer(1e-3, 1_000_000, 10_000, (16, 32), 1e-6)


@pytest.mark.parametrize(
    ("now", "cause", "text"),
    [
        (Layer(9e-4, 900_000, 9_000, (16, 28), 1e-6), KEPT, "it keeps 90% of its MACs, the network 50%"),
        (
            Layer(9e-4, 250_000, 250_000, (16, 8), 1e-6),
            BANDWIDTH,
            "1.0 MACs a byte (dense 100.0), and this machine does 10.0",
        ),
        (
            Layer(9e-4, 250_000, 5_000, (16, 9), 1e-6),
            UNALIGNED,
            f"at width 9, no multiple of {ALIGNED}: prune with round_to=8",
        ),
        (Layer(9e-4, 250_000, 5_000, (16, 8), 5e-4), START, "of 900 µs, 500 µs are starts of calls"),
        (
            Layer(9e-4, 250_000, 5_000, (16, 8), 1e-6),
            SMALLER,
            "278 MMACs a second (dense 1 GMACs): its kernel is less busy",
        ),
        (Layer(4e-4, 450_000, 5_000, (16, 8), 1e-6), FASTER, ""),
    ],
)
def test_reasons(now: Layer, cause: str, text: str) -> None:
    found = excess("a", DENSE, now, 0.5, MACHINE)
    assert found.seconds == pytest.approx(now.seconds - 0.5e-3)
    assert text in found.reason and (found.cause == cause or cause == FASTER)
    assert account({"a": DENSE}, {"a": now}, 0.5, MACHINE).causes[cause] != 0


def test_a_layer_that_always_waited_for_memory_has_another_reason() -> None:
    dense = Layer(1e-3, 1_000_000, 1_000_000, (16, 32), 1e-6)
    for moved, cause in ((500_000, SMALLER), (800_000, BANDWIDTH)):
        assert excess("a", dense, Layer(9e-4, 500_000, moved, (16, 32), 1e-6), 0.5, MACHINE).cause == cause


def test_layers_without_macs() -> None:
    dense, now = Layer(1e-3, 0, 4_000_000, (), 0.0), Layer(8e-4, 0, 2_000_000, (), 0.0)
    found = excess("norm", dense, now, 0.5, MACHINE)
    assert found.cause == NO_MACS and found.seconds == pytest.approx(3e-4)
    assert found.reason == "no multiplications: it moves 2 MB, 50% of before"


def test_widths_that_were_odd_before_are_no_reason() -> None:
    odd = DENSE._replace(widths=(3, 32))
    found = excess("a", odd, Layer(9e-4, 250_000, 5_000, (3, 9), 1e-6), 0.5, MACHINE)
    assert found.cause == SMALLER


def test_causes_add_up_to_the_difference() -> None:
    found = pf.profile(networks(), batch=4, rounds=3)
    dense, small = found.networks
    parts = found.account("small")
    assert parts.latency == pytest.approx(small.timing.median)
    assert parts.expected == pytest.approx(dense.timing.median * small.cost.macs / dense.cost.macs)
    assert sum(parts.causes.values()) == pytest.approx(parts.latency - parts.expected)
    assert tuple(parts.causes) == CAUSES and parts.causes[FASTER] <= 0
    every = {e.layer: e.seconds for e in found.excess("small", most=99)}
    for name, layer in small.layers.items():
        beyond = layer.seconds - dense.layers[name].seconds * small.cost.macs / dense.cost.macs
        assert every.get(name, 0) == pytest.approx(max(beyond, 0))


def test_balance_is_of_layers_that_take_a_while() -> None:
    quick = Layer(1e-6, 10**9, 10**9, (), 0.0)
    found = balance(
        {"quick": quick, "conv": Layer(1e-3, 3_000_000, 1_000, (), 0.0), "norm": Layer(1e-3, 0, 10_000, (), 0.0)}
    )
    assert found == Balance(pytest.approx(3e9), pytest.approx(1e7)) and found.macs_per_byte == pytest.approx(300)
    assert balance({}).macs_per_byte == 0


def test_what_did_not_fall_comes_first() -> None:
    found = pf.profile(networks(), rounds=3).excess("small", most=3)
    assert [e.seconds for e in found] == sorted((e.seconds for e in found), reverse=True) and len(found) <= 3


def test_wrong_calls() -> None:
    with pytest.raises(pf.PruneError, match=r"runtime is 'tvm'; write one of 'eager', 'compiled', 'onnx', 'openvino'"):
        pf.profile(networks(), runtime="tvm")
    with pytest.raises(pf.PruneError, match="a network and at least two rounds; it was given 0 and 30"):
        pf.profile({})
    with pytest.raises(pf.PruneError, match="no network 'tiny' beside 'dense'; there are small"):
        pf.profile(networks(), rounds=2).excess("tiny")
