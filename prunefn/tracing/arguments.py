"""Example inputs of a trace as the arguments of `forward`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import TraceError

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
