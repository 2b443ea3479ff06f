"""Checks of choices: criteria, scopes and other values by name, predicates on groups, names of tensors, functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from ..errors import nearest
from ..spec.parts import Group
from ..types import Budget, Compensation, Count, Criterion, Scope, TargetSizes
from .plain import Read, Refuse, at_entry, read_float, read_int, read_path
from .words import menu, public_name, said

FIXES = {"l1": "magnitude(p=1.0)", "l2": "magnitude()", "none": "none()"}
"""Names of criteria in other libraries → the call here."""


def by_name(kind: type | str, room: str) -> Read:
    """Return a reader of values of a class, or of names of functions of `prunefn.<room>` that make one without arguments."""
    class_name = kind if isinstance(kind, str) else kind.__name__

    def read(value: Any, name: str, refuse: Refuse, _: Mapping[str, Any]) -> Any:
        if isinstance(value, str):
            return named(value, class_name, room, refuse)
        _refuse_uncalled(value, (class_name,), refuse)
        # Classes of rooms above this one cannot be imported here: they are recognised by name.
        fits = isinstance(value, kind) if isinstance(kind, type) else _has_class(value, class_name)
        return value if fits else refuse()

    return read


def _has_class(value: Any, class_name: str) -> bool:
    """Return whether a value is of the prunefn class of this name."""
    return type(value).__name__ == class_name and type(value).__module__.startswith("prunefn.")


def named(text: str, class_name: str, room: str, refuse: Refuse) -> Any:
    """Return the value that a name stands for, as on the command line."""
    module = menu(room)
    makers = {n: f for n, f in vars(module).items() if not n.startswith("_") and _makes(f, class_name)}
    name = "global_" if text == "global" else text
    if name not in makers:
        if room.endswith("criteria") and text in FIXES:
            refuse(f"write pf.{room}.{FIXES[text]}")
        refuse(f"pf.{room} has no {text!r}{nearest(text, makers)}")
    # A name cannot state the fallback for weights that cannot be rewritten.
    if class_name == "Compensation" and text == "affine":
        return makers["affine"](fallback=makers["mean"]())
    parameters = inspect.signature(makers[name]).parameters.values()
    if needed := [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]:
        refuse(f"write pf.{room}.{name}({', '.join(needed)}), which needs its arguments")
    return makers[name]()


def _makes(function: Any, *class_names: str) -> bool:
    """Return whether a value is a function that returns one of these classes by its annotation."""
    return inspect.isfunction(function) and str(function.__annotations__.get("return")) in class_names


MADE = (
    "Criterion", "Scope", "WeightScope", "Pattern", "Solver", "Compensation", "Budget", "Count", "Choice", "Normalizer", "Schedule",
    "Regularizer", "Distance",
)  # fmt: skip
"""Classes of values that functions of prunefn make; no argument takes such a function itself."""


def _refuse_uncalled(value: Any, class_names: tuple[str, ...], refuse: Refuse) -> None:
    """Refuse a function that makes a value of these or other classes, passed instead of its result."""
    if _makes(value, *class_names):
        refuse(f"call it: {public_name(value)}{_required_arguments(value)}")
    if _makes(value, *MADE):
        refuse()


def _required_arguments(function: Callable[..., Any]) -> str:
    """Return the required arguments of a function in parentheses."""
    parameters = inspect.signature(function).parameters.values()
    return f"({', '.join(p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL)})"


read_criterion = by_name(Criterion, "criteria")


def read_dynamic(value: Any, _: str, refuse: Refuse, __: Mapping[str, Any]) -> Any:
    """Read sizes that may vary: a text, a list of texts, or a dict input → names per dim."""
    if isinstance(value, str | Mapping):
        return value
    names = list(value) if isinstance(value, list | tuple | set | frozenset) else [None]
    return names if all(isinstance(n, str) for n in names) else refuse()


def read_interfaces(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read words and names of interfaces, or a dict tensor or input → dim."""
    if not isinstance(value, Mapping):
        return read_names(value, name, refuse, given)
    return {k: read_int(v, name, at_entry(refuse, name, k, v), given) for k, v in value.items()}


read_scope = by_name(Scope, "scope")
read_compensation = by_name(Compensation, "compensation")
read_weight_criterion = by_name(Criterion, "sparse.criteria")
read_weight_scope = by_name("WeightScope", "sparse.scope")
read_pattern = by_name("Pattern", "sparse.pattern")


