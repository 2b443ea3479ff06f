"""Scopes: what is ranked against what."""

from __future__ import annotations

import torch

from .types import Scope, Scores

TINY = 1e-9
"""So that 0.29 · 100 counts as 29."""


def global_(*, normalize: bool = False) -> Scope:
    """One ranking over all units of all groups; a ratio is a share of all units.

    Args:
        normalize: divide each group's scores by their mean magnitude first, so that groups of different scale can be
            compared.
    """
    return Scope("global", _by_mean if normalize else dict, _share_of_all)


def local() -> Scope:
    """A ranking in each group; a ratio is the same share of every group, rounded down. Under a budget, groups shrink alike."""
    return Scope("local", _ranks, _at_most)


def _by_mean(scores: Scores) -> Scores:
    return {g: s / s.abs().mean().clamp_min(torch.finfo(s.dtype).tiny) for g, s in scores.items()}


def _share_of_all(priorities: Scores, ratio: float) -> int:
    return int(ratio * sum(len(s) for s in priorities.values()) + TINY)


def _ranks(scores: Scores) -> Scores:
    """Share of its group that goes when a unit and all below it go."""
    return {g: (torch.argsort(torch.argsort(s, stable=True)) + 1).double() / len(s) for g, s in scores.items()}


def _at_most(priorities: Scores, ratio: float) -> int:
    return sum(int((s <= min(ratio + TINY, 1 - TINY)).sum()) for s in priorities.values())
