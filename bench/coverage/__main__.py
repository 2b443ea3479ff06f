"""`python -m bench.coverage`: every architecture, each in a process of its own with a time limit; resumable."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from .cases import CAP, absent, cases, choose_timm, packages_of
from .process import run
from .table import markdown

SUITES = ("timm", "timm-2", "torchvision", "transformers", "ultralytics", "packages")
PEERS = ("torch-pruning", "torch-kirigami")
RESULTS = Path(__file__).parent.parent / "results"
PACKAGES = ("torch", "torchvision", "timm", "transformers", "torch-pruning", "torch-kirigami")


def main(
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="timm, timm-2, torchvision, transformers; where they are installed, ultralytics and packages; all by default"
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="these models only")] = None,
    limit: Annotated[float, typer.Option(help="CPU seconds for one model")] = 180,
    peer_limit: Annotated[float, typer.Option(help="CPU seconds for one model with a peer; 0: no peers")] = 8,
    threads: Annotated[int, typer.Option(help="of torch")] = os.cpu_count() or 1,
    out: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
    choose: Annotated[bool, typer.Option(help="choose timm's representatives afresh, and stop")] = False,
) -> None:
    """Write coverage.csv and coverage.md; models that are in the file already are left as they are."""
    if choose:
        choose_timm()
        return
    out.mkdir(parents=True, exist_ok=True)
    path = out / "coverage.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    done = {(r["suite"], r["model"]) for r in rows}
    missing = [p for s in suite or SUITES for p in absent(s)]
    for package in missing:
        typer.echo(f"not run, because it is not installed: {package}", err=True)
    wanted = [c for s in suite or SUITES for c in cases(s) if only is None or c.name in only]
    todo = [c for c in wanted if (c.suite, c.name) not in done]
    for case in (bar := tqdm(todo, dynamic_ncols=True)):
        bar.set_postfix_str(case.name)
        start = time.perf_counter()
        row: dict[str, Any] = {"suite": case.suite, "model": case.name}
        row |= run(case.suite, case.name, "prunefn", threads, limit)
        for peer in PEERS if peer_limit else ():
            row |= run(case.suite, case.name, peer, threads, peer_limit)
        row["all_s"] = round(time.perf_counter() - start, 1)
        rows.append(row)
        write(path, rows)
    setting = f"Time limits {limit:.0f} s, a peer {peer_limit:.0f} s; {threads} thread(s). {versions({r['suite'] for r in rows})}"
    if missing:
        setting += f". Not installed, so that their models were not run: {', '.join(missing)}"
    (out / "coverage.md").write_text(markdown(rows, setting, CAP))


def versions(suites: Collection[str]) -> str:
    """The versions of what was run, and of what it was compared with."""
    distributions = importlib.metadata.packages_distributions()
    imported = [p for p in packages_of("packages") if "packages" in suites and p in distributions]
    names = dict.fromkeys([*PACKAGES, *(distributions[p][0] for p in imported)])
    return ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """All rows at once: the file is never half-written."""
    columns = list(dict.fromkeys(k for r in rows for k in r))
    part = path.with_suffix(".part")
    with part.open("w", newline="") as f:
        out = csv.DictWriter(f, columns, lineterminator="\n")
        out.writeheader()
        out.writerows(rows)
    part.replace(path)


if __name__ == "__main__":
    typer.run(main)