def read_criteria(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read one criterion or several."""
    if not isinstance(value, list | tuple) or isinstance(value, Criterion):
        return read_criterion(value, name, refuse, given)
    return [read_criterion(v, name, at_entry(refuse, name, i, v), given) for i, v in enumerate(value)]


def read_ratio(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read a number, a budget, several budgets, sizes, or a number for each glob; the function itself checks the range."""
    _refuse_uncalled(value, ("Budget", "Count"), refuse)
    if isinstance(value, Budget | Count | TargetSizes):
        return value
    if isinstance(value, Mapping):
        for key, v in value.items():
            if isinstance(v, Budget):
                fix = f"a budget is for the whole network; write {name}={{{key!r}: 0.5}} or {name}=budget.{v.quantity}({v.keep})"
                refuse(fix, f"{name}[{key!r}] is {said(v)}")
            if not isinstance(key, str):
                refuse("its keys must be names or globs", f"{name} has the key {said(key)}")
        return {k: read_float(v, name, at_entry(refuse, name, k, v), given) for k, v in value.items()}
    if isinstance(value, list | tuple):
        for i, v in enumerate(value):
            _refuse_uncalled(v, ("Budget",), at_entry(refuse, name, i, v))
        return value
    return read_float(value, name, refuse, given)


def read_budgets(value: Any, name: str, refuse: Refuse, _: Mapping[str, Any]) -> Any:
    """Read one budget, or several."""
    _refuse_uncalled(value, ("Budget",), refuse)
    if isinstance(value, Budget):
        return value
    if not isinstance(value, list | tuple) or not value:
        refuse()
    for i, v in enumerate(value):
        if not isinstance(v, Budget):
            _refuse_uncalled(v, ("Budget",), at_entry(refuse, name, i, v))
            at_entry(refuse, name, i, v)()
    return value


# ---- groups and tensors


def read_where(value: Any, name: str, refuse: Refuse, _: Mapping[str, Any]) -> Any:
    """Read a glob, or a predicate on groups."""
    _refuse_uncalled(value, ("Choice",), refuse)
    if isinstance(value, nn.Module):
        refuse("write pf.module('its.name'), with its name in model.named_modules()")
    if isinstance(value, Group):
        refuse(f"write pf.glob({value.name!r})")
    if isinstance(value, list | tuple | set) and value and all(isinstance(v, str) for v in value):
        refuse(f"write pf.glob({', '.join(map(repr, value))})")
    return value if isinstance(value, str) or (callable(value) and not isinstance(value, type)) else refuse()


def read_names(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read names, module paths or globs; modules and tensors of the call's `model` become their names."""
    if isinstance(value, str):
        return value
    if isinstance(value, nn.Module | Tensor):
        return _name_in(given.get("model"), value, refuse)
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        refuse()
    return tuple([_read_name(v, given, at_entry(refuse, name, i, v)) for i, v in enumerate(value)])


def _read_name(value: Any, given: Mapping[str, Any], refuse: Refuse) -> str:
    """Read one name, or a module or tensor of the model."""
    if isinstance(value, nn.Module | Tensor):
        return _name_in(given.get("model"), value, refuse)
    return value if isinstance(value, str) else refuse()


def _name_in(model: Any, value: nn.Module | Tensor, refuse: Refuse) -> str:
    """Return the name of a module or tensor in the model; refuse it if it has none or several."""
    if not isinstance(model, nn.Module):
        refuse("write its name, as in model.named_modules() or pf.params(model)")
    named = model.named_modules(remove_duplicate=False)
    if isinstance(value, Tensor):
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    names = [n for n, m in named if m is value and n]
    if len(names) != 1:
        refuse(f"it has {len(names)} names in the model{''.join(f' {n!r}' for n in names)}; write a name of the model")
    return names[0]


# ---- functions


def function_of(*class_names: str, takes: str = "", modules: bool = False) -> Read:
    """Return a reader of functions, but not of classes or of functions to call first.

    Args:
        class_names: classes of functions that a function to call first makes.
        takes: text with the names of classes that the function itself may make.
        modules: whether an nn.Module is accepted.
    """

    def read(value: Any, _: str, refuse: Refuse, __: Mapping[str, Any]) -> Any:
        if not _makes(value, *[n for n in MADE if n in takes]):
            _refuse_uncalled(value, class_names, refuse)
        if isinstance(value, type):
            refuse(f"call it: {value.__name__}(…)" if issubclass(value, nn.Module) and modules else "")
        if isinstance(value, nn.Module) and not modules:
            refuse()
        return value if callable(value) else refuse()

    return read


def read_weights(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read weights of positions: a bool, the name of an input, or a function of the batch."""
    return value if isinstance(value, bool | str) else function_of("Criterion", "Scope")(value, name, refuse, given)


def read_normalize(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read a bool, or a normaliser."""
    return value if isinstance(value, bool) else function_of("Normalizer")(value, name, refuse, given)


def read_dense_folder(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Return the folder of a model, or logits on disk."""
    return value if _has_class(value, "DenseLogits") else read_path(value, name, refuse, given)


def instance_of(kind: type) -> Read:
    """Return a reader of values of a class."""

    def read(value: Any, _: str, refuse: Refuse, __: Mapping[str, Any]) -> Any:
        if isinstance(value, kind) or (
            kind is getattr(dist, "ProcessGroup", None) and value is dist.GroupMember.NON_GROUP_MEMBER
        ):
            return value
        if isinstance(value, type) and issubclass(value, kind):
            refuse(f"call it: {value.__name__}(…)")
        _refuse_uncalled(value, (kind.__name__,), refuse)
        if field := next((f for f in getattr(value, "_fields", ()) if isinstance(getattr(value, f), kind)), None):
            refuse(f"write its {field}: ….{field}")
        return refuse()

    return read
