"""A config in layers: defaults, then files, then flags; the later ones win, key by key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ..errors import PruneError
from ..files.yaml_text import read_yaml, read_yaml_file
from ..settings import section_of, validated
from .sections import Config

AMOUNTS = {"ratio", "macs", "params", "activations"}
"""Options of `prune` that say how much goes."""


def shipped() -> dict[str, str]:
    """Name → text of the configs that come with the package."""
    folder = files("prunefn.configs")
    found = {f.name.removesuffix(".yaml"): f.read_text("utf-8") for f in folder.iterdir() if f.name.endswith(".yaml")}
    return dict(sorted(found.items()))


def read(name_or_path: str) -> dict[str, Any]:
    """A config file, or one that comes with the package.

    Raises:
        PruneError: there is none, it is no YAML of keys and values, or a key stands twice; names the line.
    """
    path = Path(name_or_path)
    if path.is_file():
        found = read_yaml_file(path)
    elif name_or_path in (known := shipped()):
        found = read_yaml(known[name_or_path], name_or_path)
    else:
        near = difflib.get_close_matches(name_or_path, known, n=1)
        hint = (
            f"; did you mean {near[0]!r}?" if near else f": give the path of a YAML file, or one of {', '.join(known)}"
        )
        raise PruneError(f"there is no config {name_or_path!r}{hint}")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise PruneError(f"{name_or_path} is a {type(found).__name__}; a config has sections, such as model: and data:")
    return found


def resolve(sources: Iterable[str], flags: Mapping[str, Any]) -> Config:
    """The config of files and flags.

    Raises:
        PruneError: a file cannot be read, or an option is unknown or out of its range; names it, and what comes near.
    """
    merged: dict[str, Any] = {}
    for source in sources:
        found = read(source)
        validated(Config, found, source)
        merged = merge(merged, found)
    return validated(Config, merge(merged, flags))


def merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The new keys win; sections are merged, values (lists, spaces) replaced. How much to prune is one value, however it is said.

    >>> merge({"prune": {"ratio": 0.5, "scope": "local"}}, {"prune": {"macs": 0.6}})
    {'prune': {'scope': 'local', 'macs': 0.6}}
    >>> merge({"data": "digits", "prune": {"ratio": 0.5, "scope": "local"}}, {"prune": {"ratio": 0.3}})
    {'data': 'digits', 'prune': {'scope': 'local', 'ratio': 0.3}}
    """
    out = dict(old)
    for key, value in new.items():
        before = out.get(key)
        if key in ("model", "data"):
            before = {"name": before} if isinstance(before, str) else before
            value = {"name": value} if isinstance(value, str) else value
        if key == "prune" and isinstance(before, dict) and AMOUNTS & set(value or ()):
            before = {k: v for k, v in before.items() if k not in AMOUNTS}
        out[key] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    return out


def text_of(config: Config, sections: Iterable[str]) -> str:
    """YAML of what a command reads, defaults included."""
    top = [n for n, field in Config.model_fields.items() if section_of(field) is None]
    chosen = {n: v for n, v in config.model_dump(mode="json").items() if n in top or n in sections}
    return yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
