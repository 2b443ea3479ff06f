"""What runs measured, in the terms of published tables: read from their folders or from their logs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..files.nest import read_nest
from ..files.yaml_text import read_yaml_file
from .published import data_name, model_name
from .run_folder import TRIAL, numbers, read, read_json

LINES, MASK = "metrics.jsonl", "mask.safetensors"
"""Log of the phases of a run; its mask over the dense network."""
HIDDEN = "hidden"
"""Kind of the groups that the papers prune."""


class Measured(NamedTuple):
    """A run; None or empty: it does not say."""

    name: str
    folder: str = ""
    """Folder below that of the page."""
    model: str = ""
    method: str = ""
    data: str = ""
    epochs: int | None = None
    """Epochs of training after the first pruning."""
    rounds: int = 1
    units_removed: float | None = None
    """Fraction of the hidden units."""
    other_kinds: Sequence[str] = ()
    """Kinds of the other groups that lost units."""
    results: Mapping[str, float] = {}
    """macs, params, macs_dense, params_dense; top1_dense, top1_before, top1_after, from 0 to 1; latency_ms, latency_ms_dense."""

    def numbers(self) -> dict[str, float]:
        """Return its numbers by the columns of published tables."""
        r, out = self.results, dict[str, float]()
        if self.units_removed is not None:
            out["units_removed"] = 100 * self.units_removed
        for name, column, unit in (("macs", "gmacs", 1e9), ("params", "params_m", 1e6)):
            if name in r:
                out[column] = r[name] / unit
            if {name, f"{name}_dense"} <= set(r):
                out[f"{name}_removed"] = 100 * (1 - r[name] / r[f"{name}_dense"])
        for when in ("before", "after"):
            if f"top1_{when}" in r:
                out[f"top1_{when}"] = 100 * r[f"top1_{when}"]
                if r.get("top1_dense"):
                    out[f"kept_{when}"] = 100 * r[f"top1_{when}"] / r["top1_dense"]
        if {"latency_ms", "latency_ms_dense"} <= set(r):
            out["speed_up"] = r["latency_ms_dense"] / r["latency_ms"]
        return out


def measured(source: Path) -> list[Measured]:
    """Return the pruned networks of a run's folder, of a directory of runs, of a sweep, or of a log (`metrics.jsonl`)."""
    if source.is_file():
        return [m for m in [_of_log(source.parent.name or source.stem, source)] if _is_pruned(m)]
    folders = [source] if numbers(source) else [*_folders(source)]
    runs = (_of_folder(f, "" if f == source else f.relative_to(source).as_posix()) for f in folders)
    return [m for m in runs if _is_pruned(m)]


def _folders(source: Path) -> Iterator[Path]:
    """Yield the folders of runs or trials below a folder."""
    for path in sorted([*source.glob("*"), *source.glob("trials/*")]):
        if path.is_dir() and numbers(path):
            yield path


def _is_pruned(m: Measured) -> bool:
    """Return whether the run has a pruned network with an accuracy."""
    r = m.results
    return bool({"top1_before", "top1_after"} & set(r)) and r.get("macs", 0) < r.get("macs_dense", float("inf"))


def _of_folder(folder: Path, below: str) -> Measured:
    """Return a run or trial; one that only trains a pruned network takes the rest from the run that pruned it."""
    found, config = numbers(folder), _config(folder)
    log = _of_log(folder.name, folder / LINES) if (folder / LINES).exists() else Measured(folder.name)
    units, others = _units(folder)
    m = log._replace(
        name=f"trial {int(folder.name)}" if folder.name.isdecimal() else folder.name,
        folder=below,
        model=model_name(_named(config.get("model"))),
        method=str(config.get("method") or ""),
        data=data_name(_named(config.get("data"))),
        units_removed=units,
        other_kinds=others,
        results={**{k: v for k, v in found.items() if isinstance(v, int | float)}, **log.results},
    )
    if (folder / TRIAL).exists() and "top1" in found:
        epochs = int(read_json(folder / "settings.json").get("epochs", 0))
        when = "top1_after" if epochs else "top1_before"
        m = m._replace(epochs=epochs, results={**m.results, when: found["top1"]})
    return _with_pruning(m, folder, config) if "accuracy_before" in config else m


