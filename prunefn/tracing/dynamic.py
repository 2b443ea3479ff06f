"""The dims of the inputs that a trace lets vary, and their names."""

from __future__ import annotations

import contextlib
import inspect
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .. import trees
from ..errors import TraceError, nearest

Names = tuple[str | None, ...]
"""Name of the size of each dim of a tensor; None: the dim is fixed."""
Dynamic = Mapping[str, Sequence[str | None]] | Sequence[str] | str
"""What may vary: names of sizes, or names per dim of an input."""

IMAGES: dict[int, Names] = {
    4: ("batch", "channels", "height", "width"),
    5: ("batch", "channels", "depth", "height", "width"),
}
"""Names of the dims of floating-point inputs with this many dims."""
SPATIAL = ("channels", "depth", "height", "width")
"""Sizes that are fixed by default: with a symbolic height and width, the export of a network with windows takes minutes."""
SEQUENCES = ("mask", "bias", "ids", "past", "cache")
"""Words in names of inputs whose dims beyond the batch are lengths, however many there are."""
ALL = "all"


def names_of(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: Dynamic | None
) -> list[Names]:
    """Return the names of the dims that may vary, for each tensor of the flattened arguments.

    Args:
        model: its forward names the positional inputs.
        args, kwargs: example inputs.
        dynamic: as for `trace`.

    Raises:
        TraceError: `dynamic` names an input or a size that does not exist, or has a wrong number of dims.
    """
    named = [*zip(positional_names(model, len(args)), args, strict=True), *kwargs.items()]
    of_graph = any(name.startswith("edge") for name, _ in named)
    by_input = dynamic if isinstance(dynamic, Mapping) else {}
    if unknown := [n for n in by_input if n not in dict(named)]:
        raise TraceError(
            f"dynamic={{{unknown[0]!r}: …}}: the model has no input of this name{nearest(unknown[0], dict(named))}"
        )
    out: list[Names] = []
    default = [(n, t, _default_names(n, t, of_graph)) for n, value in named for t in trees.tensors(value)]
    varying = _varying_names(dynamic, {name for _, _, names in default for name in names if name})
    for name, t, dims in default:
        if name in by_input:
            out.append(_given_names(name, t, by_input[name]))
        else:
            out.append(tuple(n if n in varying else None for n in dims))
    return out


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Stop what runs in the main thread after some seconds; other threads have no limit.

    Raises:
        TraceError: the seconds are over.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    over = False

    def stop(*_: Any) -> None:
        nonlocal over
        over = True
        raise TraceError(f"the export takes longer than {seconds:.0f} s")

    handler = signal.signal(signal.SIGALRM, stop)
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    started = time.monotonic()
    try:
        yield
    except Exception as error:
        if over:  # torch wraps what is raised inside of an export
            raise TraceError(f"the export takes longer than {seconds:.0f} s") from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if remaining:  # a timer of the caller goes on
            signal.setitimer(signal.ITIMER_REAL, max(remaining - (time.monotonic() - started), 1e-3))


def batch_only(names: Sequence[Names]) -> list[Names]:
    """Return the names without those of dims beyond the first."""
    return [tuple(n if d == 0 else None for d, n in enumerate(dims)) for dims in names]


def positional_names(model: nn.Module, count: int) -> list[str]:
    """Return the names of the first positional inputs of a forward."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [names[i] if i < len(names) else f"args_{i}" for i in range(count)]


def _default_names(name: str, t: Tensor, of_graph: bool) -> Names:
    """Return a name for each dim of a tensor."""
    if t.ndim == 0:
        return ()
    first = "edges" if name.startswith("edge") else "nodes" if of_graph else "batch"
    if name.startswith("edge") and not t.is_floating_point() and t.shape[0] == 2:
        return (None, *("edges",) * (t.ndim - 1))
    sequence = not (t.is_floating_point() or t.is_complex()) or any(word in name for word in SEQUENCES)
    if not sequence and t.ndim in IMAGES:
        return IMAGES[t.ndim]
    return (first, *("length",) * (t.ndim - 1))


def _varying_names(dynamic: Dynamic | None, known: set[str]) -> set[str]:
    """Return the names of the sizes that may vary.

    Raises:
        TraceError: a name is none of the inputs' sizes.
    """
    if dynamic is None or isinstance(dynamic, Mapping):
        return known.difference(SPATIAL)
    if dynamic == ALL:
        return known
    asked = set(dynamic.replace(",", " ").split() if isinstance(dynamic, str) else dynamic)
    if unknown := sorted(asked - known):
        raise TraceError(
            f"dynamic={dynamic!r}: the inputs have no size {unknown[0]!r}; they have "
            f'{", ".join(sorted(known)) or "none"}; name others by input, such as {{"x": ("batch", "points", None)}}'
        )
    return asked


def _given_names(name: str, t: Tensor, dims: Sequence[str | None]) -> Names:
    if isinstance(dims, str) or len(dims) != t.ndim or not all(n is None or isinstance(n, str) for n in dims):
        raise TraceError(
            f"dynamic={{{name!r}: {dims!r}}}: give one name, or None for a fixed size, for each of the {t.ndim} dims of shape "
            f"{tuple(t.shape)}"
        )
    return tuple(dims)
