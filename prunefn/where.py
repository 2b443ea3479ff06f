"""Predicates on groups: by kind, glob, module, tensor or function; `&`, `|` and `~` combine them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from operator import attrgetter

from torch import Tensor

from .doors import door
from .errors import PruneError, nearest
from .names import named
from .spec.axis import Axis, leaves
from .spec.interface import INTERFACES
from .spec.parts import DEPTH, EXPERTS, Group, Site
from .spec.spec import Spec
from .spec.stacked import Stacked, stacked_of
from .types import Scores, Where

ON_REQUEST = (*DEPTH, EXPERTS, *INTERFACES)
"""Kinds of groups that are chosen only where they are named."""
KINDS = ("hidden", "residual", "heads", "head_dim", "groups", *ON_REQUEST)
FUNCTION = "()"
"""Name for a function, which decides about every group by itself."""


class Choice:
    """A predicate that combines with other predicates, with functions `Group → bool` and with globs.

    >>> kind("hidden") & ~module("head") | "blocks.0.*"
    kind('hidden') & ~module('head') | glob('blocks.0.*')
    """

    __slots__ = ("_names", "_rank", "_test", "_text")
    is_choice = True

    def __init__(self, test: Callable[[Group], bool], text: str, rank: int = 2, names: tuple[str, ...] = ()) -> None:
        self._test, self._text, self._rank, self._names = test, text, rank, names

    def __call__(self, group: Group) -> bool:
        return bool(self._test(group))

    def __and__(self, other: Where | str) -> Choice:
        return _both(self, other)

    def __rand__(self, other: Where | str) -> Choice:
        return _both(other, self)

    def __or__(self, other: Where | str) -> Choice:
        return _either(self, other)

    def __ror__(self, other: Where | str) -> Choice:
        return _either(other, self)

    def __invert__(self) -> Choice:
        return Choice(partial(_not, self), f"~{self.text(2)}")

    def __repr__(self) -> str:
        return self._text

    def text(self, rank: int) -> str:
        """Return the text of an operand: in brackets if it binds less tightly than `rank` (`|` 0, `&` 1, all else 2)."""
        return self._text if self._rank >= rank else f"({self._text})"

    @property
    def names(self) -> tuple[str, ...]:
        """Return the kinds and globs that the predicate names, but not behind `~`; `()` for a function."""
        return self._names


def _both(a: Where | str, b: Where | str) -> Choice:
    x, y = choice(a), choice(b)
    return Choice(partial(_all, x, y), f"{x.text(1)} & {y.text(1)}", 1, (*x.names, *y.names))


def _either(a: Where | str, b: Where | str) -> Choice:
    x, y = choice(a), choice(b)
    return Choice(partial(_any, x, y), f"{x.text(0)} | {y.text(0)}", 0, (*x.names, *y.names))


def choice(where: Where | str) -> Choice:
    """Return a glob or a function as a predicate that combines with others.

    Raises:
        PruneError: `where` is neither.

    >>> choice(lambda group: group.size >= 64) & "layer1.*"
    <lambda> & glob('layer1.*')
    """
    if isinstance(where, Choice):
        return where
    if isinstance(where, str):
        return glob(where)
    if not callable(where):
        raise PruneError(f"{where!r} does not choose groups; give a glob, pf.kind(…), or a function Group -> bool")
    return Choice(where, getattr(where, "__name__", repr(where)), names=(FUNCTION,))


def _format_call(name: str, *args: str) -> str:
    return f"{name}({', '.join(map(repr, args))})"


@door
def kind(*kinds: str) -> Choice:
    """Choose the groups of these kinds: `hidden`, `residual`, `heads`, `head_dim` or `groups`; or whole blocks: `branch`, `layer`; or
    whole `experts` of a mixture; or interfaces, on which somebody outside of the model counts, and which `trace(…, free=)` made
    groups: `vocabulary`, `classes`, `inputs`, `outputs`, `interface`.

    Whole blocks, experts and interfaces are pruned only where they are named: by their kind, their own name, or the kind at the
    end of a glob (`*.vocabulary`).

    A group is `residual` if some sum is of the form x + f(x): x passes on unit by unit, and weights compute f(x) from the same x.
    Sums of parallel branches, f(x) + g(x), are inside a block; their groups are `hidden`.

    Raises:
        PruneError: a kind does not exist.
    """
    if unknown := [k for k in kinds if k not in KINDS]:
        raise PruneError(f"there is no kind {unknown[0]!r}; kinds are {', '.join(KINDS)}{nearest(unknown[0], KINDS)}")
    return Choice(partial(_has_kind, kinds), _format_call("kind", *kinds), names=kinds)


@door
def glob(*patterns: str) -> Choice:
    """Choose the groups whose name matches one of these patterns, such as `blocks.*.mlp.*`."""
    return Choice(partial(_matches_glob, patterns), _format_call("glob", *patterns), names=patterns)


@door
def module(*paths: str) -> Choice:
    """Choose the groups that come from these modules or their submodules; a path may be a glob, such as `blocks.*.mlp`.

    A group comes from its first producer: its name begins with the producer's module path. A residual stream thus belongs to the
    module that opens it, not to the modules that add to it; `touches` chooses by the latter.

    >>> [module("layer1")(Group(name, "hidden", 4, (), ())) for name in ("layer1.0.conv1", "layer1", "layer10.0.conv1")]
    [True, True, False]
    """
    return Choice(partial(_is_below, paths), _format_call("module", *paths))


@door
def touches(*tensors: str) -> Choice:
    """Choose the groups that occur in one of these tensors: the name of a tensor or of a module (all its tensors), or a glob.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> [g for g, group in spec.groups.items() if touches("1.weight")(group)]
    ['0', '1']
    """
    return Choice(partial(_has_tensor, tensors), _format_call("touches", *tensors))


def exact() -> Choice:
    """Choose the groups without an op that combines their units (norms, means): removing a unit leaves the others unchanged."""
    return Choice(attrgetter("exact"), "exact()")


# ---- tests of groups: functions at module level, so that predicates can be pickled


def _not(x: Choice, group: Group) -> bool:
    return not x(group)


def _all(x: Choice, y: Choice, group: Group) -> bool:
    return x(group) and y(group)


def _any(x: Choice, y: Choice, group: Group) -> bool:
    return x(group) or y(group)


def _has_kind(kinds: tuple[str, ...], group: Group) -> bool:
    return group.kind in kinds


def _matches_glob(patterns: tuple[str, ...], group: Group) -> bool:
    return any(fnmatchcase(group.name, p) for p in patterns)


def _is_below(paths: tuple[str, ...], group: Group) -> bool:
    return any(named(group.name, p) for p in paths)


def _has_tensor(tensors: tuple[str, ...], group: Group) -> bool:
    return any(named(m.tensor, p) for m in group.members for p in tensors)


# ---- apply predicates


def matches(where: Where | str | None, group: Group) -> bool:
    """Return whether a group is chosen; a string is a glob, None chooses all groups.

    Whole blocks, experts and interfaces are chosen only by functions, and by predicates that name them, their kind, or, in a
    glob, the end of their name.

    >>> rows = Group("wte.vocabulary", "vocabulary", 4, (), ())
    >>> [matches(w, rows) for w in (None, "*", ~kind("hidden"), kind("vocabulary") & module("wte"), "*.vocabulary")]
    [False, False, False, True, True]
    """
    on_request = group.kind in ON_REQUEST
    if where is None:
        return not on_request
    predicate = glob(where) if isinstance(where, str) else where
    return bool(predicate(group)) and (not on_request or _names_it(choice(predicate), group))


def _names_it(predicate: Choice, group: Group) -> bool:
    """Return whether a predicate names a group, its kind, or its name with the kind in it."""
    names = predicate.names
    return FUNCTION in names or any(
        n in (group.kind, group.name) or (group.kind in n and fnmatchcase(group.name, n)) for n in names
    )


def check_matches(where: Where | str | None, spec: Spec) -> None:
    """Check that some group is chosen.

    Raises:
        PruneError: no group matches; the message suggests the nearest names.
    """
    if where is None or not spec.groups or any(matches(where, g) for g in spec.groups.values()):
        return
    if isinstance(where, str) and where in KINDS:
        hint = f"; to choose a kind, write pf.kind({where!r})"
    else:
        hint = nearest(where, [*spec.groups, *KINDS]) if isinstance(where, str) else ""
    raise PruneError(f"no group matches {where!r}{hint}")


@door
def only(scores: Scores, where: Where | str, *, spec: Spec | None = None) -> Scores:
    """Return the scores of the chosen groups; the other groups are not pruned.

    Args:
        scores: group → [units].
        where: a glob on the name, `kind(…)`, or any predicate on `Group`; `&`, `|` and `~` combine them.
        spec: required unless `where` is a glob.

    Raises:
        PruneError: no group matches, or a predicate needs the spec.

    >>> import torch
    >>> list(only({"a.fc1": torch.ones(2), "b": torch.ones(2)}, "*.fc1"))
    ['a.fc1']
    """
    groups: Mapping[str, Group] | None = None if spec is None else spec.groups
    if groups is None and not isinstance(where, str):
        raise PruneError("a predicate on groups needs the spec: only(scores, where, spec=spec)")
    kept: dict[str, Tensor] = {}
    for name, score in scores.items():
        if groups is not None and name not in groups:
            raise PruneError(f"the scores have a group {name!r}, but the spec has no such group{nearest(name, groups)}")
        group = groups[name] if groups is not None else Group(name, "", len(score), (), ())
        if matches(where, group):
            kept[name] = score
    if scores and not kept:
        raise PruneError(f"no group of {', '.join(list(scores)[:5])} … matches {where!r}")
    return kept


def sites_of(spec: Spec, where: Where | str | None = None) -> list[Site]:
    """Return the sites of the groups that match."""
    return [s for s in spec.sites.values() if _is_over(s.axis, spec, where)]


def stacked_over(spec: Spec, where: Where | str | None = None) -> list[Stacked]:
    """Return the contractions inside experts over the groups that match."""
    return [s for s in stacked_of(spec) if _is_over(s.axis, spec, where)]


def _is_over(axis: Axis, spec: Spec, where: Where | str | None) -> bool:
    return any(matches(where, spec.groups[g]) for g in leaves(axis) if g in spec.groups)
