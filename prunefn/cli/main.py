"""The typer app: one command a module."""

from __future__ import annotations

from typing import Annotated

import typer

from .command import add
from .commands import (
    analyze,
    check,
    evaluate,
    export,
    finetune,
    inspect,
    pat,
    profile,
    prune,
    report,
    sparsify,
    sweep,
    train,
)
from .commands.config import config
from .demo.command import demo

app = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False, rich_markup_mode="rich")


def _version(wanted: bool) -> bool:
    if wanted:
        from prunefn import __version__

        typer.echo(f"prunefn {__version__}")
        raise typer.Exit()
    return wanted


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Functional pruning for PyTorch."""


app.command()(demo)
MODULES = (inspect, train, evaluate, prune, sparsify, pat, finetune, export, profile, analyze, sweep, report, check)
for module in MODULES:
    add(app, module.COMMAND)
app.command()(config)
