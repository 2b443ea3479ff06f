"""Read the numbers of one run: its own, and those of the dense network."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from yaml import YAMLError

from ..display.units import quantity
from ..errors import PruneError
from ..files.yaml_text import read_yaml_file
from .cells import heading, shown
from .goal import Goal, dense_of

METRICS, SUMMARY, TRIAL = "metrics.yaml", "summary.json", "results.json"
"""Files with the numbers of a run: of any command, of a pruning, of a sweep's trial."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if the file does not exist."""
    content = read(path, lambda p: json.loads(p.read_text(encoding="utf-8"))) if path.exists() else {}
    return content if isinstance(content, dict) else {"value": content}


def read(path: Path, parse: Callable[[Path], Any]) -> Any:
    """Return the parsed file.

    Raises:
        PruneError: it cannot be parsed.
    """
    try:
        return parse(path)
    except (ValueError, ParseError, YAMLError, csv.Error) as error:
        raise PruneError(f"{path} cannot be read ({error}); delete it, or write it again") from error


def numbers(folder: Path) -> dict[str, Any]:
    """Return the numbers of a run: macs, params, top1, …, those of the dense network as macs_dense, …; empty if it has none.

    They come from `summary.json`, or from `results.json` of a trial, or from `metrics.yaml`.
    """
    summary = read_json(folder / SUMMARY)
    if "macs" in summary or (summary and not (folder / METRICS).exists()):
        return summary
    if (folder / TRIAL).exists():
        return _of_trial(read_json(folder / TRIAL))
    path = folder / METRICS
    return {**summary, **of_metrics(read(path, read_yaml_file) or {})} if path.exists() else summary


def of_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a `metrics.yaml`.

    >>> of_metrics({"accuracy": 0.5, "flops_g": 2.0, "flops_reduction_pct": 50.0, "accuracy_drop": 10.0})["macs_dense"]
    4000000000.0
    """
    out: dict[str, Any] = {}
    for name, key, scale in (("macs", "flops_g", 1e9), ("params", "params_m", 1e6), ("top1", "accuracy", 1.0)):
        if metrics.get(key) is not None:
            out[name] = metrics[key] * scale
    removed, lost = metrics.get("flops_reduction_pct"), metrics.get("accuracy_drop")
    if removed is not None and removed < 100 and "macs" in out:
        out |= {"macs_removed": removed / 100, "macs_dense": out["macs"] / (1 - removed / 100)}
    if lost is not None and "top1" in out:
        out["top1_dense"] = out["top1"] + lost / 100
    out |= {k: metrics[k] for k in ("sparsity", "latency_ms", "epochs") if metrics.get(k) is not None}
    return out


def _of_trial(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a trial, those of the dense network included."""
    out = dict(results)
    if dense := dense_of(results):
        out |= {"macs_dense": round(dense.macs), "top1_dense": dense.top1}
    if {"params", "params_removed"} <= set(results) and results["params_removed"] < 1:
        out["params_dense"] = round(results["params"] / (1 - results["params_removed"]))
    return out


def verdict(found: Mapping[str, Any], goal: Goal = Goal()) -> str:  # noqa: B008
    """Return the line at the top of a run's page.

    >>> verdict({"macs_removed": 0.5, "top1": 0.7, "top1_dense": 0.71}, Goal(0.4, 0.5)).partition(" (")[0]
    '50.0 % of the MACs removed for 1.00 points of top-1: the goal is not met'
    >>> verdict({"macs_removed": 0.5, "top1": 0.7, "top1_dense": 0.7}).partition(" (")[0]
    '50.0 % of the MACs removed without a loss of top-1: the goal is met'
    """
    removed = found.get("macs_removed")
    if removed is None:
        known = [quantity(found["macs"], "MACs")] if "macs" in found else []
        known += [f"top-1 {shown('top1', found['top1'])}"] if "top1" in found else []
        return ", ".join(known)
    start = f"{shown('macs_removed', removed)} of the MACs removed"
    if "top1" not in found or "top1_dense" not in found:
        return f"{start}; accuracy was not measured."
    lost = 100 * (found["top1_dense"] - found["top1"])
    price = f"for {lost:.2f} points of top-1" if lost > 0 else f"and {-lost:.2f} points of top-1 gained"
    price = "without a loss of top-1" if abs(lost) < 0.005 else price
    met = goal.met({"macs_removed": removed, "points_lost": lost})
    return f"{start} {price}: the goal is {'met' if met else 'not met'} ({goal})."


def cards(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (name, value, note) for every number that has a dense counterpart, or, if there is none, for those of the network."""
    pairs = {k: (found[f"{k}_dense"], found[k]) for k in found if f"{k}_dense" in found}
    out = []
    for name, word in (("macs", "MACs removed"), ("params", "Parameters removed")):
        if name in pairs:
            dense, pruned = pairs.pop(name)
            removed = shown("macs_removed", 1 - pruned / dense) if dense else ""
            out.append((word, removed, f"{shown(name, dense)} → {shown(name, pruned)}"))
    for name, (dense, pruned) in pairs.items():
        if name == "top1":
            points = f"{100 * (pruned - dense):+.2f}".replace("-", "−")
            out.append(("Top-1", shown(name, pruned), f"dense {shown(name, dense)}, {points} points"))
        else:
            out.append((heading(name).capitalize(), shown(name, pruned), f"dense {shown(name, dense)}"))
    if out:
        return out
    seconds = {"latency": found["latency_ms"] / 1e3} if found.get("latency_ms") is not None else {}
    plain = {"macs": "MACs", "params": "Parameters", "top1": "Top-1", "latency": "Latency"}
    known = {**found, **seconds}
    return [(word, shown(name, known[name]), "") for name, word in plain.items() if known.get(name) is not None]
