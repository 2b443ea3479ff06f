"""The typer app: one command a module."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from .command import add
from .commands import (
    analyze,
    check,
    evaluate,
    export,
    finetune,
    inspect,
    llm,
    pat,
    profile,
    prune,
    report,
    sensitivity,
    sparsify,
    sweep,
    train,
)
from .commands.config import config
from .demo.command import demo
from .streams import PIPE, flush, prepare, reader_gone, silence


class App(typer.Typer):
    """The command line as a process: what it prints reaches its reader, or its exit code says why not."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command of `sys.argv`, and exit."""
        prepare()
        try:
            try:
                super().__call__(*args, **kwargs)
            finally:
                flush()
        except OSError as error:
            gone = reader_gone()
            silence()
            sys.exit(PIPE if gone else f"error: what is printed cannot be written: {error}")


app = App(no_args_is_help=True, pretty_exceptions_show_locals=False, rich_markup_mode="rich")


def _version(requested: bool) -> bool:
    if requested:
        from prunefn._version import __version__

        typer.echo(f"prunefn {__version__}")
        raise typer.Exit()
    return requested


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Functional pruning for PyTorch."""


app.command()(demo)
MODULES = (
    inspect,
    train,
    evaluate,
    prune,
    sparsify,
    pat,
    finetune,
    export,
    profile,
    analyze,
    sensitivity,
    sweep,
    report,
    check,
)
for module in MODULES:
    add(app, module.COMMAND)
app.command()(config)
language_models = typer.Typer(no_args_is_help=True, help="Language models of transformers, from folder to folder.")
for command in (llm.PRUNE, llm.PERPLEXITY):
    add(language_models, command)
app.add_typer(language_models, name="llm")
