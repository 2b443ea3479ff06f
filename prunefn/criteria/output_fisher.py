"""The Fisher information of the outputs of contractions: how much an error there costs at the end of the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from .. import trees
from ..errors import BatchError
from ..program.batches import device_of, inputs_of
from ..program.compiled import compiled, result, site_weight
from ..spec.parts import Site
from ..spec.spec import Spec, check_eval_mode, check_runnable
from ..types import Batch, Params

LIKELIHOODS = ("auto", "categorical", "gaussian")
"""Names of the distributions that a network's output may stand for."""


WIDEST = 8192
"""Outputs of a site whose Fisher information is kept as a matrix; that of a vocabulary would take gigabytes."""


def at_inputs(site: str) -> str:
    """Return the key of Wᵀ F W of a site with more than `WIDEST` outputs."""
    return f"{site}, at its inputs"


class OutputFisher(NamedTuple):
    """Collector of Σ over samples and positions of g gᵀ: site → [o, o], float64.

    Of a site with more than `WIDEST` outputs, it is Σ over taps of Wᵀ g gᵀ W instead, [groups, i, i], under the key `at_inputs`.
    g is the gradient of −log p(y) at the site's output, with y drawn from the network's own distribution. Sites whose output is
    not a tensor of the program (gates of recurrent cells) are left out.
    """

    likelihood: str
    seed: int

    def __call__(self, params: Params, batch: Batch, spec: Spec) -> Mapping[str, Tensor]:
        check_eval_mode(spec, "criterion 'obs'")
        check_runnable(spec)
        dims = {name: d for name, s in spec.sites.items() if (d := output_dim(s, spec)) is not None}
        calls = tuple(dict.fromkeys(f"%{c}" for name in dims for c in spec.sites[name].calls))

        def emit(_: fx.Graph, env: Mapping[str, Any]) -> Any:
            return result(spec, env), tuple(env[c] for c in calls)

        run = compiled(spec, params, ("outputs", calls), emit)
        trained = {n for n in spec.parameters if n in params and params[n].is_floating_point()}
        leaves = {n: t.detach().requires_grad_(n in trained) for n, t in params.items()}
        with torch.enable_grad():
            outputs, values = run(leaves, inputs_of(batch, spec=spec, device=device_of(params)))
            logits = self._logits(outputs, spec)
            if logits is None:
                return {}
            loss = self._loss(logits)
            gradients = torch.autograd.grad(loss, values, allow_unused=True)
        by_call = dict(zip(calls, gradients, strict=True))
        out: dict[str, Tensor] = {}
        for name, dim in dims.items():
            for call in spec.sites[name].calls:
                if (g := by_call[f"%{call}"]) is not None:
                    rows = g.movedim(dim, -1).flatten(0, -2)
                    if rows.shape[1] > WIDEST:
                        key, value = at_inputs(name), _at_inputs(rows, site_weight(params, spec.sites[name], spec=spec))
                    else:
                        key, value = name, rows.double().mT @ rows.double()
                    out[key] = value if key not in out else out[key] + value
        return out

    def _logits(self, outputs: tuple[Any, ...], spec: Spec) -> Tensor | None:
        """Return the tensor that parametrises the distribution; None if "auto" finds no logits.

        Raises:
            BatchError: the output has no tensor of floats.
        """
        output = trees.unflatten(list(outputs), spec.program.out_spec)
        output = getattr(output, "logits", output)
        tensors = [t for t in trees.flatten(output)[0] if isinstance(t, Tensor) and t.is_floating_point()]
        if not tensors:
            raise BatchError("criterion 'obs' needs an output of floats; criteria.obs(None) needs none")
        if self.likelihood == "auto":
            is_one = len(tensors) == 1 and tensors[0].ndim in (2, 3) and tensors[0].shape[-1] > 1
            return tensors[0] if is_one else None
        return tensors[0]

    def _loss(self, output: Tensor) -> Tensor:
        """Return −log p(y), summed over samples, with y drawn from the distribution that the output stands for."""
        generator = torch.Generator(output.device).manual_seed(self.seed)
        if self.likelihood == "gaussian":
            noise = torch.empty_like(output).normal_(generator=generator)
            return F.mse_loss(output, output.detach() + noise, reduction="sum") / 2
        logits = output.movedim(1, -1) if output.ndim > 3 else output
        uniform = torch.empty_like(logits).uniform_(generator=generator).clamp(1e-6, 1 - 1e-6)
        drawn = (logits.detach() - (-uniform.log()).log()).argmax(-1)
        return F.cross_entropy(logits.flatten(0, -2), drawn.flatten(), reduction="sum")


def _at_inputs(rows: Tensor, weight: Tensor) -> Tensor:
    """Return Σ over rows and taps of Wᵀ g gᵀ W, [groups, i, i], from rows g [n, groups · o] and the weight [groups, o, i, taps]."""
    per_group = rows.detach().unflatten(1, (weight.shape[0], -1))
    back = torch.einsum("ngo,goit->gtni", per_group, weight.detach().to(rows)).flatten(1, 2).double()
    return back.mT @ back


def output_dim(site: Site, spec: Spec) -> int | None:
    """Return the dim of a site's outputs in the results of its calls, counted from the right; None if there is none."""
    dims: set[int] = set()
    for call in site.calls:
        axes = spec.program.axes.get(f"%{call}", ())
        found = [d - len(axes) for d, a in enumerate(axes) if a == site.out]
        dims.add(found[-1] if found else 0)
    return dims.pop() if len(dims) == 1 and 0 not in dims else None
