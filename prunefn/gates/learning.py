"""Learn gates: which units the outputs need most, under budgets, while the weights stay as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..criteria.unit_mask import can_be_masked, mask_params, masked
from ..distances import Distance
from ..distillation.adam import Adam
from ..distillation.objective import Loss, Objective, objective
from ..distillation.passes import Plan, settings_of, trained
from ..doors import door
from ..errors import MaskError, PruneError, StatsError, nearest, warn
from ..parameters.transforms import check_names
from ..program.batches import device_of
from ..program.run import forward_flat
from ..program.sharded import check_plain
from ..spec.axis import size
from ..spec.spec import Spec
from ..stats import check_stats, collect_stats
from ..types import Batch, Budget, Moments, Params, Scores, Stats, Where
from ..where import matches
from .concrete import sample
from .multipliers import Logits, Shares, constrained, target

START, SPREAD = 2.0, 2.0
"""Logits at the start: of all gates, and the most that `init` raises or lowers them by."""
MOST = 8.0
"""Largest logit, positive or negative, so that no gate is beyond the reach of its gradient."""
SLACK = 0.02
"""Relative excess of an expected cost over its budget at the end that is not worth a warning."""


class GateState(NamedTuple):
    """State of gates between two steps: dicts of tensors and numbers, which any file format can hold."""

    logits: Mapping[str, Tensor]
    """Group → [units], float64."""
    first: Mapping[str, Tensor]
    """Group → mean of the gradients [units]."""
    second: Mapping[str, Tensor]
    """Group → mean of the squares of the gradients [units]."""
    multipliers: Tensor
    """[budgets], of the last step: how much the loss would fall if a little more of each budget's fraction were left."""
    generator: Tensor
    """State of the random generator."""
    step: int = 0
    """Number of steps."""


class Learned(NamedTuple):
    """Result of `learn`."""

    scores: Scores
    """Group → [units], the logits: higher = keep. They are comparable between groups."""
    state: GateState
    shares: tuple[float, ...]
    """Fraction of each budget's cost that the gates are expected to leave."""


class Learner(NamedTuple):
    """The steps of learning gates, as pure functions of a state; `learner` makes it."""

    objective: Objective
    means: Mapping[str, Tensor]
    """Site → mean of its input, which replaces removed units."""
    groups: tuple[str, ...]
    """Groups with gates."""
    shares: Shares
    steps: int
    lr: float

    def start(self, *, seed: int = 0, init: Scores | None = None) -> GateState:
        """Return the state before the first step.

        Args:
            seed: seed of the gates' random numbers.
            init: group → [units], of another criterion: gates start in the order of all these scores together. Scores whose scale
                differs from group to group should be normalised. None: all gates start alike.

        Raises:
            MaskError: scores do not fit the groups.
            PruneError: a score is not finite.
        """
        spec, device = self.objective.spec, device_of(self.objective.params)
        if init is not None:
            _check_init(init, spec)
        logits = {
            g: t.to(device) for g, t in _start_logits({g: spec.sizes[g] for g in self.groups}, init or {}).items()
        }
        zeros = {g: torch.zeros_like(t) for g, t in logits.items()}
        generator = torch.Generator().manual_seed(seed).get_state()
        return GateState(logits, zeros, zeros, torch.zeros(len(self.shares.budgets), dtype=torch.float64), generator)

    def step(self, state: GateState, batch: Batch) -> GateState:
        """Return the state after a batch.

        Gates are drawn, the loss is differentiated by their logits, and Adam's step is changed by the multipliers of the costs'
        gradients so that the expected costs meet the targets of this step.

        Raises:
            BatchError: the batch does not fit, or its loss is not finite.
        """
        generator = torch.Generator()
        generator.set_state(state.generator)
        logits = {g: t.detach().requires_grad_() for g, t in state.logits.items()}
        with torch.enable_grad():
            loss = self.objective(self._run(sample(logits, generator)), batch)
            gradients = torch.autograd.grad(loss, list(logits.values()), materialize_grads=True)
        adam = Adam(state.first, state.second, state.step).add(dict(zip(logits, gradients, strict=True)))
        targets = [target(b.keep, state.step + 1, self.steps) for b in self.shares.budgets]
        moved, multipliers = constrained(self._move(state.logits, adam), self.shares, targets)
        prices = torch.tensor(multipliers, dtype=torch.float64)
        return GateState(moved, adam.first, adam.second, prices, generator.get_state(), adam.step)

    def _run(self, gates: Mapping[str, Tensor]) -> Callable[[list[Tensor]], Any]:
        """Return the network in which a unit x of gate m enters its sites as m x + (1 − m) μ."""
        params, spec = self.objective.params, self.objective.spec
        gated, program = (
            mask_params(params, gates, spec, self.means),
            masked(spec, replaced=True, branches=not spec.branches.keys().isdisjoint(gates)),
        )
        return lambda inputs: forward_flat(gated, inputs, program)

    def _move(self, logits: Logits, adam: Adam) -> Callable[[Sequence[float]], Logits]:
        """Return the function from multipliers to the logits after Adam's step."""
        costs = self.shares.gradients(logits)
        direction, scale = ({g: f(g) for g in logits} for f in (adam.direction, adam.scale))

        def move(multipliers: Sequence[float]) -> dict[str, Tensor]:
            out = {}
            for g, t in logits.items():
                pull = sum((m * c[g] for m, c in zip(multipliers, costs, strict=True)), torch.zeros_like(t))
                out[g] = (t - self.lr * (direction[g] + scale[g] * pull).clamp(-1, 1)).clamp(-MOST, MOST)
            return out

        return move


