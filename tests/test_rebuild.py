"""The original class at the new sizes, confirmed against `forward`; pruned state dicts in fresh models."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pytest import fixture, importorskip, mark, raises
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

import prunefn as pf
from prunefn.modules.infer import infer_sizes
from prunefn.modules.scales import compare_scales, scaling_numbers

from .small import Attention, Residual, Tied, Traced, bits, close, cnn, mlp, randn, same, traced
from .zoo import random_mask


class Sized(nn.Module):
    """Sizes in attributes of every sort: products, halves, lists, a scale that is computed from the width."""

    def __init__(self, width: int = 12, heads: int = 4, head_dim: int = 6) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.all_head_size = heads, head_dim, heads * head_dim
        self.parts = [heads * head_dim] * 3
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.out = nn.Linear(heads * head_dim, width)
        self.gate, self.down = nn.Linear(width, 2 * 10), nn.Linear(10, 3)
        self.half = 10

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            t.view(b, n, self.num_heads, self.head_dim).transpose(1, 2) for t in self.qkv(x).split(self.parts, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        y = self.out(y.transpose(1, 2).reshape(b, n, self.all_head_size))
        a, g = self.gate(y).split(self.half, -1)
        return self.down(a * g.sigmoid())


class Scaled(nn.Module):
    """The scale is computed in forward from an attribute that follows the width."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.dim = 2, 8
        self.q, self.k, self.v = (nn.Linear(5, 16) for _ in range(3))
        self.norm, self.o = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, self.dim)).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = (q @ k.transpose(-2, -1) / self.dim**0.5).softmax(-1)
        return self.o(self.norm((a @ v).transpose(1, 2).flatten(2)))


def half(t: Traced, *kinds: str, seed: int = 0) -> tuple[pf.Params, pf.Spec, pf.Mask]:
    """Half of the groups of these kinds removed."""
    groups = [g.name for g in t.spec.groups.values() if not kinds or g.kind in kinds]
    mask = random_mask(t.spec, seed, groups=groups)
    return pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask), mask


@fixture
def sized() -> Traced:
    torch.manual_seed(0)
    return traced(Sized(), randn(2, 5, 12))


def test_the_original_class_at_new_sizes(sized: Traced) -> None:
    params, spec, _ = half(sized)
    new = pf.to_module(params, spec=spec, model=sized.model)
    assert type(new) is Sized
    assert (new.num_heads, new.head_dim, new.all_head_size, new.parts, new.half) == (2, 3, 6, [6, 6, 6], 5)
    assert (new.qkv.in_features, new.qkv.out_features, new.down.in_features) == (12, 18, 5)
    x = randn(3, 7, 12, seed=1)  # another batch size and another length
    small = pf.trace(sized.model, (x,))
    close(new(x), pf.forward(params, x, spec=pf.shrink(small, half(sized)[2])))


def test_nothing_of_the_model_changes_and_nothing_is_shared(sized: Traced) -> None:
    before = {n: t.clone() for n, t in sized.params.items()}
    flags, attributes = [m.training for m in sized.model.modules()], dict(vars(sized.model))
    params, spec, _ = half(sized)
    kept = {n: t.clone() for n, t in params.items()}
    new = pf.to_module(params, spec=spec, model=sized.model)
    with torch.no_grad():
        for p in new.parameters():
            p.zero_()
    same(pf.params(sized.model), before)
    same(params, kept)
    assert [m.training for m in sized.model.modules()] == flags
    assert dict(vars(sized.model)) == attributes


def test_a_scale_that_hardly_shows_stays_too() -> None:
    """Fresh networks attend to everything alike, so that outputs say little of the scale; after training they say much."""
    timm = importorskip("timm.models.vision_transformer")
    torch.manual_seed(0)
    model = timm.VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=32, depth=2, num_heads=4
    ).eval()
    x = torch.randn(4, 1, 8, 8)
    spec, params = pf.trace(model, (x,)), pf.params(model)
    mask = pf.mask(spec, {f"blocks.{i}.attn.qkv.head_dim": [0, 5] for i in range(2)})
    small, smaller = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)
    new = pf.to_module(small, spec=smaller, model=model)
    name = "blocks.0.attn.qkv.weight"
    queries, kept = (t[: 4 * 6] for t in (new.state_dict()[name], small[name]))
    close(queries, kept * (6 / 8) ** 0.5, 1e-6)
    close(new(x), pf.forward(small, x, spec=smaller), 1e-6)


