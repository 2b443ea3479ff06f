"""Notes on a pruning: reasons why its result may be worth less than it looks, though nothing is wrong with the call.

`pruned.info.notes` keeps them, and its repr shows them. They are no warnings, because code that prunes random weights on
purpose, such as a test, must not break.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from torch import Tensor

from .plans import Chosen
from .spec.program import Ref
from .spec.spec import Spec
from .tracing.rules.families import SCALABLE, family, is_batch_norm
from .types import Stats

FEW = 16
"""Samples that are worth a note if there are fewer: of 16, a variance errs by a third, and a mean adds 6 % to what it leaves."""

log = logging.getLogger(__name__)


def notes_on(params: Mapping[str, Tensor], stats: Stats, plan: Chosen, spec: Spec) -> tuple[str, ...]:
    """Return the notes on a pruning, and log them for those who follow the log.

    Args:
        params: dense.
        stats: that the scores are of.
        plan: the choices of the pipeline.
        spec: of the params.
    """
    notes = (*_untrained(params, spec), *_few_samples(stats, plan, spec))
    for note in notes:
        log.info(note)
    return notes


def _untrained(params: Mapping[str, Tensor], spec: Spec) -> Iterator[str]:
    """Yield a note if the tensors are as constructors leave them: the statistics of all BatchNorms; without any, all biases."""
    norms = [i for i in spec.program.instructions if is_batch_norm(i.op)]
    statistics = [(_tensor(params, i.args, 3), _tensor(params, i.args, 4)) for i in norms]
    measured = [(mean, variance) for mean, variance in statistics if mean is not None and variance is not None]
    if measured:
        if all(_all(mean, 0) and _all(variance, 1) for mean, variance in measured):
            yield "the weights look untrained: every BatchNorm has its initial running mean 0 and variance 1"
    elif not norms and _initial_biases(params, spec):
        yield "the weights look untrained: all biases are 0, and all scales of norms are 1"


def _initial_biases(params: Mapping[str, Tensor], spec: Spec) -> bool:
    """Return whether all biases are 0 and all scales of norms 1, where there are biases of both contractions and norms.

    A trained network whose norms are folded into its linears has scales of 1, too, but no norms with a bias beside linears
    whose biases are all 0.
    """
    with_bias = set[bool]()
    for i in spec.program.instructions:
        if (places := SCALABLE.get(family(i.op))) is None:
            continue
        weight, bias = (None if p is None else _tensor(params, i.args, p) for p in places[:2])
        scales = weight is not None and weight.ndim == 1
        if (bias is not None and not _all(bias, 0)) or (weight is not None and scales and not _all(weight, 1)):
            return False
        with_bias |= {scales} if bias is not None else set()
    return len(with_bias) == 2


def _few_samples(stats: Stats, plan: Chosen, spec: Spec) -> Iterator[str]:
    """Yield a note if the scores, or means that compensate, rest on few samples; fitted weights have a warning of their own."""
    if not stats.samples or not (plan.criterion.data or (plan.compensation.needs and not plan.sequential)):
        return
    counts = {name: moments.count for name, moments in stats.sites.items()}
    # Positions of sequences are samples, pixels of an image are not: they are too much alike.
    positions = min(counts.values(), default=FEW) if spec.input_sizes else stats.samples
    if positions < FEW:
        plural = "s" * (positions != 1)
        yield f"the statistics are of {positions:.0f} sample{plural}; give at least {FEW}, and some hundreds for good scores"
    elif "covariance" in plan.criterion.needs:
        singular = {n: len(m.mean) for n, m in stats.sites.items() if m.scatter is not None and m.count <= len(m.mean)}
        if singular:
            name = max(singular, key=lambda n: singular[n] / max(counts[n], 1))
            yield (
                f"criterion {plan.criterion.name!r} inverts the covariances of {len(singular)} sites with no more samples than "
                f"inputs, such as {name!r} ({counts[name]:.0f} samples, {singular[name]} inputs); give more batches"
            )


def _tensor(params: Mapping[str, Tensor], arguments: tuple[object, ...], place: int) -> Tensor | None:
    """Return the parameter or buffer that an instruction reads at a place; None if there is none."""
    ref = arguments[place] if place < len(arguments) else None
    return params.get(ref.name) if isinstance(ref, Ref) else None


def _all(t: Tensor, value: float) -> bool:
    return not t.is_meta and bool((t == value).all())
