"""The original class without its weights, and back."""

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


def skeleton(model: nn.Module) -> nn.Module:
    """A copy whose parameters and persistent buffers are on the meta device; tied ones stay tied.

    Tensors that no state dict has (tables, grids) are copied with their values: nothing else knows them.
    """
    known = params_of(model)
    memo = {
        id(t): nn.Parameter(t.detach().to("meta"), t.requires_grad)
        if isinstance(t, nn.Parameter)
        else t.detach().to("meta")
        for n, t in own_tensors(model).items()
        if n in known
    }
    return copy.deepcopy(model, memo)


def rebuilt(params: Params, spec: Spec, bones: nn.Module, like: nn.Module) -> nn.Module:
    """The original class with these params, in the modes of another model, trainable where that is."""
    module = to_module(params, spec=spec, model=_placed(bones, device_of(params)))
    modes = {name: m.training for name, m in like.named_modules(remove_duplicate=False)}
    for name, m in module.named_modules(remove_duplicate=False):
        m.training = modes.get(name, like.training)
    trained = {name: p.requires_grad for name, p in like.named_parameters(remove_duplicate=False)}
    for name, p in module.named_parameters(remove_duplicate=False):
        p.requires_grad_(trained.get(name, p.requires_grad))
    return module


def live_params(model: nn.Module, spec: Spec) -> Params:
    """The params with their gradients.

    Raises:
        ParamsError: the model does not fit the spec.
    """
    found = fitting(model, spec)
    own: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return {n: own.get(n, t) for n, t in found.items()}


def fitting(model: nn.Module, spec: Spec) -> Params:
    """`pf.params` of a model that has the sizes of a spec.

    Raises:
        ParamsError: it has others.
    """
    found = params_of(model)
    try:
        check_names(found, spec)
    except ParamsError as error:
        wrapped = found and all(n.startswith("module.") for n in found)
        fix = (
            "it is wrapped: pass model.module, and wrap the model of the step again"
            if wrapped
            else "go on with the model and the pruning of the last step"
        )
        raise ParamsError(
            f"this {type(model).__name__} is not what the pruning has come to; {fix} ({error})"
        ) from error
    return found


def _placed(bones: nn.Module, device: torch.device) -> nn.Module:
    """With its tables on the device."""
    strays = [b for b in bones.buffers() if not b.is_meta and b.device != device]
    return copy.deepcopy(bones, {id(b): b.to(device) for b in strays}) if strays else bones
