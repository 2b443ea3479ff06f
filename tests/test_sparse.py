"""Weight masks: golden ones for every pattern and scope, exact counts with ties, and what must hold beside channel pruning."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

import prunefn as pf
from prunefn import sparse
from prunefn.sparse import criteria, pattern, scope

from .small import Traced, Twice, bits, cnn, laws, masks, mlp, randn, same, traced

# what stays dense for want of statistics or of a size that divides is said; test_effective.py has the tests of that
pytestmark = pytest.mark.filterwarnings("ignore:sparse.(score|select) leaves some weights dense")

PATTERNS = {
    "unstructured": pattern.unstructured(),
    "2:4": pattern.n_m(2, 4),
    "1:3": pattern.n_m(1, 3, taps_first=True),
    "blocks": pattern.blocks(2, 3),
    "slices": pattern.slices(2, short_blocks=True),
}
SCOPES = {
    "layerwise": scope.layerwise(),
    "global": scope.global_(),
    "normalized": scope.global_(normalize=pf.normalizer.mean),
    "by": scope.by(lambda w: w.convolution),
    "lamp": scope.lamp(),
    "erk": scope.erk(),
}


def two(a: list[list[float]], b: list[list[float]]) -> tuple[pf.Spec, dict[str, Tensor]]:
    """The spec of two linear layers, and given scores of their weights."""
    scores = {"0.weight": torch.tensor(a).double(), "2.weight": torch.tensor(b).double()}
    (hidden, inputs), (outputs, _) = scores["0.weight"].shape, scores["2.weight"].shape
    return traced(mlp(inputs, hidden, outputs), randn(2, inputs)).spec, scores


def one(scores: list[list[float]]) -> tuple[pf.Spec, dict[str, Tensor]]:
    """The same of one linear layer."""
    t = torch.tensor(scores).double()
    return traced(nn.Sequential(nn.Linear(t.shape[1], t.shape[0])), randn(2, t.shape[1])).spec, {"0.weight": t}


def rows(mask: Tensor) -> list[str]:
    """A word of 0 and 1 for each row."""
    return ["".join(str(int(v)) for v in row) for row in mask.flatten(1).tolist()]


def lost(found: dict[str, Tensor]) -> dict[str, int]:
    return {n: int((~m).sum()) for n, m in found.items()}


def net() -> Traced:
    """Convolutions of odd shapes, plain, grouped, depthwise, pointwise, transposed and in one dim, and a linear layer."""
    layers = [
        nn.Conv2d(3, 5, (3, 2)), nn.ReLU(), nn.Conv2d(5, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(),
        nn.Conv2d(6, 4, 3, groups=2), nn.ReLU(), nn.ConvTranspose2d(4, 5, 2), nn.ReLU(), nn.Flatten(2),
        nn.Conv1d(5, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 7),
    ]  # fmt: skip
    return traced(nn.Sequential(*layers), randn(2, 3, 8, 8))


@pytest.fixture(scope="module")
def odd() -> Traced:
    return net()


# ---- golden masks


def test_layerwise_and_global_with_ties() -> None:
    """Of equals, those that come first go; globally, layers come in the order of the program, and one weight of each stays."""
    spec, scores = two([[1, 2, 2], [2, 2, 9]], [[3, 2], [2, 8]])
    found = sparse.select(scores, 0.5, spec=spec)
    assert rows(found["0.weight"]) == ["000", "111"]
    assert rows(found["2.weight"]) == ["10", "01"]
    found = sparse.select(scores, 0.5, spec=spec, scope=scope.global_())
    assert rows(found["0.weight"]) == ["000", "001"]
    assert rows(found["2.weight"]) == ["11", "11"]
    spec, scores = two([[1, 1], [1, 1]], [[5, 5]])
    found = sparse.select(
        scores, 0.67, spec=spec, scope=scope.global_()
    )  # four of six, but the last one of a layer stays
    assert rows(found["0.weight"]) == ["00", "01"] and rows(found["2.weight"]) == ["01"]
    with pytest.raises(pf.PruneError, match=r"0\.9 removes 5 of 6 pieces, .* up to 0\.6666 works"):
        sparse.select(scores, 0.9, spec=spec, scope=scope.global_())


def test_normalised_global_scope() -> None:
    spec, scores = two([[1, 3], [5, 7]], [[100, 500]])
    plain = sparse.select(scores, 0.5, spec=spec, scope=scope.global_())
    assert lost(plain) == {"0.weight": 3, "2.weight": 0}
    fair = sparse.select(scores, 0.5, spec=spec, scope=scope.global_(normalize=pf.normalizer.mean))
    assert lost(fair) == {"0.weight": 2, "2.weight": 1}  # .25 and .75 of the mean, and .33
    apart = sparse.select(scores, 0.5, spec=spec, scope=scope.by(lambda w: w.name))
    same(apart, sparse.select(scores, 0.5, spec=spec))


def test_rows_are_ranked_apart() -> None:
    spec, scores = one([[1, 2, 3, 4, 5], [9, 8, 7, 7, 7]])
    assert rows(sparse.select(scores, 0.4, spec=spec, scope=scope.rows())["0.weight"]) == ["00111", "11001"]
    assert rows(sparse.select(scores, 0.4, spec=spec)["0.weight"]) == ["00001", "11111"]
    wide = sparse.select(scores, 0.5, spec=spec, scope=scope.rows(), pattern=pattern.blocks(1, 2))
    assert rows(wide["0.weight"]) == ["00111", "11001"]  # means 1.5, 3.5, 5 and 8.5, 7, 7
    with pytest.raises(pf.PruneError, match=r"blocks of 2 × 1 go over several rows of '0\.weight'"):
        sparse.select(scores, 0.5, spec=spec, scope=scope.rows(), pattern=pattern.blocks(2, 1))


def test_two_of_four_with_ties_and_a_tail() -> None:
    """Of a tail of three, two stay; of a tail of two or one, all."""
    spec, scores = one([[1, 4, 3, 2, 5, 5, 5], [1, 1, 1, 1, 0, 2, 1], [4, 3, 2, 1, 9, 8, 7]])
    found = sparse.select(scores, spec=spec, pattern=pattern.n_m(2, 4))["0.weight"]
    assert rows(found) == ["0110011", "0011011", "1100110"]
    for tail in (1, 2):
        spec, scores = one([[1, 4, 3, 2, *([0] * tail)]])
        assert rows(sparse.select(scores, spec=spec, pattern=pattern.n_m(2, 4))["0.weight"]) == ["0110" + "1" * tail]
    same(
        sparse.select(scores, 0.5, spec=spec, pattern=pattern.n_m(2, 4)),
        sparse.select(scores, spec=spec, pattern=pattern.n_m(2, 4)),
    )
    with pytest.raises(pf.PruneError, match=r"ratio is 0\.4, but the pattern 2:4 removes 0\.5"):
        sparse.select(scores, 0.4, spec=spec, pattern=pattern.n_m(2, 4))


def test_columns_of_convolutions() -> None:
    """Two channels × three taps: by channel 0 1 2 | 3 4 5, by tap 0 3 | 1 4 | 2 5."""
    t = traced(nn.Sequential(nn.Conv1d(2, 1, 3)), randn(1, 2, 5))
    scores = {"0.weight": torch.tensor([[[6.0, 5.0, 4.0], [3.0, 2.0, 1.0]]])}
    by_channel = sparse.select(scores, spec=t.spec, pattern=pattern.n_m(1, 3))
    assert rows(by_channel["0.weight"]) == ["100100"]
    by_tap = sparse.select(scores, spec=t.spec, pattern=pattern.n_m(1, 2, taps_first=True))
    assert rows(by_tap["0.weight"]) == ["111000"]
    weight = sparse.weights(t.spec)["0.weight"]
    assert torch.equal(weight.matrix(scores["0.weight"]), scores["0.weight"].flatten(1))
    assert weight.matrix(scores["0.weight"], taps_first=True).tolist() == [[6, 3, 5, 2, 4, 1]]


def test_golden_blocks() -> None:
    """Tiles of 2 × 2 in 3 × 3: means 2, 4, 5 and 3."""
    spec, scores = one([[1, 2, 4], [3, 2, 4], [4, 6, 3]])
    assert rows(sparse.select(scores, 0.5, spec=spec, pattern=pattern.blocks(2, 2))["0.weight"]) == [
        "001",
        "001",
        "110",
    ]
    assert rows(sparse.select(scores, 0.25, spec=spec, pattern=pattern.blocks(2, 2))["0.weight"]) == [
        "001",
        "001",
        "111",
    ]
    equal = {"0.weight": torch.ones(3, 3)}
    assert rows(sparse.select(equal, 0.5, spec=spec, pattern=pattern.blocks(2, 2))["0.weight"]) == ["000", "000", "111"]


def test_blocks_are_ranked_globally_by_their_means() -> None:
    spec, scores = two([[1, 1], [9, 9]], [[2, 2], [5, 5]])
    found = sparse.select(scores, 0.5, spec=spec, pattern=pattern.blocks(1, 2), scope=scope.global_())
    assert rows(found["0.weight"]) == ["00", "11"] and rows(found["2.weight"]) == ["00", "11"]


def test_golden_slices() -> None:
    """Blocks (0, 2) and (1, 3); two positions each, of which the first may be protected."""
    t = traced(nn.Sequential(nn.Conv2d(1, 4, (1, 2))), randn(1, 1, 3, 3))
    scores = {"0.weight": torch.tensor([[9.0, 1.0], [1.0, 4.0], [16.0, 0.0], [1.0, 0.0]]).reshape(4, 1, 1, 2)}
    found = sparse.select(scores, 0.5, spec=t.spec, pattern=pattern.slices(2))
    assert rows(found["0.weight"]) == ["10", "01", "10", "01"]  # 25, 1 and 2, 4
    found = sparse.select(scores, 0.5, spec=t.spec, pattern=pattern.slices(2, protect_first=True))
    assert rows(found["0.weight"]) == ["10", "11", "10", "11"]


def test_golden_erk() -> None:
    """Densities in proportion to (4 + 4) / 16 and (4 + 1) / 4: 10 of 20 stay as 3.85 : 6.15, so the small layer is whole."""
    spec, scores = two([[1.0] * 4] * 4, [[1.0] * 4])
    assert lost(sparse.select(scores, 0.5, spec=spec, scope=scope.erk())) == {"0.weight": 10, "2.weight": 0}
    assert lost(sparse.select(scores, 0.75, spec=spec, scope=scope.erk())) == {
        "0.weight": 13,
        "2.weight": 2,
    }  # 12.92, 2.08


def test_golden_lamp() -> None:
    """Shares 1/10, 2/9, 3/7, 1 and 10/30, 1: the scale of a layer does not count."""
    spec, scores = two([[1, 2], [3, 4]], [[10, 20]])
    assert lost(sparse.select(scores, 0.5, spec=spec, scope=scope.lamp())) == {"0.weight": 2, "2.weight": 1}
    with pytest.raises(pf.PruneError, match="not below zero"):
        sparse.select({n: -s for n, s in scores.items()}, 0.5, spec=spec, scope=scope.lamp())


def test_ratio_of_each_layer() -> None:
    spec, scores = two([[1, 2], [3, 4]], [[10, 20]])
    assert lost(sparse.select(scores, {"0": 0.75, "*": 0.5}, spec=spec)) == {"0.weight": 3, "2.weight": 1}
    assert list(sparse.select(scores, {"2.weight": 0.5}, spec=spec)) == ["2.weight"]
    with pytest.raises(pf.ParamsError, match=r"'head' matches none of 0\.weight, 2\.weight"):
        sparse.select(scores, {"head": 0.5}, spec=spec)


# ---- every pattern × scope, on odd shapes


def pieces(of: pattern.Pattern, w: sparse.Weight) -> int:
    assert of.pieces is not None
    numbers = of.pieces(w)
    return 0 if numbers is None else int(numbers.max()) + 1


@pytest.mark.parametrize("tied", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("among", SCOPES)
@pytest.mark.parametrize("name", ["unstructured", "blocks", "slices"])
def test_exact_counts(odd: Traced, name: str, among: str, tied: bool) -> None:
    """Pieces go whole; as many as asked of each layer, or of all."""
    scores = sparse.score(odd.params, spec=odd.spec)
    if tied:
        scores = {n: (s > s.median()).double() for n, s in scores.items()}
    ratio, known = 0.61, sparse.weights(odd.spec)
    found = sparse.select(scores, ratio, spec=odd.spec, pattern=PATTERNS[name], scope=SCOPES[among])
    gone: dict[str, int] = {}
    for n, m in found.items():
        numbers = PATTERNS[name].pieces(known[n])  # type: ignore[misc]
        assert numbers is not None
        gone[n] = len(numbers[~m].unique())
        assert not set(numbers[m].tolist()) & set(numbers[~m].tolist()) and bool(m.any())
        left, out = scores[n][m], scores[n][~m]
        if name == "unstructured" and len(out):
            assert out.max() <= left.min()
    sizes = {n: pieces(PATTERNS[name], known[n]) for n in found}
    if among == "layerwise":
        assert gone == {n: int(ratio * k) for n, k in sizes.items()}
    elif among == "by":
        for kind in (True, False):
            own = [n for n in found if known[n].convolution == kind]
            assert sum(gone[n] for n in own) == int(ratio * sum(sizes[n] for n in own))
    else:
        assert sum(gone.values()) == int(ratio * sum(sizes.values()))
    convolutions = [n for n, w in known.items() if w.convolution]
    assert list(found) == (convolutions if name == "slices" else list(known))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 2), (3, 5), (16, 32)])
@pytest.mark.parametrize("taps_first", [False, True])
def test_n_of_each_m_stay_in_every_layer(odd: Traced, n: int, m: int, taps_first: bool) -> None:
    scores = sparse.score(odd.params, spec=odd.spec)
    found = sparse.select(scores, spec=odd.spec, pattern=pattern.n_m(n, m, taps_first=taps_first))
    for name, w in sparse.weights(odd.spec).items():
        kept, s = w.matrix(found[name], taps_first=taps_first), w.matrix(scores[name], taps_first=taps_first)
        for part, at in zip(kept.split(m, 1), s.split(m, 1), strict=True):
            assert bool((part.sum(1) == min(n, part.shape[1])).all())
            assert torch.equal(
                at.where(part, 0).sum(1), at.sort(1, descending=True).values[:, :n].sum(1)
            ) or torch.allclose(at.where(part, 0).sum(1), at.sort(1, descending=True).values[:, :n].sum(1))


def test_every_contraction_has_its_matrix(odd: Traced) -> None:
    """Rows are outputs, whatever the layout; and the way back is exact."""
    known = sparse.weights(odd.spec)
    shapes = {n: tuple(w.matrix(odd.params[n]).shape) for n, w in known.items()}
    assert shapes == {
        "0.weight": (5, 18), "2.weight": (6, 5), "4.weight": (6, 9), "6.weight": (4, 27), "8.weight": (5, 16),
        "11.weight": (3, 20), "15.weight": (7, 3),
    }  # fmt: skip
    assert [n for n, w in known.items() if w.depthwise] == ["4.weight"]
    for n, w in known.items():
        for taps_first in (False, True):
            back = w.weight(w.matrix(odd.params[n], taps_first=taps_first), taps_first=taps_first)
            assert torch.equal(back, odd.params[n])


def test_weights_that_a_pattern_cannot_divide_are_named() -> None:
    t = traced(nn.Sequential(nn.Conv2d(2, 4, 1), nn.Flatten(), nn.Linear(16, 4)), randn(2, 2, 2, 2))
    scores = sparse.score(t.params, spec=t.spec)
    with pytest.warns(pf.PruneWarning, match=r"sparse.select leaves some weights dense \('2.weight': slices of 2"):
        masks = sparse.select(scores, 0.5, spec=t.spec, pattern=pattern.slices(2))
    assert list(masks) == ["0.weight"] and not bool(masks["0.weight"].all())


def test_slices_are_those_of_the_function(odd: Traced) -> None:
    scores = sparse.score(odd.params, spec=odd.spec)
    for first in (False, True):
        options = {"protect_first": first, "short_blocks": True, "depthwise_block": 3}
        found = sparse.select(scores, 0.4, spec=odd.spec, pattern=pattern.slices(2, **options))
        same(found, sparse.slices(odd.params, 0.4, spec=odd.spec, block=2, **options))
    with pytest.raises(pf.PruneError, match=r"the weight '0\.weight': 5 filters are no multiple"):
        sparse.select(scores, 0.4, spec=odd.spec, pattern=pattern.slices(2))


@given(st.floats(0, 0.8), st.integers(0, 99))
@laws
def test_permuted_scores_give_the_permuted_mask(ratio: float, seed: int) -> None:
    t = randn(4, 6, seed=seed)
    spec, scores = one(t.tolist())
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    found = sparse.select(scores, ratio, spec=spec)["0.weight"]
    permuted = sparse.select({"0.weight": t[:, order]}, ratio, spec=spec)["0.weight"]
    assert torch.equal(found[:, order], permuted)


# ---- what is gone already


@pytest.mark.parametrize("name", PATTERNS)
def test_masks_only_grow(odd: Traced, name: str) -> None:
    """Also where scores of removed weights are not the lowest, as movement's."""
    chosen, ratios = PATTERNS[name], (None, None) if PATTERNS[name].ratio else (0.3, 0.6)
    first = sparse.select(criteria.random(1).score(stats(odd)), ratios[0], spec=odd.spec, pattern=chosen)
    other = criteria.random(2).score(stats(odd))
    then = sparse.select(other, ratios[1], spec=odd.spec, pattern=chosen, within=first)
    for n in then:
        assert not bool((then[n] & ~first[n]).any())
    if chosen.pieces is None:
        same(then, first)
        return
    for n, w in sparse.weights(odd.spec).items():
        if n in then:
            numbers = chosen.pieces(w)
            assert numbers is not None and len(numbers[~then[n]].unique()) == int(0.6 * pieces(chosen, w))


