"""Scores of units and layers, from statistics measured layer by layer: covariances are dropped with their layer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..criteria import block_influence, expert_frequency, magnitude
from ..criteria.scoring import score
from ..files import atomic
from ..files.folder import read_all, shard
from ..files.tensors import save_sealed
from ..frozen_dict import FrozenDict
from ..program.sharded import Gathering
from ..spec.axis import leaves
from ..spec.parts import LAYER
from ..spec.spec import Spec
from ..spec.stacked import site_named, stacked_of
from ..stats import choices
from ..stats.branches import COLLECTED
from ..stats.by_layer import Measure, union
from ..stats.fingerprint import Origin
from ..stats.saved import read, write
from ..types import Batch, Criterion, Scores, Stats
from ..where import kind, only
from .work import Work, run_layers

log = logging.getLogger(__name__)

STAGE = "statistics"
KNOWN = Origin({}, {})
"""The work folder is of one spec and its params."""


def score_layers(
    measures: Sequence[Measure],
    groups: Sequence[str],
    batches: Sequence[Batch],
    work: Work,
    start: Stats,
    criterion: Criterion,
    of_experts: Criterion,
    *,
    progress: bool,
) -> Scores:
    """Return the scores of some groups, and of the whole layers that were measured."""
    spec = start.spec
    assert spec is not None
    inside = {work.file(STAGE, n): groups_within(m, groups, spec) for n, m in enumerate(measures)}
    files = run_layers(
        work, STAGE, measures, batches, start, partial(_write, inside=inside, criterion=criterion), progress=progress
    )
    inside_experts = {g for m in measures for g in m.routes}
    found = {g: t for f in files for g, t in read_all((shard(_scores_beside(f)),)).items()}
    rest = union((read(f, start, KNOWN)[0] for f in files), start)
    found |= _scores_of_experts(rest, of_experts)
    if spanning := set(groups) - set(found) - inside_experts:
        scores = score(rest, criterion=criterion) if rest.sites else {}
        found |= {g: scores[g] for g in spanning if g in scores}
    if lacking := [g for g in groups if g not in found]:  # no contraction reads their units alone
        log.info(
            "%d groups, such as %r, have no activations of their own: their weights score them",
            len(lacking),
            lacking[0],
        )
        by_weights = magnitude().score(start._replace(params=Gathering(start.params)))
        found |= {g: by_weights[g] for g in lacking if g in by_weights}
    if COLLECTED in rest.sums:
        found |= only(score(rest, criterion=block_influence()), kind(LAYER), spec=spec)
    return found


def _scores_of_experts(stats: Stats, criterion: Criterion) -> Scores:
    """Return the scores of experts that were measured; by their share of the tokens, if what they add is not known."""
    out: Scores = {}
    if choices.ADDED in stats.sums:
        sums = stats.sums[choices.ADDED]
        same = {choices.ADDED: sums, choices.CHOSEN: FrozenDict({g: s[: choices.NORM] for g, s in sums.items()})}
        out |= score(stats._replace(sums=FrozenDict(same)), criterion=criterion)
    if choices.CHOSEN in stats.sums:
        out |= score(stats, criterion=expert_frequency())
    return out


def groups_within(measure: Measure, groups: Sequence[str], spec: Spec) -> list[str]:
    """Return the groups all of whose sites are measured in one layer."""
    whole = {s.name for s in measure.sites if s.calls == spec.sites[s.name].calls} | {s.name for s in measure.stacked}
    sites = (*spec.sites.values(), *stacked_of(spec))
    readers = {g: {s.name for s in sites if g in leaves(s.axis)} for g in groups}
    return [g for g, names in readers.items() if names and names <= whole]


def _scores_beside(path: Path) -> Path:
    return path.with_name(path.name.replace(STAGE, "scores"))


def _write(path: Path, stats: Stats, *, inside: dict[Path, list[str]], criterion: Criterion) -> None:
    """Write the scores of a layer's own groups, and the statistics of all others."""
    spec, own = stats.spec, set(inside[path])
    assert spec is not None
    scores = {g: s for g, s in score(stats, criterion=criterion).items() if g in own} if own else {}
    atomic.write(_scores_beside(path), lambda part: save_sealed(part, scores, {"format": "pt"}))
    left = {n: m for n, m in stats.sites.items() if not set(leaves(site_named(spec, n).axis)) <= own}
    write(path, stats._replace(sites=FrozenDict(left)), KNOWN)
