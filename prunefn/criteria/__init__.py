"""Criteria: values that define how units are scored; higher = keep. One idea a file."""

from ._activation import activation
from ._bn_scale import bn_scale
from ._combined import combined
from ._conditional_variance import conditional_variance
from ._denoised_variance import denoised_variance
from ._dissimilar import dissimilar
from ._fisher import fisher
from ._fpgm import fpgm
from ._guided import guided
from ._hessian import hessian
from ._lamp import lamp
from ._mac_aware import mac_aware, mac_aware_product
from ._magnitude import magnitude
from ._movement import movement
from ._normalized import normalized
from ._obd_c import obd_c
from ._random import random
from ._rank_fusion import rank_fusion
from ._smoothed import smoothed
from ._taylor import taylor
from ._variance import variance
from ._weighted_variance import weighted_variance

__all__ = [
    "activation",
    "bn_scale",
    "combined",
    "conditional_variance",
    "denoised_variance",
    "dissimilar",
    "fisher",
    "fpgm",
    "guided",
    "hessian",
    "lamp",
    "mac_aware",
    "mac_aware_product",
    "magnitude",
    "movement",
    "normalized",
    "obd_c",
    "random",
    "rank_fusion",
    "smoothed",
    "taylor",
    "variance",
    "weighted_variance",
]


def __dir__() -> list[str]:
    return __all__
