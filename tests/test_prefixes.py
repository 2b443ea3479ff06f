"""State dicts of wrapped models, and of models of which a part was rebuilt: names with prefixes, attributes of submodules."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import prunefn as pf

from .small import Attention, Traced, bits, randn, same, traced

X = randn(2, 5, 12)
MASK = {"qkv.heads": bits("1011"), "qkv.head_dim": bits("110110")}


class Wrapper(nn.Module):
    """As DistributedDataParallel holds a model, under another name where one is given."""

    def __init__(self, model: nn.Module, name: str = "module") -> None:
        super().__init__()
        self.add_module(name, model)


def compiled_part(model: nn.Module) -> nn.Module:
    model.qkv = torch.compile(model.qkv)  # type: ignore[assignment]
    return model


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "distributed": Wrapper,
    "compiled": lambda m: torch.compile(m),  # type: ignore[return-value, arg-type]
    "compiled, then distributed": lambda m: Wrapper(torch.compile(m)),  # type: ignore[arg-type]
    "compiled in part": compiled_part,
    "averaged": AveragedModel,
    "average of distributed": lambda m: Wrapper(Wrapper(m), "ema_model"),
    "of a trainer": lambda m: Wrapper(m, "model"),
}


@pytest.fixture(scope="module")
def attention() -> Traced:
    torch.manual_seed(0)
    return traced(Attention(12, 4, 6), X)


@pytest.fixture
def small(attention: Traced) -> Any:
    params, spec = pf.apply(attention.params, MASK, spec=attention.spec), pf.shrink(attention.spec, MASK)
    return pf.to_module(params, spec=spec, model=attention.model)


def fresh() -> Any:
    return Attention(12, 4, 6).double()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_loads_with_the_attributes_of_the_rebuilt_one(wrapper: str, small: Any, tmp_path: Path) -> None:
    state = WRAPPERS[wrapper](deepcopy(small)).state_dict()
    torch.save(state, tmp_path / "a.pt")
    for source in (state, tmp_path / "a.pt"):
        back: Any = pf.load(fresh(), source)
        assert (back.heads, back.head_dim) == (small.heads, small.head_dim) == (3, 4)
        assert torch.equal(back(X), small(X))


def test_params_under_a_prefix_load_by_the_spec(attention: Traced, tmp_path: Path) -> None:
    params, spec = pf.apply(attention.params, MASK, spec=attention.spec), pf.shrink(attention.spec, MASK)
    save_file({f"module.{n}": t for n, t in params.items()}, tmp_path / "a.safetensors")
    with pytest.raises(pf.ParamsError, match="several sizes open"):
        pf.load_params(tmp_path / "a.safetensors", spec=attention.spec)
    mask = {"qkv.head_dim": MASK["qkv.head_dim"]}
    params, spec = pf.apply(attention.params, mask, spec=attention.spec), pf.shrink(attention.spec, mask)
    wrapped = {f"module.{n}": t for n, t in params.items()}
    back: Any = pf.load(fresh(), wrapped, spec=attention.spec, sizes={"qkv.heads": 4})
    assert (back.heads, back.head_dim) == (4, spec.sizes["qkv.head_dim"])
    same(dict(pf.params(back)), dict(params))


def test_a_prefix_of_the_model_itself_stays() -> None:
    model = Wrapper(nn.Linear(4, 3))
    assert torch.equal(
        pf.load(Wrapper(nn.Linear(4, 3)), model.state_dict()).get_parameter("module.weight"), model.module.weight
    )


def test_what_fits_under_no_prefix_is_an_error(small: Any) -> None:
    both = {f"{p}.{n}": t for p in ("online", "ema") for n, t in small.state_dict().items()}
    with pytest.raises(
        pf.ParamsError, match=r"it has the model under 'online\.', 'ema\.': pass \{n\.removeprefix\('online\.'\)"
    ):
        pf.load(fresh(), both)
    with pytest.raises(pf.ParamsError, match="for which Attention has no place"):
        pf.load(fresh(), {"other.weight": torch.zeros(2)}, strict=False)


class Detector(nn.Module):
    """A backbone, and a head whose control flow depends on what it finds."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Attention(12, 4, 6), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.head(self.backbone(x))
        return found[found[..., 0] > 0] if bool(found.max() > 0) else found


def test_a_model_with_a_rebuilt_part_saves_and_loads(small: Any, tmp_path: Path) -> None:
    detector = Detector().double()
    detector.backbone = small
    pf.save(detector, tmp_path / "a")
    state = Wrapper(detector).state_dict()
    for source in (tmp_path / "a", detector.state_dict(), state):
        back = pf.load(Detector().double(), source)
        assert (back.backbone.heads, back.backbone.head_dim) == (3, 4)
        assert torch.equal(back(X), detector(X))


def test_a_part_that_is_rebuilt_again_says_its_own_sizes(small: Any, tmp_path: Path) -> None:
    """The whole was rebuilt first, then its part: what the whole remembers of the part is out of date."""
    spec = pf.trace(whole := nn.Sequential(fresh(), nn.Identity()), (X,))
    mask = {"0.qkv.heads": bits("1011")}
    rebuilt: Any = pf.to_module(pf.apply(pf.params(whole), mask, spec=spec), spec=pf.shrink(spec, mask), model=whole)
    rebuilt[0] = small
    pf.save(rebuilt, tmp_path / "a")
    back: Any = pf.load(nn.Sequential(fresh(), nn.Identity()), tmp_path / "a")
    assert (back[0].heads, back[0].head_dim) == (3, 4)
    assert torch.equal(back(X), rebuilt(X))