@mark.parametrize(("group", "differs"), [("q.heads", False), ("q.head_dim", True)])
def test_a_run_tells_whether_a_class_scales_by_other_numbers(group: str, differs: bool) -> None:
    """Fewer heads leave the scale as it is, so that no trace is needed to know that no fold helps; narrower heads do not."""
    t = traced(Scaled(), randn(2, 4, 5))
    params, spec, _ = half(t, t.spec.groups[group].kind)
    calls = scaling_numbers(t.model, (randn(2, 4, 5),), {}, train=False)
    assert calls is not None and ("torch.Tensor.div", (8**0.5,)) in calls
    new = pf.to_module(params, spec=spec, model=t.model)
    assert compare_scales(t.model, params, spec)(new) is differs
    assert scaling_numbers(new, (randn(2, 4, 6),), {}, train=False) is None  # it does not run


@mark.parametrize("build", [Sized, Scaled])
def test_a_scale_that_the_class_computes_stays_that_of_the_traced_width(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    width = 12 if build is Sized else 5
    t = traced(build(), randn(2, 4, width))
    params, spec, _ = half(t, "head_dim")
    new = pf.to_module(params, spec=spec, model=t.model)
    x = randn(2, 4, width, seed=3)
    close(new(x), pf.forward(params, x, spec=spec), 1e-10)
    changed = [n for n, p in new.state_dict().items() if not torch.equal(p, params[n])]
    assert set(changed) == ({"qkv.weight", "qkv.bias"} if build is Sized else {"q.weight", "q.bias"})
    rows = len(params[changed[0]]) // 3 if build is Sized else None
    factor = (spec.traced["qkv.head_dim" if build is Sized else "q.head_dim"] / 3 if build is Sized else 2) ** -0.5
    close(new.state_dict()[changed[0]][:rows], params[changed[0]][:rows] * factor)


def test_it_can_be_pruned_again_copied_and_pickled(sized: Traced) -> None:
    params, spec, _ = half(sized, "hidden", "heads")
    new = pf.to_module(params, spec=spec, model=sized.model)
    x = randn(2, 5, 12)
    again = pf.trace(new, (x,))
    assert again == spec
    close(copy.deepcopy(new)(x), new(x))
    close(pickle.loads(pickle.dumps(new))(x), new(x))
    mask = random_mask(again, 2)
    smaller = pf.to_module(pf.apply(pf.params(new), mask, spec=again), spec=pf.shrink(again, mask), model=new)
    close(smaller(x), pf.forward(pf.apply(params, mask, spec=spec), x, spec=pf.shrink(spec, mask)), 1e-10)


def test_requires_grad_dtype_tied_parameters_and_training_flags_are_kept() -> None:
    model = Tied()
    model.hidden.bias.requires_grad_(False)
    t = Traced(model, pf.trace(model, (torch.tensor([[1, 2], [3, 4]]),)), pf.params(model))
    params, spec, _ = half(t)
    model.train()
    new = pf.to_module({n: p.bfloat16() for n, p in params.items()} | {}, spec=spec, model=model)
    assert new.training
    assert not new.hidden.bias.requires_grad
    assert new.hidden.weight.dtype == torch.bfloat16
    tied = pf.to_module(params, spec=spec, model=model)
    assert tied.out.weight is tied.embed.weight
    assert (tied.embed.embedding_dim, tied.out.in_features) == (3, 3)


def test_train_mode() -> None:
    t = traced(cnn(), randn(4, 3, 6, 6), train=True)
    params, spec, _ = half(t)
    new = pf.to_module(params, spec=spec, model=t.model).train()
    same({n: new.state_dict()[n] for n in params}, params)  # the confirmation put the running statistics back
    x = randn(4, 3, 6, 6, seed=1)
    y, updated = pf.forward_train(params, x, spec=spec)
    close(new(x), y)
    close(new.state_dict()["1.running_mean"], updated["1.running_mean"])


@mark.filterwarnings("ignore::FutureWarning")  # torch says that TorchScript is deprecated
def test_a_rebuilt_class_can_be_scripted_and_exported() -> None:
    t = traced(cnn(), randn(2, 3, 6, 6))
    params, spec, _ = half(t)
    new = pf.to_module(params, spec=spec, model=t.model)
    x = randn(3, 3, 6, 6, seed=1)
    with torch.no_grad():
        close(torch.export.export(new, (x,)).module()(x), new(x))
        close(torch.jit.script(new)(x), new(x))
    assert (new[3].in_channels, new[3].out_channels, new[3].groups) == (new[0].out_channels, new[4].num_features, 1)


def test_a_class_that_ties_sizes_together_is_refused_with_its_line() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.up, self.qkv, self.o = 2, nn.Linear(4, 8), nn.Linear(8, 24), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.up(x)
            b, n, c = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
            return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))

    t = traced(Narrow(), randn(2, 5, 4))
    params, spec, _ = half(t, "heads")
    with raises(
        pf.PruneError,
        match=r"Narrow cannot be rebuilt at these sizes: .* at .*test_rebuild.py:\d+, in `q, k, v = .*\. Without",
    ):
        pf.to_module(params, spec=spec, model=t.model)
    together, small, _ = half(t, "hidden", "residual", "head_dim")
    new = pf.to_module(together, spec=small, model=t.model)  # the width and head_dim halve alike
    close(new(randn(2, 5, 4)), pf.forward(together, randn(2, 5, 4), spec=small), 1e-10)


