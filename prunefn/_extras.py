"""Optional packages: an error that says which extra brings a missing one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str, purpose: str, fallback: str = "") -> Iterator[None]:
    """Around imports of optional packages.

    Args:
        extra: of prunefn that has them.
        purpose: what they are imported for.
        fallback: what else would do.

    Raises:
        ModuleNotFoundError: one is not installed; says how to install it.

    >>> with needs("vision", "open_data('cifar10')"):
    ...     import no_such_package
    Traceback (most recent call last):
    ModuleNotFoundError: open_data('cifar10') needs no_such_package: pip install "prunefn[vision]"
    """
    try:
        yield
    except ModuleNotFoundError as e:
        text = f'{purpose} needs {e.name}: pip install "prunefn[{extra}]"{fallback}'
        raise ModuleNotFoundError(text, name=e.name) from e
