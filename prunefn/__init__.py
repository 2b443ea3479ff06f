"""prunefn: functional pruning for PyTorch. Trace once, then pure functions on dicts of tensors."""

from .forward import forward, forward_train
from .params import apply, compose, params, shrink, zero
from .trace.api import trace
from .trace.spec import Spec
