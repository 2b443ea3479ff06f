"""Draw the L2 norms of units over the checkpoints of a run: two separate humps, one of them at zero, mean that it is time to prune.

The picture shows the progress of group lasso and related regularizers (Wen et al., "Learning Structured Sparsity in Deep Neural
Networks", NeurIPS 2016).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..criteria import magnitude
from ..criteria import reduction as reductions
from ..criteria.scoring import score
from ..drawing.canvas import DENSE, INK, KEPT, Panel, blank, grid, save, words
from ..errors import ParamsError, PruneError
from ..files.nest import KEY, read_nest
from ..modules.infer import infer_sizes
from ..modules.pruned_file import read_content
from ..parameters.transforms import shrink
from ..spec.layout import cut
from ..spec.spec import Spec
from ..stats import collect_stats
from ..types import Mask, Params, Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Checkpoint = str | os.PathLike[str] | Mapping[str, Tensor]
"""A file of tensors, or params."""
PRUNED = "pruned.safetensors"
"""The file with the mask that a run writes into the folder of a round."""
BINS = 40
NEAR = 0.1
"""A unit with less than this share of the largest norm of its group is near zero."""
MOST = 24
"""Maximal number of checkpoints in the picture: of more, an even selection is drawn, with the first and the last."""
ACROSS = 4
CELL = (2.45, 1.3)


class Spread(NamedTuple):
    """The distribution of the norms of all units at a checkpoint, each as a share of the largest norm of its group."""

    counts: tuple[int, ...]
    """Units in each of `BINS` equal parts of 0 … 1."""
    near: float
    """Share of the units below `NEAR`."""


def group_norms(params: Params, *, spec: Spec) -> Scores:
    """Return the L2 norm of all weights that belong to each unit (rows, columns, norm weights; no biases).

    Args:
        params: params of the spec.
        spec: the spec that has the groups.

    Returns:
        Group → float64 [units].

    Raises:
        ParamsError: the params do not fit the spec.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 1))
    >>> model[0].weight.data, model[1].weight.data = torch.tensor([[3.0], [0.0]]), torch.tensor([[4.0, 1.0]])
    >>> group_norms(pf.params(model), spec=pf.trace(model, (torch.randn(2, 1),)))
    {'0': tensor([5., 1.], dtype=torch.float64)}
    """
    squares = score(collect_stats(params, None, spec=spec), criterion=magnitude(2.0, reduction=reductions.sum))
    return {g: s.sqrt() for g, s in squares.items()}


def analyze(
    checkpoints: Checkpoint | Mapping[str, Checkpoint] | Sequence[Checkpoint], *, spec: Spec
) -> dict[str, Scores]:
    """Return the norms at each checkpoint of a run, for `norms` to draw.

    Args:
        checkpoints: the folder of a run or of one of its stages (every `epoch_….safetensors` and `last.safetensors`, stage by
            stage); or name → checkpoint; or a list of checkpoints. A checkpoint is a file (of `pf.save`, of a stage, of
            safetensors, of `torch.save`), or params. Some may be pruned.
        spec: spec of the dense model; the sizes of pruned checkpoints follow from the masks of their run or from their shapes.

    Returns:
        Name of the checkpoint → group → float64 [units of the checkpoint].

    Raises:
        PruneError: a folder has no checkpoints.
        ParamsError: a checkpoint does not fit the spec, or is damaged.
    """
    by_name: dict[str, Scores] = {}
    masks: dict[Path, Mask] = {}
    for name, checkpoint in _name_checkpoints(checkpoints).items():
        params = _params_of(checkpoint, spec, name)
        by_name[name] = group_norms(params, spec=_sized_spec(params, spec, checkpoint, masks))
    return by_name


def _name_checkpoints(
    checkpoints: Checkpoint | Mapping[str, Checkpoint] | Sequence[Checkpoint],
) -> dict[str, Checkpoint]:
    """Return name → checkpoint for all forms that `analyze` takes."""
    if isinstance(checkpoints, Mapping):
        if all(isinstance(c, Tensor) for c in checkpoints.values()):
            return {"checkpoint": checkpoints}  # pyright: ignore[reportReturnType]
        return dict(checkpoints)  # pyright: ignore[reportReturnType, reportArgumentType]
    if isinstance(checkpoints, str | os.PathLike):
        path = Path(checkpoints)
        return dict(of_run(path)) if path.is_dir() else {path.stem: path}
    names = [Path(c).stem if isinstance(c, str | os.PathLike) else str(i) for i, c in enumerate(checkpoints)]
    if len(set(names)) < len(names):
        names = [f"{i}: {n}" for i, n in enumerate(names)]
    return dict(zip(names, checkpoints, strict=True))


def of_run(folder: Path) -> dict[str, Path]:
    """Return the checkpoints in the folder of a run or of a stage, in the order in which they were written.

    Raises:
        PruneError: the folder has none.
    """
    stages = [p for p in sorted(folder.iterdir(), key=_stage_order) if p.is_dir()] if folder.is_dir() else []
    paths: dict[str, Path] = {}
    for stage in (folder, *stages):
        prefix = "" if stage == folder else f"{stage.name.replace('_', ' ')}, "
        epochs = {int(p.stem.partition("_")[2]): p for p in stage.glob("epoch_*.safetensors")}
        if (last := stage / "last.safetensors").exists():
            epochs.setdefault(_read_epoch(last), last)
        paths |= {f"{prefix}epoch {n}": epochs[n] for n in sorted(epochs)}
    if not paths:
        raise PruneError(f"{folder} has no checkpoints; train with Recipe(keep_every=…), or give a list of files")
    return paths


def _read_epoch(path: Path) -> int:
    """Return the number of finished epochs of a stage's checkpoint, from the header of its file."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        _, entries = json.loads((file.metadata() or {})[KEY])
    return dict(entries)["epoch"]


