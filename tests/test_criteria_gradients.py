"""Gradient criteria against autograd on the module, loops over samples, and whole Hessians."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunefn as pf
from prunefn import criteria as c
from prunefn.criteria._hessian import _hessian_vector_product, rademacher
from prunefn.criteria.base import member_sums
from prunefn.criteria.gradients import cross_entropy, loss_name, weights_of
from prunefn.criteria.unit_mask import mask_params, masked, ones

from .small import Tied, Traced, close, cnn, identity, mlp, randn, traced
from .test_criteria import lists

Labelled = tuple[Tensor, Tensor]


def labelled(*sizes: int, shape: tuple[int, ...] = (3,), classes: int = 4) -> list[Labelled]:
    return [(randn(n, *shape, seed=n), torch.arange(n) % classes) for n in sizes]


def scores_of(t: Traced, batches: list[Any], criterion: pf.Criterion) -> pf.types.Scores:
    return pf.score(pf.collect_stats(t.params, batches, spec=t.spec, criterion=criterion), criterion=criterion)


def gradients(t: Traced, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Of the module's mean cross entropy."""
    params = {n: p.detach().clone().requires_grad_(True) for n, p in t.model.named_parameters()}
    loss = F.cross_entropy(torch.func.functional_call(t.model, params, (x,)), y)
    return dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))


def network(*widths: int) -> Traced:
    return traced(mlp(*widths), randn(2, widths[0]))


# ---- Taylor


def test_taylor_is_the_sum_of_weight_times_gradient_over_the_units_columns() -> None:
    """Molchanov et al., CVPR 2019, eq. 8 to 10: a gate behind a unit has the gradient Σ w·∂L/∂w of what reads it."""
    t, batches = network(3, 6, 5, 4), labelled(4, 12)
    everything = gradients(t, torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))
    scores = scores_of(t, batches, c.taylor())
    for group, reader in (("0", "2.weight"), ("2", "4.weight")):
        close(scores[group], (t.params[reader] * everything[reader]).sum(0).abs())


def test_taylor_by_batch_is_the_mean_of_magnitudes() -> None:
    t, batches = network(3, 6, 4), labelled(4, 12)
    by_batch = [(t.params["2.weight"] * gradients(t, *b)["2.weight"]).sum(0).abs() for b in batches]
    close(scores_of(t, batches, c.taylor(absolute=True))["0"], (4 * by_batch[0] + 12 * by_batch[1]) / 16)


def test_golden_taylor() -> None:
    """h = relu([x, −2x]), y = 3h₀ + 5h₁, L = mean y: at x = 2 the first unit gives 6, at x = −1 the second 10."""
    t = traced(nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)), randn(2, 1))
    params = {"0.weight": torch.tensor([[1.0], [-2.0]]).double(), "2.weight": torch.tensor([[3.0, 5.0]]).double()}
    t, x = t._replace(params=params), torch.tensor([[2.0], [-1.0]]).double()
    assert lists(scores_of(t, [x], c.taylor(torch.mean))) == {"0": [3.0, 5.0]}
    assert lists(scores_of(t, [x], c.fisher(torch.mean))) == {"0": [18.0, 50.0]}
    assert lists(scores_of(t, [x], c.taylor(torch.mean, weights=True))) == {"0": [6.0, 10.0]}  # rows and columns
    assert lists(scores_of(t, [x], c.movement(torch.mean))) == {"0": [-6.0, -10.0]}
    square = lambda y: y.square().mean()  # noqa: E731 the units are never active together: ∂²L/∂m² = 2 · mean of squares
    assert lists(scores_of(t, [x], c.hessian(square))) == {"0": [36.0, 100.0]}