def stats(t: Traced) -> pf.Stats:
    return pf.collect_stats(t.params, None, spec=t.spec)


# ---- beside channel pruning


@given(st.data())
@laws
def test_weights_first_then_channels(data: st.DataObject) -> None:
    """Zeros and channels commute, with the masks brought along."""
    t = NET
    mask = data.draw(masks(t.spec, some=True))
    found = sparse.select(sparse.score(t.params, spec=t.spec), 0.5, spec=t.spec)
    after = pf.apply(sparse.apply_sparse(t.params, found), mask, spec=t.spec)
    small = sparse.shrink(found, mask, spec=t.spec)
    same(after, sparse.apply_sparse(pf.apply(t.params, mask, spec=t.spec), small))
    zeros = sparse.masks_of(after, spec=pf.shrink(t.spec, mask))
    assert all(torch.equal(zeros.get(n, torch.ones_like(m)), m) for n, m in small.items())


@given(st.data(), st.sampled_from(sorted(PATTERNS)))
@laws
def test_patterns_are_aligned_after_the_channels_are_gone(data: st.DataObject, name: str) -> None:
    """What is selected with the channels' mask is, brought along, what is selected in the smaller network."""
    t, chosen = NET, PATTERNS[name]
    mask, ratio = data.draw(masks(t.spec, some=True)), None if chosen.ratio else 0.5
    scores, small = sparse.score(t.params, spec=t.spec), pf.shrink(t.spec, mask)
    before = sparse.select(scores, ratio, spec=t.spec, pattern=chosen, mask=mask)
    params = pf.apply(t.params, mask, spec=t.spec)
    after = sparse.select(sparse.score(params, spec=small), ratio, spec=small, pattern=chosen)
    same(sparse.shrink(before, mask, spec=t.spec), after)
    assert all(m.shape == t.params[n].shape for n, m in before.items())


