"""Numbers of a model that are ids of tokens: `padding_idx`, and the ids in its configs, such as `eos_token_id`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import nn

NAMES = re.compile(
    r"(token_ids?|token_index|padding_idx|suppress_tokens|words_ids|decoder_ids)$"
    r"|(^|_)(pad|padding|bos|eos|unk|sep|cls|mask|sos|blank)_(id|idx|index|token)$"
)
"""Names of attributes that are ids of tokens, or lists of them."""
OF_MODULES = frozenset(vars(nn.Module()))
DEPTH = 4
"""Maximum depth of configs in configs."""


class TokenName(NamedTuple):
    """An attribute that is the id of a token, or a nest of lists of ids."""

    path: str
    """Path of the module through which it is reached."""
    place: str
    """As Python reads it from the module: `config.eos_token_id`."""
    owner: Any
    """A module, a config, or a dict."""
    key: str
    value: Any
    table: str
    """The tensor whose rows it counts, for the `padding_idx` of an embedding; empty if its name does not say."""

    def __str__(self) -> str:
        return f"{self.path}.{self.place}".lstrip(".")

    def ids(self) -> list[int]:
        """Return the ids; negative numbers are none."""
        return list(_numbers(self.value))

    def renumber(self, new: Callable[[int], int]) -> None:
        """Replace every id in place by a new one."""
        value = _mapped(self.value, new)
        if isinstance(self.owner, dict):
            self.owner[self.key] = value
        elif is_dataclass(self.owner):
            object.__setattr__(self.owner, self.key, value)  # a frozen one refuses setattr
        else:
            setattr(self.owner, self.key, value)


def token_names(model: nn.Module) -> Iterator[TokenName]:
    """Yield the attributes of modules and of their configs that are ids of tokens; a config that modules share occurs once.

    >>> [(str(t), t.ids()) for t in token_names(nn.Sequential(nn.Embedding(9, 4, padding_idx=3)))]
    [('0.padding_idx', [3])]
    """
    seen = set[int]()
    for path, module in model.named_modules():
        own = {k: v for k, v in vars(module).items() if k not in OF_MODULES}
        is_table = isinstance(module, nn.Embedding | nn.EmbeddingBag)
        yield from _names_in(module, own, path, "", f"{path}.weight".lstrip(".") if is_table else "", seen, DEPTH)


def _names_in(
    owner: Any, own: Mapping[Any, Any], path: str, prefix: str, table: str, seen: set[int], depth: int
) -> Iterator[TokenName]:
    for key, value in own.items():
        if not isinstance(key, str):
            continue
        place = f"{prefix}[{key!r}]" if isinstance(owner, dict) else f"{prefix}.{key}".lstrip(".")
        if NAMES.search(key):
            if any(True for _ in _numbers(value)):
                yield TokenName(path, place, owner, key, value, table)
        elif depth and _is_config(value) and id(value) not in seen:
            seen.add(id(value))
            inner = value if isinstance(value, dict) else vars(value)
            yield from _names_in(value, dict(inner), path, place, "", seen, depth - 1)


def _is_config(value: Any) -> bool:
    is_data = is_dataclass(value) and not isinstance(value, type) and hasattr(value, "__dict__")
    return (
        is_data
        or isinstance(value, dict | SimpleNamespace)
        or (hasattr(value, "to_dict") and hasattr(value, "__dict__"))
    )


def _numbers(value: Any) -> Iterator[int]:
    if type(value) is int:
        if value >= 0:
            yield value
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _numbers(v)


def _mapped(value: Any, new: Callable[[int], int]) -> Any:
    if type(value) is int:
        return new(value) if value >= 0 else value
    return type(value)(_mapped(v, new) for v in value) if isinstance(value, list | tuple) else value
