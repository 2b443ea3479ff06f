"""Doors: checks of the arguments of public functions before they run.

`@door` reads a function's signature once. `prunefn.doors.kinds` has a check for each annotation: it accepts a value, converts it
(`scope="local"` becomes `scope.local()`), or raises a PruneError that names the argument, the value and the fix.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial, reduce, wraps
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch

from ..errors import PruneError
from .kinds import KINDS, NAMES, class_kind, either, function_kind
from .plain import Kind
from .words import call_text, said

F = TypeVar("F", bound=Callable[..., Any])
V = TypeVar("V", bound=Any)


class Argument(NamedTuple):
    """A parameter of a public function, with the kind of values that it takes."""

    name: str
    kind: Kind
    optional: bool
    """Whether None is accepted."""
    function: Callable[..., Any]
    others: tuple[Argument, ...] = ()
    """The function's other arguments, whose values may have been passed by mistake."""

    def read(self, value: Any, given: Mapping[str, Any]) -> Any:
        """Return the value that the function receives.

        Args:
            value: of this argument.
            given: all arguments of the call by name.

        Raises:
            PruneError: the function does not take this value.
        """
        if value is None and self.optional:
            return None
        return self.kind.read(value, self.name, partial(self._refuse, value), given)

    def _refuse(self, value: Any, fix: str = "", what: str = "") -> NoReturn:
        """Raise the error of a value; if it fits another argument, the message says so."""
        where = what or f"{self.name} is {said(value)}"
        intended = next((o.name for o in self.others if not what and o.kind.distinct and o.fits(value)), "")
        swapped = f"; it fits {intended!r}: the order is {call_text(self.function)}" if intended else ""
        raise self.kind.error(f"{where}; {fix or f'write {self.kind.write}'}{swapped}")

    def fits(self, value: Any) -> bool:
        """Return whether the argument takes this value."""
        try:
            self._replace(others=()).read(value, {})
        except PruneError:
            return False
        return True


def door(function: F) -> F:
    """Check a function's arguments by its signature in every call, except while torch.compile traces it.

    For missing or unknown arguments, Python raises its usual TypeError.

    >>> @door
    ... def half(keep: float) -> float:
    ...     return keep / 2
    >>> half("0.5")
    Traceback (most recent call last):
    prunefn.errors.PruneError: keep is '0.5'; write a finite number, such as 0.5
    """
    parameters = inspect.signature(function).parameters.values()
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variadic = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    arguments = cache(partial(arguments_of, function))  # when first called: classes may be defined below the function
    compiling = torch.compiler.is_compiling

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if compiling():
            return function(*args, **kwargs)
        given, converted = {**dict(zip(positional, args, strict=False)), **kwargs}, {}
        rest = args[len(positional) :]
        for a in arguments():
            if a.name in given:
                value = a.read(given[a.name], given)
                if value is not given[a.name]:
                    converted[a.name] = value
            elif a.name == variadic:
                rest = tuple([a.read(value, given) for value in rest])
        if converted:
            args = tuple([converted.get(n, value) for n, value in zip(positional, args, strict=False)])
            kwargs = {n: converted.get(n, value) for n, value in kwargs.items()}
        return function(*args[: len(positional)], *rest, **kwargs)

    checked.is_door = True  # type: ignore[attr-defined]
    return checked  # type: ignore[return-value]


def arguments_of(function: Callable[..., Any]) -> tuple[Argument, ...]:
    """Return the arguments of a function whose annotations have a check."""
    out = []
    for p in inspect.signature(function).parameters.values():
        text = str(p.annotation)
        kind = NAMES.get(p.name) or _kind(text.removesuffix(" | None"), p.name, inspect.unwrap(function))
        if kind is not None and p.kind is not p.VAR_KEYWORD:
            out.append(Argument(p.name, kind, text.endswith(" | None"), function))
    return tuple(a._replace(others=tuple(o for o in out if o is not a)) for a in out)


def check_fields(value: V) -> V:
    """Return a NamedTuple after a check of its fields by their annotations, with converted fields where the checks convert.

    Raises:
        PruneError: a field does not take its value.

    >>> class Half(NamedTuple):
    ...     keep: float
    >>> check_fields(Half("0.5"))
    Traceback (most recent call last):
    prunefn.errors.PruneError: keep is '0.5'; write a finite number, such as 0.5
    """
    owner, fields, converted = type(value), value._asdict(), {}
    for name, annotation in owner.__annotations__.items():
        text = getattr(annotation, "__forward_arg__", None) or getattr(annotation, "__name__", str(annotation))
        kind = NAMES.get(name) or _kind(text.removesuffix(" | None"), name, owner)
        if kind is not None:
            new = Argument(name, kind, text.endswith(" | None"), owner).read(fields[name], fields)
            if new is not fields[name]:
                converted[name] = new
    return value._replace(**converted) if converted else value


def _kind(text: str, name: str, function: Any) -> Kind | None:
    """Return the kind of an annotation: by a key of `KINDS`, else by the class that it names; None if there is no check.

    Keys with the name of the parameter, the function or the room come before those of the annotation alone.
    """
    room = function.__module__.split(".")[1] if "." in function.__module__ else ""
    for key in (f"{name}: {text}", f"{function.__name__}: {text}", f"{room}: {text}", text):
        if key in KINDS:
            return KINDS[key]
    if text.startswith("Callable["):
        return function_kind(text)
    if text.startswith("Float[Tensor, "):
        return KINDS["Tensor"]
    one, _, other = text.partition(" | ")
    if other:
        kinds = [_kind(t, name, function) for t in (one, other)]
        return either(*kinds) if all(kinds) else None  # type: ignore[arg-type]
    first, *rest = text.split(".")
    try:
        value = reduce(getattr, rest, vars(sys.modules[function.__module__])[first])
    except (KeyError, AttributeError):
        return None
    return class_kind(value) if isinstance(value, type) and value is not Any else None
