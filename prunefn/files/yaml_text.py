"""Read untrusted YAML as data: no key may come twice, and the size with all anchors unfolded is limited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..errors import PruneError

LONGEST = 1_000_000
"""Maximal characters of a text; a config has a few thousand."""
MOST = 100_000
"""Maximal nodes with all anchors unfolded: nine lines of anchors can stand for a billion nodes."""


def read_yaml(text: str, what: str) -> Any:
    """Return the value that a YAML (or JSON) text stands for.

    Args:
        text: YAML or JSON; tags of Python are not allowed.
        what: name of the source, for error messages.

    Raises:
        PruneError: the text is no YAML, a key stands twice in a mapping, or the text is too large; names the key and the lines.

    >>> read_yaml("prune: {ratio: 0.5}", "a.yaml")
    {'prune': {'ratio': 0.5}}
    >>> read_yaml("a: 1\\nb: 2\\na: 3", "a.yaml")
    Traceback (most recent call last):
    prunefn.errors.PruneError: a.yaml: the key 'a' stands twice, in lines 1 and 3; keep one of them
    """
    if len(text) > LONGEST:
        raise PruneError(f"{what} has {len(text)} characters; a config has at most {LONGEST}")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_keys(loader, node, what)
        if (size := _count_unfolded(node, {}, set(), what)) > MOST:
            raise PruneError(f"{what} unfolds to {size} values by its anchors; a config has at most {MOST}")
        return loader.construct_document(node)
    except PruneError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PruneError(f"{what} is no YAML: {' '.join(str(error).split())}") from None


def read_yaml_file(path: Path) -> Any:
    """Return the value of a YAML file.

    Raises:
        PruneError: as for `read_yaml`; or the file is no text in UTF-8.
        OSError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PruneError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start})") from None
    return read_yaml(text, str(path))


def _check_keys(loader: yaml.SafeLoader, root: yaml.Node, what: str) -> None:
    """Raise if a mapping has a key twice; each node is visited once, however often an alias names it."""
    todo, done = [root], set[int]()
    while todo:
        node = todo.pop()
        if id(node) in done:
            continue
        done.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[Any, int] = {}
            for key, value in node.value:
                todo += [key, value]
                if not isinstance(key, yaml.ScalarNode):
                    continue
                name = key.value if key.tag == "tag:yaml.org,2002:merge" else loader.construct_object(key)
                line = key.start_mark.line + 1
                if name in lines:
                    raise PruneError(
                        f"{what}: the key {name!r} stands twice, in lines {lines[name]} and {line}; keep one of them"
                    )
                lines[name] = line


def _count_unfolded(node: yaml.Node, sizes: dict[int, int], ancestors: set[int], what: str) -> int:
    """Return the number of nodes with every alias unfolded; raise if a node contains itself."""
    if id(node) in ancestors:
        raise PruneError(f"{what}: the value that begins in line {node.start_mark.line + 1} contains itself")
    if id(node) not in sizes:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        path = ancestors | {id(node)}
        sizes[id(node)] = 1 + sum(_count_unfolded(child, sizes, path, what) for child in children)
    return sizes[id(node)]
