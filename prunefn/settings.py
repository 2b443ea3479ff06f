"""Validated options: one frozen base for recipes, sections and configs, and pydantic's errors in the words of prunefn.

>>> class Noise(Settings):
...     strength: float = Field(default=0.1, ge=0, description="standard deviation of what is added to the inputs")
>>> validated(Noise, {"strength": 0.2}).strength
0.2
>>> validated(Noise, {"strength": -1}, "noise.yaml")
Traceback (most recent call last):
prunefn.errors.PruneError: noise.yaml has a problem:
  strength is -1; it must be at least 0
>>> validated(Noise, {"strenght": 1})
Traceback (most recent call last):
prunefn.errors.PruneError: strenght is no option; did you mean 'strength'?
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin

from ._extras import needs
from .errors import PruneError, nearest

with needs("cli", "options of recipes and configs"):
    from pydantic import BaseModel, ConfigDict, ValidationError
    from pydantic import Field as Field
    from pydantic import field_validator as field_validator
    from pydantic import model_validator as model_validator
    from pydantic.fields import FieldInfo

TYPES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "string": "a string",
    "tuple": "a list",
    "list": "a list",
    "model": "an object",
    "dict": "an object",
    "none": "null",
    "finite": "a finite number",
}
"""Beginning of pydantic's name of an error → what is allowed."""
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
LONGEST_VALUE = 60
"""Characters of a value that a message shows."""


class Settings(BaseModel):
    """Frozen options; an unknown option, and a number that is not finite, is an error.

    The docstring of a field describes it. The text of an error in a validator of the whole model begins with the name of the
    option that is wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Allowed(NamedTuple):
    """In the annotation of a field: what is allowed, in words, where those of pydantic do not say it."""

    text: str


class _Place(NamedTuple):
    """The place of an error."""

    names: tuple[str, ...]
    """Names of the section and of the option."""
    section: type[BaseModel] | None
    """The section, if the place is one."""
    parent: type[BaseModel] | None
    """The section that the place is in."""
    field: FieldInfo | None
    """The option, if there is one of this name."""


AnySettings = TypeVar("AnySettings", bound=Settings)


def validated(model: type[AnySettings], values: Mapping[str, Any], source: str = "") -> AnySettings:
    """Return settings from plain values.

    Args:
        model: the class; a strict one converts no types but lists to tuples.
        values: option → value, as read from YAML, JSON or the command line.
        source: file name or another description of the values, for the error.

    Raises:
        PruneError: an option is unknown, missing or not allowed; a line for each states the option, the value and what is allowed.
    """
    try:
        if model.model_config.get("strict"):
            return model.model_validate_json(json.dumps(values))
        return model.model_validate(values)
    except ValidationError as error:
        problems = _problems(error, model, values)
    if not source:
        raise PruneError("\n".join(problems))
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise PruneError("\n  ".join([f"{source} has {count}:", *problems]))


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the class of the section that a field contains; None for an option."""
    for kind in _members(field.annotation):
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            return kind
    return None


def _problems(error: ValidationError, model: type[BaseModel], values: Any) -> list[str]:
    """Return a line for each option that is wrong."""
    lines: list[str] = []
    alternatives: dict[tuple[str, ...], list[str]] = {}
    for one in error.errors():
        place = _place(model, one["loc"])
        if one["type"] != "value_error" and place.section is None and _is_union(place.field):
            # pydantic has an error for each member of the union
            alternatives.setdefault(place.names, []).append(_allowed(one, place.field))
        else:
            lines.append(_line(one, place))
    for names, allowed in alternatives.items():
        lines.append(_must_be(".".join(names), _value_at(values, names), " or ".join(dict.fromkeys(allowed))))
    return list(dict.fromkeys(lines))


def _place(model: type[BaseModel], location: Iterable[int | str]) -> _Place:
    """Return the place that pydantic describes; what follows the option of a union are names of types."""
    place = _Place((), model, None, None)
    for part in location:
        if place.section is None and _is_union(place.field):
            break
        field = place.section.model_fields.get(str(part)) if place.section is not None else place.field
        inner = section_of(field) if field is not None and place.section is not None else None
        place = _Place((*place.names, str(part)), inner, place.section, field)
    return place


def _line(error: Any, place: _Place) -> str:
    """Return an error of pydantic as a line: option, value, what is allowed."""
    kind, name, value = error["type"], ".".join(place.names) or "it", error["input"]
    if kind == "missing":
        return f"{name} is missing"
    if kind == "extra_forbidden" and place.parent is not None:
        section = ".".join(place.names[:-1])
        return f"{name} is no option{f' of {section}' * bool(section)}{nearest(place.names[-1], place.parent.model_fields)}"
    if kind == "value_error":
        text = str(error["ctx"]["error"])
        return ".".join((*place.names, text)) if place.section is not None else f"{name} is {_shown(value)}; {text}"
    return _must_be(name, value, _allowed(error, place.field))


def _must_be(name: str, value: Any, allowed: str) -> str:
    return f"{name} is {_shown(value)}; it must be {allowed}"


def _allowed(error: Any, field: FieldInfo | None) -> str:
    """Return what is allowed at the place of an error."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    for marker in field.metadata if field is not None else ():
        if isinstance(marker, Allowed):
            return marker.text
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        hint = nearest(value, known) if isinstance(value, str) and len(known) > 3 else ""
        return context["expected"] + (hint if "did you mean" in hint else "")
    for key, word in BOUNDS.items():
        if key in context:
            percent = key in ("le", "lt") and context[key] == 1 and float(value) > 1
            return f"{word} {context[key]:g}{' (0.5 is half)' * percent}"
    return next((text for name, text in TYPES.items() if kind.startswith(name)), kind.replace("_", " "))


def _is_union(field: FieldInfo | None) -> bool:
    return field is not None and sum(kind is not type(None) for kind in _members(field.annotation)) > 1


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _value_at(values: Any, names: Iterable[str]) -> Any:
    for name in names:
        values = values[name]
    return values


def _shown(value: Any) -> str:
    """Return a value as in JSON, or as Python prints it, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}…"
