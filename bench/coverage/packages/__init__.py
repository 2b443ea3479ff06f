"""Models of other packages from small configurations: random weights, few layers, widths that are not all equal."""

from __future__ import annotations

from .base import Model
from .diffusion import models as diffusion
from .images import models as images
from .signals import models as signals
from .texts import models as texts
from .volumes import models as volumes


def models() -> dict[str, Model]:
    """All models by name; a package is imported when a model of it is built.

    >>> models()["diffusers.UNet2DModel"].package
    'diffusers'
    """
    return {m.name: m for m in [*diffusion(), *volumes(), *images(), *signals(), *texts()]}
