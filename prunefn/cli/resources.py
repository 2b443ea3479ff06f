"""Open the data and networks of a config, and write results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from ..costs.analytic import cost
from ..costs.profiling import profile
from ..costs.timing.runtimes import ON_CPU
from ..data.api import open_data, preprocessing_of
from ..data.sources import SOURCES
from ..data.value import Data
from ..errors import PruneError
from ..files.atomic import write_text
from ..spec.spec import Spec
from ..types import Batch, Params
from .networks import Network, open_network
from .sections import Config


def data_of(config: Config, *, augment: bool | None = None) -> Data:
    """Return the data of the config.

    Args:
        augment: overrides the config; False for statistics.

    Raises:
        PruneError: the config names no data.
    """
    d = config.data
    if not d.name:
        raise PruneError(f"this needs data: --data {', '.join(SOURCES)}, or a folder with train/ and val/")
    preprocessing = None
    if d.name not in SOURCES:
        preprocessing = _preprocessing(config)
    return open_data(
        d.name,
        folder=d.folder,
        image_size=d.image_size,
        augment=d.augment if augment is None else augment,
        preprocessing=preprocessing,
        validation_fraction=d.validation_fraction,
        seed=config.seed,
    )


def _preprocessing(config: Config) -> Any:
    """Return the preprocessing of a timm model, for a folder of images; None for other models."""
    name = config.model.name.removeprefix("timm/")
    import timm

    if "/" in name or ":" in name or not timm.is_model(name.partition(".")[0]):
        return None
    torch.manual_seed(0)
    with torch.device("meta"):
        return preprocessing_of(timm.create_model(name))


def optional_data(config: Config) -> Data | None:
    """Return the data, or None if the config names none, for commands that run without data."""
    return data_of(config) if config.data.name else None


def selection_images(data: Data) -> Dataset[Any]:
    """Return the images to choose by: the validation images, or else the held-out images."""
    return data.held_out if data.validation is None else data.validation


def device_of(config: Config, runtime: str = "eager") -> torch.device:
    """Return the device of the config; by default a GPU if there is one and the runtime can use it."""
    if config.device is None and runtime in ON_CPU:
        return torch.device("cpu")
    return torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def move(params: Mapping[str, torch.Tensor], device: torch.device | str) -> Params:
    """Return tensors by name, on a device."""
    return {n: t.to(device) for n, t in params.items()}


def training_images(data: Data, config: Config) -> Dataset[Any]:
    """Return the training images, or the config's number of them."""
    return data.train if config.data.images is None else draw_samples(data.train, config.data.images, config.seed)


def draw_samples(dataset: Dataset[Any], count: int, seed: int) -> Dataset[Any]:
    """Return `count` samples drawn by the seed; all if there are fewer."""
    n = len(dataset)  # type: ignore[arg-type]
    indices = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]
    return Subset(dataset, indices.tolist())


def calibration(config: Config, images: int, batch: int) -> list[Batch]:
    """Return batches of training images without augmentation, drawn by the seed, with their labels."""
    clean = data_of(config, augment=False).train
    return [tuple(b) for b in DataLoader(draw_samples(clean, images, config.seed), batch_size=batch)]


def network_of(config: Config, data: Data | None = None, *, dense: bool = False) -> Network:
    """Return the model of the config, with its checkpoint."""
    return open_network(config.model, data, seed=config.seed, dense=dense)


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write a YAML file atomically."""
    write_text(path, yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def measure_networks(
    networks: Mapping[str, tuple[Params, Spec]], *, batch: int, rounds: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Return name → flops_g (10⁹ multiply-accumulates), params_m, latency_ms, throughput_fps; the networks are timed in turns."""
    timed = profile(networks, batch=batch, rounds=rounds, device=device)
    out = {}
    for n in timed.networks:
        c = cost(networks[n.name][1])
        out[n.name] = {
            "flops_g": c.macs / 1e9,
            "params_m": c.params / 1e6,
            "latency_ms": round(1e3 * n.timing.median, 4),
            "throughput_fps": round(batch / n.timing.median, 2),
        }
    return out


def zero_fraction(model: nn.Module) -> float:
    """Return the fraction of the weights (tensors of two dims and more) that are exactly zero."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    return sum(int((p == 0).sum()) for p in weights) / max(1, sum(p.numel() for p in weights))
