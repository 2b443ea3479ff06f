"""The command `prunefn config`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..command import report_errors
from ..completion import complete_shipped_config
from ..layers import resolve, shipped_configs
from ..sections import Config


def config(
    name: Annotated[
        str | None,
        typer.Argument(help="A config that comes with the package: print it.", autocompletion=complete_shipped_config),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of all options.")] = False,
    check: Annotated[str | None, typer.Option("--check", help="A YAML file: say whether it is valid.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """List the configs that come with the package, print one, check a file, or print the JSON schema."""
    with report_errors(debug):
        configs = shipped_configs()
        if schema:
            print(json.dumps(Config.model_json_schema(), indent=2))
        elif check is not None:
            resolve([check], {})
            print(f"{check} is valid")
        elif name is not None:
            resolve([name], {})
            print(configs[name] if name in configs else Path(name).read_text(encoding="utf-8"), end="")
        else:
            for each, text in configs.items():
                print(f"{each}: {text.splitlines()[0].lstrip('# ')}")
