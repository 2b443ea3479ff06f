"""How the tensors of a model lie in its files: transformers renames and stacks them when it loads, and the files keep their layout.

A mixture of experts is stored as one matrix an expert, and its module has one tensor for all of them. The conversions are those
of transformers, which also says how they are reverted. Older versions have none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ParamsError
from ..files.folder import Shard, entries_of
from ..files.on_disk import Assembled, OnDisk
from ..files.tensors import DTYPES, NAMES, Entry

TABLES = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$")
"""Names of tables in older files that classes compute themselves now; transformers leaves them out, too."""
CPU = torch.device("cpu")


class Conversion(NamedTuple):
    """Tensors of files that become tensors of the model together."""

    key: str
    """Name of the first tensor of the model, by which transformers calls the conversion."""
    converter: Any
    """Of transformers."""
    sources: tuple[tuple[str, str], ...]
    """(pattern of the converter, name in the files)."""
    targets: Mapping[str, Entry]
    """Name in the model → its type and shape."""

    def run(self, tensors: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
        """Return the tensors of the model that are made of tensors of the files, which are taken from the dict to free them early."""
        converter = deepcopy(self.converter)
        for pattern, name in self.sources:
            converter.add_tensor(self.key, name, pattern, tensors.pop(name))
        return {n: _single(t) for n, t in converter.convert(self.key, model=model, config=model.config).items()}


def _single(t: Tensor | list[Tensor]) -> Tensor:
    return t[0] if isinstance(t, list) else t


class Conversions(NamedTuple):
    """The layout of the files of a model; a `Layout`."""

    model: Any
    """Of transformers, on `meta`, at the sizes of the tensors that are stored."""
    used: Sequence[Any]
    """Conversions of transformers that apply to the files."""
    stored: Mapping[str, str]
    """Name in the model → name in the files, of tensors that are there as they are."""
    made: Mapping[str, Conversion]
    """Name in the model → what makes it of tensors of the files."""
    dropped: tuple[str, ...] = ()
    """Tensors of the files that the class does not load."""
    prefix: tuple[str, str] = ("", "")
    """Begin of names in the model, and what the files have instead."""

    def bundle(self, name: str) -> tuple[str, ...]:
        """Return the tensors of the model that are stored in one with this one; none if it is stored as it is."""
        return tuple(self.made[name].targets) if name in self.made else ()

    def store(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors by their names in the files, in the parts that the files have."""
        if self.used:
            from transformers.core_model_loading import revert_weight_conversion

            self.model._weight_conversions = list(self.used)
            tensors = revert_weight_conversion(self.model, dict(tensors))
        inside, outside = self.prefix
        return {outside + n.removeprefix(inside) if n.startswith(inside) else n: t for n, t in tensors.items()}

    def at(self, model: Any) -> Conversions:
        """Return the layout of a smaller model."""
        return self._replace(model=model)


def conversions(model: Any, files: tuple[Shard, ...]) -> Conversions:
    """Return how the tensors of a model lie in files.

    Args:
        model: of transformers, on `meta`.
        files: headers of its files.

    Raises:
        ParamsError: what transformers loads cannot be stored again in the layout of the files.
    """
    entries, expected, mapping = entries_of(files), model.state_dict(), _mapping(model)
    renamed = _renamed(model, mapping, entries, expected)
    unknown = [n for n, r in renamed.items() if r.name not in expected]
    ignored = re.compile("|".join((*TABLES, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()))))
    dropped = tuple(n for n in unknown if ignored.search(n))
    stored = {r.name: n for n, r in renamed.items() if r.pattern is None and r.name in expected}
    stored |= {n: n for n in unknown if n not in dropped}  # the names of the spec refuse them
    sources: dict[str, list[tuple[str, str]]] = {}
    for n, r in renamed.items():
        if r.pattern is not None and r.name in expected:
            sources.setdefault(r.name, []).append((r.pattern, n))
    converters = {pattern: m for m in mapping if _is_converter(m) for pattern in m.source_patterns}
    made: dict[str, Conversion] = {}
    for key, parts in sources.items():
        conversion = _conversion(Conversion(key, converters[parts[0][0]], tuple(parts), {}), entries, model)
        made |= dict.fromkeys(conversion.targets, conversion)
    prefixes = {r.prefix for r in renamed.values()} - {("", "")}
    prefix = next(iter(prefixes)) if len(prefixes) == 1 else ("", "")
    found = Conversions(model, [m for m in mapping if m.was_used()], stored, made, dropped, prefix)
    _check_reverse(found, entries, unknown)
    return found


