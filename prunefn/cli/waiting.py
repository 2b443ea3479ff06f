"""What is shown while libraries work: a spinner, and none of their own warnings."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from ..errors import PruneWarning
from .streams import complain

_SHOWN: ContextVar[bool] = ContextVar("shown", default=False)


@contextlib.contextmanager
def spinners(shown: bool) -> Iterator[None]:
    """Show spinners within, or none, because a machine reads or another process shows them."""
    token = _SHOWN.set(shown)
    try:
        yield
    finally:
        _SHOWN.reset(token)


@contextlib.contextmanager
def spinner(text: str, *, line: bool = True) -> Iterator[None]:
    """Show a spinner on a terminal until the end of the block; elsewhere a line, if there is to be one."""
    if not _SHOWN.get():
        yield
    elif sys.stderr is not None and sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(text):
            yield
    else:
        if line:
            complain(text)
        yield


@contextlib.contextmanager
def silent_libraries() -> Iterator[None]:
    """Show no warnings and logs of other packages within: a user of the command line can do nothing about them."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # is read when torch is imported
    disabled, show_any = logging.root.manager.disable, warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        if issubclass(category, PruneWarning):
            show_any(message, category, *rest)

    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show  # not a filter: what is an error in the tests stays one
            yield
    finally:
        logging.disable(disabled)
