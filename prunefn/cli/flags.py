"""Every option of a command's sections as a flag: `--prune.criterion`, and `--criterion` in the command that prunes."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from ..files.yaml_text import read_yaml
from ..settings import section_of
from .completion import completer_of
from .sections import Config

SHORT = {"model.checkpoint": "--checkpoint", "model.options": "--options", "data.name": "--data"}
"""Options with a short flag in all commands."""
LONG = "__long"
"""Suffix of the parameter of a flag under its long name."""
WORDS = ("prune.compensation", "sensitivity.compensation")
"""Options for which `none` is a value."""


class Flag(NamedTuple):
    """An option of a section."""

    path: str
    """`prune.criterion`; without a dot at the top."""
    field: FieldInfo
    names: tuple[str, ...]
    panel: str

    @property
    def key(self) -> str:
        """Return the name of the parameter."""
        return self.path.replace(".", "__")


def flags_of(sections: tuple[str, ...], own: tuple[str, ...] = (), only: tuple[str, ...] | None = None) -> list[Flag]:
    """Return the flags of a command: those of its sections, then those at the top.

    Args:
        sections: names of the sections that the command reads.
        own: sections whose flags need no prefix; if two have an option of one name, the first.
        only: options of its own sections and at the top; None: all.
    """
    top = [
        Flag(name, field, (f"--{name}",), "Every command")
        for name, field in Config.model_fields.items()
        if section_of(field) is None and (only is None or name in only)
    ]
    out: list[Flag] = []
    short: set[str] = set(Config.model_fields)
    for section in sorted(sections, key=lambda s: own.index(s) if s in own else len(own)):
        field = Config.model_fields[section]
        inner = section_of(field)
        assert inner is not None
        title = f"{section}: {(inner.__doc__ or '').strip().splitlines()[0]}"
        for name, option in inner.model_fields.items():
            if only is not None and section in own and name not in only:
                continue
            path = f"{section}.{name}"
            shown = name.replace("_", "-")
            names = [f"--{section}.{shown}"]
            if section in own and name not in short:
                short.add(name)
                names.insert(0, f"--{shown}")
            elif path in SHORT:
                names.insert(0, SHORT[path])
            out.append(Flag(path, option, tuple(names), title))
    return out + top


def parameters(flag: Flag) -> list[inspect.Parameter]:
    """Return parameters for a typer command, None by default; the help shows the shortest name of the flag."""
    kind: Any = str
    if flag.field.annotation is bool:
        kind = bool
    elif _is_list(flag.field.annotation):
        kind = list[str]
    default = _shown(flag.field.get_default(call_default_factory=True))
    options = []
    for i, name in enumerate(flag.names):
        option = typer.Option(
            f"{name}/{_negated(name)}" if kind is bool else name,
            help=(flag.field.description or "") + (f"; default {default}" if default else ""),
            metavar=None if kind is bool else _metavar(flag.field.annotation),
            rich_help_panel=flag.panel,
            show_default=False,
            hidden=i > 0,
            autocompletion=None if kind is bool else completer_of(flag.path, _choices(flag.field.annotation)),
        )
        annotation = Annotated[kind | None, option]
        key = flag.key + LONG * (i > 0)
        options.append(inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return options


def _negated(name: str) -> str:
    """`--no-augment`, `--data.no-augment`."""
    section, dot, option = name.removeprefix("--").rpartition(".")
    return f"--{section}{dot}no-{option}"


def nest(flags: list[Flag], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the flags that were used, in the shape of a config file."""
    out: dict[str, Any] = {}
    for flag in flags:
        value = arguments.get(flag.key)
        value = arguments.get(flag.key + LONG) if value in (None, []) else value
        if value is None or (value == [] and _is_list(flag.field.annotation)):
            continue
        section, _, name = flag.path.rpartition(".")
        (out.setdefault(section, {}) if section else out)[name] = _read(flag, value)
    return out


def _read(flag: Flag, value: Any) -> Any:
    """Return the value for the option's type; pydantic converts numbers and words."""
    kind = flag.field.annotation
    if isinstance(value, bool):
        return value
    if isinstance(value, list):  # --formats onnx,aoti --formats program
        return [part.strip() for text in value for part in _parts(text)]
    if _allows_none(kind) and value.lower() in ("none", "null") and flag.path not in WORDS:
        return None
    if any(get_origin(k) is dict for k in _members(kind)) and value.lstrip().startswith("{"):
        return read_yaml(value, flag.names[0])
    return value


def _parts(text: str) -> list[str]:
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    return [p for p in text.split(",") if p.strip()]


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_list(kind: Any) -> bool:
    return any(get_origin(k) in (list, tuple) for k in _members(kind))


def _allows_none(kind: Any) -> bool:
    return type(None) in _members(kind)


def _choices(kind: Any) -> list[str]:
    """Return the values of literals, alone or in a list."""
    inner = [one for k in _members(kind) for one in ([k] if get_origin(k) is Literal else get_args(k))]
    return [str(value) for one in inner if get_origin(one) is Literal for value in get_args(one)]


def _metavar(kind: Any) -> str:
    """Return the choices, or the name of the type."""
    words = []
    for k in _members(kind):
        origin = get_origin(k)
        if origin is Literal:
            words.append("|".join(map(str, get_args(k))))
        elif origin in (list, tuple):
            words.append(f"{_metavar(get_args(k)[0])},…")
        elif origin is dict:
            words.append("{KEY: VALUE}")
        elif k is not type(None):
            words.append({"str": "TEXT", "int": "N", "float": "X"}.get(k.__name__, k.__name__.upper()))
    return "|".join(words)


def _shown(default: Any) -> str:
    if default in (None, "", [], {}, (), False):
        return ""
    if isinstance(default, list | tuple):
        return ",".join(map(str, default))
    return str(default)