def test_removing_whole_blocks_keeps_slices_aligned() -> None:
    """Blocks (0, 4), (1, 5), (2, 6), (3, 7): without the third, the masks of the others are slices of the smaller layer."""
    t = traced(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)), randn(1, 3, 5, 5))
    found = sparse.slices(t.params, 0.5, spec=t.spec, block=2, weights="0")
    small = sparse.shrink(found, {"0": bits("11011101")}, spec=t.spec)["0.weight"]
    assert torch.equal(small[:3], small[3:]) and len(small) == 6
    assert not torch.equal(found["0.weight"][:3], found["0.weight"][3:6])


NET = traced(cnn(), randn(2, 3, 6, 6))


# ---- which weights


def test_tied_computed_and_repeated_weights() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 6)
            self.scaled, self.out = nn.Linear(6, 6), nn.Linear(6, 7, bias=False)
            self.out.weight = self.embed.weight
            self.product = nn.Parameter(randn(6, 6))
            self.left = nn.Parameter(randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.linear(self.embed(x), 2 * self.scaled.weight)
            x = (self.left @ (x @ self.product).mT).mT
            return self.out(x)

    model = Odd().double().eval()
    spec = pf.trace(model, (torch.arange(6).reshape(2, 3),))
    found = sparse.weights(spec)
    assert {n: w.pattern[:3] for n, w in found.items()} == {"product": "i o", "left": "o i", "embed.weight": "o i"}
    params = pf.params(model)
    masked = sparse.apply_sparse(params, sparse.select(sparse.score(params, spec=spec), 0.5, spec=spec))
    assert masked["out.weight"] is masked["embed.weight"] and int((masked["out.weight"] == 0).sum()) == 21
    assert list(sparse.weights(spec, "out")) == ["embed.weight"]
    with pytest.raises(pf.ParamsError, match="'scaled' matches none of product, left, embed"):
        sparse.weights(spec, "scaled")


def test_recurrent_weights_and_two_positions() -> None:
    lstm = traced(nn.Sequential(nn.LSTM(4, 3, batch_first=True)), randn(2, 5, 4))
    assert {n: w.matrix(lstm.params[n]).shape for n, w in sparse.weights(lstm.spec).items()} == {
        "0.weight_ih_l0": (12, 4),
        "0.weight_hh_l0": (12, 3),
    }
    cell = traced(nn.GRUCell(4, 3), randn(2, 4))
    assert list(sparse.weights(cell.spec)) == ["weight_ih", "weight_hh"]
    assert list(sparse.weights(traced(Twice(), randn(2, 4)).spec)) == ["a.weight", "b.weight"]


# ---- errors and reports


def test_errors_name_what_is_wrong(odd: Traced) -> None:
    scores = sparse.score(odd.params, spec=odd.spec)
    for ratio in (1.0, -0.1, float("nan"), {"0": 1.5}):
        with pytest.raises(pf.PruneError, match="must be in"):
            sparse.select(scores, ratio, spec=odd.spec)
    with pytest.raises(pf.PruneError, match=r"unstructured needs a ratio"):
        sparse.select(scores, spec=odd.spec)
    with pytest.raises(pf.ParamsError, match=r"the scores have '0\.bias'.*known are 0\.weight, 2"):
        sparse.select({"0.bias": torch.ones(5)}, 0.5, spec=odd.spec)
    with pytest.raises(pf.ParamsError, match=re.escape("have shape (5, 3), but the spec says (5, 3, 3, 2)")):
        sparse.select({"0.weight": torch.ones(5, 3)}, 0.5, spec=odd.spec)
    with pytest.raises(pf.PruneError, match=r"scores of '0\.weight' are not finite"):
        sparse.select({"0.weight": scores["0.weight"] * torch.nan}, 0.5, spec=odd.spec)
    with pytest.raises(pf.PruneError, match="1 ≤ n < m"):
        pattern.n_m(4, 4)
    with pytest.raises(pf.PruneError, match="at least 1"):
        pattern.blocks(0, 4)


def test_table_and_picture(odd: Traced, tmp_path) -> None:
    found = sparse.select(sparse.score(odd.params, spec=odd.spec, weights=["0", "15"]), 0.5, spec=odd.spec)
    text = sparse.table(found, spec=odd.spec).splitlines()
    assert text[2] == "| 0.weight | 5 × 3 × 3 × 2 | 90 | 45 | 50.0 % |"
    assert text[-2] == "| 15.weight | 7 × 3 | 21 | 11 | 47.6 % |"
    assert text[-1] == "| total |  | 443 | 388 | 12.4 % |"
    sparse.picture(found, tmp_path / "kept.png", spec=odd.spec)
    assert (tmp_path / "kept.png").read_bytes()[:4] == b"\x89PNG"


# ---- torch.nn.utils.prune, on its own cases


def two_layers() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 6))


