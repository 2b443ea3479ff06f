"""Criteria: values that say how units are scored; higher = keep. One idea a file."""

from .activation import activation
from .bn_scale import bn_scale
from .combined import combined
from .conditional_variance import conditional_variance
from .denoised_variance import denoised_variance
from .dissimilar import dissimilar
from .fisher import fisher
from .fpgm import fpgm
from .guided import guided
from .hessian import hessian
from .lamp import lamp
from .mac_aware import mac_aware, mac_aware_product
from .magnitude import magnitude
from .movement import movement
from .normalized import normalized
from .obd_c import obd_c
from .random import random
from .rank_fusion import rank_fusion
from .smoothed import smoothed
from .taylor import taylor
from .variance import variance
from .weighted_variance import weighted_variance

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
