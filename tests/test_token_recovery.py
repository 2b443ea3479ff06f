"""Recovery of language models: only tokens that count are compared, by logits, by labels, or both."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import prunefn as pf
from prunefn.data import text
from prunefn.types import Pruned

from .llamas import llama, transformers

TEXTS = [[(7 * i + 3 * j) % 50 for j in range(4 + i % 9)] for i in range(64)]


@lru_cache
def batches() -> list[dict[str, Tensor]]:
    """Batches with padding, whose first two tokens are a prompt."""
    out = []
    for batch in text(TEXTS, pack=False, batch_size=4):
        labels = batch["labels"].clone()
        labels[:, :2] = -100
        out.append({**batch, "labels": labels})
    return out


@lru_cache
def small() -> Pruned:
    t = llama()
    prune = pf.pipeline(criterion=pf.criteria.variance(), where=pf.kind("hidden"), ratio=0.5, scope=pf.scope.local())
    return prune(t.params, batches(), spec=t.spec)


def repadded(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with other tokens as padding."""
    return {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 7)}


def recovered(data: Any = None, **options: Any) -> pf.Params:
    t, s = llama(), small()
    arguments = {"spec": s.spec, "dense": (t.params, t.spec), "steps": 60, "lr": 3e-3} | options
    return pf.recover(s.params, data or batches(), **arguments)


def logits(params: pf.Params, spec: pf.Spec, batch: dict[str, Tensor]) -> Tensor:
    inputs = {n: batch[n] for n in ("input_ids", "attention_mask")}
    return pf.forward(params, **inputs, spec=spec).logits