def _stage_order(path: Path) -> tuple[int, int]:
    """Return the sort key of a stage's folder: sparse training, the rounds by number, tuning, other folders."""
    kind, _, number = path.name.partition("_")
    order = {"sparse": 0, "round": 1, "tuning": 2}
    return order.get(kind, 3), int(number) if number.isdecimal() else 0


def _params_of(checkpoint: Checkpoint, spec: Spec, name: str) -> Params:
    """Return the params of a checkpoint, tied ones under all names; raise a ParamsError if it lacks a parameter."""
    if isinstance(checkpoint, str | os.PathLike):
        checkpoint = _read_tensors(Path(checkpoint))
    params = {n: t for n, t in checkpoint.items() if n in spec.axes}
    for second, first in spec.tied.items():
        if first in params:
            params.setdefault(second, params[first])
    slots = spec.slots
    if missing := [n for n in spec.axes if n in spec.parameters and n not in params and n not in slots]:
        raise ParamsError(f"checkpoint {name!r} has no {missing[0]!r}; is it of this spec?")
    return params


def _read_tensors(path: Path) -> Mapping[str, Tensor]:
    """Read the weights of a checkpoint of a stage, or all tensors of another file."""
    from safetensors import safe_open

    if path.suffix == ".safetensors" and path.exists():
        with safe_open(path, "pt") as file:
            is_nest = KEY in (file.metadata() or {})
        if is_nest:
            return read_nest(path)["weights"]
    return read_content(path).tensors


def _sized_spec(params: Params, spec: Spec, checkpoint: Checkpoint, masks: dict[Path, Mask]) -> Spec:
    """Return the spec at the sizes of the params, from the masks of their run if it has some, else from their shapes."""
    shapes = {n: tuple(t.shape) for n, t in params.items()}
    if all(shape == spec.shape(n) for n, shape in shapes.items()):
        return spec
    rounds = _pruned_files_before(Path(checkpoint)) if isinstance(checkpoint, str | os.PathLike) else []
    if rounds and rounds[-1] not in masks:
        masks[rounds[-1]] = read_nest(rounds[-1])["whole_mask"]
    if rounds:
        return shrink(spec, masks[rounds[-1]])
    sizes = infer_sizes(shapes, spec)
    return shrink(spec, {g: torch.arange(n) < sizes[g] for g, n in spec.sizes.items()})


def _pruned_files_before(path: Path) -> list[Path]:
    """Return the pruned files of the rounds of the run up to the stage of this checkpoint, in order."""
    stages = [
        p
        for p in path.absolute().parent.parent.glob("round_*")
        if _stage_order(p) <= _stage_order(path.absolute().parent)
    ]
    return [p / PRUNED for p in sorted(stages, key=_stage_order) if (p / PRUNED).exists()]


def spread(norms: Mapping[str, Tensor]) -> Spread:
    """Return the distribution of all units, each as a share of the largest norm of its group (0 in a group of zeros).

    >>> spread({"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([3.0, 0.1, 3.0])}).near
    0.4
    """
    if not norms:
        return Spread((0,) * BINS, 0.0)
    shares = np.concatenate([(n / n.max().clamp_min(1e-30)).double().cpu().numpy() for n in norms.values()])
    counts = np.histogram(shares, BINS, (0.0, 1.0))[0]
    return Spread(tuple(counts.tolist()), float((shares < NEAR).mean()))


