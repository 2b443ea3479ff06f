"""The names of a state dict that a wrapper of the model saved: `module.…`, `_orig_mod.…`, `ema_model.module.…`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection

from torch import nn

from ..errors import ParamsError, nearest
from ..modules.pruned_file import Content

INSERTED = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
"""Parts that torch inserts anywhere in a name: compiled, sharded and checkpointed submodules."""
COUNTER = "n_averaged"
"""The counter of torch's AveragedModel, which has no prefix."""


def without_prefix(content: Content, has_place: Callable[[str], bool]) -> Content:
    """Return the content under the names of the model.

    If every name has a place in the model, nothing changes. Otherwise the parts that torch inserts are dropped, and of the
    prefix that all names share, the fewest parts after which every name has a place. If none do, nothing changes either.

    >>> import torch
    >>> content = Content({"module.a": torch.zeros(1), "module.b": torch.zeros(1)}, plan=[("module", "heads", 2)])
    >>> stripped = without_prefix(content, {"a", "b"}.__contains__)
    >>> list(stripped.tensors), stripped.plan
    (['a', 'b'], [('', 'heads', 2)])
    """
    if all(map(has_place, content.tensors)):
        return content
    names = {n: _inserted_parts_dropped(n) for n in content.tensors if n != COUNTER}
    columns = zip(*(parts[:-1] for parts in names.values()), strict=False)
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    for dropped in range(len(list(shared)) + 1):
        renamed = {n: ".".join(parts[dropped:]) for n, parts in names.items()}
        if len(set(renamed.values())) == len(renamed) and all(map(has_place, renamed.values())):
            tensors = {renamed[n]: t for n, t in content.tensors.items() if n in renamed}
            plan = [(".".join(_inserted_parts_dropped(p)[dropped:]), *entry) for p, *entry in content.plan or ()]
            return content._replace(tensors=tensors, plan=None if content.plan is None else plan)
    return content


def fitting(content: Content, model: nn.Module, strict: bool) -> Content:
    """Return the content without prefixes and without the tensors that have no place in the model.

    Raises:
        ParamsError: strict, and tensors have no place, or the model has tensors that are missing; or no tensor has a place.
    """
    own = model.state_dict()
    modules = dict(model.named_modules(remove_duplicate=False))

    def has_place(name: str) -> bool:
        path, _, leaf = name.rpartition(".")
        return name in own or (path in modules and leaf in modules[path]._parameters)

    content = without_prefix(content, has_place)
    state = content.tensors
    missing = [n for n in own if n not in state]
    foreign = [n for n in state if not has_place(n)]
    if (strict and (missing or foreign)) or (foreign and len(foreign) == len(state)):
        lacks = f"lacks {', '.join(missing[:5])}" if missing else ""
        extra = f"has {', '.join(foreign[:5])}, for which {type(model).__name__} has no place" if foreign else ""
        hint = nearest((missing or foreign)[0], own if foreign and not missing else state)
        if prefixes := fitting_prefixes(state, own):
            p = prefixes[0]
            hint = (
                f"; it has the model under {', '.join(map(repr, prefixes))}: pass "
                f"{{n.removeprefix({p!r}): t for n, t in state.items() if n.startswith({p!r})}}"
            )
        raise ParamsError(f"the state dict {' and '.join(filter(None, (lacks, extra)))}{hint}")
    return content._replace(tensors={n: t for n, t in state.items() if n not in foreign})


def fitting_prefixes(names: Collection[str], wanted: Collection[str]) -> list[str]:
    """Return the prefixes under which the names hold all that are wanted, such as two models in one state dict.

    >>> fitting_prefixes(["online.a", "online.b", "ema.a", "ema.b", "step"], ["a", "b"])
    ['online.', 'ema.']
    """
    first = next(iter(wanted), "")
    prefixes = dict.fromkeys(n.removesuffix(first) for n in names if n.endswith(f".{first}"))
    return [p for p in prefixes if all(p + n in names for n in wanted)]


def _inserted_parts_dropped(name: str) -> list[str]:
    """Return the parts of a name without those that torch inserts."""
    return [part for part in name.split(".") if part not in INSERTED]
