"""Compensations: how a contraction makes up for removed inputs."""

from .methods import affine as affine
from .methods import mean as mean
from .methods import none as none
from .methods import variance_rescale as variance_rescale

__all__ = ["affine", "mean", "none", "variance_rescale"]


def __dir__() -> list[str]:
    return __all__
