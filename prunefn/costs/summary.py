"""What a pruned network is, beside the dense one, in a line: the numbers that every run writes down."""

from __future__ import annotations

from collections.abc import Mapping

from ..spec.parts import Cost


def summarize(
    dense: Cost,
    pruned: Cost,
    metrics: Mapping[str, float] | None = None,
    dense_metrics: Mapping[str, float] | None = None,
) -> dict[str, int | float]:
    """Return macs, params and metrics of a pruned network, each beside that of the dense one, and macs_removed, a ratio.

    Args:
        dense, pruned: costs.
        metrics, dense_metrics: name → value; those that both have are in the summary.

    >>> summarize(Cost(200, 10, 4), Cost(150, 8, 3), {"top1": 0.8}, {"top1": 0.9})["macs_removed"]
    0.25
    """
    out: dict[str, int | float] = {"macs": pruned.macs, "params": pruned.params, "macs_dense": dense.macs}
    out |= {"params_dense": dense.params, "macs_removed": 1 - pruned.macs / dense.macs}
    before = dense_metrics or {}
    for name, value in (metrics or {}).items():
        if name in before:
            out |= {name: value, f"{name}_dense": before[name]}
    return out


def points_lost(metrics: Mapping[str, float], dense_metrics: Mapping[str, float]) -> float:
    """Return the percentage points of top-1 that a network has less than the dense one.

    >>> points_lost({"top1": 0.875}, {"top1": 0.9375})
    6.25
    """
    return 100 * (dense_metrics["top1"] - metrics["top1"])
