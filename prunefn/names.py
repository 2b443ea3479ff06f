"""Match names of tensors and modules against globs."""

from __future__ import annotations

from fnmatch import fnmatchcase


def named(name: str, pattern: str) -> bool:
    """Return whether a name matches a pattern: the name itself, a module that contains it, or a glob for either.

    >>> [named("layer1.0.conv1.weight", p) for p in ("layer1.0.conv1.weight", "layer1", "*.conv1", "layer1.0.conv")]
    [True, True, True, False]
    """
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.") or fnmatchcase(name, f"{pattern}.*")