@door
def learner(
    params: Params,
    budget: Budget | Sequence[Budget],
    *,
    spec: Spec,
    means: Stats | Mapping[str, Tensor | Moments],
    where: Where | str | None = None,
    loss: Loss | None = None,
    distance: Distance | None = None,
    steps: int = 400,
    lr: float = 0.1,
) -> Learner:
    """Return the steps of `learn` as pure functions, for loops of your own: `start() → state`, `step(state, batch) → state`.

    Args:
        params, budget, spec, where, loss, distance, steps, lr: as in `learn`.
        means: stats, or site → moments or mean of its input, [size of the axis].

    Raises:
        PruneError, BudgetError, StatsError, ParamsError, TraceError: as in `learn`; or a site has no mean.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> spec, params, x = pf.trace(model, (torch.randn(2, 4),)), pf.params(model), torch.randn(16, 4)
    >>> stats = pf.collect_stats(params, [x], spec=spec)
    >>> gates = learner(params, pf.budget.macs(0.5), spec=spec, means=stats, steps=10)
    >>> state = gates.step(gates.start(seed=0), x)
    >>> state.step, state.logits["0"].shape
    (1, torch.Size([8]))
    """
    check_names(params, spec)
    check_plain(params, "gates", "gather the parameters first")
    if isinstance(means, Stats):
        check_stats(means, spec, params)
    groups = tuple(g.name for g in spec.groups.values() if matches(where, g) and can_be_masked(g, spec))
    if not groups:
        bare = next((g for g in spec.groups.values() if matches(where, g)), None)
        why = (
            ""
            if bare is None
            else f" but {bare.name!r} and others of kind {bare.kind!r}, which no gate between 0 and 1 can mask"
        )
        raise PruneError(f"no group matches where={where!r}{why}: there is nothing to learn gates for")
    if not lr > 0 or steps < 1:
        raise PruneError(f"steps is {steps} and lr {lr}; steps must be 1 or more, and lr above 0")
    shares = Shares([budget] if isinstance(budget, Budget) else list(budget), spec)
    shares.check(groups)
    aim = objective((params, spec), "gates", loss=loss, distance=distance)
    return Learner(aim, _means(means, spec), groups, shares, steps, lr)