def _mapping(model: Any) -> list[Any]:
    """Return the conversions that transformers knows for a class; none in versions before 5."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import revert_weight_conversion  # noqa: F401
    except ImportError:
        return []
    return get_model_conversion_mapping(model)


def _is_converter(m: Any) -> bool:
    return hasattr(m, "operations")


class _Renamed(NamedTuple):
    """The name of a tensor of the files in the model."""

    name: str
    pattern: str | None
    """Of the converter that makes the tensor of the model of it; None: it is the tensor."""
    prefix: tuple[str, str]


def _renamed(
    model: Any, mapping: Sequence[Any], names: Iterable[str], expected: Mapping[str, Tensor]
) -> dict[str, _Renamed]:
    """Return name in the files → name in the model, as transformers loads it; experts in their order."""
    if not mapping:
        return {n: _with_prefix(n, None, model.base_model_prefix, expected) for n in names}
    from transformers.core_model_loading import dot_natural_key, rename_source_key

    renamings = [m for m in mapping if not _is_converter(m)]
    converters = [m for m in mapping if _is_converter(m)]
    out: dict[str, _Renamed] = {}
    for n in sorted(names, key=dot_natural_key):
        new, pattern = rename_source_key(n, renamings, converters)
        out[n] = _with_prefix(new, pattern, model.base_model_prefix, expected)
        if out[n].name not in expected and n in expected:
            out[n] = _Renamed(n, None, ("", ""))
    return out


def _with_prefix(name: str, pattern: str | None, base: str, expected: Mapping[str, Tensor]) -> _Renamed:
    """Return a name with or without the prefix of the base model: a file of the base model fits a model with a head, too."""
    prefix = f"{base}."
    if base and name.startswith(prefix) and name.removeprefix(prefix) in expected:
        return _Renamed(name.removeprefix(prefix), pattern, ("", prefix))
    if base and prefix + name in expected:
        return _Renamed(prefix + name, pattern, (prefix, ""))
    return _Renamed(name, pattern, ("", ""))


def _outline(entry: Entry) -> Tensor:
    return torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")


def _conversion(c: Conversion, entries: Mapping[str, tuple[Path, Entry]], model: Any) -> Conversion:
    """Return a conversion with the tensors that it makes.

    Raises:
        ParamsError: transformers cannot convert the tensors.
    """
    try:
        made = c.run({n: _outline(entries[n][1]) for _, n in c.sources}, model)
    except Exception as error:  # operations of transformers may raise anything
        names = [n for _, n in c.sources]
        raise ParamsError(
            f"transformers cannot make {c.key!r} of {names[0]!r} and {len(names) - 1} others: {str(error)[:300]}; does the config "
            "belong to these files?"
        ) from error
    start = entries[c.sources[0][1]][1].start
    return c._replace(targets={n: Entry(NAMES[t.dtype], tuple(t.shape), start) for n, t in made.items()})


def _check_reverse(found: Conversions, entries: Mapping[str, tuple[Path, Entry]], unknown: Collection[str]) -> None:
    """Check that the tensors of the model are stored again as the files have them: names, shapes and types.

    Raises:
        ParamsError: one is not.
    """
    bundles = {c.key: c.targets for c in found.made.values()}
    bundles |= {new: {new: entries[n][1]} for new, n in found.stored.items() if n not in unknown}
    stored: dict[str, Entry] = {}
    for key, targets in bundles.items():
        try:
            parts = found.store({n: _outline(e) for n, e in targets.items()})
        except Exception as error:  # operations of transformers may raise anything
            raise ParamsError(f"transformers cannot store {key!r} as the files do: {str(error)[:300]}") from error
        stored |= {n: Entry(NAMES[t.dtype], tuple(t.shape)) for n, t in parts.items()}
    for n, (path, e) in entries.items():
        if n not in unknown and stored.get(n) != e._replace(start=0):
            raise ParamsError(
                f"transformers reads {n!r} of {path}, but would not store it so again, so that the layout of the files cannot be kept; "
                f"load the model, and save it into another folder by save_pretrained"
            )


# ---- the tensors of the model


def under_model_names(files: tuple[Shard, ...], layout: Conversions) -> tuple[Shard, ...]:
    """Return the headers of files with the tensors of the model instead; one that is made of several is in the file of the first."""
    entries, conversions_of = entries_of(files), {c.key: c for c in layout.made.values()}
    by_file: dict[Path, dict[str, Entry]] = {s.path: {} for s in files}
    for new, n in layout.stored.items():
        by_file[entries[n][0]][new] = entries[n][1]
    for c in conversions_of.values():
        by_file[entries[c.sources[0][1]][0]] |= c.targets
    return tuple(Shard(s.path, by_file[s.path], s.metadata) for s in files)


def tensors_on_disk(
    files: tuple[Shard, ...], layout: Conversions, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Return the tensors of the model, which are read, and made, when they are used.

    Args:
        files: headers of the files.
        layout: of the files.
        dtype: of floating-point tensors; None: as in the files.
    """
    entries = entries_of(files)

    def of_file(name: str) -> OnDisk:
        path, entry = entries[name]
        return OnDisk(path, name, entry, None, CPU)

    def of_type(t: OnDisk) -> OnDisk:
        return t.to_type(dtype) if dtype is not None and t.is_floating_point() else t

    out: dict[str, Tensor] = {new: of_type(of_file(n)) for new, n in layout.stored.items()}
    for new, c in layout.made.items():
        parts = {n: of_file(n) for _, n in c.sources}
        out[new] = of_type(Assembled(parts, new, c.targets[new], partial(_make, c, new, layout.model)))
    return out


def _make(conversion: Conversion, name: str, model: Any, parts: dict[str, Tensor]) -> Tensor:
    return conversion.run(parts, model)[name]