def test_the_model_must_be_the_traced_one(sized: Traced) -> None:
    params, spec, _ = half(sized)
    with raises(pf.ParamsError, match=r"'qkv.weight' was traced with shape \(72, 12\), but Sized has shape \(36, 12\)"):
        pf.to_module(params, spec=spec, model=Sized(head_dim=3))
    with raises(pf.ParamsError, match="no such tensor"):
        pf.to_module(params, spec=spec, model=mlp(2, 3))


def test_a_bias_that_compensation_created_finds_its_place() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=False))
    t = traced(model, randn(8, 4))
    done = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.5, compensation=pf.compensation.mean())(
        t.params, [randn(8, 4)], spec=t.spec
    )
    new = pf.to_module(done.params, spec=done.spec, model=t.model)
    assert list(new.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    x = randn(5, 4, seed=2)
    close(new(x), pf.forward(done.params, x, spec=done.spec))


def test_a_class_without_room_for_a_bias_is_refused() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.w = nn.Linear(4, 6), nn.Parameter(torch.randn(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).relu() @ self.w

    t = traced(Bare(), randn(8, 4))
    done = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.5, compensation=pf.compensation.mean())(
        t.params, [randn(8, 4)], spec=t.spec
    )
    with raises(pf.PruneError, match="Bare has no room for"):
        pf.to_module(done.params, spec=done.spec, model=t.model)


def test_constant_tensors_hide_nothing() -> None:
    """A branch that starts at zero gives the right output at any number of heads; the confirmation looks behind it."""
    t = traced(Sized(), randn(2, 5, 12))
    nn.init.zeros_(t.model.out.weight)
    t = Traced(t.model, t.spec, pf.params(t.model))
    params, spec, _ = half(t, "heads", "head_dim")
    new = pf.to_module(params, spec=spec, model=t.model)
    assert (new.num_heads, new.head_dim) == (2, 3)
    assert not new.out.weight.any()


class WithoutPrunefn(pickle.Unpickler):
    """As where prunefn is not installed."""

    def find_class(self, module: str, name: str) -> Any:
        assert module.partition(".")[0] != "prunefn"
        return super().find_class(module, name)


def test_a_pickle_has_nothing_of_prunefn(sized: Traced, tmp_path: Path) -> None:
    new, x = small(sized), randn(2, 5, 12)
    there = WithoutPrunefn(io.BytesIO(pickle.dumps(new))).load()
    assert torch.equal(there(x), new(x))
    same(there.state_dict(), new.state_dict())
    pf.save(there, tmp_path / "there.safetensors")
    assert torch.equal(pf.load(Sized().double(), tmp_path / "there.safetensors")(x), new(x))
    assert torch.equal(pf.load(Sized().double(), copy.deepcopy(new).state_dict())(x), new(x))


# ---- models that others have touched


class Own(nn.Module):
    """A method of the name that the transformers library uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())

    def save_pretrained(self, folder: str) -> None:
        torch.save(self.state_dict(), folder)


class WithDict(Own):
    def __init__(self) -> None:
        super().__init__()
        self.config = {"width": 8}


class Average(Own):
    """Writes to a buffer in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        self.seen.copy_(0.9 * self.seen + 0.1 * h.mean(0))
        return self.b(h - self.seen)


def normed() -> nn.Module:
    model = Own()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model.a)
    return model


