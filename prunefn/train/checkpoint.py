"""Files of a training; each is replaced as a whole, so a killed process leaves the previous one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import ParamsError, PruneError
from ..files import atomic
from ..files.nest import read_nest, write_nest
from .state import TrainState

FORMAT = 1
SETTINGS = "asked"
"""Key of a run's settings in its checkpoints."""


def write(path: Path, fill: Callable[[str], object]) -> None:
    """Create the folder of a path, and replace the file by what `fill(temporary name)` writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, fill)


def write_text(path: Path, text: str) -> None:
    """Replace a text file."""
    write(path, lambda name: Path(name).write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file, indented."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replace a file of JSON lines, one for each row."""
    write_text(path, "".join(json.dumps(r) + "\n" for r in rows))


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a nest of tensors, numbers and strings."""
    write(path, lambda name: write_nest(name, {"format": FORMAT, **state}))


def load_checkpoint(path: Path, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU.

    Args:
        path: of the file.
        settings: of the run that resumes; they must equal those in the file. None: they are not compared.

    Raises:
        PruneError: the file has another format, is damaged, or belongs to a run with other settings; names the first that
            differs.
    """
    try:
        state = read_nest(path)
    except ParamsError as error:
        raise PruneError(f"{error}; delete it to train from the start") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise PruneError(f"{path} is no checkpoint of format {FORMAT}; delete it, or use another folder")
    if settings is None:
        return state
    before: dict[str, Any] = state[SETTINGS]
    for key in sorted({*settings, *before}):
        if settings.get(key) != before.get(key):
            raise PruneError(
                f"{path} belongs to a run with {key}={before.get(key)!r}, now it is {settings.get(key)!r}; use another folder, "
                "or delete this one to train from the start"
            )
    return state


def save_state(path: Path, state: TrainState, settings: Mapping[str, Any]) -> None:
    """Write the checkpoint of a training."""
    save_checkpoint(path, {SETTINGS: dict(settings), **state._asdict()})


def load_state(path: Path, settings: Mapping[str, Any]) -> TrainState:
    """Read the checkpoint of a training, onto the CPU.

    Raises:
        PruneError: as for `load_checkpoint`.
    """
    stored = load_checkpoint(path, settings)
    return TrainState(**{name: stored[name] for name in TrainState._fields})


def load_weights(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load the state dict of a file into a module.

    Raises:
        ParamsError: it belongs to another architecture; names the first tensor that differs.
    """
    own = model.state_dict()
    for name in dict.fromkeys([*own, *state]):
        have, want = (tuple(s[name].shape) if name in s else None for s in (state, own))
        if have != want:
            raise ParamsError(f"{path} has {name!r} of shape {have}, but the model's is {want}; use another folder")
    model.load_state_dict(dict(state))