def by_hand(params: pf.Params, alpha: float, temperature: float) -> float:
    """α · cross entropy + (1 − α) · T² · KL, sequence by sequence, position by position."""
    t, s = llama(), small()
    losses = []
    for batch in batches():
        terms = []
        pairs = zip(logits(params, s.spec, batch), logits(t.params, t.spec, batch), batch["labels"], strict=True)
        for row, dense, labels in pairs:
            for i in (labels[1:] != -100).nonzero().flatten().tolist():
                p, q = (x[i].div(temperature).softmax(-1) for x in (dense, row))
                kl = (p * (p / q).log()).sum() * temperature**2
                terms.append(alpha * F.cross_entropy(row[i], labels[i + 1]) + (1 - alpha) * kl)
        losses.append(torch.stack(terms).mean())
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("alpha, temperature", [(0.0, 1.0), (0.3, 2.0)])
def test_the_distance_counts_the_tokens_that_perplexity_counts(alpha: float, temperature: float) -> None:
    from prunefn.distillation.objective import objective
    from prunefn.program.run import forward_flat

    t, s = llama(), small()
    distance = objective((t.params, t.spec), "test", distance=pf.distances.tokens(temperature, alpha))

    def run(inputs: list[Tensor]) -> Any:
        return forward_flat(s.params, inputs, s.spec)

    values = [float(distance(run, batch)) for batch in batches()]
    assert sum(values) / len(values) == pytest.approx(by_hand(s.params, alpha, temperature), rel=1e-4)
    assert [float(distance(run, repadded(b))) for b in batches()] == pytest.approx(values, rel=1e-5)
    plain = objective((t.params, t.spec), "test")
    for batch in batches():
        kept = batch["attention_mask"].bool()
        a, b = (logits(x.params, x.spec, batch)[kept].log_softmax(-1) for x in (s, t))
        assert float(plain(run, batch)) == pytest.approx(float(((b - a) * b.exp()).sum(-1).mean()), rel=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_recovery_of_a_language_model(alpha: float) -> None:
    params = recovered(distance=pf.distances.tokens(alpha=alpha), grad_clip=1.0)
    assert by_hand(params, alpha, 1.0) < 0.8 * by_hand(small().params, alpha, 1.0)


def test_padding_changes_nothing_that_is_learned() -> None:
    for options in ({"distance": pf.distances.tokens()}, {}):
        one, two = (recovered(data, steps=20, **options) for data in (batches(), [*map(repadded, batches())]))
        assert all(torch.allclose(one[n], two[n], rtol=1e-3, atol=1e-5) for n in one)


def test_clipping_is_torchs() -> None:
    from prunefn.distillation.adam import clipped

    for norm in (0.5, 100.0):
        leaves = [torch.randn(3, 2, requires_grad=True), torch.randn(4, requires_grad=True)]
        for x in leaves:
            x.grad = x.detach() * 3
        expected = clipped([x.grad.clone() for x in leaves if x.grad is not None], norm)
        torch.nn.utils.clip_grad_norm_(leaves, norm)
        for x, g in zip(leaves, expected, strict=True):
            torch.testing.assert_close(x.grad, g, rtol=1e-5, atol=1e-6)


def test_what_is_no_batch_of_tokens_is_refused() -> None:
    samples = [{n: x[0] for n, x in b.items()} for b in batches()]
    with pytest.raises(pf.BatchError, match=r"a single sample is no batch: write x\[None\]"):
        recovered(samples)
    nothing = [{**b, "labels": torch.full_like(b["labels"], -100)} for b in batches()]
    with pytest.raises(pf.BatchError, match="no token to predict"):
        recovered(nothing, distance=pf.distances.tokens())
    with pytest.raises(pf.PruneError, match=r"alpha is 1\.5"):
        pf.distances.tokens(alpha=1.5)
    with pytest.raises(pf.BatchError, match="one label for each position"):
        recovered([{**b, "labels": b["labels"][:, 1:]} for b in batches()], distance=pf.distances.tokens())


def test_gates_and_sensitivities_take_token_logits() -> None:
    t = llama()
    options = {"spec": t.spec, "where": pf.kind("hidden"), "steps": 4, "distance": pf.distances.tokens(alpha=0.5)}
    with pytest.warns(pf.PruneWarning, match="take more steps"):
        learned = pf.gates.learn(t.params, batches(), pf.budget.macs(0.8), **options)  # type: ignore[arg-type]
    assert len(learned.scores) == 2
    stats, where = pf.collect_stats(t.params, batches()[:1], spec=t.spec), pf.kind("hidden")
    measured = [
        pf.sensitivity(t.params, stats, spec=t.spec, batches=data, where=where, ratios=[0.5])
        for data in (batches()[:1], [repadded(batches()[0])])
    ]
    one, two = ([e.measured for e in s.effects] for s in measured)
    assert one == pytest.approx(two, rel=1e-4)


def test_a_teacher_may_count_at_the_labels_alone() -> None:
    from prunefn.train import Distill
    from prunefn.train.objective import BatchLoss
    from prunefn.train.recipe import Recipe

    t, batch = llama(), batches()[0]
    teacher = transformers.LlamaForCausalLM(t.model.config).eval()
    loss = BatchLoss(Recipe(), Distill(teacher, alpha=0.25, temperature=1.0, shift=True), 1, 0)(t.model, batch)
    one, two = (m(**batch).logits.log_softmax(-1)[:, :-1] for m in (t.model, teacher))
    kl = ((two - one) * two.exp()).sum(-1)[batch["labels"][:, 1:] != -100].mean()
    torch.testing.assert_close(loss, 0.25 * t.model(**batch).loss + 0.75 * kl)


@pytest.mark.parametrize("distill", [None, (0.5, 1.0)])
def test_pat_over_tokens(tmp_path: Path, distill: tuple[float, float] | None) -> None:
    """Three phases by perplexity; the spec that pat traces has no labels among its inputs; a second run reads the first."""
    from prunefn.train import Phases, Recipe, Setup, pat, regularizers, schedule, token_metrics

    t, short = llama(), Recipe(epochs=1, lr=1e-3)
    model = transformers.LlamaForCausalLM(t.model.config)  # its parameters train
    model.load_state_dict(t.model.state_dict())
    prune = partial(pf.recipes.vbp, scope=pf.scope.local(), compensation=pf.compensation.none())
    lasso = (regularizers.l1_group, short)
    phases = Phases(prune, schedule.geometric(0.5, 2), sparse=lasso, between=short, tuning=short, distill=distill)
    setup = Setup(batches(), held_out=batches(), metrics=token_metrics(), better="perplexity", device="cpu")
    done = pat(model, setup, phases, calibration=batches()[:4], spec=t.spec if distill else None, folder=tmp_path)
    assert [i.name for i in done.spec.program.inputs] == ["input_ids", "attention_mask"]
    assert done.model.config.intermediate_size == 24
    plain = pf.perplexity(done.params, batches(), spec=done.spec)
    assert done.summary["perplexity"] == pytest.approx(plain, rel=1e-4)
    assert plain < pf.perplexity(t.params, batches(), spec=t.spec)
    again = pat(model, setup, phases, calibration=batches()[:4], spec=t.spec if distill else None, folder=tmp_path)
    assert all(torch.equal(again.params[n], p) for n, p in done.params.items())


def test_the_best_epoch_has_the_lowest_perplexity() -> None:
    from prunefn.train import Setup
    from prunefn.train.stage import Stage

    stage = Stage.__new__(Stage)
    stage.setup = Setup([], held_out=[], better="perplexity")
    stage.rows = [{"epoch": 1, "perplexity": 3.0}, {"epoch": 2, "perplexity": 2.0}, {"epoch": 3, "perplexity": 4.0}]
    assert stage.best == 2
