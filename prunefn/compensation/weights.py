"""New weights of contractions, written into params."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from .._shapes import Float
from ..program.compiled import conv_groups, of_expert
from ..program.sharded import spread
from ..spec.parts import Site
from ..spec.spec import Spec
from ..types import Params


def _write_expert(out: Params, site: Site, weight: Float[Tensor, "g o i t"], dense: Params) -> None:
    """Write the new weight of an expert into its slice of the stacked one, which is copied once."""
    if out[site.weight] is dense[site.weight]:
        out[site.weight] = out[site.weight].detach().clone()
    left, right = (side.strip() for side in site.pattern.split("->"))
    of_expert(out[site.weight], site).copy_(rearrange(weight, f"{right} -> {left}"))


def write_weight(out: Params, site: Site, weight: Float[Tensor, "g o i t"], params: Params, spec: Spec) -> None:
    """Write a new weight, and its tied copies, into `out`, which began as a copy of `params`."""
    if site.expert is not None:
        _write_expert(out, site, weight, params)
        return
    dense = out[site.weight]
    left, right = (side.strip() for side in site.pattern.split("->"))
    kernel = [c for c in left.split() if c.startswith("k")]
    kernel_sizes = dict(zip(kernel, dense.shape[dense.ndim - len(kernel) :], strict=True))
    rewritten = rearrange(weight, f"{right} -> {left}", **conv_groups(site, spec), **kernel_sizes)
    rewritten = spread(rewritten.to(dense.dtype), dense)
    for name in [site.weight, *(n for n, first in spec.tied.items() if first == site.weight and n in out)]:
        out[name] = rewritten