def _with_pruning(m: Measured, folder: Path, config: Mapping[str, Any]) -> Measured:
    """Return a run of `prunefn finetune` with what the run beside it says that made its checkpoint."""
    checkpoint = Path(str((config.get("model") or {}).get("checkpoint") or ""))
    pruning = folder.parent / checkpoint.parent.name
    results = {**m.results, "top1_before": config["accuracy_before"], "top1_after": config["accuracy"]}
    log = folder / "train" / LINES
    epochs = sum("epoch" in row for row in _rows(log)) if log.exists() else None
    if checkpoint.parent.name and pruning != folder and numbers(pruning):
        base = _of_folder(pruning, "")
        dense = {k: v for k, v in base.results.items() if k.endswith("_dense")}
        m = m._replace(method=base.method, units_removed=base.units_removed, other_kinds=base.other_kinds)
        results |= dense
    return m._replace(epochs=epochs, results=results)


def _of_log(name: str, path: Path) -> Measured:
    """Return what the lines of a log say: the dense network, the rounds of pruning, the training after them."""
    rows = _rows(path)
    dense = next((r for r in rows if r.get("phase") == "dense"), {})
    rounds = [i for i, r in enumerate(rows) if str(r.get("phase", "")).startswith("prune")]
    results = {f"{k}_dense": dense[k] for k in ("macs", "params", "top1") if k in dense}
    if not rounds:
        return Measured(name, results=results)
    last = rows[rounds[-1]]
    trained = [r for r in rows[rounds[0] :] if "epoch" in r and not str(r["phase"]).endswith(", best")]
    after = [r for r in rows[rounds[-1] + 1 :] if "top1" in r]
    results |= {k: last[k] for k in ("macs", "params") if k in last}
    results |= {"top1_before": last["top1"]} if "top1" in last else {}
    results |= {"top1_after": after[-1]["top1"]} if after else {}
    return Measured(name, epochs=len(trained), rounds=len(rounds), results=results)


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log."""
    return read(path, lambda p: [json.loads(line) for line in p.read_text(encoding="utf-8").splitlines() if line])


def _config(folder: Path) -> dict[str, Any]:
    """Return the model, data and method of a run; of `prunefn finetune`, also its accuracies."""
    above = folder.parent.parent if (folder / TRIAL).exists() else folder  # trials have the config of their sweep
    path = above / "config.yaml"
    options = (read(path, read_yaml_file) or {}) if path.exists() else {}
    known = read_json(above / "config.json")
    pruning = options.get("prune") or {}
    out = {
        "model": options.get("model") or known.get("model"),
        "data": options.get("data") or known.get("data"),
        "method": str(known.get("prune") or pruning.get("recipe") or "").removesuffix("()"),
    }
    metrics = folder / "metrics.yaml"
    results = (read(metrics, read_yaml_file) or {}) if metrics.exists() else {}
    return out | ({k: results[k] for k in ("accuracy", "accuracy_before")} if "accuracy_before" in results else {})


def _named(section: Any) -> str:
    """Return the name of a section of a config, which may stand for it."""
    return str(section.get("name") or "") if isinstance(section, Mapping) else str(section or "")


def _units(folder: Path) -> tuple[float | None, tuple[str, ...]]:
    """Return the fraction of hidden units that the run's mask removes, and the kinds of other groups that lose units."""
    if not (folder / MASK).exists():
        return None, ()
    mask = read(folder / MASK, read_nest)["mask"]
    kinds = {n: str(g.get("kind")) for n, g in read_json(folder / "spec.json").get("groups", {}).items()}
    hidden = [m for g, m in mask.items() if kinds.get(g, HIDDEN) == HIDDEN]
    others = dict.fromkeys(kinds[g] for g, m in mask.items() if kinds.get(g, HIDDEN) != HIDDEN and not bool(m.all()))
    units = sum(len(m) for m in hidden)
    return (1 - sum(int(m.sum()) for m in hidden) / units if units else None), tuple(others)
