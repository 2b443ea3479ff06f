"""The JSON config: what is wrong with it is said in a line, key and value; it is only ever read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import prunefn as pf
from prunefn.pruning.config import ChannelArgs, Config, SliceArgs, load

CHANNEL: dict[str, Any] = {
    "is_prune": True, "global_pruning": True, "block_size": 2, "start_epoch": 2, "end_epoch": 8, "epoch_rate": 2,
    "global_prune_rate": 0.6, "max_pruning_rate": 0.9, "mac_target": 0.0, "prune_at_target": False, "reach_mac_target": False,
    "log_str": "", "pruning_method": "GroupNormPruner", "prune_channels_at_init": False, "infer": False, "isomorphic": False,
    "regularize": {"reg": 1e-4, "mac_reg": 0, "gamma": 1, "alpha_shrinkage_reg": 4},
    "MAC_params": {"use_macs": True, "type": "Mul", "alpha": 0.9, "beta": 2},
    "layers": ["module.layer1.conv1", "layer2.module.conv1"], "input_shape": [1, 3, 32, 32], "container": None,
}  # fmt: skip
SLICE: dict[str, Any] = {
    "is_prune": True, "block_size": 8, "start_epoch": 2, "end_epoch": 8, "epoch_rate": 2, "prune_rate": 0.6,
    "pruning_gradually": True, "pruning_mode": "Prune", "disable_first_index": True, "pruning_method": "L2_norm", "reg": 0.001,
}  # fmt: skip


def channel(**changes: Any) -> ChannelArgs:
    args = load({"channel_sparsity_args": CHANNEL | changes}).channel_sparsity_args
    assert args is not None
    return args


def slice_args(**changes: Any) -> SliceArgs:
    args = load({"slice_sparsity_args": SLICE | changes}).slice_sparsity_args
    assert args is not None
    return args


def test_the_whole_file_is_read_and_not_written(tmp_path: Path) -> None:
    path = tmp_path / "pruning_config.json"
    text = json.dumps({"channel_sparsity_args": CHANNEL, "slice_sparsity_args": SLICE}, indent=1)
    path.write_text(text)
    path.chmod(0o444)
    config = load(path)
    assert config == load(str(path)) == load(json.loads(text)) and hash(config) == hash(load(path))
    args = config.channel_sparsity_args
    assert args is not None and args.layers == ("layer1.conv1", "layer2.module.conv1")
    assert args.input_shape == (1, 3, 32, 32) and args.MAC_params.beta == 2.0
    assert path.read_text() == text and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_defaults() -> None:
    least = {k: CHANNEL[k] for k in ("global_pruning", "block_size", "start_epoch", "end_epoch", "epoch_rate")}
    args = load(
        {"channel_sparsity_args": least | {"global_prune_rate": 0.5, "pruning_method": "LAMP", "layers": ["a"]}}
    ).channel_sparsity_args
    assert args is not None
    assert (args.is_prune, args.prune_at_target, args.isomorphic, args.mac_target) == (True, False, False, 0.0)
    assert (args.regularize.gamma, args.regularize.alpha_shrinkage_reg) == (1, 4)
    assert tuple(args.MAC_params.model_dump().values()) == (True, "Sum", 0.9, 2.0)
    assert Config(channel_sparsity_args=args).slice_sparsity_args is None


def test_it_cannot_be_changed() -> None:
    args = channel()
    with pytest.raises(ValueError, match="frozen"):
        args.mac_target = 0.5  # type: ignore[misc]


def test_golden_schedule() -> None:
    """K = 3 epochs of [2, 8) are even: 2, 4, 6; (j + 1) / 3 of .6; nothing before 2, all from 8 on."""
    by_hand = [0, 0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.6, 0.6]
    assert [channel().ratio(e) for e in range(10)] == pytest.approx(by_hand)
    assert [slice_args().ratio(e) for e in range(10)] == pytest.approx(by_hand)
    assert [slice_args(pruning_gradually=False).ratio(e) for e in range(10)] == [0, 0, *[0.6] * 8]
    as_if = channel(prune_at_target=True, mac_target=0.5)
    assert [as_if.ratio(e) for e in range(10)] == pytest.approx([x / 0.6 for x in by_hand])
    assert [channel(infer=True).ratio(e) for e in (0, 9)] == [0.6, 0.6]
    odd = channel(start_epoch=1, end_epoch=8, epoch_rate=3)
    assert [odd.ratio(e) for e in range(9)] == pytest.approx([0, 0, 0, 0.3, 0.3, 0.3, 0.6, 0.6, 0.6])


CHANNEL_PROBLEMS: list[tuple[dict[str, Any], str]] = [
    ({"block_sise": 4}, "block_sise is no option of channel_sparsity_args; did you mean 'block_size'?"),
    (
        {"regularize": {"regg": 1}},
        "regularize.regg is no option of channel_sparsity_args.regularize; did you mean 'reg'",
    ),
    ({"MAC_params": {"type": "Max"}}, "MAC_params.type is \"Max\"; it must be 'Sum' or 'Mul'"),
    ({"MAC_params": 3}, "MAC_params is 3; it must be an object"),
    ({"start_epoch": "3"}, 'start_epoch is "3"; it must be a whole number'),
    ({"start_epoch": 1.5}, "start_epoch is 1.5; it must be a whole number"),
    ({"start_epoch": -1}, "start_epoch is -1; it must be at least 0"),
    ({"is_prune": 1}, "is_prune is 1; it must be true or false"),
    ({"global_prune_rate": True}, "global_prune_rate is true; it must be a number"),
    ({"global_prune_rate": float("nan")}, "global_prune_rate is NaN; it must be a finite number"),
    ({"start_epoch": 8}, "end_epoch is 8; it must be above start_epoch, 8"),
    ({"epoch_rate": 0}, "epoch_rate is 0; it must be at least 1"),
    ({"epoch_rate": 9}, r"epoch_rate is 9, and no epoch in [2, 8) is a multiple of it"),
    ({"mac_target": 1.5}, "mac_target is 1.5; it must be at most 1"),
    ({"mac_target": -0.1}, "mac_target is -0.1; it must be at least 0"),
    ({"pruning_method": "GroupNorm"}, "pruning_method is \"GroupNorm\"; it must be 'BNScalePruner', 'GroupNormPruner'"),
    ({"pruning_method": "GroupNorm"}, "did you mean 'GroupNormPruner'"),
    ({"layers": []}, "layers is []; name the modules"),
    ({"layers": "conv1"}, 'layers is "conv1"; it must be a list'),
    ({"input_shape": [1, 0]}, "input_shape is [1, 0]; it must be [B, C, H, W]"),
    ({"container": "list"}, "container is \"list\"; it must be 'tuple'"),
    ({"prune_at_target": True}, "prune_at_target is true, but mac_target is 0"),
    ({"global_prune_rate": 1.0, "max_pruning_rate": 1.0}, "global_prune_rate is 1, which would remove everything"),
    ({"global_prune_rate": 0.95}, "global_prune_rate is 0.95, but no group may lose more than max_pruning_rate, 0.9"),
]


@pytest.mark.parametrize("changes, message", CHANNEL_PROBLEMS)
def test_channel_problems(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(pf.PruneError) as found:
        channel(**changes)
    assert ("" if message.startswith("did") else "\n  channel_sparsity_args.") + message in str(found.value)
    assert "pydantic" not in str(found.value) and len(str(found.value).splitlines()) == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prune_rate": 1}, "prune_rate is 1; it must be below 1"),
        ({"pruning_mode": "prune"}, "pruning_mode is \"prune\"; it must be 'Prune' or 'Unprune'"),
        ({"pruning_method": "L1_norm"}, "pruning_method is \"L1_norm\"; it must be 'L2_norm'"),
        ({"start_epoch": 9}, "end_epoch is 8; it must be above start_epoch, 9"),
        ({"reg": -1}, "reg is -1; it must be at least 0"),
    ],
)
def test_slice_problems(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(pf.PruneError) as found:
        slice_args(**changes)
    assert f"\n  slice_sparsity_args.{message}" in str(found.value)


def test_every_problem_has_its_line() -> None:
    lacking = {k: v for k, v in CHANNEL.items() if k not in ("block_size", "layers")}
    with pytest.raises(pf.PruneError) as found:
        load({"channel_sparsity_args": lacking | {"mac_target": 2, "blok": 1}, "slice": {}})
    first, *lines = str(found.value).splitlines()
    assert first == "the pruning config has 4 problems:"
    assert [line.split()[0].rpartition(".")[2] for line in lines] == ["block_size", "mac_target", "blok", "slice"]
    assert "block_size is missing" in lines[0] and "slice_sparsity_args" in lines[3]


def test_what_does_not_prune_is_not_held_to_a_schedule() -> None:
    off = {"is_prune": False, "start_epoch": 0, "end_epoch": 0}
    assert not channel(**off, layers=[]).is_prune and not slice_args(**off).enabled
    assert not slice_args(pruning_mode="Unprune").enabled
    assert channel(prune_channels_at_init=True, start_epoch=0, end_epoch=0).at_once


@pytest.mark.parametrize("data", [{}, {"channel_sparsity_args": None}])
def test_nothing_to_do(data: dict[str, Any]) -> None:
    with pytest.raises(pf.PruneError, match="channel_sparsity_args is missing, and slice_sparsity_args, too"):
        load(data)


@pytest.mark.parametrize(
    "text, message",
    [("{", "not valid JSON"), ('{"a": 1, "a": 2}', "'a' stands twice"), ("[1]", "it must be an object")],
)
def test_no_such_file_is_taken(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pruning_config.json"
    path.write_text(text)
    with pytest.raises(pf.PruneError, match=message) as found:
        load(path)
    assert str(path) in str(found.value) and path.read_text() == text
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.json")


@pytest.mark.parametrize("end", [10**12, 10**400])
def test_end_epoch_of_any_size(end: int) -> None:
    """No epoch is counted one by one."""
    args = SliceArgs(block_size=2, start_epoch=0, end_epoch=end, epoch_rate=1, prune_rate=0.5)
    assert args.fraction(0) == 1 / end and args.fraction(end - 1) == args.fraction(end + 5) == 1
    with pytest.raises(ValidationError, match="no epoch in"):
        SliceArgs(block_size=2, start_epoch=1, end_epoch=end, epoch_rate=end, prune_rate=0.5)
    assert args.fraction(-3) == 0


def test_fraction_counts_the_epochs_that_prune() -> None:
    for start, end, rate in ((0, 1, 1), (1, 6, 2), (3, 17, 5), (4, 5, 4), (0, 9, 10)):
        args = SliceArgs(block_size=2, start_epoch=start, end_epoch=end, epoch_rate=rate, prune_rate=0.5)
        at = [i for i in range(start, end) if i % rate == 0]
        assert [args.fraction(e) for e in range(20)] == [sum(i <= e for i in at) / len(at) for e in range(20)]