def sparse() -> nn.Module:
    model = Own()
    prune.l1_unstructured(model.a, "weight", 0.5)
    return model


@mark.parametrize("build", [Own, WithDict, Average, normed, sparse])
def test_touched_models_are_rebuilt_like_any(build: Callable[[], nn.Module]) -> None:
    t = traced(build(), randn(3, 4))
    buffers = {n: b.clone() for n, b in t.model.named_buffers()}
    params, spec, _ = half(t)
    new, x = pf.to_module(params, spec=spec, model=t.model), randn(5, 4, seed=1)
    assert new.a.out_features == 4
    same({n: new.state_dict()[n] for n in params}, params)
    same(dict(t.model.named_buffers()), buffers)
    close(new(x).detach(), pf.forward(params, x, spec=spec))


def test_a_model_that_cannot_be_copied_is_refused_by_name() -> None:
    model = Own()
    t = traced(model, randn(3, 4))
    params, spec, _ = half(t)
    t.model.a.stream = iter(c for c in "ab")
    with raises(pf.PruneError, match=r"Own cannot be copied because of 'a.stream': TypeError"):
        pf.to_module(params, spec=spec, model=t.model)


def test_a_mixin_of_the_hub_is_rebuilt_like_any() -> None:
    hub = importorskip("huggingface_hub")
    cls = type("Hub", (Own, hub.PyTorchModelHubMixin), {})
    t = traced(cls(), randn(3, 4))
    params, spec, _ = half(t)
    assert pf.to_module(params, spec=spec, model=t.model).a.out_features == 4


def test_a_model_in_half_precision_traced_before() -> None:
    model = Own().eval()
    spec = pf.trace(model, (torch.randn(3, 4),))
    t = Traced(model.half(), spec, pf.params(model.half()))
    params, smaller, _ = half(t)
    new, x = pf.to_module(params, spec=smaller, model=t.model), torch.randn(5, 4).half()
    assert new.a.weight.dtype == torch.float16
    close(new(x), pf.forward(params, x, spec=smaller), 1e-2)


# ---- load


def small(t: Traced, *kinds: str) -> nn.Module:
    params, spec, _ = half(t, *kinds)
    return pf.to_module(params, spec=spec, model=t.model)


def test_a_saved_module_loads_into_a_fresh_one(sized: Traced, tmp_path: Path) -> None:
    new, x = small(sized), randn(2, 5, 12)
    pf.save(new, tmp_path / "a.safetensors")
    torch.save(new.state_dict(), tmp_path / "a.pt")
    for source in (tmp_path / "a.safetensors", tmp_path / "a.pt", new.state_dict()):
        back = pf.load(Sized().double(), source)
        assert torch.equal(back(x), new(x))
        same(back.state_dict(), new.state_dict())
    assert [p.name for p in tmp_path.iterdir()] != []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "a.safetensors"]


def test_a_plain_state_dict_needs_a_spec_for_its_heads(sized: Traced, tmp_path: Path) -> None:
    new = small(sized, "hidden", "heads")
    plain = {n: t.clone() for n, t in new.state_dict().items()}
    save_file(plain, tmp_path / "plain.safetensors")
    with raises(pf.ParamsError, match=r"'qkv.weight' has shape \(36, 12\) instead of \(72, 12\).*give spec="):
        pf.load(Sized().double(), plain)
    with raises(pf.ParamsError, match=r"leave several sizes open .*'qkv.heads': "):
        pf.load(Sized().double(), tmp_path / "plain.safetensors", spec=sized.spec)
    back = pf.load(Sized().double(), tmp_path / "plain.safetensors", spec=sized.spec, sizes={"qkv.heads": 2})
    x = randn(2, 5, 12)
    assert torch.equal(back(x), new(x))


