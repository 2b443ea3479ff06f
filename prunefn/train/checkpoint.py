"""Where training is, in one file that is either the old one or the new one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import ParamsError, PruneError
from ..files import atomic
from ..files.nest import read_nest, write_nest

FORMAT = 1


def write(path: Path, fill: Callable[[str], object]) -> None:
    """Let a file of a run be written whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, fill)


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    write(path, lambda name: Path(name).write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """As `write_text`, indented."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines: one row each."""
    write_text(path, "".join(json.dumps(r) + "\n" for r in rows))


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors, numbers and strings."""
    write(path, lambda name: write_nest(name, {"format": FORMAT, **state}))


def load_checkpoint(path: Path, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU.

    Args:
        path: of the file.
        asked: what the run is asked to do; must be what the checkpoint was made for. None: whatever it was.

    Raises:
        PruneError: the file is of another format, broken, or of a run with other settings; names the first that differs.
    """
    try:
        state = read_nest(path)
    except ParamsError as error:
        raise PruneError(f"{error}; delete it to train from the start") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise PruneError(f"{path} is no checkpoint of format {FORMAT}; delete it, or use another folder")
    if asked is None:
        return state
    before: dict[str, Any] = state["asked"]
    for key in sorted({*asked, *before}):
        if asked.get(key) != before.get(key):
            raise PruneError(
                f"{path} belongs to a run with {key}={before.get(key)!r}, now it is {asked.get(key)!r}; use another folder, or "
                "delete this one to train from the start"
            )
    return state


def load_weights(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy a state dict into a module of ours.

    Raises:
        ParamsError: it is of another architecture; names the first tensor that differs.
    """
    own = model.state_dict()
    for name in dict.fromkeys([*own, *state]):
        have, want = (tuple(s[name].shape) if name in s else None for s in (state, own))
        if have != want:
            raise ParamsError(f"{path} has {name!r} of shape {have}, but the model's is {want}; use another folder")
    model.load_state_dict(dict(state))
