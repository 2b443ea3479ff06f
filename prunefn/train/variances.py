"""Differentiable variances of the inputs of layers, for `losses.variance_concentration`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import trees
from ..doors import door
from ..errors import PruneError
from ..program.compiled import compiled, result
from ..program.inputs import flat_inputs
from ..spec.spec import Spec
from ..types import Params, Where
from ..where import sites_of


@door
def site_variances(
    params: Params, *inputs: Any, spec: Spec, where: Where | str | None = None
) -> tuple[Any, dict[str, Tensor]]:
    """Run the network, and measure the variances of the inputs of its sites, differentiably.

    Args:
        params, inputs, spec: as for `forward`; buffers are not updated.
        where: only sites of groups that match.

    Returns:
        (output, site → variance [units] over samples and positions, averaged over the calls of a layer).

    >>> import prunefn as pf
    >>> from prunefn.train import losses
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> params, x = pf.params(model), torch.randn(8, 4)
    >>> spec = pf.trace(model, (x,))
    >>> def loss(params):
    ...     y, variances = site_variances(params, x, spec=spec)
    ...     return y.square().mean() + 0.1 * losses.variance_concentration(variances)
    >>> torch.func.grad(loss)(params)["0.weight"].shape
    torch.Size([3, 4])
    """
    sites = sites_of(spec, where)
    values = list(dict.fromkeys(v for s in sites for v in s.values))

    def emit(graph: fx.Graph, env: Mapping[str, Any]) -> Any:
        return result(spec, env), tuple(graph.call_function(variance_along, (env[v], dim)) for v, dim in values)

    flat = flat_inputs(spec, inputs, {})
    out, variances = compiled(spec, params, ("variances", tuple(values)), emit)(params, flat)
    by_value = dict(zip(values, variances, strict=True))
    return trees.unflatten(out, spec.program.out_spec), {
        s.name: torch.stack([by_value[v] for v in s.values]).mean(0) for s in sites
    }


@fx.wrap
def variance_along(x: Tensor, dim: int) -> Tensor:
    """Return the variance [units] over all dims but one, in float32 or more."""
    wide = x if x.dtype == torch.float64 else x.float()
    return wide.var([d for d in range(x.ndim) if d != dim % x.ndim], correction=0)


def watch(module: nn.Module, sites: Mapping[str, tuple[str, int]]) -> dict[str, Tensor]:
    """Return a dict that every forward pass fills with the variances of some modules' inputs.

    Args:
        module: gets a hook on each of these modules.
        sites: site → (path of the module, dim of the units).

    Raises:
        PruneError: a module does not exist; names the site.
    """
    variances: dict[str, Tensor] = {}
    modules = dict(module.named_modules(remove_duplicate=False))

    def hook(site: str, dim: int) -> Callable[[nn.Module, Any], None]:
        def measure(_: nn.Module, args: Any) -> None:
            variances[site] = variance_along(args[0], dim)

        return measure

    for site, (path, dim) in sites.items():
        if path not in modules:
            raise PruneError(
                f"site {site!r}: the model has no module {path!r} to watch; leave its groups out by where="
            )
        modules[path].register_forward_pre_hook(hook(site, dim))
    return variances
