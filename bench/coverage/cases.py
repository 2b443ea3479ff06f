"""What is covered: models of timm, torchvision and transformers, chosen by rule; and of other packages, from a list."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from . import packages

CAP = 45e6
"""Models with more parameters are left out, unless they are the smallest of their series."""
YOLO = ("yolov8n", "yolov8n-seg", "yolov8n-cls", "yolo11n", "yolo11n-pose")
TIMM = Path(__file__).with_name("timm.csv")

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class Case(NamedTuple):
    """A model and how to feed it."""

    suite: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], Inputs]
    """(batch size, attempt) → (args, kwargs); the first attempt that the model takes is used."""
    attempts: int = 1


def cases(suite: str) -> list[Case]:
    """All cases of `timm`, `timm-2`, `torchvision`, `transformers`, or of `ultralytics` and `packages` where they are installed."""
    if suite == "ultralytics":
        return [Case(suite, n, partial(_yolo, n), lambda b, _: _images(b, 96)) for n in YOLO if find_spec(suite)]
    if suite == "packages":
        found = [m for m in packages.models().values() if find_spec(m.package)]
        return [Case(suite, m.name, m.build, lambda b, _, m=m: m.inputs(b)) for m in found]
    if suite == "transformers":
        from .hf import models

        return [Case(suite, n, c.build, lambda b, _, c=c: c.inputs(b)) for n, c in models().items()]
    return list(_torchvision() if suite == "torchvision" else _timm(suite))


def packages_of(suite: str) -> list[str]:
    """The packages that the models of a suite are imported from, where they may be absent."""
    models = packages.models().values() if suite == "packages" else ()
    return ["ultralytics"] if suite == "ultralytics" else list(dict.fromkeys(m.package for m in models))


def absent(suite: str) -> list[str]:
    """Packages of a suite that are not installed, so that their models are not run."""
    return [p for p in packages_of(suite) if not find_spec(p)]


def _yolo(name: str) -> nn.Module:
    """From its YAML, with random weights."""
    from ultralytics import YOLO as Yolo  # type: ignore[import-not-found]

    return Yolo(f"{name}.yaml", verbose=False).model


# ---- timm: a small representative per module, and a second, different one


def _timm(suite: str) -> Iterator[Case]:
    import timm

    with TIMM.open() as f:
        for row in csv.DictReader(f):
            name = row["first"] if suite == "timm" else row["second"]
            depth = {"depth": int(row["depth"])} if row["depth"] else {}
            if name:
                yield Case(suite, name, partial(timm.create_model, name, **depth), partial(_images_for, name), 3)


def _images_for(name: str, batch: int, attempt: int) -> Inputs:
    """Small images where the model takes them, else those of its configuration."""
    import timm

    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    channels, side = (config.input_size[0], config.input_size[-1]) if config else (3, 224)
    return _images(batch, (96, side, 256)[attempt], channels)


def _images(batch: int, side: int, channels: int = 3) -> Inputs:
    generator = torch.Generator().manual_seed(batch)
    return (torch.randn(batch, channels, side, side, generator=generator),), {}


def choose_timm() -> None:
    """Write down, for each module of timm, its smallest architecture and its largest one under the cap.

    Where the smallest is over the cap, too, both get two blocks, if the constructor takes a depth.
    """
    import timm
    from timm.models._registry import _model_to_module
    from tqdm import tqdm

    modules: dict[str, list[tuple[int, str]]] = {}
    for name in tqdm([n for n in timm.list_models() if not n.startswith("test_")]):
        with torch.device("meta"):
            count = sum(p.numel() for p in timm.create_model(name).parameters())
        modules.setdefault(_model_to_module[name], []).append((count, name))
    with TIMM.open("w", newline="") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(["module", "first", "depth", "second"])
        for module, found in sorted(modules.items()):
            first, *rest = sorted(found)
            fit = [c for c in rest if c[0] <= CAP and c[0] > 1.05 * first[0]] or rest[:1]
            depth = 2 if first[0] > CAP and _takes_depth(first[1]) else ""
            out.writerow([module, first[1], depth, fit[-1][1] if fit else ""])


def _takes_depth(name: str) -> bool:
    import timm

    try:
        with torch.device("meta"):
            timm.create_model(name, depth=2)
    except TypeError:
        return False
    return True


# ---- torchvision: everything


def _torchvision() -> Iterator[Case]:
    from torchvision import models

    series: dict[str, list[tuple[float, str]]] = {}
    for name in models.list_models():
        if not name.startswith("quantized_"):
            builder = models.get_model_builder(name)
            size = max(w.meta["num_params"] for w in models.get_model_weights(name))
            series.setdefault(builder.__module__, []).append((size, name))
    for found in series.values():
        for size, name in sorted(found):
            if size <= CAP or size == min(found)[0]:
                yield _torchvision_case(name)


def _torchvision_case(name: str) -> Case:
    from torchvision import models

    kind = models.get_model_builder(name).__module__.removeprefix("torchvision.models.").split(".")[0]
    options: dict[str, Any] = {"weights": None}
    if kind in ("segmentation", "detection"):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False, "aux_logits": False}  # which evaluation does not run
    inputs = {"detection": _photos, "video": _clips, "optical_flow": _pairs}.get(kind)
    build = partial(models.get_model, name, **options)
    if inputs is not None:
        return Case("torchvision", name, build, inputs, 2)
    sides = (96, 224, 256, 299)
    return Case("torchvision", name, build, lambda b, i: _images(b, sides[i]), len(sides))


def _photos(batch: int, _: int) -> Inputs:
    generator = torch.Generator().manual_seed(batch)
    return ([torch.rand(3, 160, 128 + 32 * i, generator=generator) for i in range(batch)],), {}


def _clips(batch: int, attempt: int) -> Inputs:
    frames, side = ((8, 64), (16, 224))[attempt]
    return (torch.randn(batch, 3, frames, side, side, generator=torch.Generator().manual_seed(batch)),), {}


def _pairs(batch: int, _: int) -> Inputs:
    generator = torch.Generator().manual_seed(batch)
    return tuple(torch.rand(batch, 3, 128, 128, generator=generator) for _ in range(2)), {}