def test_sizes_that_the_shapes_determine_are_inferred() -> None:
    t = traced(cnn(), randn(2, 3, 6, 6))
    params, spec, _ = half(t)
    assert infer_sizes({n: tuple(p.shape) for n, p in params.items()}, t.spec) == dict(spec.sizes)
    back = pf.load(cnn().double(), params, spec=t.spec)
    x = randn(2, 3, 6, 6)
    close(back.eval()(x), pf.forward(params, x, spec=spec))
    with raises(pf.ParamsError, match=r"'1.weight' dim 0 has size 5, but the other tensors say 2"):
        infer_sizes({n: tuple(p.shape) for n, p in {**params, "1.weight": torch.ones(5)}.items()}, t.spec)


def test_load_drops_no_key_silently() -> None:
    t = traced(Residual(3, 6, 8, 2), randn(4, 3))
    new = small(t)
    state = new.state_dict()
    lacking = {n: p for n, p in state.items() if n != "up.bias"}
    with raises(pf.ParamsError, match=r"lacks up.bias"):
        pf.load(Residual(3, 6, 8, 2), lacking)
    state["upp.bias"] = state["up.bias"]
    with raises(pf.ParamsError, match=r"has upp.bias, for which Residual has no place"):
        pf.load(Residual(3, 6, 8, 2), state)
    assert "upp.bias" not in pf.load(Residual(3, 6, 8, 2), state, strict=False).state_dict()


def test_load_carries_a_created_bias_and_ties() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=False))
    t = traced(model, randn(8, 4))
    done = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.5, compensation=pf.compensation.mean())(
        t.params, [randn(8, 4)], spec=t.spec
    )
    fresh = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
    back = pf.load(fresh, done.params, spec=t.spec)
    x = randn(5, 4, seed=2)
    close(back(x), pf.forward(done.params, x, spec=done.spec))
    assert fresh[2].bias is None
    tied = Tied()
    traced_tied = Traced(tied, pf.trace(tied, (torch.tensor([[1, 2]]),)), pf.params(tied))
    again = pf.load(Tied(), small(traced_tied).state_dict())
    assert again.out.weight is again.embed.weight


def test_a_file_that_is_no_state_dict(tmp_path: Path) -> None:
    """What training scripts save has one inside, under one name; with two, nobody knows which."""
    model = mlp(2, 3)
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "nested.pt")
    back = pf.load(mlp(2, 3), tmp_path / "nested.pt")
    assert all(torch.equal(t, back.state_dict()[n]) for n, t in model.state_dict().items())
    for wrong in ({"weights": {"a": torch.ones(2)}}, {"model": {"a": torch.ones(2)}, "net": {"a": torch.ones(2)}}, {}):
        torch.save(wrong, tmp_path / "wrong.pt")
        with raises(pf.ParamsError, match="holds no state dict"):
            pf.load(mlp(2, 3), tmp_path / "wrong.pt")


def test_attention_module_of_the_other_tests_rebuilds() -> None:
    t = traced(Attention(12, 4, 6), randn(2, 5, 12))
    new = small(t, "heads")
    assert (new.heads, new.head_dim) == (2, 6)
    assert bits("1").all()


def test_a_refusal_says_which_groups_one_number_of_the_class_sizes() -> None:
    """`dim` is the width of queries, keys and values alike, so that the values alone cannot be narrower."""
    t = traced(Scaled(), randn(2, 4, 5))

    def rebuilt(**units: int) -> nn.Module:
        mask = pf.mask(t.spec, {f"{g}.head_dim": range(8 - n) for g, n in units.items()})
        return pf.to_module(pf.apply(t.params, mask, spec=t.spec), spec=pf.shrink(t.spec, mask), model=t.model)

    text = r"It runs if 'q.head_dim' and 'v.head_dim' keep equally many units, such as 4: one number of the class"
    with raises(pf.PruneError, match=text):
        rebuilt(v=4)
    assert rebuilt(q=4, v=4).dim == 4
