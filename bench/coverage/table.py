"""coverage.csv → Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

Row = dict[str, Any]


def markdown(rows: Sequence[Row], setting: str, cap: float) -> str:
    """Totals for each suite, every model that is not whole, and a line for each model."""
    rows = [{k: "" if v is None else str(v) for k, v in r.items()} for r in rows]
    suites = list(dict.fromkeys(r["suite"] for r in rows))
    lines = [
        "# Coverage",
        "",
        "Half of every group of every model is removed: residual streams, heads and head_dims included. A model is **right** "
        "when it was traced, `forward` gives the module's output, removing units equals zeroing them (law 3), another order "
        "of the units of all groups gives the same output, the cost is what a counter counts, and nothing else was wrong. "
        "**Class**: the original class was rebuilt, gives `forward`'s output, and can be copied, pickled and traced again; "
        "*in part*: its own code ties sizes together (heads × head_dim to the width, halves of a chunk), so that some kinds "
        "of groups were left whole there. A peer's model *runs* when it takes another batch and gives finite numbers within "
        "the time limit; nothing else is checked of it. Seconds are CPU seconds.",
        "",
        f"Of a series, models of more than {cap / 1e6:.0f} M parameters are left out, unless they are its smallest. {setting}.",
        "",
        "| suite | models | right | prunable (median) | under 60 % | removed (median) | class | in part | "
        "Torch-Pruning runs | removed (median) | torch-kirigami runs | removed (median) |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        *(_total(s, [r for r in rows if r["suite"] == s]) for s in suites),
        _total("all", rows),
        "",
        *without_rule([r for r in rows if r.get("ops")]),
        "## Not whole",
        "",
        *_not_whole(rows),
        "",
        "## Models",
        "",
        "| model | capture | groups | prunable | removed | MACs removed | class | trace s | all s | peak MB | frozen axes "
        "| Torch-Pruning | torch-kirigami |",
        "|---|---|--:|--:|--:|--:|---|--:|--:|--:|---|---|---|",
        *map(_line, rows),
    ]
    return "\n".join(lines) + "\n"


def right(r: Row) -> bool:
    """Traced, and nothing wrong."""
    return not r.get("error") and not r.get("wrong")


def _total(name: str, rows: Sequence[Row]) -> str:
    ok = [r for r in rows if not r.get("error")]
    cells: list[object] = [name, len(rows), sum(map(right, rows)), _median(ok, "prunable")]
    cells += [sum(float(r["prunable"]) < 0.6 for r in ok), _median(ok, "removed")]
    cells += [sum(r["class"] == "all" for r in ok), sum(r["class"] not in ("", "all") for r in ok)]
    for peer in ("torch-pruning", "torch-kirigami"):
        tried, runs = [r for r in rows if r.get(peer)], [r for r in rows if r.get(peer) == "runs"]
        cells += [f"{len(runs)} of {len(tried)}" if tried else "not tried", _median(runs, f"{peer} removed")]
    return "| " + " | ".join(map(str, cells)) + " |"


def without_rule(rows: Sequence[Row]) -> list[str]:
    """The shares of models, axes and ops that are frozen because an op has no rule."""
    if not rows:
        return []
    total = {k: sum(int(r[k]) for r in rows) for k in ("axes", "axes_without_rule", "ops", "ops_without_rule")}
    models = sum(int(r["ops_without_rule"]) > 0 for r in rows)
    return [
        f"Frozen for want of a rule: {models} of {len(rows)} models ({models / len(rows):.1%}), {total['axes_without_rule']} of "
        f"{total['axes']} axes of parameters ({total['axes_without_rule'] / max(total['axes'], 1):.1%}), {total['ops_without_rule']} of "
        f"{total['ops']} ops ({total['ops_without_rule'] / max(total['ops'], 1):.1%}).",
        "",
    ]


def _median(rows: Sequence[Row], key: str) -> str:
    return f"{median(float(r[key]) for r in rows):.1%}" if rows else ""


def _not_whole(rows: Sequence[Row]) -> list[str]:
    out = []
    for r in rows:
        why = [r.get("error", ""), r.get("wrong", "")]
        if not r.get("error"):
            why += [f"{float(r['prunable']):.0%} prunable ({r['frozen'][:200]})"] if float(r["prunable"]) < 0.6 else []
            why += [f"no rule: {r['unknown']}"] if r.get("unknown") else []
            error = (
                r["class_error"].partition(" cannot be rebuilt at these sizes: ")[2].partition(". Its code may tie")[0]
            )
            why += [f"class: {r['class'] or 'no'}, because all: {error}"] if r["class"] != "all" else []
        if any(why):
            out.append(f"- `{r['model']}`: " + "; ".join(w for w in why if w).replace("|", "/").replace("\n", " "))
    return out


def _line(r: Row) -> str:
    if r.get("error"):
        cells = [f"`{r['model']}`", r["error"].replace("|", "/").replace("\n", " ")[:120], *[""] * 9]
    else:
        shares = [f"{float(r[k]):.1%}" for k in ("prunable", "removed", "macs_removed")]
        cells = [f"`{r['model']}`", r["capture"], r["groups"], *shares, r["class"] or "no"]
        cells += [r["trace_s"], r["seconds"], r["peak_mb"], r["frozen"]]
    for peer in ("torch-pruning", "torch-kirigami"):
        said, gone = r.get(peer, ""), r.get(f"{peer} removed", "")
        cells.append(f"runs, {float(gone):.1%}" if said == "runs" else said.replace("|", "/").replace("\n", " ")[:80])
    return "| " + " | ".join(map(str, cells)) + " |"
