"""Pages of the API reference: one for the steps of a pruning, one for each public namespace."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import prunefn as pf

from .fences import fenced

STEPS = {
    title: names.split()
    for title, names in {
        "Trace": "trace save_spec load_spec Spec Cost cost Params params",
        "Measure and score": "collect_stats merge_stats sync_stats stats_bytes save_stats load_stats Stats score Scores "
        "Criterion Collector perplexity sensitivity Sensitivity Effect eliminate Eliminated",
        "Choose": "select mask Mask kept kept_positions compose uniform_ratio target only kind glob module touches exact",
        "Remove": "compensate residual apply zero shrink expand recalibrate recover pipeline prune_submodule "
        "remap shrink_tokenizer needed_tokens",
        "Run": "forward forward_train to_module",
        "Files": "save load load_params lazy_params apply_checkpoint prune_pretrained recover_pretrained save_logits "
        "load_logits DenseLogits",
        "Costs and times": "memory Memory metrics compare Metrics profile Profile latency latency_table LatencyTable Call Clock soft_cost "
        "soft_latency SoftCost",
        "Errors": "PruneError TraceError ParamsError BatchError StatsError MaskError BudgetError PruneWarning",
    }.items()
}
"""Names of `pf` by the step that they belong to."""
NESTED = {
    "sparse": ("criteria", "pattern", "scope"),
    "train": ("losses", "optimizer", "regularizers", "schedule"),
}
"""Namespaces within namespaces."""


def pages() -> dict[str, str]:
    """Return file name → Markdown of every page of the reference.

    Raises:
        AssertionError: a public name of `pf` is on no page, or on several.
    """
    modules = {n: getattr(pf, n) for n in pf.__all__ if inspect.ismodule(getattr(pf, n))}
    listed = [n for names in STEPS.values() for n in names]
    others = {n for n in pf.__all__ if n not in modules and not n.startswith("_")}
    assert sorted(listed) == sorted(others), f"not once on a page: {set(listed) ^ others}"
    out = {f"{_slug(title)}.md": _page(title, "", [f"prunefn.{n}" for n in names]) for title, names in STEPS.items()}
    for name, module in modules.items():
        out |= {f"{name}.md": namespace(f"pf.{name}", module)}
        for inner in NESTED.get(name, ()):
            out |= {f"{name}_{inner}.md": namespace(f"pf.{name}.{inner}", getattr(module, inner))}
    out["README.md"] = _index(modules)
    return out


def namespace(title: str, module: ModuleType) -> str:
    """Return the page of a namespace: its docstring, and everything in its menu."""
    names = [n for n in module.__all__ if not inspect.ismodule(getattr(module, n))]
    text = inspect.getdoc(module) or ""
    return _page(
        title, fenced(text), [f"{module.__name__}.{n}" for n in sorted(names, key=lambda n: _order(module, n))]
    )


def _order(module: ModuleType, name: str) -> tuple[bool, str]:
    """Return the place of a name on its page: functions first, then types."""
    return inspect.isclass(getattr(module, name)), name.lower()


def _page(title: str, text: str, paths: list[str]) -> str:
    parts = [f"# {title}", text, *(f"::: {path}" for path in paths)]
    return "\n\n".join(p for p in parts if p) + "\n"


def _index(modules: dict[str, ModuleType]) -> str:
    """Return the page that lists all others, with the first line of everything."""
    lines = ["# API reference", "", "`import prunefn as pf`", ""]
    for title, names in STEPS.items():
        lines += ["", f"## [{title}]({_slug(title)}.md)", "", "| | |", "|---|---|"]
        lines += [f"| [`pf.{n}`]({_slug(title)}.md#prunefn.{n}) | {_first_line(getattr(pf, n))} |" for n in names]
    lines += ["", "## Namespaces", "", "| | |", "|---|---|"]
    for name, module in modules.items():
        lines.append(f"| [`pf.{name}`]({name}.md) | {_first_line(module)} |")
        lines += [
            f"| [`pf.{name}.{inner}`]({name}_{inner}.md) | {_first_line(getattr(module, inner))} |"
            for inner in NESTED.get(name, ())
        ]
    return "\n".join(lines) + "\n"


def _first_line(value: Any) -> str:
    """Return the first line of a docstring; empty for values, whose types have their own."""
    has_own = inspect.ismodule(value) or inspect.isclass(value) or inspect.isfunction(value)
    text = (inspect.getdoc(value) or "") if has_own and value is not dict else ""
    return text.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def _slug(title: str) -> str:
    return title.lower().replace(" ", "_")
