"""The perplexity of a language model on batches of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import exp, inf
from typing import Any

import torch
from torch import Tensor, nn

from .. import trees
from ..doors import check_batch, door
from ..errors import BatchError, ParamsError
from ..parameters.transforms import check_names
from ..program.batches import device_of, each, split
from ..program.run import forward_flat
from ..spec.spec import Spec, check_eval_mode
from ..stats.weights import IGNORED
from ..tracing.arguments import read_dict
from ..tracing.capture import in_mode
from ..types import Batch, Params
from .likelihood import Likelihood, labels_in, likelihood, logits_of, mask_in
from .positions import positions_of


@door
def perplexity(
    params: Params | nn.Module,
    batches: Iterable[Batch],
    *,
    spec: Spec | None = None,
    shift: bool = True,
    max_batches: int | None = None,
    progress: bool = False,
) -> float:
    """Return the perplexity: exp of the mean negative log-likelihood (nats) of all tokens of all batches, each of equal weight.

    The labels are those of the batch (`labels` in a dict, or what follows the inputs), else its tokens. The logits at position t
    predict label t + 1, as in transformers: labels are given unshifted, and the first token is not predicted. A label of −100 does
    not count, nor does padding by an attention mask among the inputs; a token after padding on the left is not predicted either.

    Args:
        params: of the spec; or a module, which is run in eval mode.
        batches: as for `collect_stats`; for a module, dicts by input name, or tensors of tokens.
        spec: of the params, traced in eval mode; None for a module.
        shift: False if the logits at position t predict label t, as in encoder-decoders and masked language models.
        max_batches: stop after this many batches.
        progress: show a progress bar.

    Raises:
        BatchError: the batches have no token to predict, or do not fit; the output has no logits [batch, length, vocabulary].
        ParamsError: params without a spec, a module with one, or params that do not fit.

    >>> import prunefn as pf
    >>> model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8)).eval()
    >>> for p in model[1].parameters():
    ...     _ = p.data.zero_()
    >>> tokens = torch.tensor([[1, 2, 3, 4]])
    >>> spec = pf.trace(model, (tokens,))
    >>> round(perplexity(pf.params(model), [tokens], spec=spec), 4)  # all eight tokens are equally likely
    8.0
    """
    if isinstance(params, nn.Module) != (spec is None):
        given = "a module has no spec=" if spec is not None else "params need their spec="
        raise ParamsError(f"{given}: write perplexity(params, batches, spec=spec), or perplexity(module, batches)")
    if spec is not None:
        assert not isinstance(params, nn.Module)
        check_names(params, spec)
        check_eval_mode(spec, "perplexity")
    nll, tokens = 0.0, 0
    for batch in each(batches, max_batches=max_batches, progress=progress, text="perplexity"):
        with torch.no_grad():
            part = (
                _of_module(params, batch, shift)
                if isinstance(params, nn.Module)
                else _of_params(params, batch, spec, shift)
            )
        nll, tokens = nll + float(part.nll), tokens + part.tokens
    if not tokens:
        raise BatchError(f"the batches have no token to predict: all labels are {IGNORED}, padding, or single tokens")
    return exp(nll / tokens) if nll / tokens < 700 else inf


def _of_params(params: Params, batch: Batch, spec: Spec | None, shift: bool) -> Likelihood:
    """Return the likelihood of a batch's tokens by the program of a spec."""
    assert spec is not None
    device = device_of(params)
    found = split(batch, spec=spec, device=device)
    positions = positions_of(batch, found, spec)
    labels = _checked(positions.labels, device)
    mask = positions.mask(labels.shape)
    return likelihood(logits_of(forward_flat(params, found.inputs, spec)), labels, mask, shift=shift)


def _of_module(module: nn.Module, batch: Batch, shift: bool) -> Likelihood:
    """Return the likelihood of a batch's tokens by a module."""
    device = next((t.device for t in module.parameters()), torch.device("cpu"))
    check_batch(batch, device)
    moved: Any = trees.map_tensors(lambda x: x.to(device), dict(batch) if isinstance(batch, Mapping) else batch)
    if isinstance(moved, Mapping):
        args, kwargs, _ = read_dict(module, moved)
        rest, named = (), dict(moved)
    else:
        values = moved if isinstance(moved, list | tuple) else (moved,)
        args, kwargs, rest, named = (values[0],), {}, tuple(values[1:]), {"input_ids": values[0]}
    labels = _checked(labels_in(rest, named), device)
    with in_mode(module, False):
        output = module(*args, **kwargs)
    return likelihood(logits_of(output), labels, mask_in(named, tuple(labels.shape)), shift=shift)


def _checked(labels: Tensor | None, device: torch.device) -> Tensor:
    """Return the labels on a device; raise BatchError if there are none."""
    if labels is None:
        raise BatchError("the batch has no tokens [batch, length] of whole numbers, and no labels")
    return labels.to(device)
