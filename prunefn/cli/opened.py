"""What a config names, opened: data, batches for statistics, and what is written of every result."""

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
    """The data that the config names.

    Args:
        augment: instead of what the config says; False for statistics.

    Raises:
        PruneError: it names none.
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
        validation_share=d.validation_share,
        seed=config.seed,
    )


def _preprocessing(config: Config) -> Any:
    """Of a folder: what a timm model was trained with."""
    name = config.model.name.removeprefix("timm/")
    import timm

    if "/" in name or ":" in name or not timm.is_model(name.partition(".")[0]):
        return None
    torch.manual_seed(0)
    with torch.device("meta"):
        return preprocessing_of(timm.create_model(name))


def wanted_data(config: Config) -> Data | None:
    """The data, if the config names any: for commands that run without."""
    return data_of(config) if config.data.name else None


def chooser(data: Data) -> Dataset[Any]:
    """Images to choose by: those set apart, or else the held-out ones."""
    return data.held_out if data.validation is None else data.validation


def device_of(config: Config) -> torch.device:
    """The device of the config; by default a GPU where there is one."""
    return torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def moved(params: Mapping[str, torch.Tensor], device: torch.device | str) -> Params:
    """Params on a device."""
    return {n: t.to(device) for n, t in params.items()}


def learnt(data: Data, config: Config) -> Dataset[Any]:
    """The training images, or as many of them as the config says."""
    return data.train if config.data.images is None else drawn(data.train, config.data.images, config.seed)


def drawn(dataset: Dataset[Any], count: int, seed: int) -> Dataset[Any]:
    """So many samples, drawn by the seed; all of them if there are not so many."""
    n = len(dataset)  # type: ignore[arg-type]
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]
    return Subset(dataset, chosen.tolist())


def calibration(config: Config, images: int, batch: int) -> list[Batch]:
    """Clean training images with their labels, in batches, drawn by the seed."""
    clean = data_of(config, augment=False).train
    return [tuple(b) for b in DataLoader(drawn(clean, images, config.seed), batch_size=batch)]


def network_of(config: Config, data: Data | None = None, *, dense: bool = False) -> Network:
    """The model of the config, with its checkpoint."""
    return open_network(config.model, data, seed=config.seed, dense=dense)


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """A YAML file, whole or not at all."""
    write_text(path, yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def measures(
    networks: Mapping[str, tuple[Params, Spec]], *, batch: int, rounds: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Name → flops_g, params_m, latency_ms, throughput_fps, timed in turns. By flops_g, multiply-accumulates are meant, in 1e9."""
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


def zeros_in(model: nn.Module) -> float:
    """Share of the weights (tensors of two dims and more) that are exactly zero."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    return sum(int((p == 0).sum()) for p in weights) / max(1, sum(p.numel() for p in weights))
