"""The command line: `prunefn --help`. Without the extra `cli` it says what to install."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def _app() -> Callable[..., Any]:
    try:
        from .main import app
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "click"):
            raise
        return _missing
    return app


def _missing() -> None:
    sys.exit("prunefn: the command line needs typer and rich (the extra `cli`): pip install typer rich")


app = _app()
