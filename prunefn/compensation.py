"""Compensations: how contractions make up for inputs that are removed."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from einops import einsum, rearrange
from torch import Tensor

from .errors import ParamsError, StatsError, nearest
from .forward import value_of
from .params import check_mask, check_names
from .shapes import Float
from .stats import Stats, check_stats
from .trace.expr import keep, leaves, size
from .trace.program import refs
from .trace.spec import Spec
from .types import Compensation, Mask, Moments, Params, Site


def mean() -> Compensation:
    """Removed inputs are replaced by their means: b' = b + W[:, P] μ_P, per tap for padded or strided convolutions.

    Berisha et al., "Variance-Based Pruning", ICCV 2025 (arXiv 2507.12988), extended to convolutions of any group count.
    """
    return Compensation("mean", _mean_shift)


def none() -> Compensation:
    """Removed inputs are simply gone."""
    return Compensation("none", None)


def _mean_shift(weight: Float[Tensor, "g o i t"], means: Float[Tensor, "g i t_or_1"]) -> Float[Tensor, "g o"]:
    """Σ over inputs and taps of weight times mean."""
    weight = weight.sum(-1, keepdim=True) if means.shape[-1] == 1 else weight
    return einsum(weight, means, "g o i t, g i t -> g o")


def compensate(
    params: Params,
    means: Stats | Mapping[str, Tensor | Moments],
    mask: Mask,
    *,
    spec: Spec,
    method: Compensation | None = None,
) -> Params:
    """Shift the outputs of all contractions by what the units that `mask` removes contributed on average.

    The shift goes into the bias; without one, into the running mean of a BatchNorm that follows; without either, a new
    bias is created, which `forward`, `apply` and `to_module` carry.

    Args:
        params: of the spec, not yet pruned.
        means: stats, or site → mean of its input, [size of the axis] or [size of the axis, taps].
        mask: what is about to be removed.
        spec: of the params.
        method: default `compensation.mean()`.

    Returns:
        New params of the same shapes; `apply` them next.

    Raises:
        StatsError: a site that loses inputs has no mean; the message names it.
        MaskError, ParamsError: something does not fit the spec.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Linear(2, 1))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> p = pf.params(model)
    >>> q = pf.compensate(p, {"1": torch.tensor([0.0, 10.0])}, {"0": torch.tensor([True, False])}, spec=spec)
    >>> torch.allclose(q["1.bias"], p["1.bias"] + 10 * p["1.weight"][:, 1])
    True
    """
    method = mean() if method is None else method
    check_mask(mask, spec)
    check_names(params, spec)
    if isinstance(means, Stats):
        check_stats(means, spec)
    if method.shift is None:
        return dict(params)
    given = means.sites if isinstance(means, Stats) else means
    out = dict(params)
    for site in spec.sites.values():
        if any(leaf in mask and not bool(mask[leaf].all()) for leaf in leaves(site.axis)):
            _add(out, site, _shift(params, site, given, mask, spec, method), spec)
    return out


def _shift(
    params: Params, site: Site, given: Mapping[str, Tensor | Moments], mask: Mask, spec: Spec, method: Compensation
) -> Tensor:
    """What the site's output lacks once the units are gone: float64 [out]."""
    weight = value_of(params, site.weight, spec=spec).double()
    removed = ~keep(site.axis, mask, spec.sizes).to(weight.device)
    lost = torch.where(removed[:, None], _means(site, given, spec).to(weight.device).double(), 0.0)
    if not bool(torch.isfinite(lost).all()):
        raise StatsError(f"the mean of site {site.name!r} is not finite; look for NaN in the statistics")
    g = size(site.groups, spec.sizes)
    weight = rearrange(weight, site.pattern, **({"g": g} if "g" in site.pattern.split("->")[0] else {}))
    assert method.shift is not None
    return method.shift(weight, rearrange(lost, "(g i) t -> g i t", g=g)).flatten()


def _means(site: Site, given: Mapping[str, Tensor | Moments], spec: Spec) -> Tensor:
    """[size of the axis, taps or 1]"""
    if site.name not in given:
        raise StatsError(
            f"site {site.name!r} loses inputs, but there is no mean for it; collect statistics for it{nearest(site.name, given)}"
        )
    found, geometry = given[site.name], site.geometry
    means = found if isinstance(found, Tensor) else found.mean if found.taps is None else found.taps
    n, taps = size(site.axis, spec.sizes), 1 if geometry is None else prod(geometry.kernel)
    if tuple(means.shape) not in ((n,), (n, taps)):
        raise StatsError(
            f"the mean of site {site.name!r} has shape {tuple(means.shape)}; its axis has {n} positions: it must be [{n}]"
            + (f" or [{n}, {taps}]" if geometry is not None else "")
        )
    if means.ndim == 2:
        return means
    # an output of a transposed convolution meets only every s-th tap
    return means[:, None] / (prod(geometry.stride) if geometry is not None and geometry.transposed else 1)


def _add(out: Params, site: Site, shift: Tensor, spec: Spec) -> None:
    """Put the shift where it belongs, in a dict that is ours."""
    if site.bias is not None:
        target, sign = site.bias, 1.0
        users = [i for i in spec.program.instructions if site.bias in refs((i.args, tuple(v for _, v in i.kwargs)))]
        if others := [i.module or i.name for i in users if i.name not in site.calls]:
            raise ParamsError(
                f"bias {site.bias!r} serves {site.name!r} and {others[0]!r}, which need different shifts; "
                "use method=compensation.none(), or give each a bias of its own"
            )
    elif site.norm is not None:
        target, sign = site.norm, -1.0
    else:
        target, sign = site.slot, 1.0
    old = out.get(target)
    new = sign * shift if old is None else old.double() + sign * shift
    like = old if old is not None else next(t for n, t in out.items() if n in spec.parameters and t.is_floating_point())
    new = new.to(like.dtype).to(like.device)
    for name in [target, *(n for n, first in spec.tied.items() if first == target and n in out)]:
        out[name] = new
