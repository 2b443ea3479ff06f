"""Notes on results: weights that look untrained, and statistics of few samples, without a false alarm."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import prunefn as pf

from .small import mlp, randn, traced


class Block(nn.Module):
    """A small transformer block: LayerNorm, linears, biases that start at 0 as in timm."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(6, bias=bias), nn.Linear(6, 32, bias=bias)
        self.down = nn.Linear(32, 6, bias=bias)
        for layer in (self.up, self.down):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten()
    )


def notes_on(model: nn.Module, x: torch.Tensor, batches: list[torch.Tensor] | None = None) -> tuple[str, ...]:
    t = traced(model, x)
    return pf.pipeline(ratio=0.25)(t.params, batches, spec=t.spec).info.notes


def test_fresh_batch_norms_are_noted_once_a_call_and_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    x = randn(2, 3, 6, 6)
    t = traced(cnn().eval(), x)
    with caplog.at_level(logging.INFO, "prunefn"):
        pruned = pf.pipeline(ratio=0.25)(t.params, None, spec=t.spec)
    (note,) = pruned.info.notes
    assert "look untrained" in note and [r.getMessage() for r in caplog.records if r.name == "prunefn.notes"] == [note]
    assert all(shown.count(note) == 1 for shown in (repr(pruned), repr(pruned.info), pruned._repr_html_()))


def test_one_measured_batch_norm_is_enough_to_look_trained() -> None:
    x, model = randn(8, 3, 6, 6), cnn()
    model.double()[:2](x)  # only the first one sees data
    assert notes_on(model.eval(), x) == ()


def test_fresh_transformers_are_noted_and_trained_or_folded_ones_are_not() -> None:
    x = randn(4, 6)
    assert "look untrained" in notes_on(Block(), x)[0]
    trained = Block()
    with torch.no_grad():
        trained.down.bias[0] = 1e-3
    # no bias anywhere, as in Llama, where scales of 1 may also be what folding leaves
    assert notes_on(trained, x) == notes_on(Block(bias=False), x) == notes_on(mlp(4, 8, 3), randn(2, 4)) == ()


@pytest.mark.parametrize(
    "options",
    [
        {"criterion": pf.criteria.variance()},
        {"criterion": pf.criteria.weighted_variance()},
        {"criterion": pf.criteria.obs(), "compensation": pf.compensation.none()},
        {"criterion": pf.criteria.taylor(lambda y, *_: y.square().mean()), "compensation": pf.compensation.none()},
        {"criterion": pf.criteria.magnitude(), "compensation": pf.compensation.mean()},
    ],
)
def test_few_samples_are_noted_whatever_is_measured(options: dict[str, object]) -> None:
    t = traced(mlp(4, 8, 3), randn(2, 4))
    few, enough = (pf.pipeline(**options)(t.params, [randn(n, 4)], spec=t.spec).info.notes for n in (4, 32))
    assert few == ("the statistics are of 4 samples; give at least 16, and some hundreds for good scores",)
    assert enough == ()


def test_weights_alone_need_no_samples_and_fitted_ones_have_a_warning() -> None:
    t = traced(mlp(4, 8, 3), randn(2, 4))
    by_weights = pf.pipeline(criterion=pf.criteria.magnitude(), compensation=pf.compensation.none())
    assert by_weights(t.params, [randn(1, 4)], spec=t.spec).info.notes == ()
    with pytest.warns(pf.PruneWarning, match="few samples"):
        pruned = pf.pipeline()(t.params, [randn(4, 4)], spec=t.spec)
    assert len(pruned.info.notes) == 1


def test_a_covariance_of_no_more_samples_than_inputs_is_noted() -> None:
    x = randn(2, 4)
    t = traced(nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 3)), x)
    prune = pf.pipeline(criterion=pf.criteria.obs(), compensation=pf.compensation.none())
    (note,) = prune(t.params, [randn(40, 4)], spec=t.spec).info.notes
    assert "'2' (40 samples, 40 inputs)" in note
    assert prune(t.params, [randn(41, 4)], spec=t.spec).info.notes == ()


def test_positions_of_sequences_are_samples() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mlp = nn.Embedding(11, 8), nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 11))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.mlp(self.embed(tokens))

    tokens = torch.randint(11, (2, 40))
    model = Tokens()
    spec, params, prune = pf.trace(model, (tokens,)), pf.params(model), pf.pipeline(criterion=pf.criteria.variance())
    assert spec.input_sizes and prune(params, [tokens], spec=spec).info.notes == ()
    assert "8 samples" in prune(params, [tokens[:, :4]], spec=spec).info.notes[0]
