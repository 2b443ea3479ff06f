"""The sequential mode: groups are removed from the input on, and each contraction is fitted to its dense outputs in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..errors import warn
from ..parameters.transforms import apply, shrink
from ..program.compiled import site_weight
from ..program.sharded import check_plain
from ..spec.axis import keep, leaves
from ..spec.parts import Site
from ..spec.spec import Spec
from ..spec.stacked import stacked_of
from ..stats.experts import layout_of
from ..tracing.branches import Branch, other_branch
from ..types import Batch, Compensation, Mask, Params, Repair, Residual
from .branches import mean_losses, outside, shifted, sums_without
from .fits import Halves, Inside, Task, collect_fits, inputs_of_fits
from .repair import (
    Repaired,
    affected,
    affected_experts,
    few_samples,
    is_unchanged,
    repaired_by,
    residuals,
    warn_of_few_samples,
    warn_of_unchanged,
    written,
)
from .shifts import LEAST_SCALE, output_scale

COPIES = 3
"""Covariances of a site that are in memory at once: those of both halves of the samples, and of all."""


def steps(spec: Spec, mask: Mask) -> list[Mask]:
    """Split a mask into parts, from the input on: groups that share a site are in one part, at the first of their sites.

    Groups without a site (query and key widths) come first: nothing is compensated for them.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(4)])
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> half = torch.tensor([True, True, False, False])
    >>> [list(part) for part in steps(spec, {"2": half, "0": half, "1": half})]
    [['0'], ['1'], ['2']]
    """
    position = {i.name: n for n, i in enumerate(spec.program.instructions)}
    first = dict.fromkeys(mask, -1)
    joined: dict[str, set[str]] = {g: {g} for g in mask}
    # Sites from the last to the first, so that each set of joined groups ends with its first site.
    for g in first.keys() & spec.branches.keys():  # where the last summand would have been added
        first[g] = max(position[t.addition] for t in spec.branches[g].terms)
    inside = [s.site(0) for s in stacked_of(spec)]
    for site in sorted([*spec.sites.values(), *inside], key=lambda s: position[s.calls[0]], reverse=True):
        joint = set().union(*(joined[g] for g in leaves(site.axis) if g in mask))
        for g in joint:
            joined[g], first[g] = joint, position[site.calls[0]]
    parts: dict[int, Mask] = {}
    for g in sorted(mask, key=lambda g: first[g]):
        parts.setdefault(first[g], {})[g] = mask[g]
    return [p for p in parts.values() if any(not bool(m.all()) for m in p.values())]


def remove(
    params: Params,
    mask: Mask,
    batches: Iterable[Batch],
    *,
    spec: Spec,
    method: Compensation,
    **options: Any,
) -> tuple[Params, Spec, dict[str, Residual]]:
    """Remove groups from the input on, and fit each contraction that loses inputs to its outputs in the dense network.

    Where a branch is removed, the mean of what its stream lacks becomes a bias.

    A contraction is measured when its inputs are removed and all before it are compensated. Where its output is added to another
    branch, it also makes up for what that branch has lost (He, Zhang and Sun, ICCV 2017, arXiv 1707.06168).

    Args:
        params: of the spec, not yet pruned.
        mask: units to remove.
        batches: read once for each contraction that loses inputs; those that read the same value share a pass.
        spec: of the params.
        method: of compensation.
        options: as in `collect_fits`.

    Returns:
        The pruned params, their spec, and site → error.
    """
    check_plain(params, "sequential=True", "leave it out")
    pruned, current, removed = params, spec, dict[str, Tensor]()
    errors, few, unchanged = dict[str, Residual](), list[str](), list[str]()
    for part in steps(spec, outside(mask, spec)):
        sites, sums = affected(current, part), sums_without(part, current)
        calls = dict.fromkeys(s.calls[0] for s in affected_experts(current, part))
        pruned, current, removed = apply(pruned, part, spec=current), shrink(current, part), removed | part
        if sums and method.needs:
            lost = mean_losses((params, spec), (pruned, current), batches, sums, removed, **options)
            pruned = shifted(pruned, lost, current)
        for together in (*by_input(sites, current), *calls) if method.needs else ():
            networks = (params, spec), (pruned, current)
            if isinstance(together, str):
                tasks = expert_tasks(together, *networks, removed)
            else:
                tasks = [task_of(spec.sites[s.name], *networks, removed) for s in together]
            collect = partial(collect_fits, *networks, batches, **options)
            repaired = fitted(tasks, collect, method, current)
            errors |= residuals(repaired)
            few += [text for r in repaired for text in few_samples(r, method)]
            unchanged += [r.site.name for r in repaired if is_unchanged(r)]
            pruned = written(pruned, repaired, current)
    warn_of_few_samples(few, method)
    warn_of_unchanged(unchanged, method)
    return pruned, current, errors


def by_input(sites: Sequence[Site], spec: Spec) -> list[list[Site]]:
    """Return the sites in the order of the program; those that read the same value next to each other are together."""
    position = {i.name: n for n, i in enumerate(spec.program.instructions)}
    ordered = sorted(sites, key=lambda s: position[s.calls[0]])
    return [list(together) for _, together in groupby(ordered, key=lambda s: s.values)]


def task_of(site: Site, dense: tuple[Params, Spec], now: tuple[Params, Spec], removed: Mask) -> Task:
    """Return what to fit at a site: its weights, the outputs that are left, and the branch that they are added to."""
    (params, spec), (pruned, current) = dense, now
    device = next(t.device for n, t in params.items() if n in spec.parameters)
    outputs = keep(site.out, removed, spec.sizes).nonzero()[:, 0].to(device)
    branch = _branch(site, spec)
    scale = torch.ones(len(outputs), dtype=torch.float64, device=device)
    if branch is not None:
        scale = scale * output_scale(branch.scales, pruned, current)
    weak = scale.abs() <= LEAST_SCALE * scale.abs().amax()
    inverse = torch.where(weak, 0.0, 1 / torch.where(weak, 1.0, scale))
    other, order = ("", ()) if branch is None else (branch.value, branch.order)
    return Task(
        current.sites[site.name],
        site_weight(params, site, spec=spec),
        site_weight(pruned, current.sites[site.name], spec=current),
        outputs,
        slice(None),
        other,
        order,
        inverse,
    )


def expert_tasks(call: str, dense: tuple[Params, Spec], now: tuple[Params, Spec], removed: Mask) -> list[Task]:
    """Return what to fit at a contraction inside experts: that of each expert that is left, on the tokens that it gets in both networks."""
    (params, spec), (pruned, current) = dense, now
    before, after = (next(s for s in stacked_of(one) if s.call == call) for one in (spec, current))
    device = next(t.device for n, t in params.items() if n in spec.parameters)
    outputs = keep(before.out, removed, spec.sizes).nonzero()[:, 0].to(device)
    scale = torch.ones(len(outputs), dtype=torch.float64, device=device)
    tasks = []
    for e, position in enumerate(keep(before.experts, removed, spec.sizes).nonzero()[:, 0].tolist()):
        site, inside = after.site(e), Inside(after, layout_of(before, spec), position, e)
        dense_weight = site_weight(params, before.site(position), spec=spec)
        weight = site_weight(pruned, site, spec=current)
        tasks.append(Task(site, dense_weight, weight, outputs, slice(None), "", (), scale, inside))
    return tasks


def _branch(site: Site, spec: Spec) -> Branch | None:
    branch = other_branch(site, spec)
    channels = spec.program.axes[f"%{site.calls[0]}"][site.values[0][1]] if branch is not None else None
    return branch if channels == site.out else None


def _block(task: Task, first: int = 0) -> Task:
    """Return the task of fitting as many inputs from the given one on as the memory allows."""
    return task._replace(inputs=slice(first, first + _inputs_at_once(task)))


def _inputs_at_once(task: Task) -> int:
    """Return the number of inputs of each group whose covariances over all taps fit into half of the memory."""
    groups, _, inputs, taps = task.weight.shape
    columns = int((_memory(task.weight.device) / 2 / (8 * COPIES * groups)) ** 0.5)
    return min(inputs, max(1, columns // taps))


def _memory(device: torch.device) -> int:
    """Return the bytes of a device that are free on CUDA, else those of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_PHYS_PAGES" in os.sysconf_names else 1 << 34


