"""What a pipeline will do: its choices, with those that were not made, as a function that shows them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from inspect import Signature
from typing import Any, NamedTuple, Protocol, runtime_checkable

from . import compensation as compensations
from . import criteria
from .criteria import normalizer
from .display.calls import argument_text, call
from .selection import scope as scopes
from .spec.spec import Spec
from .types import Batch, Compensation, Criterion, Params, Pruned, Scope, Stats


@runtime_checkable
class Prune(Protocol):
    """Function that prunes, as `pipeline` returns it."""

    def __call__(
        self,
        params: Params,
        batches: Iterable[Batch] | None,
        *,
        spec: Spec,
        stats: Stats | None = None,
        progress: bool = False,
        sync: bool = False,
    ) -> Pruned:
        """Prune a network.

        Args:
            params, batches, spec, progress: as in `collect_stats`.
            stats: statistics at hand, of these params; nothing is collected, and `batches` may be None unless the pipeline is
                sequential or recalibrates.
            sync: merge statistics of all processes by torch.distributed, so that all return the same; `batches` is this
                process's share, which may be an empty list.
        """
        ...


class Plan(NamedTuple):
    """The choices of a pipeline; None: not made."""

    criterion: Criterion | None
    scope: Scope | None
    compensation: Compensation | None
    sequential: bool | None

    def complete(self, data: bool, one_pass: bool) -> Chosen:
        """Return the plan with all choices made.

        Args:
            data: whether there are batches or statistics.
            one_pass: whether nothing can be measured block by block: several processes measure, or there are no batches.
        """
        criterion, scope, compensation, sequential = self
        if criterion is None:
            criterion = criteria.obs() if data else criteria.normalized(criteria.magnitude(), normalizer.mean)
            scope = (scopes.knapsack() if data else scopes.global_()) if scope is None else scope
            sequential = data and not one_pass if sequential is None else sequential
            best = compensations.affine(fallback=compensations.mean()) if data else compensations.none()
            compensation = best if compensation is None else compensation
        return Chosen(
            criterion,
            scopes.global_() if scope is None else scope,
            compensations.mean() if compensation is None else compensation,
            bool(sequential),
        )


class Chosen(NamedTuple):
    """The choices of a pipeline."""

    criterion: Criterion
    scope: Scope
    compensation: Compensation
    sequential: bool

    @property
    def covariance(self) -> bool:
        """Whether the compensation needs covariances."""
        return "covariance" in self.compensation.needs


class Pipeline:
    """A function that prunes, as `pipeline` returns it; its repr is the call that made it, `print` shows its steps.

    >>> import prunefn as pf
    >>> pf.pipeline(ratio=pf.budget.macs(0.5), round_to=8)
    pipeline(ratio=macs(0.5), round_to=8)
    >>> print(pf.recipes.vbp(0.45))
    pipeline(criterion=variance(), where=kind('hidden'), ratio=0.45, scope=global_(), compensation=mean())
      score       variance(), of the groups kind('hidden')
      select      0.45 by global_()
      compensate  mean(), in one pass
    """

    def __init__(self, run: Prune, plan: Plan, arguments: Mapping[str, Any], signature: Signature) -> None:
        self._run, self._plan, self._arguments = run, plan, dict(arguments)
        self._chosen = {
            k: v for k, v in arguments.items() if k == "ratio" or not _equal(v, signature.parameters[k].default)
        }

    def __call__(
        self,
        params: Params,
        batches: Iterable[Batch] | None,
        *,
        spec: Spec,
        stats: Stats | None = None,
        progress: bool = False,
        sync: bool = False,
    ) -> Pruned:
        """Prune a network; see `Prune`."""
        return self._run(params, batches, spec=spec, stats=stats, progress=progress, sync=sync)

    def running(self, run: Prune) -> Pipeline:
        """Return a pipeline of the same choices that runs another function, which may depend on the network."""
        other = copy.copy(self)
        other._run = run
        return other

    def __repr__(self) -> str:
        return call("pipeline", self._chosen)

    def __str__(self) -> str:
        a, plan = self._arguments, self._plan.complete(data=True, one_pass=False)
        where = "all groups" if a["where"] is None else f"the groups {argument_text(a['where'])}"
        limits = [f"{k}={argument_text(self._chosen[k])}" for k in LIMITS if k in self._chosen]
        how = "block by block, towards the dense outputs" if plan.sequential else "in one pass"
        steps = {"score": f"{plan.criterion!r}, of {where}"}
        steps["select"] = ", ".join([f"{argument_text(a['ratio'])} by {plan.scope!r}", *limits])
        steps |= {"compensate": f"{plan.compensation!r}, {how}"} if plan.compensation.repair else {}
        steps |= {"recalibrate": "the running statistics of every BatchNorm"} if a["recalibrate"] else {}
        steps |= {"recover": f"{a['recover_steps']} steps towards the dense outputs"} if a["recover_steps"] else {}
        if self._plan.criterion is None:
            steps["or"] = f"{self._plan.complete(data=False, one_pass=True).criterion!r}, where there are no batches"
        return "\n".join([repr(self), *(f"  {name:<11} {text}" for name, text in steps.items())])


LIMITS = ("round_to", "max_ratio", "min_units", "freeze")
"""Arguments that limit what `select` may choose."""


def _equal(value: Any, default: Any) -> bool:
    """Return whether an argument is its default; tensors and arrays never are."""
    return value is default or (
        type(value) is type(default) and isinstance(value, int | float | str | tuple) and value == default
    )
