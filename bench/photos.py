"""Real photos that come inside two packages, as random crops: the photos for calibration are not those for measurement."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F
from tqdm import tqdm

SIDE = 224
SHORT = (256, 384)
"""The shorter side before the crop; ImageNet's eval transform has 256."""


class Scaling(NamedTuple):
    """What a network expects of pixels from 0 to 1."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Bytes [batch, 3, height, width] → the network's input, channels last, which is faster on a CPU."""
        x = F.normalize(pixels.float() / 255, self.mean, self.std)
        return x.contiguous(memory_format=torch.channels_last)


IMAGENET = Scaling()
SCIKIT_IMAGE = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png"),
    *("coffee.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg"),
    *("ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"),
)
"""Photos among its pictures; drawings, texts and the second view of the motorcycle are left out."""


class Crops(NamedTuple):
    """Random crops, held as bytes and normalised batch by batch."""

    pixels: Tensor
    """[n, 3, 224, 224], uint8"""
    photos: int
    batch: int
    scaling: Scaling

    def __len__(self) -> int:
        return -(-len(self.pixels) // self.batch)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.scaling(part) for part in self.pixels.split(self.batch))


def installed(package: str, install: str) -> list[Path]:
    """The files of an installed package, found without importing it.

    Raises:
        SystemExit: it is not installed; says how to.
    """
    try:
        files = metadata.files(package)
    except metadata.PackageNotFoundError:
        raise SystemExit(f"this bench needs {package}: pip install {install}") from None
    return [Path(f.locate()) for f in files or ()]


def labelled() -> list[tuple[Path, int]]:
    """foolbox's 20 photos with their ImageNet classes."""
    found = sorted(p for p in installed("foolbox", "--no-deps foolbox") if p.name.startswith("imagenet_"))
    return [(p, int(p.stem.split("_")[2])) for p in found]


def unlabelled() -> list[Path]:
    """The photos of scikit-image."""
    found = {p.name: p for p in installed("scikit-image", "scikit-image") if p.parent.name == "data"}
    return [found[name] for name in SCIKIT_IMAGE]


def split(
    calibration: int, measurement: int, *, seed: int, batches: tuple[int, int], scaling: Scaling
) -> tuple[Crops, Crops]:
    """Crops for calibration and crops for measurement, each of half of either package's photos, in batches of so many."""
    generator = torch.Generator().manual_seed(seed)
    parts: tuple[list[Path], list[Path]] = ([], [])
    for photos in ([p for p, _ in labelled()], unlabelled()):
        order = torch.randperm(len(photos), generator=generator).tolist()
        for part, numbers in zip(parts, (order[::2], order[1::2]), strict=True):
            part += [photos[i] for i in numbers]
    first, second = (
        Crops(_crops(part, n, generator), len(part), batch, scaling)
        for part, n, batch in zip(parts, (calibration, measurement), batches, strict=True)
    )
    return first, second


def _crops(paths: list[Path], n: int, generator: torch.Generator) -> Tensor:
    """n crops; the photos take turns, in an order that changes from round to round, so that every batch is mixed."""
    images = [Image.open(p).convert("RGB") for p in paths]
    out = torch.empty(n, 3, SIDE, SIDE, dtype=torch.uint8)
    order: list[int] = []
    for i in tqdm(range(n), desc="crops", leave=False):
        order = order or torch.randperm(len(images), generator=generator).tolist()
        out[i] = _crop(images[order.pop()], generator)
    return out


def _crop(image: Image.Image, generator: torch.Generator) -> Tensor:
    """Resized to a random scale, cropped at a random place, flipped half of the time."""
    short, top, left, flip = torch.rand(4, generator=generator).tolist()
    side = SHORT[0] + int(short * (SHORT[1] - SHORT[0] + 1))
    x = F.pil_to_tensor(F.resize(image, side, InterpolationMode.BILINEAR))
    height, width = x.shape[1:]
    x = F.crop(x, int(top * (height - SIDE + 1)), int(left * (width - SIDE + 1)), SIDE, SIDE)
    return F.hflip(x) if flip < 0.5 else x


def eval_transform(path: Path, scaling: Scaling) -> Tensor:
    """ImageNet's own: shorter side 256, central crop 224; a batch of one."""
    image = F.resize(Image.open(path).convert("RGB"), 256, InterpolationMode.BILINEAR)
    return scaling(F.center_crop(F.pil_to_tensor(image), SIDE)[None])
