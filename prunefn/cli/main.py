"""The typer app: one command a module."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .command import add, add_name
from .commands import COMMANDS, LANGUAGE_MODELS
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


class Group(TyperGroup):
    """The commands. A command gets its flags when it is called or completed, because those of all commands take long."""

    described = COMMANDS

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Return the name, the command with its flags, and the other arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        described = next((c for c in self.described if c.name == name), None)
        if described is not None:
            alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
            add(alone, described)
            command = typer.main.get_command(alone)
        return name, command, rest


class LanguageModels(Group):
    """The commands of `prunefn llm`."""

    described = LANGUAGE_MODELS


app = App(cls=Group, no_args_is_help=True, pretty_exceptions_show_locals=False, rich_markup_mode="rich")


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
for command in COMMANDS:
    add_name(app, command)
app.command()(config)
language_models = typer.Typer(
    cls=LanguageModels, no_args_is_help=True, help="Language models of transformers, from folder to folder."
)
for command in LANGUAGE_MODELS:
    add_name(language_models, command)
app.add_typer(language_models, name="llm")
