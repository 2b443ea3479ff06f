"""`prune_pretrained`: a model in a folder → a smaller model in a folder."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from .._version import __version__
from ..checkpoints.stream import WriteOptions, write_checkpoint
from ..checkpoints.stream_jobs import Source
from ..costs.analytic import cost
from ..criteria import obs, reap, weighted_variance
from ..data.tokens import Documents
from ..display.progress import write_line
from ..display.units import quantity
from ..doors import door
from ..errors import PruneError
from ..frozen_dict import FrozenDict
from ..modules.fields import Field
from ..modules.layers import renaming
from ..modules.targets import stated_numbers
from ..parameters.transforms import shrink
from ..spec.axis import leaves
from ..spec.parts import Cost
from ..spec.routing import routes_of
from ..stats.by_layer import Measure, measures
from ..stats.fingerprint import fingerprint
from ..types import Batch, Budget, Compensation, Criterion, Mask, Stats, TargetSizes, Where
from .calibration import Cut, inputs_by_name, text_batches
from .confirmed import confirm_folder
from .memory import needed_bytes, needed_for_repair
from .new_config import config_of_sizes
from .opened import Opened, config_of, open_folder, with_free_outputs
from .repaired import DEFAULT, layers_to_repair, repair_layers
from .scored import groups_within, score_layers
from .sizes import Goal, candidates, check_goal, choose, sites_of_groups, stacked_of_groups, target_of
from .work import Work, until_last

log = logging.getLogger(__name__)

OF_EXPERTS = ("reap", "expert_frequency")
"""Criteria of whole experts; the widths then go by the default."""


class PrunedFolder(NamedTuple):
    """The result of `prune_pretrained`."""

    folder: Path
    before: Cost
    """Of one sequence as long as the batches."""
    after: Cost
    sizes: Mapping[str, tuple[int, int]]
    """Group that lost units → (units left, units before); whole layers have 0 of 1."""
    rewritten: int
    """Number of tensors that a compensation changed."""
    difference: float | None
    """Largest difference of the outputs of the loaded model and of the program; None if the model did not fit into memory."""

    def __repr__(self) -> str:
        checked = "not loaded" if self.difference is None else f"loaded, outputs within {self.difference:.1g}"
        return f"PrunedFolder({str(self.folder)!r}: {self.before} → {self.after}; {checked})"


@door
def prune_pretrained(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    batches: Iterable[Batch] | None = None,
    text: Documents | None = None,
    budget: Budget | Sequence[Budget] | None = None,
    target: Mapping[str, int] | None = None,
    where: Where | str | None = None,
    round_to: int | None = None,
    criterion: Criterion | None = None,
    compensation: Compensation | None = None,
    length: int = 512,
    batch_size: int = 8,
    sequences: int | None = 64,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = 4_000_000_000,
    progress: bool = True,
) -> PrunedFolder:
    """Prune a model of transformers from a folder to a smaller folder, layer by layer, so that it need not fit into memory.

    The model is traced on `meta`. Statistics are measured layer by layer: one layer's parameters are in memory, and what it gives
    for all batches, on disk, is what the next layer reads. Then the sizes are chosen, and the contractions that lose inputs are
    fitted to their dense outputs, again layer by layer, as `pipeline(sequential=True)` does. The tensors are written file by file,
    under the names and in the layout of the files in `src`, such as one matrix an expert; the config changes only where sizes are;
    tokenizer, generation config and all other files are copied. In the end the folder is loaded afresh and compared with the
    program of the pruned network; if they differ, nothing is kept.

    A work folder beside `dst` keeps finished layers. The same call resumes there after an interruption or a full disk; at the end,
    and after other errors, it is removed.

    Args:
        src: folder with `config.json` and safetensors, as `save_pretrained` writes it or a hub has it.
        dst: folder that is written; it must not exist.
        batches: of tokens, for statistics: dicts by input name, or tensors. They are read once and kept.
        text: instead of batches: a file, a folder or texts, as in `pf.data.text`, for the tokenizer in `src`.
        budget: what is kept, such as `pf.budget.params(0.75)`; met from below with equal sizes in all layers, as one config states
            them.
        target: instead of a budget: field of the config → number, as in `pf.target`, such as `{"intermediate_size": 1152}`.
        where: groups that may shrink under a budget; default: the widths inside layers, `pf.kind("hidden")`.
        round_to: multiple of the sizes under a budget; default: 8 if all groups have 64 units or more.
        criterion: scores the units; default: `criteria.obs(None)` for groups inside one layer, `criteria.weighted_variance()` for
            those that run through all, such as the hidden width. It must not need gradients. Layers are scored by
            `criteria.block_influence()`, experts by `criteria.reap()`, or by `criteria.expert_frequency()` if it is given or what
            each expert adds is no value of the program; groups without activations of their own by their weights.
        compensation: of contractions that lose inputs, layer by layer: least squares towards the dense network's outputs, in the
            network whose earlier layers are pruned and fitted. Where whole layers go, the contractions behind them that are added
            to the stream are fitted, too. Default: `compensation.affine()`; it adds no bias that the class does not have.
        length: tokens of a sequence of `text`.
        batch_size: sequences of a batch of `text`.
        sequences: number of sequences of `text`; None: all.
        dtype: in which statistics are computed; the files keep their types.
        max_shard_bytes: size in bytes at which a new file begins.
        progress: print the memory that is needed, and show progress bars.

    Returns:
        The folder, its costs, the sizes, and how the loaded model compares.

    Raises:
        PruneError: `src` is no folder of a model, or is quantized, or has no tokenizer for `text`; `dst` exists; a field of the target
            is unknown; no config states the sizes, or its class would compute something else; what was written does not load, or
            computes something else; or the work folder is of another job.
        BudgetError: the budget cannot be met.
        ParamsError: the files do not fit the config; or a compensation needs a bias that the class does not have.

    >>> import tempfile, prunefn as pf
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     LlamaForCausalLM(config).save_pretrained(f"{folder}/large")
    ...     tokens = [torch.randint(50, (4, 16), generator=torch.Generator().manual_seed(0))]
    ...     half = {"intermediate_size": 32}
    ...     done = pf.prune_pretrained(f"{folder}/large", f"{folder}/small", batches=tokens, target=half, progress=False)
    ...     small = LlamaForCausalLM.from_pretrained(f"{folder}/small")
    >>> small.config.intermediate_size, small.model.layers[0].mlp.down_proj.weight.shape
    (32, torch.Size([32, 32]))
    """
    goal = Goal(_budgets(budget), dict(target or {}), where, round_to)
    check_goal(goal)
    if (batches is None) == (text is None):
        raise PruneError("give batches= of tokens, or text=: one of the two")
    source, out = Path(src), Path(dst)
    _, cls = config_of(source)
    if text is not None:
        batches = text_batches(source, text, Cut(length, batch_size, sequences), progress=progress)
    named = inputs_by_name(batches or (), cls)
    opened = open_folder(source, named, dtype)
    if goal.sizes:
        opened = with_free_outputs(opened, named, goal.sizes)
    choice = Choice(goal, criterion, compensation)
    plan = _plan(opened, choice)  # before the work folder is made: a refused call leaves none behind
    work = Work(out, _job(opened, choice, named, max_shard_bytes))
    with work.removed_after_errors():
        return _prune(opened, out, named, choice, plan, work, WriteOptions(progress, max_shard_bytes))


class Choice(NamedTuple):
    """What is removed, and how it is made up for."""

    goal: Goal
    criterion: Criterion | None
    compensation: Compensation | None


def _budgets(budget: Budget | Sequence[Budget] | None) -> tuple[Budget, ...]:
    return () if budget is None else (budget,) if isinstance(budget, Budget) else tuple(budget)


def _job(opened: Opened, choice: Choice, named: list[dict[str, torch.Tensor]], limit: int) -> str:
    """Return a hash of all that a run depends on."""
    import transformers

    versions = (__version__, str(torch.__version__), transformers.__version__)
    return fingerprint([opened.stamp(), repr(choice), str(opened.dtype), limit, named, versions])


def _prune(
    opened: Opened,
    out: Path,
    batches: list[dict[str, torch.Tensor]],
    choice: Choice,
    plan: Plan,
    work: Work,
    options: WriteOptions,
) -> PrunedFolder:
    """Measure, choose, repair, write and confirm."""
    spec, progress = opened.spec, options.progress
    start = Stats(spec, FrozenDict(opened.params))
    _say_memory(needed_bytes(plan.measures, opened, batches[0]), "statistics", progress)
    if plan.experts:
        _say(
            f"{plan.experts} groups of experts are scored by {plan.of_experts.name}, over the tokens that choose them",
            progress,
        )
    scorers = plan.criterion, plan.of_experts
    scores = score_layers(plan.measures, plan.groups, batches, work, start, *scorers, progress=progress)
    mask = choose(scores, choice.goal, plan.sizes, plan.groups, spec)
    small = shrink(spec, mask)
    config = plan.config or config_of_sizes(opened, small, plan.stated)
    method = DEFAULT if choice.compensation is None else choice.compensation
    _say_memory(needed_for_repair(layers_to_repair(opened, mask, method), opened, batches[0]), "compensation", progress)
    rewritten = repair_layers(opened, mask, [*batches], work, method, progress=progress)
    rename = renaming(opened.model, small)
    layout = opened.layout.at(opened.model_of(config))
    tensors = Source(opened.files, FrozenDict(rewritten), rename, layout, opened.stored)
    result = work.folder / "result"
    write_checkpoint(opened.folder, result, mask, spec, tensors, options._replace(config=config))
    difference = confirm_folder(result, opened, small, rename, batches[0])
    work.finish(result, out)
    return PrunedFolder(out, cost(spec), cost(small), _sizes(mask), len(rewritten), difference)


def _sizes(mask: Mask) -> dict[str, tuple[int, int]]:
    """Return group that lost units → (units left, units before)."""
    return {g: (int(m.sum()), len(m)) for g, m in mask.items() if not bool(m.all())}


class Plan(NamedTuple):
    """What may be removed, and what is measured to choose it."""

    sizes: TargetSizes | None
    groups: list[str]
    criterion: Criterion
    of_experts: Criterion
    measures: list[Measure]
    stated: Mapping[Field, int] = FrozenDict()
    """Fields of the config that a target states."""
    config: str | None = None
    """Text of the config, if the sizes are known from the beginning."""

    @property
    def experts(self) -> int:
        """Return the number of groups of experts that are measured."""
        return sum(len(m.routes) for m in self.measures)


def _plan(opened: Opened, choice: Choice) -> Plan:
    """Return what is measured in each layer to choose the sizes.

    Raises:
        PruneError: the criterion needs more than the inputs of contractions; a field of the target is unknown, or states no size;
            or no config has the sizes of a target.
    """
    given = choice.criterion
    of_experts = given if given is not None and given.name in OF_EXPERTS else reap()
    criterion = None if of_experts is given else given
    if criterion is not None and criterion.collectors:
        raise PruneError(
            f"criterion {criterion.name!r} runs the whole network, with gradients or otherwise; use one on activations, such "
            "as criteria.obs(None), criteria.weighted_variance() or criteria.wanda_sp()"
        )
    sizes = target_of(choice.goal, opened)
    groups = candidates(choice.goal, opened.spec, sizes)
    sites, blocks = sites_of_groups(groups, opened.spec), sizes is not None and bool(sizes.layers)
    routes = {g: r for g, r in routes_of(opened.spec).items() if g in groups}
    found = partial(measures, opened.spec, sites, stacked_of_groups(groups, opened.spec), routes, blocks=blocks)
    if criterion is None:  # covariances are of one layer at a time
        within = {g for m in found() for g in groups_within(m, groups, opened.spec)}
        criterion = (
            obs(None) if within >= {g for s in sites for g in leaves(s.axis)} & set(groups) else weighted_variance()
        )
    measured = until_last(found(needs=criterion.needs))
    if sizes is None:
        return Plan(sizes, groups, criterion, of_experts, measured)
    plan = Plan(
        sizes, groups, criterion, of_experts, measured, stated_numbers(opened.spec, opened.model, choice.goal.sizes)
    )
    if sizes.layers:  # the config may depend on which ones go
        return plan
    first = {g: torch.arange(opened.spec.sizes[g]) < n for g, n in sizes.sizes.items()}
    return plan._replace(config=config_of_sizes(opened, shrink(opened.spec, first), plan.stated))


def _say_memory(needed: int, what: str, progress: bool) -> None:
    """State the bound of the memory before the step runs."""
    _say(f"{what}: at most {quantity(needed, 'B', 3)} of memory, besides Python and torch", progress and needed > 0)


def _say(text: str, progress: bool) -> None:
    log.info(text)
    if progress:
        write_line(text, sys.stderr)
