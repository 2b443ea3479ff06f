"""The typer app: one command a module."""

from __future__ import annotations

from typing import Annotated

import typer

from .demo.command import demo

app = typer.Typer(help="Functional pruning for PyTorch.", no_args_is_help=True, pretty_exceptions_show_locals=False)


def _version(wanted: bool) -> None:
    if wanted:
        from prunefn import __version__

        typer.echo(f"prunefn {__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Functional pruning for PyTorch."""


app.command()(demo)
