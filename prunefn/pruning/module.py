"""Models without their weights, and models rebuilt from params."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..errors import ParamsError
from ..modules.convert import to_module
from ..modules.rebuild import own_tensors
from ..parameters.transforms import check_names
from ..parameters.transforms import params as params_of
from ..program.batches import device_of
from ..spec.spec import Spec
from ..types import Params


def strip_weights(model: nn.Module) -> nn.Module:
    """Return a copy whose parameters and persistent buffers are on the meta device; tied ones stay tied.

    Tensors that are not in the state dict (tables, grids) keep their values: params do not have them.
    """
    names = params_of(model)
    memo = {
        id(t): nn.Parameter(t.detach().to("meta"), t.requires_grad)
        if isinstance(t, nn.Parameter)
        else t.detach().to("meta")
        for n, t in own_tensors(model).items()
        if n in names
    }
    return copy.deepcopy(model, memo)


def rebuild(params: Params, spec: Spec, skeleton: nn.Module, like: nn.Module) -> nn.Module:
    """Return the class of the skeleton with these params, and with the modes and `requires_grad` flags of `like`."""
    module = to_module(params, spec=spec, model=_move_tables(skeleton, device_of(params)))
    modes = {name: m.training for name, m in like.named_modules(remove_duplicate=False)}
    for name, m in module.named_modules(remove_duplicate=False):
        m.training = modes.get(name, like.training)
    trained = {name: p.requires_grad for name, p in like.named_parameters(remove_duplicate=False)}
    for name, p in module.named_parameters(remove_duplicate=False):
        p.requires_grad_(trained.get(name, p.requires_grad))
    return module


def read_trainable(model: nn.Module, spec: Spec) -> Params:
    """Return the params of a model as the tensors that autograd tracks.

    Raises:
        ParamsError: the model does not fit the spec.
    """
    params = read_params(model, spec)
    own: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return {n: own.get(n, t) for n, t in params.items()}


def read_params(model: nn.Module, spec: Spec) -> Params:
    """Return `pf.params` of a model that has the sizes of a spec.

    Raises:
        ParamsError: it has other sizes.
    """
    params = params_of(model)
    try:
        check_names(params, spec)
    except ParamsError as error:
        wrapped = params and all(n.startswith("module.") for n in params)
        fix = (
            "it is wrapped: pass model.module, and wrap the model of the step again"
            if wrapped
            else "use the model and the pruning of the last step"
        )
        raise ParamsError(
            f"the sizes of this {type(model).__name__} are not those of the pruning; {fix} ({error})"
        ) from error
    return params


def _move_tables(skeleton: nn.Module, device: torch.device) -> nn.Module:
    """Return the skeleton with its tables on a device."""
    tables = [b for b in skeleton.buffers() if not b.is_meta and b.device != device]
    return copy.deepcopy(skeleton, {id(b): b.to(device) for b in tables}) if tables else skeleton