def fitted(
    tasks: Sequence[Task], collect: Callable[[Sequence[Task]], list[Halves]], method: Compensation, spec: Spec
) -> list[Repaired]:
    """Return the repairs of sites that read the same value.

    Args:
        tasks: of the sites.
        collect: measures tasks, on all batches.
        method: of compensation.
        spec: of the current network.
    """
    halves = collect([_block(t) for t in tasks])
    # an expert may have no tokens
    return [_fitted(t, h, collect, method, spec) for t, h in zip(tasks, halves, strict=True) if any(h)]


def _fitted(
    task: Task,
    halves: Halves,
    collect: Callable[[Sequence[Task]], list[Halves]],
    method: Compensation,
    spec: Spec,
) -> Repaired:
    """Return the repair of a site; in blocks of its inputs, each given the others, if their covariance is too large."""
    at_once, size_of_group = _inputs_at_once(task), task.weight.shape[2]
    if at_once >= size_of_group or "covariance" not in method.needs:
        return repaired_by(method, task.site, task.weight, inputs_of_fits(halves, task), spec)
    warn(
        f"site {task.site.name!r} is fitted for {at_once} of its {size_of_group} inputs at a time: the covariance of all taps "
        "would take more than half of the memory"
    )
    weight, last = task.weight.clone(), None
    for first in range(0, size_of_group, at_once):
        block = _block(task._replace(weight=weight), first)
        if first:
            (halves,) = collect([block])
        last = repaired_by(method, task.site, weight[:, :, block.inputs], inputs_of_fits(halves, block), spec)
        if last.repair.weight is not None:
            weight[:, :, block.inputs] = last.repair.weight
    assert last is not None
    return last._replace(whole=Repair(weight, last.repair.shift))
