"""Recovery: train a pruned network towards the dense one on the calibration batches, without labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..distances import Distance
from ..doors import door
from ..errors import BatchError, ParamsError, PruneError, warn
from ..parameters.transforms import check_names, tied_names
from ..program.batches import each
from ..program.sharded import check_plain
from ..spec.spec import Spec, check_eval_mode, check_runnable
from ..tracing.freeze import chosen as frozen_names
from ..types import Batch, Mask, Params
from .adam import Adam, clipped, one_cycle
from .comparison import Dense, comparison
from .dense_logits import DenseLogits
from .layers import layers
from .passes import Plan, settings_of, trained

CHECKS = 20
"""Number of times that the held-out distance is measured, evenly spaced over the steps."""


class RecoveryState(NamedTuple):
    """State of a recovery between two steps."""

    weights: Mapping[str, Tensor]
    """Trained parameter → value, in float32 or more."""
    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    """Trained parameter → value at the lowest held-out distance so far."""
    distance: float
    """The lowest held-out distance."""
    step: int = 0
    """Number of steps."""


class Recovery(NamedTuple):
    """The steps of a recovery, as pure functions of a state."""

    params: Params
    spec: Spec
    trained: tuple[str, ...]
    distance: Callable[[Params, Spec, Batch], Tensor]
    """(params, spec, batch) → distance from the dense network."""
    held_out: Sequence[Batch]
    steps: int
    lr: float
    weight_decay: float
    grad_clip: float | None = None

    def start(self) -> RecoveryState:
        """Return the state before the first step."""
        weights = {n: _wide(self.params[n]) for n in self.trained}
        adam = Adam.start(weights)
        return RecoveryState(weights, adam.first, adam.second, weights, self.measure(self.params))

    def step(self, state: RecoveryState, batch: Batch) -> RecoveryState:
        """Return the state after a batch: a step of AdamW at the learning rate of one cycle."""
        weights = {n: t.detach().requires_grad_() for n, t in state.weights.items()}
        with torch.enable_grad():
            loss = self.distance(self.narrow(weights), self.spec, batch)
            gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        by_name = dict(zip(weights, clipped(gradients, self.grad_clip), strict=True))
        adam = Adam(state.first, state.second, state.step).add(by_name)
        lr = one_cycle(state.step, self.steps, self.lr)
        moved = {n: t * (1 - lr * self.weight_decay) - lr * adam.direction(n) for n, t in state.weights.items()}
        after = RecoveryState(moved, adam.first, adam.second, state.best, state.distance, adam.step)
        if adam.step % max(1, self.steps // CHECKS) and adam.step < self.steps:
            return after
        distance = self.measure(self.narrow(moved))
        return after._replace(best=moved, distance=distance) if distance < state.distance else after

    def measure(self, params: Params) -> float:
        """Return the mean held-out distance."""
        with torch.no_grad():
            return sum(float(self.distance(params, self.spec, b)) for b in self.held_out) / len(self.held_out)

    def narrow(self, weights: Mapping[str, Tensor]) -> Params:
        """Return params with these weights, in their own dtypes, tied ones under all their names."""
        out = {**self.params, **{n: t.to(self.params[n].dtype) for n, t in weights.items()}}
        return {**out, **{second: out[first] for second, first in tied_names(self.params, self.spec).items()}}


@door
def recover(
    params: Params,
    batches: Iterable[Batch],
    *,
    spec: Spec,
    dense: tuple[Params, Spec] | DenseLogits,
    by_layers: bool = False,
    mask: Mask | None = None,
    distance: Distance | None = None,
    steps: int = 200,
    lr: float = 3e-4,
    weight_decay: float = 0.01,
    grad_clip: float | None = None,
    held_out: float = 0.125,
    freeze: Sequence[str] | str = (),
    seed: int = 0,
    max_batches: int | None = None,
    progress: bool = False,
    resume: str | os.PathLike[str] | None = None,
    save_every: int = 50,
) -> Params:
    """Train a pruned network for some steps towards the dense one, on calibration batches without labels.

    All parameters are trained by AdamW, also biases that a compensation created, at a learning rate that rises and falls in one
    cycle; buffers, such as the statistics of BatchNorms, stay. The distance is measured on a part of the batches that is held
    out, at the start and 20 times on the way, and the params of the lowest one are returned: on this part, they are never worse
    than the given ones.

    Args:
        params: of the pruned network.
        batches: as in `collect_stats`; read once, and kept in memory.
        spec: of the params, traced in eval mode.
        dense: params and spec of the dense network; or its logits on disk, by `save_logits` or `load_logits`.
        by_layers: compare the outputs of all contractions with those in the dense network, by their relative errors, instead of
            the outputs of the network.
        mask: units that the dense network lost, for `by_layers` and `distances.inner`; without it, only values that lost no units
            are compared.
        distance: (output, dense output) → scalar, such as `distances.tokens()` for a language model, or of values inside, such as
            `distances.combined(distances.tokens(), distances.inner("model.layers.*"), 0.9)`; default: `distances.auto()`.
        steps: number of steps, each on one batch; the batches come in a new order in each pass over them.
        lr: highest learning rate.
        weight_decay: of AdamW.
        grad_clip: largest norm of the gradient of all parameters together; None: gradients are not clipped.
        held_out: fraction of the batches that is held out, rounded up to whole batches.
        freeze: tensors that stay bit-identical: names, module paths, or globs for either.
        seed: seed of the held-out part and of the order of the batches.
        max_batches: use this many batches.
        progress: show a progress bar.
        resume: a file that the state is written to. If it exists, recovery resumes after its last step, with a bit-identical
            result on a CPU.
        save_every: number of steps between two writes.

    Returns:
        New params of the same shapes. A warning says if no step lowered the held-out distance: then they are the given ones.

    Raises:
        BatchError: no batches, too few to hold a part out, one that does not fit, or a distance that is not finite.
        PruneError: options contradict each other or are out of range, or the file is of another recovery.
        MaskError: the mask does not lead from the dense network to this one.
        ParamsError, TraceError: the spec was traced in train mode, or recorded; or nothing is left to train.

    >>> import prunefn as pf
    >>> _ = torch.manual_seed(0)
    >>> model, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)), torch.randn(64, 4)
    >>> spec, params = pf.trace(model, (x,)), pf.params(model)
    >>> small = pf.pipeline(ratio=0.5)(params, [x], spec=spec)
    >>> better = recover(small.params, x.split(8), spec=small.spec, dense=(params, spec), lr=1e-2)
    >>> distance = lambda p: pf.distances.kl()(pf.forward(p, x, spec=small.spec), model(x)).item()
    >>> distance(better) < distance(small.params) / 2
    True
    """
    options = Options(
        by_layers, mask, distance, steps, lr, weight_decay, grad_clip, held_out, freeze, seed, max_batches
    )
    return recovered(params, batches, spec, dense, options, Saving(progress, resume, save_every)).params


class Options(NamedTuple):
    """How a recovery runs; see `recover`."""

    by_layers: bool = False
    mask: Mask | None = None
    distance: Distance | None = None
    steps: int = 200
    lr: float = 3e-4
    weight_decay: float = 0.01
    grad_clip: float | None = None
    held_out: float = 0.125
    freeze: Sequence[str] | str = ()
    seed: int = 0
    max_batches: int | None = None


class Saving(NamedTuple):
    """What a recovery shows and writes on its way; see `recover`."""

    progress: bool = False
    resume: str | os.PathLike[str] | None = None
    save_every: int = 50


class Recovered(NamedTuple):
    """The result of a recovery."""

    params: Params
    before: float
    """Held-out distance at the start."""
    after: float
    """Held-out distance of these params."""


def recovered(
    params: Params, batches: Iterable[Batch], spec: Spec, dense: Dense, options: Options, saving: Saving
) -> Recovered:
    """Train a pruned network towards the dense one; see `recover`."""
    lr, steps, seed = options.lr, options.steps, options.seed
    _check(params, spec, dense, options)
    train, test = _divide(list(each(batches, max_batches=options.max_batches)), options.held_out, seed)
    names, own = _trained(params, spec, options.freeze), {n: t.detach() for n, t in params.items()}
    if options.by_layers:
        assert not isinstance(dense, DenseLogits)
        measure: Callable[[Params, Spec, Batch], Tensor] = layers(dense, spec, options.mask)
    else:
        measure = comparison(dense, spec, options.distance, options.mask).fitted(own, spec, train)
    recovery = Recovery(own, spec, names, measure, test, steps, lr, options.weight_decay, options.grad_clip)
    known = {
        "by_layers": options.by_layers,
        "trained": names,
        "seed": seed,
        "lr": lr,
        "weight_decay": options.weight_decay,
        "grad_clip": options.grad_clip,
        "steps": steps,
    }
    settings = {} if saving.resume is None else _settings((params, spec), dense, **known)
    plan = Plan(steps, "recovery", settings, saving.resume, saving.save_every, saving.progress).check()
    start = recovery.start()
    state, before = trained(recovery.step, start, _shuffled(train, steps, seed), plan), start.distance
    if state.distance >= before:
        warn(
            f"no step lowered the held-out distance of {state.distance:.4g}, so the params are unchanged; lower lr={lr}, or give "
            "more batches"
        )
        return Recovered(dict(params), before, before)
    return Recovered(recovery.narrow({n: t.detach() for n, t in state.best.items()}), before, state.distance)


def _settings(network: tuple[Params, Spec], dense: Dense, **options: object) -> dict[str, str]:
    """Return texts that identify the networks and options of a recovery."""
    if isinstance(dense, DenseLogits):
        return settings_of({"params": network}, dense=dense.fingerprint, **options)
    return settings_of({"params": network, "dense": dense}, **options)


def _check(params: Params, spec: Spec, dense: Dense, options: Options) -> None:
    """Check arguments of `recover`; raise ParamsError, TraceError or PruneError."""
    check_names(params, spec)
    check_plain(params, "recover", "gather the parameters first")
    check_eval_mode(spec, "recover")
    check_runnable(spec)
    if options.by_layers and isinstance(dense, DenseLogits):
        raise PruneError("recover: by_layers=True runs the dense network; give dense=(params, spec), or leave it out")
    if options.by_layers and options.distance is not None:
        raise PruneError(
            "recover: distance= is of the network's outputs, and by_layers=True compares layers; leave one out"
        )
    if not 0 < options.held_out < 1:
        raise PruneError(
            f"held_out is {options.held_out}; it is the fraction of the batches that is held out, and must be in (0, 1)"
        )
    if not options.lr > 0 or options.weight_decay < 0:
        raise PruneError(
            f"lr is {options.lr} and weight_decay {options.weight_decay}; lr must be above 0, and weight_decay not below it"
        )


def _divide(batches: list[Batch], held_out: float, seed: int) -> tuple[list[Batch], list[Batch]]:
    """Return the batches to train on, and those that are held out, by chance.

    Raises:
        BatchError: there is a single batch.
    """
    if len(batches) < 2:
        raise BatchError("recover holds out a part of the batches, but there is only one; give smaller batches")
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed)).tolist()
    n = min(-int(-held_out * len(batches) // 1), len(batches) - 1)
    return [batches[i] for i in sorted(order[n:])], [batches[i] for i in sorted(order[:n])]


def _shuffled(batches: list[Batch], steps: int, seed: int) -> Iterator[Batch]:
    """Yield a batch for each step; each pass over the batches has an order of its own."""
    for n in range(-(-steps // len(batches))):
        generator = torch.Generator().manual_seed(seed + n + 1)
        yield from (batches[i] for i in torch.randperm(len(batches), generator=generator).tolist())


def _trained(params: Params, spec: Spec, freeze: Sequence[str] | str) -> tuple[str, ...]:
    """Return the names of the parameters to train, tied ones once.

    Raises:
        ParamsError: there are none, or a pattern matches nothing.
    """
    slots = spec.slots
    frozen = set(frozen_names(freeze, [t for t in spec.axes if t not in slots]))
    ties = tied_names(params, spec)
    frozen |= {n for second, first in ties.items() for n in (second, first) if {second, first} & frozen}
    own = [n for n in params if (n in spec.parameters or n in slots) and n not in ties and n not in frozen]
    names = tuple(n for n in own if params[n].is_floating_point())
    if not names:
        raise ParamsError(f"freeze={freeze!r} leaves no parameter to train")
    return names


def _wide(t: Tensor) -> Tensor:
    """Return a tensor in float32, or in its own dtype if that is wider."""
    return t.detach().to(torch.promote_types(t.dtype, torch.float32))
