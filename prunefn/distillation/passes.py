"""Training steps over batches that are read again and again, with a file from which an interrupted training resumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..display.progress import progress_bar
from ..errors import FormatError, ParamsError, PruneError
from ..files import atomic
from ..files.nest import read_nest, write_nest
from ..program.batches import each
from ..spec.spec import Spec
from ..stats.fingerprint import fingerprint, origin
from ..types import Batch, Params

FORMAT = 1
S = TypeVar("S")
"""State of a training: a NamedTuple with the number of steps in `step`."""


class Plan(NamedTuple):
    """How long a training is, and where its state is kept."""

    steps: int
    text: str
    """Name of the training, for the progress bar and messages."""
    settings: Mapping[str, str]
    """What a training that resumes must have in common with its file."""
    resume: str | os.PathLike[str] | None = None
    save_every: int = 50
    progress: bool = False

    def check(self) -> Plan:
        """Return the plan.

        Raises:
            PruneError: a number is below 1, or the file's folder does not exist.
        """
        for name in ("steps", "save_every"):
            if getattr(self, name) < 1:
                raise PruneError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.resume is not None and not Path(self.resume).parent.is_dir():
            raise PruneError(
                f"there is no folder {Path(self.resume).parent} for resume={str(self.resume)!r}; make it first"
            )
        return self


def settings_of(networks: Mapping[str, tuple[Params, Spec]], **options: Any) -> dict[str, str]:
    """Return texts that identify networks and options, so that a file of another training is refused."""
    out = {name: repr(value) for name, value in options.items()}
    for name, (params, spec) in networks.items():
        of_spec, of_params = origin(spec, params)
        out |= {name: fingerprint(sorted(of_params.items())), f"spec of {name}": fingerprint(sorted(of_spec.items()))}
    return out


def trained(step: Callable[[S, Batch], S], start: S, batches: Iterable[Batch], plan: Plan) -> S:
    """Return the state after all steps, from the start or from the file of the plan.

    Args:
        step: (state, batch) → state; the state counts its steps in `step`.
        start: state before the first step.
        batches: read from the beginning whenever they end; in the same order each time, if a training resumes.
        plan: of the training.

    Raises:
        BatchError: there are no batches, or not enough of a generator, which can be read only once.
        PruneError: the file is damaged, or of another training.
    """
    state: Any = start if plan.resume is None or not Path(plan.resume).exists() else _read(plan, type(start))
    first = int(state.step)
    stream = islice(_repeated(batches), first, plan.steps)
    bar = progress_bar(stream, text=plan.text, initial=first, total=plan.steps, show=plan.progress)
    for n, batch in enumerate(bar, first + 1):
        state = step(state, batch)
        if plan.resume is not None and (n % plan.save_every == 0 or n == plan.steps):
            content = {"format": FORMAT, "settings": dict(plan.settings), "state": state._asdict()}
            atomic.write(plan.resume, lambda name, content=content: write_nest(name, content))
    return state


def _repeated(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        yield from each(batches)


def _read(plan: Plan, kind: Callable[..., S]) -> S:
    """Return the state in the file of a plan.

    Raises:
        PruneError: the file is damaged, or of another training; names the first setting that differs.
    """
    path = plan.resume
    assert path is not None
    try:
        content = read_nest(path)
        if content["format"] != FORMAT:
            raise FormatError(f"its format is {content['format']!r} instead of {FORMAT}")
        before, state = dict(content["settings"]), kind(**content["state"])
    except (ParamsError, FormatError, KeyError, TypeError) as error:
        raise PruneError(f"{path} holds no state of {plan.text}: {error}; delete it to start again") from error
    for name in sorted({*before, *plan.settings}):
        if before.get(name) != plan.settings.get(name):
            raise PruneError(
                f"{path} belongs to other {plan.text}: {name} differs; give what it was started with, or another file"
            )
    return state
