"""Compensations: how a contraction makes up for removed inputs.

A compensation of your own is a value: a name, and a pure function of a weight [groups, out, in, taps] and what is known of its
inputs. The shift that it returns [groups, out] goes into the bias, or into one that is created.

>>> import torch, prunefn as pf
>>> from prunefn.types import Compensation, Repair
>>> def half_of_the_mean(weight, x):
...     removed = torch.where(x.kept[..., None], 0.0, 0.5 * x.mean)
...     return Repair(None, (weight * removed[:, None]).sum((2, 3)))
>>> own = Compensation("half_of_the_mean", half_of_the_mean, needs=("moments",))
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
>>> spec = pf.trace(model, (torch.randn(2, 4),))
>>> small = pf.pipeline(criterion=pf.criteria.variance(), compensation=own)(pf.params(model), [torch.randn(64, 4)], spec=spec)
>>> bool((small.params["2.bias"] != model[2].bias).any())
True

To add one to this menu: a function in methods.py, and a line below; the laws of tests/test_affine.py take it into `METHODS`.
"""

from .methods import affine as affine
from .methods import mean as mean
from .methods import none as none
from .methods import variance_rescale as variance_rescale

__all__ = ["affine", "mean", "none", "variance_rescale"]


def __dir__() -> list[str]:
    return __all__
