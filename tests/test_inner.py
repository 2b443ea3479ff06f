"""Values inside of networks as a distance: hidden states after depth pruning, maps after width pruning, attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import prunefn as pf
from prunefn.distances import relative_error
from prunefn.distillation.comparison import comparison
from prunefn.distillation.inner import Fit, module_results

from .llamas import llama, transformers
from .test_token_recovery import batches, repadded

INPUTS = ("input_ids", "attention_mask")


class Small(NamedTuple):
    params: pf.Params
    spec: pf.Spec
    mask: pf.Mask


def without(removed: dict[str, Any], dense: Any = None) -> Small:
    t = dense or llama()
    mask = pf.mask(t.spec, removed)
    return Small(pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask), mask)


def hidden(model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    """The hidden states of transformers at the tokens that count: embeddings, then each layer, the last one after the norm."""
    states = model(**{n: batch[n] for n in INPUTS}, output_hidden_states=True).hidden_states
    return [x[batch["attention_mask"].bool()].detach() for x in states]


def distance(s: Small, values: Any, *, mask: bool = False, project: bool = False) -> Any:
    t = llama()
    made = comparison((t.params, t.spec), s.spec, pf.distances.inner(values, project=project), s.mask if mask else None)
    return made.fitted(s.params, s.spec, batches())


def test_hidden_states_after_depth_pruning_are_those_of_the_class() -> None:
    t, s = llama(), without({"model.layers.1.mlp": [0]})
    measure = distance(s, ["model.layers.0", "model.norm"])
    for batch in batches()[:2]:
        dense = hidden(t.model, batch)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(t.model.model.layers[1].mlp, "forward", torch.zeros_like)
            shallow = hidden(t.model, batch)
        value = measure(s.params, s.spec, batch).detach()
        expected = [relative_error(a, b) for a, b in zip(shallow[1:], dense[1:], strict=True)]
        torch.testing.assert_close(value, torch.stack(expected).mean(), rtol=1e-4, atol=1e-6)
        again = measure(s.params, s.spec, repadded(batch)).detach()
        torch.testing.assert_close(again, value, rtol=1e-4, atol=1e-6)


def test_a_layer_that_is_gone_is_compared_with_nothing() -> None:
    s = without({"model.layers.0": [0]})
    (term,) = distance(s, "model.layers.*").terms
    assert [p.name for p in term.pairs] == [module_results(s.spec.program)["model.layers.1"]]
    with pytest.raises(pf.PruneError, match=r"the pruned network has no value 'model\.layers\.0': it was removed"):
        distance(s, "model.layers.0")


def test_kept_units_are_compared_by_a_mask_and_all_of_them_by_a_map() -> None:
    """The residual stream loses a quarter: positions by the mask, or the least-squares map of all batches."""
    t = llama()
    s = without({"model.layers.0.self_attn.o_proj": range(0, 32, 4)})
    with pytest.raises(pf.PruneError, match="has the dense size, so none can be compared; give mask="):
        distance(s, "model.layers.0")
    run = pf.to_module(s.params, spec=s.spec, model=t.model)
    pairs = [(hidden(run, b)[1], hidden(t.model, b)[1]) for b in batches()]
    kept = torch.tensor([i for i in range(32) if i % 4])
    by_mask, by_map = (distance(s, "model.layers.0", **{o: True}) for o in ("mask", "project"))
    x, y = (torch.cat(side).double() for side in zip(*pairs, strict=True))
    fit = torch.linalg.lstsq(torch.cat([x, torch.ones_like(x[:, :1])], 1), y).solution
    for batch, (a, b) in zip(batches()[:3], pairs, strict=False):
        torch.testing.assert_close(
            by_mask(s.params, s.spec, batch).detach(), relative_error(a, b[:, kept]), rtol=1e-3, atol=0
        )
        mapped = a.double() @ fit[:-1] + fit[-1]
        expected = relative_error(mapped, b.double()).float()
        torch.testing.assert_close(by_map(s.params, s.spec, batch).detach(), expected, rtol=1e-2, atol=0)


def test_a_fit_is_exact_where_the_map_is() -> None:
    fit, generator = Fit(), torch.Generator().manual_seed(0)
    matrix, offset = torch.randn(3, 5, generator=generator), torch.randn(5, generator=generator)
    for _ in range(3):
        x = torch.randn(2, 7, 3, generator=generator)
        fit.add(x, x @ matrix + offset)
    found = fit.solve()
    torch.testing.assert_close(found[0].float(), matrix, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1].float(), offset, rtol=1e-4, atol=1e-4)


def test_attention_of_the_heads_that_are_left() -> None:
    """Probabilities [batch, heads, length, length] of eager attention: rows of padding do not count."""
    config = transformers.LlamaConfig(**{**llama().model.config.to_diff_dict(), "attn_implementation": "eager"})
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    model.load_state_dict(llama().model.state_dict())
    whole = llama()._replace(model=model, spec=pf.trace(model, {n: batches()[0][n] for n in INPUTS}))
    group = "model.layers.0.self_attn.q_proj.heads"
    s = without({group: [1]}, whole)
    values = pf.distances.inner("%softmax*")
    measure = comparison((whole.params, whole.spec), s.spec, values, s.mask)
    assert len(measure.terms[0].pairs) == 2
    batch = batches()[0]
    attentions = lambda m: m(**{n: batch[n] for n in INPUTS}, output_attentions=True).attentions  # noqa: E731
    dense = attentions(model)[1]
    with torch.no_grad():  # the second layer sees the first one without its second head
        model.model.layers[0].self_attn.o_proj.weight[:, 8:16] = 0
    rows = batch["attention_mask"].bool()[:, None].expand(-1, 4, -1)
    expected = (
        relative_error(attentions(model)[1][rows], dense[rows]) / 2
    )  # the first layer's other heads are as before
    torch.testing.assert_close(measure(s.params, s.spec, batch).detach(), expected, rtol=1e-3, atol=1e-6)


def test_recovery_by_logits_and_hidden_states() -> None:
    t, s = llama(), without({"model.layers.0": [0]})
    inner = pf.distances.inner("model.layers.*")
    for given in (inner, pf.distances.combined(pf.distances.tokens(), inner, 0.3)):
        dense = (t.params, t.spec)
        params = pf.recover(s.params, batches(), spec=s.spec, dense=dense, distance=given, steps=40, lr=3e-3)
        measure = comparison(dense, s.spec, given, None)
        before, after = (sum(float(measure(p, s.spec, b).detach()) for b in batches()) for p in (s.params, params))
        assert after < 0.8 * before


def test_where_there_is_nothing_inside_it_is_refused() -> None:
    t, s = llama(), without({"model.layers.1.mlp": [0]})
    inner = pf.distances.inner("model.layers.*")
    with pytest.raises(pf.PruneError, match=r"the dense network has no value 'model\.layer\.\*'"):
        distance(s, "model.layer.*")
    stats = pf.collect_stats(t.params, batches()[:1], spec=t.spec)
    for call in (
        lambda d: pf.gates.learn(t.params, batches(), pf.budget.macs(0.8), spec=t.spec, distance=d),
        lambda d: pf.sensitivity(t.params, stats, spec=t.spec, batches=batches(), distance=d),
        lambda d: pf.recover(s.params, batches(), spec=s.spec, dense=(t.params, t.spec), by_layers=True, distance=d),
    ):
        for given in (inner, pf.distances.combined(pf.distances.kl(), inner)):
            with pytest.raises(pf.PruneError, match=r"compares values inside|compares layers"):
                call(given)
