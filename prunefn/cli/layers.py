"""A config in layers: defaults, then files, then flags; the later ones win, key by key."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ..errors import PruneError
from ..files.yaml_text import read_yaml, read_yaml_file
from ..settings import section_of, validated
from .sections import Config

AMOUNTS = {"ratio", "macs", "params", "activations", "latency"}
"""Options of `prune` for the amount to remove; numbers of layers and experts go with any of them."""


def shipped_configs() -> dict[str, str]:
    """Return name → text of the configs that come with the package."""
    folder = files("prunefn.configs")
    values = {f.name.removesuffix(".yaml"): f.read_text("utf-8") for f in folder.iterdir() if f.name.endswith(".yaml")}
    return dict(sorted(values.items()))


def read_config(name_or_path: str) -> dict[str, Any]:
    """Return the values of a config file, or of a config that comes with the package.

    Raises:
        PruneError: it does not exist, is no YAML of keys and values, or has a key twice; names the line.
    """
    path = Path(name_or_path)
    if path.is_file():
        values = read_yaml_file(path)
    elif name_or_path in (configs := shipped_configs()):
        values = read_yaml(configs[name_or_path], name_or_path)
    else:
        close = difflib.get_close_matches(name_or_path, configs, n=1)
        hint = (
            f"; did you mean {close[0]!r}?"
            if close
            else f": give the path of a YAML file, or one of {', '.join(configs)}"
        )
        raise PruneError(f"there is no config {name_or_path!r}{hint}")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise PruneError(
            f"{name_or_path} is a {type(values).__name__}; a config has sections, such as model: and data:"
        )
    return values


def resolve(sources: Iterable[str], flags: Mapping[str, Any]) -> Config:
    """Return the config of files and flags.

    Raises:
        PruneError: a file cannot be read, or an option is unknown or out of its range; names it.
    """
    merged: dict[str, Any] = {}
    for source in sources:
        values = read_config(source)
        validated(Config, values, source)
        merged = merge(merged, values)
    return validated(Config, merge(merged, flags))


def merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the old values with the new ones over them; sections are merged, other values replaced.

    The amount to prune is a single value: a new budget or ratio replaces any old one.

    >>> merge({"prune": {"ratio": 0.5, "scope": "local"}}, {"prune": {"macs": 0.6}})
    {'prune': {'scope': 'local', 'macs': 0.6}}
    >>> merge({"data": "digits", "prune": {"ratio": 0.5, "scope": "local"}}, {"prune": {"ratio": 0.3}})
    {'data': 'digits', 'prune': {'scope': 'local', 'ratio': 0.3}}
    >>> merge({"prune": {"latency": "0.5", "runtime": "onnx"}}, {"prune": {"latency": "8ms"}})
    {'prune': {'runtime': 'onnx', 'latency': '8ms'}}
    """
    out = dict(old)
    for key, value in new.items():
        before = out.get(key)
        if key in ("model", "data"):
            before = {"name": before} if isinstance(before, str) else before
            value = {"name": value} if isinstance(value, str) else value
        if key == "prune" and isinstance(before, dict) and AMOUNTS & set(value or ()):
            replaced = AMOUNTS if "latency" in value else AMOUNTS | {"runtime"}
            before = {k: v for k, v in before.items() if k not in replaced}
        out[key] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    return out


def text_of(
    config: Config, sections: Iterable[str], own: Iterable[str] = (), only: Collection[str] | None = None
) -> str:
    """Return the YAML of the sections that a command reads, with defaults; arguments as of `flags_of`."""
    top = [n for n, field in Config.model_fields.items() if section_of(field) is None and (only is None or n in only)]
    shown = {n: v for n, v in config.model_dump(mode="json").items() if n in top or n in sections}
    for name in () if only is None else own:
        shown[name] = {k: v for k, v in shown[name].items() if k in only}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