def sliced(t: Traced, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Σ over members, group by group, with tensors of the module."""
    return {g: s.sum(0) for g, s in member_sums(t.spec, lambda n: values[n].detach()).items()}


def test_taylor_on_weights_counts_all_members_and_norms() -> None:
    """Σ|w·g| over rows, columns, scales, shifts and biases, of convolutions with groups and BatchNorm."""
    t, batches = traced(cnn(), randn(2, 3, 6, 6)), labelled(6, shape=(3, 6, 6))
    found = gradients(t, *batches[0])
    expected = sliced(t, {n: (t.params[n] * g).abs() for n, g in found.items()})
    scores = scores_of(t, batches, c.taylor(weights=True))
    assert {m.tensor for g in scores for m in t.spec.widths[g].members} >= {"1.weight", "1.bias", "4.weight", "3.bias"}
    for g, s in scores.items():
        close(s, expected[g])
    first = scores_of(t, batches, c.taylor(weights=True, reduction=pf.reduction.first))
    rows = {"0.weight": (t.params["0.weight"] * found["0.weight"]).abs().sum((1, 2, 3))}
    (stem,) = [g for g in first if t.spec.widths[g].members[0].tensor == "0.weight" and t.spec.sizes[g] == 3]
    close(first[stem], rows["0.weight"].reshape(2, 3).sum(0))


def test_taylor_of_a_residual_network_is_the_mean_over_batches() -> None:
    model = timm.create_model("resnet18", num_classes=4, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8), stem_width=8)
    t = traced(model, randn(2, 3, 32, 32))
    batches = labelled(2, 4, shape=(3, 32, 32))
    together = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]
    a, b = scores_of(t, batches, c.taylor()), scores_of(t, together, c.taylor())
    assert set(a) == set(t.spec.widths)
    for g in a:
        close(a[g], b[g], 1e-9)


# ---- Fisher and OBD-C


def test_fisher_is_a_loop_over_samples() -> None:
    """Theis et al., 2018, eq. 9, with gates: the mean over samples of squared gradients, never the square of the mean."""
    t, batches = network(3, 6, 5, 4), labelled(4, 13)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    each = [gradients(t, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    scores = scores_of(t, batches, c.fisher())
    for group, reader in (("0", "2.weight"), ("2", "4.weight")):
        gates = torch.stack([(t.params[reader] * g[reader]).sum(0) for g in each])
        close(scores[group], gates.square().mean(0))
    for chunk in (1, 3, 100):
        other = scores_of(t, batches, c.fisher(chunk_size=chunk))
        for g in scores:
            close(other[g], scores[g])


def test_fisher_of_convolutions_is_a_loop_over_samples() -> None:
    t, ((x, y),) = traced(cnn(), randn(2, 3, 6, 6)), labelled(5, shape=(3, 6, 6))
    spec, program = t.spec, masked(t.spec)
    total = {g: torch.zeros(n).double() for g, n in spec.sizes.items()}
    for i in range(5):
        at = {g: m.requires_grad_(True) for g, m in ones(spec).items()}
        loss = F.cross_entropy(pf.forward(mask_params(t.params, at, spec), x[i : i + 1], spec=program), y[i : i + 1])
        for g, v in zip(at, torch.autograd.grad(loss, list(at.values())), strict=True):
            total[g] += v.square() / 5
    for g, s in scores_of(t, [(x, y)], c.fisher(chunk_size=2)).items():
        close(s, total[g])


def test_obd_c_is_a_loop_over_samples() -> None:
    """Wang et al., EigenDamage, ICML 2019, section 3: Σ w² F over the channel, with the diagonal of the empirical Fisher."""
    t, ((x, y),) = traced(cnn(), randn(2, 3, 6, 6)), labelled(5, shape=(3, 6, 6))
    fisher: dict[str, Tensor] = {}
    for i in range(5):
        for n, g in gradients(t, x[i : i + 1], y[i : i + 1]).items():
            fisher[n] = fisher.get(n, torch.zeros_like(g)) + g.square() / 5
    expected = sliced(t, {n: t.params[n].square() * f for n, f in fisher.items()})
    scores = scores_of(t, [(x, y)], c.obd_c(chunk_size=2))
    assert set(scores) == set(t.spec.widths)
    for g, s in scores.items():
        close(s, expected[g])


def test_fisher_where_inputs_without_a_batch_and_values_that_are_no_tensors_come_along() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x)) * scale)

    t = traced(Scaled(), randn(2, 3), randn(1))
    loss = lambda out, labels, name: F.cross_entropy(out, labels) * len(name)  # noqa: E731
    x, y = randn(6, 3), torch.arange(6) % 2
    a = scores_of(t, [(x, randn(1), y, "ab")], c.fisher(loss))
    b = scores_of(t, [(x, randn(1), y, "abcd")], c.fisher(loss))
    close(4 * a["a"], b["a"])
    assert float(a["a"].min()) > 0


# ---- Hessian


def smooth(*widths: int) -> Traced:
    layers = [m if isinstance(m, nn.Linear) else nn.Tanh() for m in mlp(*widths)]
    return traced(nn.Sequential(*layers), randn(2, widths[0]))


def whole_hessian(t: Traced, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """∂²L/∂m² of all masks in a row, and the masks."""
    at = ones(t.spec)
    sizes = [len(m) for m in at.values()]

    def loss(row: Tensor) -> Tensor:
        masks = dict(zip(at, row.split(sizes), strict=True))
        return F.cross_entropy(pf.forward(mask_params(t.params, masks, t.spec), x, spec=masked(t.spec)), y)

    return torch.func.hessian(loss)(torch.cat(list(at.values()))), at


def test_hessian_is_the_mean_over_probes_of_the_whole_one() -> None:
    """Optimal Brain Damage's diagonal as Hutchinson estimates it, with torch's whole Hessian for H."""
    t, ((x, y),) = smooth(3, 5, 4, 4), labelled(7)
    h, at = whole_hessian(t, x, y)
    rows = [torch.cat(list(v.values())) for v in rademacher(at, 8, 3)]
    assert all(set(v.tolist()) == {-1.0, 1.0} for v in rows)
    expected = torch.stack([v * (h @ v) for v in rows]).mean(0)
    close(torch.cat(list(scores_of(t, [(x, y)], c.hessian(seed=3)).values())), expected)


def test_hessian_comes_to_the_diagonal_with_many_probes() -> None:
    t, ((x, y),) = smooth(3, 5, 4), labelled(7)
    h, _ = whole_hessian(t, x, y)
    beside = (h - h.diagonal().diag()).square().sum(1).sqrt()
    found = torch.cat(list(scores_of(t, [(x, y)], c.hessian(probes=400)).values()))
    assert bool(((found - h.diagonal()).abs() <= 4 * beside / 400**0.5).all())


def test_hessian_adds_up_over_batches() -> None:
    t, batches = smooth(3, 5, 4), labelled(4, 12)
    together = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]
    close(scores_of(t, batches, c.hessian())["0"], scores_of(t, together, c.hessian())["0"])


class Cube(torch.autograd.Function):
    """x³, with derivatives backward of any order, and none forward."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return 3 * ctx.saved_tensors[0] ** 2 * grads[0]


def test_hessian_where_an_op_has_no_forward_derivative() -> None:
    x, v = randn(3, 5), {"g": randn(5, seed=2)}
    at = {"g": torch.ones(5).double()}
    without = lambda m: Cube.apply(x * m["g"]).square().sum() * m["g"].square().sum()  # noqa: E731
    with pytest.raises((RuntimeError, NotImplementedError), match="forward"):
        torch.func.jvp(torch.func.grad(without), (at,), (v,))
    step = 1e-5
    ahead, behind = (torch.func.grad(without)({"g": at["g"] + s * v["g"]})["g"] for s in (step, -step))
    close(_hessian_vector_product(without, at, v)["g"], (ahead - behind) / (2 * step), 1e-7)


def test_other_errors_of_a_loss_are_not_swallowed() -> None:
    t = network(3, 5, 4)
    with pytest.raises(IndexError, match="out of bounds"):
        scores_of(t, [(randn(2, 3), torch.tensor([0, 9]))], c.hessian())


# ---- movement


def test_movement_is_what_a_step_of_gradient_descent_adds_to_the_squares() -> None:
    """Sanh et al., 2020, eq. 5: −w·g is positive where a step moves w away from zero; d(Σw²)/dt = 2 Σ −w·g."""
    t, batches = traced(cnn(), randn(2, 3, 6, 6)), labelled(6, shape=(3, 6, 6))
    found, rate = gradients(t, *batches[0]), 1e-7
    before = sliced(t, {n: t.params[n].square() for n in found})
    after = sliced(t, {n: (t.params[n] - rate * g).square() for n, g in found.items()})
    for g, s in scores_of(t, batches, c.movement()).items():
        close(s, (after[g] - before[g]) / (2 * rate), 1e-5)


def test_movement_adds_up_over_steps() -> None:
    t, batches = network(3, 5, 4), labelled(4, 12)
    stats = [pf.collect_stats(t.params, [b], spec=t.spec, criterion=c.movement()) for b in batches]
    sums = [next(iter(s.sums.values()))["0"] for s in stats]
    close(scores_of(t, batches, c.movement())["0"], (sums[0] + sums[1]) / 16)


# ---- transformers, tied tensors, groups without a site


def vit() -> Traced:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=24, num_heads=3, img_size=32, num_classes=4)
    return traced(model, randn(2, 3, 32, 32))


