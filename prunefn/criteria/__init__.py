"""Criteria: values that say how units are scored; higher = keep. One idea a file.

A criterion of your own is a value: a name, and a pure function of statistics. Nothing needs to be registered.

>>> import torch, prunefn as pf
>>> def signal_to_noise(stats):
...     groups = stats.spec.groups.values()
...     sites = {g.name: stats.sites[g.sites[0]] for g in groups if g.sites and g.sites[0] in stats.sites}
...     return {name: m.mean.abs() / m.variance.sqrt() for name, m in sites.items()}
>>> own = pf.Criterion("signal_to_noise", signal_to_noise, needs=("moments",))
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
>>> spec = pf.trace(model, (torch.randn(2, 4),))
>>> pf.pipeline(criterion=own, ratio=0.5)(pf.params(model), [torch.randn(64, 4)], spec=spec).info.removed
{'0': (4, 8)}

To add one to this menu: a file `_name.py` with one function `name(…) → Criterion`, a line below, and a row in the table of
tests/test_criteria_laws.py. The files are private because a function hides a module of its name.
"""

from ._activation import activation
from ._activation_norm import activation_norm
from ._bn_scale import bn_scale
from ._combined import combined
from ._conditional_variance import conditional_variance
from ._denoised_variance import denoised_variance
from ._depth import block_influence, branch_error
from ._dissimilar import dissimilar
from ._experts import expert_frequency, reap
from ._fisher import fisher
from ._flap import flap
from ._fpgm import fpgm
from ._frequency import frequency
from ._given import given
from ._guided import guided
from ._hessian import hessian
from ._lamp import lamp
from ._mac_aware import mac_aware, mac_aware_product
from ._magnitude import magnitude
from ._movement import movement
from ._normalized import normalized
from ._obd_c import obd_c
from ._obs import obs
from ._random import random
from ._rank_fusion import rank_fusion
from ._smoothed import smoothed
from ._taylor import taylor
from ._variance import variance
from ._wanda_sp import wanda_sp
from ._weighted_variance import weighted_variance

__all__ = [
    "activation",
    "activation_norm",
    "block_influence",
    "bn_scale",
    "branch_error",
    "combined",
    "conditional_variance",
    "denoised_variance",
    "dissimilar",
    "expert_frequency",
    "fisher",
    "flap",
    "fpgm",
    "frequency",
    "given",
    "guided",
    "hessian",
    "lamp",
    "mac_aware",
    "mac_aware_product",
    "magnitude",
    "movement",
    "normalized",
    "obd_c",
    "obs",
    "random",
    "rank_fusion",
    "reap",
    "smoothed",
    "taylor",
    "variance",
    "wanda_sp",
    "weighted_variance",
]


def __dir__() -> list[str]:
    return __all__