def by_torch(model: nn.Module) -> dict[str, Tensor]:
    return {n.removesuffix("_mask"): b.bool() for n, b in model.named_buffers() if n.endswith("_mask")}


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_layerwise_magnitude_is_l1_unstructured(share: float) -> None:
    model = two_layers()
    spec = pf.trace(model, (torch.randn(2, 2, 4, 4),))
    ours = sparse.select(sparse.score(pf.params(model), spec=spec), share, spec=spec)
    for layer in (model[0], model[3]):
        prune.l1_unstructured(layer, "weight", amount=share)
    theirs = by_torch(model)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], m) for n, m in theirs.items())


@pytest.mark.parametrize("count", [10, 84, 150])
def test_global_magnitude_is_global_unstructured(count: int) -> None:
    """168 weights together."""
    model = two_layers()
    spec = pf.trace(model, (torch.randn(2, 2, 4, 4),))
    scores = sparse.score(pf.params(model), spec=spec)
    ours = sparse.select(scores, count / 168, spec=spec, scope=scope.global_())
    prune.global_unstructured(
        [(model[0], "weight"), (model[3], "weight")], pruning_method=prune.L1Unstructured, amount=count
    )
    theirs = by_torch(model)
    assert sum(int((~m).sum()) for m in ours.values()) == count
    assert all(torch.equal(ours[n], m) for n, m in theirs.items())


def test_blocks_of_whole_rows_are_ln_structured() -> None:
    """A block that is as wide as the layer is a row."""
    model = two_layers()
    spec = pf.trace(model, (torch.randn(2, 2, 4, 4),))
    scores = sparse.score(pf.params(model), spec=spec, weights="3")
    ours = sparse.select(scores, 0.5, spec=spec, pattern=pattern.blocks(1, 16))
    prune.ln_structured(model[3], "weight", amount=3, n=2, dim=0)
    assert torch.equal(ours["3.weight"], by_torch(model)["3.weight"])


def test_rounds_add_up_as_there() -> None:
    """Torch prunes a share of what is left; ours are shares of the whole: 1 − ½ · ½."""
    model = two_layers()
    spec = pf.trace(model, (torch.randn(2, 2, 4, 4),))
    scores = sparse.score(pf.params(model), spec=spec, weights="3")
    first = sparse.select(scores, 0.5, spec=spec)
    both = sparse.select(scores, 0.75, spec=spec, within=first)
    for _ in range(2):
        prune.l1_unstructured(model[3], "weight", amount=0.5)
    assert torch.equal(both["3.weight"], by_torch(model)["3.weight"])