@pytest.mark.parametrize("make", [c.taylor, c.fisher, c.hessian, c.obd_c, c.movement])
def test_vision_transformers(make: Any) -> None:
    t, batches = vit(), labelled(3, shape=(3, 32, 32))
    scores = scores_of(t, batches, make())
    assert set(scores) == set(t.spec.widths)
    assert all(float(s.abs().max()) > 0 for s in scores.values())


def test_hessian_through_attention_is_a_difference_of_gradients() -> None:
    t, ((x, y),) = vit(), labelled(2, shape=(3, 32, 32))
    at, program = ones(t.spec), masked(t.spec)

    def gradient(step: float, v: dict[str, Tensor]) -> dict[str, Tensor]:
        masks = {g: m + step * v[g] for g, m in at.items()}
        loss = lambda m: F.cross_entropy(pf.forward(mask_params(t.params, m, t.spec), x, spec=program), y)  # noqa: E731
        return torch.func.grad(loss)(masks)

    (v,) = rademacher(at, 1, 0)
    ahead, behind = gradient(1e-4, v), gradient(-1e-4, v)
    for g, s in scores_of(t, [(x, y)], c.hessian(probes=1)).items():
        close(s, v[g] * (ahead[g] - behind[g]) / 2e-4, 1e-5)


def language_model() -> tuple[pf.Spec, pf.Params, Tensor]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_embd=12, n_head=3, vocab_size=11, n_positions=8, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).double().eval()
    ids = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(0))
    return pf.trace(model, (ids[:2],), {"use_cache": False}), pf.params(model), ids


