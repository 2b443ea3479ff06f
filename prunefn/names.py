"""Names of tensors and modules, and globs for them."""

from __future__ import annotations

from fnmatch import fnmatchcase


def named(name: str, pattern: str) -> bool:
    """Whether a name is what a pattern says: the name itself, a module that it is in, or a glob for either.

    >>> [named("layer1.0.conv1.weight", p) for p in ("layer1.0.conv1.weight", "layer1", "*.conv1", "layer1.0.conv")]
    [True, True, True, False]
    """
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.") or fnmatchcase(name, f"{pattern}.*")
