"""Run a model without caches of earlier words (keys and values of transformers), which are no results of the network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from .unchanged import OPAQUE

FLAG = "use_cache"
CACHES = ("past_key_values", "past_key_value")
"""Names under which models return caches."""
DEPTH = 4
"""Maximum depth of configs in configs."""


@contextlib.contextmanager
def without_caches(model: nn.Module) -> Iterator[None]:
    """Turn caches off for the block, and restore every flag afterwards, even if the block raises.

    Every `use_cache = True` of a submodule, of its config, and of the configs inside it (`decoder`, `text_config`) is False in
    the block; an argument `use_cache=True` still has the last word. A cache that the model returns all the same is dropped.
    """
    holders = [x for x in objects(model) if _flag(x) is True]
    own = [FLAG in vars(x) for x in holders]
    hook = model.register_forward_hook(lambda _module, _args, output: dropped(output))
    try:
        for x in holders:
            setattr(x, FLAG, False)
        yield
    finally:
        hook.remove()
        for x, is_own in zip(holders, own, strict=True):
            if is_own:
                setattr(x, FLAG, True)
            elif FLAG in vars(x):  # the class has the flag, and its object had none
                delattr(x, FLAG)


def _flag(x: Any) -> Any:
    try:
        return getattr(x, FLAG, None)
    except Exception:  # an attribute of a foreign class may raise anything
        return None


def objects(model: nn.Module) -> Iterator[Any]:
    """Yield the modules, and the plain objects that they and these objects hold, also in lists and dicts."""
    seen: set[int] = set()
    level: list[Any] = list(model.modules())
    yield from level
    for _ in range(DEPTH):
        values = [v for x in level for v in vars(x).values()]
        values += [
            w for v in values if isinstance(v, list | tuple | dict) for w in (v.values() if isinstance(v, dict) else v)
        ]
        level = []
        for v in values:
            if id(v) not in seen and not isinstance(v, OPAQUE) and isinstance(getattr(v, "__dict__", None), dict):
                seen.add(id(v))
                level.append(v)
        yield from level


def dropped(output: Any) -> Any:
    """Return a model's output without its caches, which are known by their name or by their class.

    >>> dropped({"logits": 1, "past_key_values": ((2, 3),)})
    {'logits': 1}
    """
    if isinstance(output, Mapping):
        kept = {name: x for name, x in output.items() if not (name in CACHES or _is_cache(x))}
        return output if len(kept) == len(output) else kept if type(output) is dict else _rebuilt(output, kept)
    if type(output) in (tuple, list) and any(map(_is_cache, output)):
        return type(output)(x for x in output if not _is_cache(x))
    return output


def _rebuilt(output: Mapping[str, Any], kept: dict[str, Any]) -> Any:
    """Return another mapping of the same class, such as a model output of transformers."""
    cls: Any = type(output)
    return cls(**kept)


def _is_cache(x: Any) -> bool:
    """Return whether an object is a cache as those of transformers: it is updated by keys and values, and knows their length."""
    return all(callable(getattr(type(x), method, None)) for method in ("update", "get_seq_length"))
