"""The search for the values of settings with which a rebuilt module is right.

The likeliest values are tried first. A line that fails is traced to the numbers that caused it: those that it reads, then those
of its function and module, then those of the modules that call it or ran before it. A change may be taken back at any time.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..spec.program import Program
from .attributes import Setting
from .problem import Problem

Ranks = Mapping[str, int]
"""Kind of settings → rank of the value that they have."""


class _Node(NamedTuple):
    """A way that was tried, and the changes of it that are still to be tried."""

    cost: int
    """How unlikely the next change is, with all changes before it since the last progress."""
    progress: tuple[float, ...]
    """How far the module ran, negated, so that the smallest node is the next."""
    number: int
    changes: Iterator[Ranks]


def search(
    settings: Sequence[Setting], program: Program, attempt: Callable[[Ranks], Problem | None], tries: int
) -> tuple[Ranks, Problem | None]:
    """Return ranks that work and None, or, if no ranks work, the likeliest ranks and the problem of the way that ran furthest.

    A node is a way to set everything. The next change is the one that is the least unlikely, over all nodes; a change that lets
    the module run further starts anew. At most `tries` ways are tried.
    """
    limits: dict[str, int] = {}
    for s in settings:
        limits[s.kind] = max(limits.get(s.kind, 1), len(s.values))
    suspicion = _Suspicion(settings, program)
    likeliest: Ranks = dict.fromkeys(limits, 0)
    seen, numbers, nodes, problems = {_key(likeliest)}, itertools.count(), list[_Node](), list[_Failed]()
    ranks, cost, problem = likeliest, 0, attempt(likeliest)
    while problem is not None:
        progress = suspicion.progress(problem)
        if all(progress < p.progress for p in problems):
            cost = 0
        problems.append(_Failed(progress, problem))
        heapq.heappush(nodes, _Node(cost, progress, next(numbers), _changes(ranks, limits, suspicion.order(problem))))
        ranks, cost = _next_change(nodes, seen)
        if ranks is None or len(seen) == tries:
            return likeliest, _furthest(problems)
        seen.add(_key(ranks))
        problem = attempt(ranks)
    return ranks, None


def _next_change(nodes: list[_Node], seen: set[tuple[int, ...]]) -> tuple[Ranks | None, int]:
    """Return the likeliest ranks that were not tried yet, and their cost; None if there are no more."""
    while nodes:
        node = heapq.heappop(nodes)
        ranks = next((r for r in node.changes if _key(r) not in seen), None)
        if ranks is not None:
            heapq.heappush(nodes, node._replace(cost=node.cost + 1))
            return ranks, node.cost + 1
    return None, 0


class _Failed(NamedTuple):
    """A way that failed, and how far it ran, negated."""

    progress: tuple[float, ...]
    problem: Problem


def _furthest(failed: Sequence[_Failed]) -> Problem:
    """Return the problem of the way that ran furthest among those that fail at a line; if none does, the first problem."""
    at_lines = [f for f in failed if f.problem.frames]
    return min(at_lines, key=lambda f: f.progress).problem if at_lines else failed[0].problem


def _key(ranks: Ranks) -> tuple[int, ...]:
    return tuple(ranks.values())


def _changes(ranks: Ranks, limits: Mapping[str, int], kinds: Sequence[str]) -> Iterator[Ranks]:
    """Yield the ranks with another rank for one kind; the first kinds first."""
    for kind in kinds:
        for rank in range(limits[kind]):
            if rank != ranks[kind]:
                yield {**ranks, kind: rank}


class _Suspicion:
    """The order in which modules run, and which settings may have caused a problem."""

    def __init__(self, settings: Sequence[Setting], program: Program) -> None:
        self.settings = settings
        self.position: dict[str, int] = {}
        for n, ins in enumerate(program.instructions):
            parts = ins.module.split(".") if ins.module else []
            for path in (".".join(parts[:i]) for i in range(len(parts) + 1)):
                self.position.setdefault(path, n)

    def progress(self, problem: Problem) -> tuple[float, ...]:
        """Return how far a module ran before it failed, negated; a module that ran to its end is the furthest."""
        if not problem.frames:
            return (-float("inf"),)
        return tuple(-n for f in problem.frames for n in (float(self.position.get(f.path, 0)), float(f.line)))

    def order(self, problem: Problem) -> list[str]:
        """Return the kinds of the settings, the likeliest causes of a problem first."""
        reached = self.position.get(problem.frames[-1].path, 0) if problem.frames else 0
        return list(dict.fromkeys(s.kind for s in sorted(self.settings, key=lambda s: self._rate(s, problem, reached))))

    def _rate(self, setting: Setting, problem: Problem, reached: int) -> tuple[int, int]:
        """Return how far a setting is from the line that fails.

        A line or function of its module reads it, its module is in the call stack, runs before, or runs later; if no line
        fails, the settings with the strongest evidence come first.
        """
        if not problem.frames:
            return (0, setting.level)
        own = [(depth, f) for depth, f in enumerate(reversed(problem.frames)) if f.path == setting.path]
        for tier, names in enumerate(("on_line", "in_function")):
            if near := [depth for depth, f in own if not getattr(f, names).isdisjoint(setting.place.names)]:
                return (tier, near[0])
        if own:
            return (2, own[0][0])
        position = self.position.get(setting.path, reached + 1)
        return (3, reached - position) if position <= reached else (4, position - reached)