@door
def learn(
    params: Params,
    batches: Iterable[Batch],
    budget: Budget | Sequence[Budget],
    *,
    spec: Spec,
    means: Stats | Mapping[str, Tensor | Moments] | None = None,
    init: Scores | None = None,
    where: Where | str | None = None,
    loss: Loss | None = None,
    distance: Distance | None = None,
    steps: int = 400,
    lr: float = 0.1,
    seed: int = 0,
    progress: bool = False,
    resume: str | os.PathLike[str] | None = None,
    save_every: int = 50,
) -> Learned:
    """Learn which units to keep under budgets, with frozen weights and without labels.

    Every unit has a hard-concrete gate (Louizos et al., ICLR 2018) at the inputs of its contractions: an input x of mean μ becomes
    m x + (1 − m) μ. The loss is the distance from the dense outputs. Adam moves the logits of the gates; the expected costs fall
    linearly over 70 % of the steps and then stay at the budgets, since each step finds the multipliers of the costs' gradients that
    meet its targets.

    Args:
        params: of the spec.
        batches: as in `collect_stats`, without labels unless `loss` needs them. They are read from the beginning whenever they end,
            each for one step.
        budget: such as `budget.macs(0.35)` or `budget.latency(0.5, table)`; or several, all of which are met. Its cost must be
            defined at sizes that are not whole, as those of `budget` are; `budget.custom` takes it as `soft=`.
        spec: of the params, traced in eval mode.
        means: stats, or site → moments or mean of its input; None: measured in a first pass over the batches.
        init: scores of another criterion to start from, as in `Learner.start`; None: all gates start alike.
        where: groups with gates (`pf.kind("hidden")`, a glob, any predicate); default: all. Others keep all units.
        loss: (output, *rest of the batch) → mean over the batch; None: the distance from the dense outputs.
        distance: (output, dense output) → scalar; default: `distances.auto()`.
        steps: number of steps.
        lr: learning rate of the logits.
        seed: seed of the gates' random numbers.
        progress: show a progress bar.
        resume: a file that the state is written to. If it exists, learning resumes after its last step, with a bit-identical
            result if the batches come in the same order.
        save_every: number of steps between two writes.

    Returns:
        Learned(scores, state, shares). Select by the scores with the same budget: `pf.select(learned.scores, budget, spec=spec)`;
        in a pipeline, `criterion=criteria.given(learned.scores)`. A warning says if the expected cost is above the budget, since
        there were too few steps.

    Raises:
        BatchError: no batches, one that does not fit, or a loss that is not finite.
        BudgetError: a budget has no cost at sizes that are not whole, or the gates cannot meet it.
        PruneError: no group matches, options contradict each other, or the file is of other gates.
        ParamsError, TraceError: the spec was traced in train mode, or recorded.

    >>> import prunefn as pf
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> spec, params, budget = pf.trace(model, (torch.randn(2, 4),)), pf.params(model), pf.budget.macs(0.5)
    >>> learned = learn(params, [torch.randn(64, 4)], budget, spec=spec, steps=100)
    >>> round(learned.shares[0], 3), int(pf.select(learned.scores, budget, spec=spec)["0"].sum())
    (0.5, 4)
    """
    if means is None:
        means = collect_stats(params, batches, spec=spec, progress=progress)
    chosen = {"loss": loss, "distance": distance}
    gates = learner(params, budget, spec=spec, means=means, where=where, steps=steps, lr=lr, **chosen)
    start = gates.start(seed=seed, init=init)
    settings = {} if resume is None else _settings(gates, start, params, seed)
    plan = Plan(steps, "gates", settings, resume, save_every, progress).check()
    state = trained(gates.step, start, batches, plan)
    left = gates.shares.of_logits(state.logits)
    for b, share in zip(gates.shares.budgets, left, strict=True):
        if share > b.keep * (1 + SLACK):
            warn(
                f"after {steps} steps, the gates are expected to leave {share:.3f} of the {b.quantity}, not {b.keep}; take more steps"
            )
    return Learned(dict(state.logits), state, tuple(left))


def _settings(gates: Learner, start: GateState, params: Params, seed: int) -> dict[str, str]:
    budgets = [(b.quantity, b.keep) for b in gates.shares.budgets]
    settings = settings_of(
        {"params": (params, gates.objective.spec)}, budget=budgets, steps=gates.steps, lr=gates.lr, seed=seed
    )
    return settings | {
        "init and where": settings_of({}, logits={g: t.tolist() for g, t in start.logits.items()})["logits"]
    }


def _means(means: Stats | Mapping[str, Tensor | Moments], spec: Spec) -> dict[str, Tensor]:
    """Return site → mean of its input [size of the axis].

    Raises:
        StatsError: a site has no mean, or one of another shape.
    """
    given: Mapping[str, Any] = means.sites if isinstance(means, Stats) else means
    out = {}
    for name, site in spec.sites.items():
        if name not in given:
            raise StatsError(
                f"means has no mean of site {name!r}{nearest(name, given)}; measure all sites, or leave means= out"
            )
        mean = given[name].mean if isinstance(given[name], Moments) else given[name]
        if tuple(mean.shape) != (n := (size(site.axis, spec.sizes),)):
            raise StatsError(f"means[{name!r}] has shape {tuple(mean.shape)}; the site's input has {n}")
        out[name] = mean
    return out


def _check_init(init: Scores, spec: Spec) -> None:
    for g, s in init.items():
        if g not in spec.groups:
            raise MaskError(f"the spec has no group {g!r}, but init has one{nearest(g, spec.groups)}")
        if tuple(s.shape) != (spec.sizes[g],):
            raise MaskError(f"init[{g!r}] has shape {tuple(s.shape)}, but the group has {spec.sizes[g]} units")
        if not bool(torch.isfinite(s).all()):
            raise PruneError(f"init[{g!r}] is not finite")


def _start_logits(sizes: Mapping[str, int], init: Scores) -> dict[str, Tensor]:
    """Return the logits at the start: evenly spaced in the order of the scores; those of groups without scores are in the middle."""
    out = {g: torch.full((n,), START, dtype=torch.float64) for g, n in sizes.items()}
    scored = [g for g in sizes if g in init]
    if scored:
        values = torch.cat([init[g].detach().double().cpu() for g in scored])
        ranks = torch.unique(values, return_inverse=True)[1].double()  # equal scores have equal logits
        logits = START + SPREAD * (2 * ranks / ranks.max().clamp_min(1) - 1)
        out |= dict(zip(scored, logits.split([sizes[g] for g in scored]), strict=True))
    return out