def next_token(output: Any, ids: Tensor) -> Tensor:
    return F.cross_entropy(output["logits"][:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("make", [c.taylor, c.fisher, c.obd_c, partial(c.taylor, weights=True)])
def test_language_models_with_tied_embeddings_and_a_loss_of_their_own(make: Any) -> None:
    """Tuples and dicts of batches give the same; widths of queries and keys, which have no site, are scored."""
    spec, params, ids = language_model()
    criterion = make(next_token)
    named = [{"input_ids": ids, "labels": ids}]
    a, b = (pf.collect_stats(params, batches, spec=spec, criterion=criterion) for batches in ([(ids, ids)], named))
    scores, other = pf.score(a, criterion=criterion), pf.score(b, criterion=criterion)
    assert set(scores) == set(spec.widths)
    assert any(not g.sites for g in spec.widths.values())
    assert all(torch.equal(s, other[g]) and float(s.max()) > 0 for g, s in scores.items())


def test_tied_weights_have_the_gradient_of_both_uses() -> None:
    model = Tied().double().eval()
    ids = torch.arange(6).reshape(2, 3)
    spec, params = pf.trace(model, (ids,)), pf.params(model)
    loss = lambda out: out.square().mean()  # noqa: E731
    criterion = c.taylor(loss, weights=True, reduction=pf.reduction.first)
    stats = pf.collect_stats(params, [ids], spec=spec, criterion=criterion)
    assert len(weights_of(params, spec)) == 3  # the embedding, and the weight and bias between
    loss(model(ids)).backward()
    (scores,) = pf.score(stats, criterion=criterion).values()
    close(scores, (model.embed.weight * model.embed.weight.grad).abs().sum(0))


def test_a_unit_that_the_loss_does_not_see_scores_zero() -> None:
    t = traced(nn.Sequential(identity(nn.Linear(3, 3)), nn.Linear(3, 4)), randn(2, 3))
    params = {**t.params, "1.weight": t.params["1.weight"] * torch.tensor([1.0, 0.0, 1.0]).double()}
    t, batches = t._replace(params=params), labelled(8)
    for criterion in (c.taylor(), c.fisher(), c.hessian()):
        s = scores_of(t, batches, criterion)["0"]
        assert float(s[1]) == 0
        assert float(s[0].abs()) > 0


def test_the_first_order_says_what_is_lost_by_a_little_pruning() -> None:
    """L(1 − ε) = L − ε ∂L/∂m + O(ε²), for a whole mask."""
    t, ((x, y),) = network(3, 6, 4), labelled(9)
    at, step = ones(t.spec), 1e-6

    def loss(masks: dict[str, Tensor]) -> float:
        return float(F.cross_entropy(pf.forward(mask_params(t.params, masks, t.spec), x, spec=masked(t.spec)), y))

    (s,) = pf.collect_stats(t.params, [(x, y)], spec=t.spec, criterion=c.taylor()).sums.values()
    slope = float(s["0"].sum()) / 9
    assert abs((loss(at) - loss({"0": at["0"] - step})) / step - slope) < 1e-5


# ---- what cannot be collected

DERIVED = [c.taylor, c.fisher, c.obd_c, c.movement, c.hessian, partial(c.taylor, weights=True)]


@pytest.mark.parametrize("make", DERIVED)
@pytest.mark.parametrize("batch", [randn(4, 3), (randn(4, 3),), [randn(4, 3)], {"input": randn(4, 3)}])
def test_a_batch_without_labels_names_the_criterion_and_the_fix(make: Any, batch: Any) -> None:
    name = make().name
    text = rf"'{name}' needs labels, .* give batches such as \(input, labels\), or .* criteria\.{name}\(loss=lambda"
    with pytest.raises(pf.BatchError, match=text):
        pf.collect_stats(network(3, 5, 4).params, [batch], spec=network(3, 5, 4).spec, criterion=make())


@pytest.mark.parametrize("make", DERIVED)
def test_a_loss_must_be_a_scalar(make: Any) -> None:
    t = network(3, 5, 4)
    with pytest.raises(pf.BatchError, match=r"loss of criterion '\w+' has shape \(\d, 4\); it must be a scalar"):
        pf.collect_stats(t.params, labelled(4), spec=t.spec, criterion=make(lambda out, y: out))
    with pytest.raises(pf.BatchError, match=r"has type float; it must be a scalar"):
        pf.collect_stats(t.params, labelled(4), spec=t.spec, criterion=make(lambda out, y: 1.0))


def test_the_default_loss_needs_one_tensor_of_logits_and_one_of_labels() -> None:
    spec, params, ids = language_model()
    with pytest.raises(
        pf.BatchError, match=r"output is CausalLMOutput\w* and the batch has 1 after the inputs; pass a loss"
    ):
        pf.collect_stats(params, [(ids, ids)], spec=spec, criterion=c.taylor())
    t = network(3, 5, 4)
    with pytest.raises(pf.BatchError, match=r"output is Tensor and the batch has 2 after the inputs"):
        pf.collect_stats(t.params, [(randn(2, 3), torch.zeros(2).long(), 3)], spec=t.spec, criterion=c.fisher())


def test_specs_of_train_mode_are_refused() -> None:
    t = traced(cnn(), randn(4, 3, 6, 6), train=True)
    with pytest.raises(
        pf.ParamsError, match=r"'fisher' needs a spec that was traced in eval mode: trace\(model, args\)"
    ):
        pf.collect_stats(t.params, labelled(4, shape=(3, 6, 6)), spec=t.spec, criterion=c.fisher())


def test_scores_by_a_loss_that_was_not_collected() -> None:
    t = network(3, 5, 4)
    stats = pf.collect_stats(t.params, labelled(4), spec=t.spec, criterion=c.taylor(lambda out, y: out.mean()))
    with pytest.raises(
        pf.StatsError, match=r"needs 'mask gradients of cross_entropy', .* the statistics have 'mask gradients of"
    ):
        pf.score(stats, criterion=c.taylor())


def test_names_of_losses() -> None:
    first = lambda out, y: out.mean()  # noqa: E731
    second = lambda out, y: out.sum()  # noqa: E731
    names = [
        loss_name(f) for f in (first, second, cross_entropy, partial(first, y=2), partial(first, y=3), nn.MSELoss())
    ]
    assert len(set(names)) == 6
    assert names[2] == "cross_entropy" and names[5] == "MSELoss"
    t = network(3, 5, 4)
    both = [c.taylor(first), c.taylor(second)]
    stats = pf.collect_stats(t.params, labelled(4), spec=t.spec, criterion=both)
    a, b = (pf.score(stats, criterion=x)["0"] for x in both)
    close(16 * a, b)  # a sum over four samples of four


@pytest.mark.parametrize(
    "bad", [lambda: c.fisher(chunk_size=0), lambda: c.obd_c(chunk_size=-1), lambda: c.hessian(probes=0)]
)
def test_numbers_that_cannot_be(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"must be 1 or more|there must be 1 or more"):
        bad()


def test_in_bfloat16_the_sums_are_in_double() -> None:
    t, batches = network(3, 6, 4), labelled(16)
    params = {n: p.bfloat16() for n, p in t.params.items()}
    low = [(x.bfloat16(), y) for x, y in batches]
    wide = {n: p.double() for n, p in params.items()}
    exact = scores_of(t._replace(params=wide), [(x.double(), y) for x, y in low], c.fisher())["0"]
    found = scores_of(t._replace(params=params), low, c.fisher())["0"]
    assert found.dtype == torch.float64
    close(found, exact, 0.05)
    assert (
        pf.collect_stats(params, low, spec=t.spec, criterion=c.obd_c())
        .sums["squared gradients of cross_entropy"]["0.weight"]
        .dtype
        == torch.float64
    )
