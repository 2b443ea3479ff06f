"""Example inputs of a trace as the arguments of `forward`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import TraceError

LABELS = ("labels", "label", "targets", "target", "y")
"""Keys of a batch that hold labels."""
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def positional(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters of `forward` that may be given by position.

    >>> positional(nn.Linear(2, 2))
    ('input',)
    """
    signature = _signature(model)
    return () if signature is None else tuple(n for n, p in signature.parameters.items() if p.kind in POSITIONAL)


def arguments(model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return example inputs as (args, kwargs).

    Args:
        model: which takes them.
        args: a tuple; one input; or a dict by input name, unless `forward` takes the dict itself.
        kwargs: by input name.

    Raises:
        TraceError: `forward` takes neither the keys of a dict nor the dict.
    """
    if not isinstance(args, Mapping):
        return args if isinstance(args, tuple) else (args,), dict(kwargs)
    plain, signature = dict(args), _signature(model)
    by_name = {**plain, **kwargs} if all(isinstance(name, str) for name in plain) else None
    if signature is None or (by_name is not None and _binds(signature, (), by_name)):
        return ((), by_name) if by_name is not None else ((plain,), dict(kwargs))
    unknown = [name for name in plain if name not in signature.parameters]
    if len(unknown) == len(plain) and _binds(signature, (plain,), kwargs):
        return (plain,), dict(kwargs)
    text = f"{type(model).__name__}.forward{signature}"
    missing = [n for n, p in signature.parameters.items() if p.kind in POSITIONAL and p.default is p.empty]
    missing = [n for n in missing if by_name is None or n not in by_name]
    keys = ", ".join(map(repr, unknown)) if unknown else ""
    raise TraceError(
        f"{text} does not take this dict by name: "
        + " and ".join(
            [*([f"it has no {keys}"] if keys else []), *([f"the dict has no {missing[0]!r}"] if missing else [])]
        )
        + "; for a model that takes the dict itself, write trace(model, (batch,))"
    )


def read_dict(model: nn.Module, batch: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]:
    """Return the arguments of a model in a dict of a loader, and the rest, without a spec: (args, kwargs, rest).

    If `forward` takes all keys, they are keywords, and the dict itself is the rest, for models that compute their own loss. If it
    takes some, the others are the rest. If it takes none, the dict is its one input, and the rest are its labels.

    >>> read_dict(nn.Linear(2, 2), {"input": 1, "labels": 2})
    ((), {'input': 1}, (2,))
    """
    signature = _signature(getattr(model, "module", model))  # that of a model in DistributedDataParallel
    if signature is None or _binds(signature, (), batch):
        return (), dict(batch), (batch,)
    taken = {name: value for name, value in batch.items() if name in signature.parameters}
    rest = {name: value for name, value in batch.items() if name not in taken}
    if taken:
        return (), taken, tuple(rest.values())
    return (dict(batch),), {}, tuple(value for name, value in rest.items() if name in LABELS) or (batch,)


def is_required(model: nn.Module, name: str) -> bool:
    """Return whether `forward` needs an argument of this name, which has no default.

    >>> is_required(nn.Linear(2, 2), "input"), is_required(nn.Linear(2, 2), "labels")
    (True, False)
    """
    signature = _signature(model)
    parameter = None if signature is None else signature.parameters.get(name)
    return parameter is not None and parameter.default is parameter.empty


def _signature(model: nn.Module) -> inspect.Signature | None:
    """Return the signature of `forward`; None if it has none that can be read."""
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None


def _binds(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a function of this signature takes these arguments."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True
