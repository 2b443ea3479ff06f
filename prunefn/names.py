"""Names of tensors and modules: globs that match them, modules that contain them."""

from __future__ import annotations

from fnmatch import fnmatchcase


def named(name: str, pattern: str) -> bool:
    """Return whether a name matches a pattern: the name itself, a module that contains it, or a glob for either.

    >>> [named("layer1.0.conv1.weight", p) for p in ("layer1.0.conv1.weight", "layer1", "*.conv1", "layer1.0.conv")]
    [True, True, True, False]
    """
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.") or fnmatchcase(name, f"{pattern}.*")


def ancestors(path: str) -> list[str]:
    """Return the paths of the modules that contain a module or tensor, from the outermost.

    >>> ancestors("layers.0.fc")
    ['', 'layers', 'layers.0']
    """
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(len(parts))]