def norms(checkpoints: Mapping[str, Mapping[str, Tensor]], path: Path | str) -> None:
    """Draw the norms over the checkpoints: above, a ridge of all units for each checkpoint; below, a map for each group.

    Two humps, one of them at zero, mean that the network is ready to prune. In the maps, the norms of most of a checkpoint's
    units are dark.

    Args:
        checkpoints: name → group → norms [units], in order, as from `analyze`. Of more than 24, an even selection is drawn.
        path: path of the PNG.

    Raises:
        PruneError: there are no checkpoints.
    """
    if not checkpoints:
        raise PruneError("there are no checkpoints to draw; train with Recipe(keep_every=…)")
    chosen = thinned(list(checkpoints))
    groups = list(dict.fromkeys(g for c in chosen for g in checkpoints[c]))
    across = min(ACROSS, max(len(groups), 3))
    high = 0.55 + 0.3 * (len(chosen) + 1)
    figure, axes = blank(0.3 + CELL[0] * across, high + 0.85 + CELL[1] * -(-len(groups) // across))
    words(axes, 0.2, 0.1, "Norms of all units, as a share of the largest of their group", 11.0, weight="bold")
    words(axes, 0.2, 0.34, f"at the right: units below {NEAR:.0%}", 7.5)
    label = 0.2 + 0.075 * max(map(len, chosen))
    _draw_ridges(axes, Panel(label + 0.1, 0.75, 0.3 + CELL[0] * across - label - 1.0, high - 0.85), chosen, checkpoints)
    words(axes, 0.2, high + 0.2, "L2 norm by group", 11.0, weight="bold")
    about = f"across: norm, from 0 to the largest of all checkpoints; down: {chosen[0]} to {chosen[-1]}"
    words(axes, 0.2, high + 0.44, about, 7.5)
    panels = grid(len(groups), across, CELL, Panel(0.2, high + 0.85, CELL[0] - 0.35, 0.8))
    for g, panel in zip(groups, panels, strict=True):
        _draw_map(axes, panel, g, [checkpoints[c].get(g) for c in chosen])
    save(figure, path)


def thinned(names: Sequence[str], most: int = MOST) -> list[str]:
    """Return at most `most` of the names, evenly spread, with the first and the last.

    >>> thinned(list("abcdefg"), 4)
    ['a', 'c', 'e', 'g']
    """
    if len(names) <= most:
        return list(names)
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def _draw_ridges(axes: Axes, at: Panel, names: Sequence[str], checkpoints: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Draw a ridge of the norms of all units for each checkpoint."""
    step = at.h / len(names)
    x = at.x + at.w * (np.arange(BINS) + 0.5) / BINS
    for i, name in enumerate(names):
        distribution = spread(checkpoints[name])
        most = max(1, *distribution.counts)
        floor = at.y + (i + 1) * step
        y = floor - 1.5 * step * np.array(distribution.counts) / most  # 1.5: ridges overlap the row above
        axes.fill_between(x, floor, y, color=KEPT, alpha=0.55, linewidth=0, zorder=2 * i + 2)
        axes.plot(x, y, color="white", linewidth=0.8, zorder=2 * i + 3)
        axes.plot([at.x, at.x + at.w], [floor] * 2, color=DENSE, linewidth=0.6, zorder=2 * i + 2)
        words(axes, at.x - 0.1, floor, name, 7.5, va="bottom", ha="right")
        words(axes, at.x + at.w + 0.1, floor, f"{distribution.near:.1%}", 7.5, va="bottom")
    for share in (0, 0.25, 0.5, 0.75, 1):
        words(axes, at.x + at.w * share, at.bottom + 0.04, f"{share:.0%}", 6.5, ha="center")
    near = at.x + NEAR * at.w
    axes.plot([near] * 2, [at.y, at.bottom], color=INK, linewidth=0.7, linestyle=(0, (3, 2)), zorder=1)


def _draw_map(axes: Axes, at: Panel, group: str, norms: Sequence[Tensor | None]) -> None:
    """Draw the norms of a group, a row for each checkpoint; rows of checkpoints without the group are empty."""
    top = max((float(n.max()) for n in norms if n is not None and len(n)), default=0.0) or 1.0
    density = np.zeros((len(norms), BINS))
    for i, n in enumerate(norms):
        if n is not None:
            density[i] = np.histogram(n.double().cpu().numpy(), BINS, (0.0, top))[0] / len(n)
    shades = np.sqrt(density / max(density.max(), 1e-12))  # the root keeps bins with few units visible
    axes.imshow(
        shades, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=_extent(at), zorder=1
    )
    axes.plot([at.x, at.x + at.w, at.x + at.w, at.x, at.x], _frame_ys(at), color=DENSE, linewidth=0.6, zorder=2)
    units = max((len(n) for n in norms if n is not None), default=0)
    words(axes, at.x, at.y - 0.17, cut(group, at.w - 0.45, 7.5), 7.5, weight="bold")
    words(axes, at.x + at.w, at.y - 0.17, str(units), 7.0, ha="right")
    words(axes, at.x, at.bottom + 0.03, "0", 6.0)
    words(axes, at.x + at.w, at.bottom + 0.03, f"{top:.3g}", 6.0, ha="right")


def _extent(at: Panel) -> tuple[float, float, float, float]:
    """Return left, right, bottom and top of a panel."""
    return at.x, at.x + at.w, at.bottom, at.y


def _frame_ys(at: Panel) -> list[float]:
    """Return the heights of the corners of a panel's frame, from the top left clockwise back to it."""
    return [at.y, at.y, at.bottom, at.bottom, at.y]
