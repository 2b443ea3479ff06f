"""Models of libraries that build them from a config: saved by the library's own means where a config says the sizes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from huggingface_hub import PyTorchModelHubMixin
from pytest import MonkeyPatch, mark, warns
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import prunefn as pf

IDS = torch.randint(5, 60, (2, 7), generator=torch.Generator().manual_seed(0))
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


class Perceptron(nn.Module):
    def __init__(self, widths: list[int], depth: int = 1, label: str = "x") -> None:
        super().__init__()
        self.label, sizes = label, [4, *widths, 2]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class Hub(Perceptron, PyTorchModelHubMixin):
    """Of the mixin: its arguments become a config.json."""


class Square(nn.Module, PyTorchModelHubMixin):
    """One width for two layers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


class ModelMixin(nn.Module):
    """The layout of diffusers: a read-only dict of arguments, `from_config`, `register_to_config`, files of its own names."""

    _internal: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        return {"_class_name": type(self).__name__, **self._internal}

    def register_to_config(self, **arguments: Any) -> None:
        self._internal = {**self._internal, **arguments}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**{n: v for n, v in config.items() if not n.startswith("_")})

    def to_json_string(self) -> str:
        return json.dumps(self.config)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / "config.json").write_text(self.to_json_string())
        save_file(self.state_dict(), Path(folder) / "diffusion_pytorch_model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Any:
        model = cls.from_config(json.loads((Path(folder) / "config.json").read_text()))
        model.load_state_dict(load_file(Path(folder) / "diffusion_pytorch_model.safetensors"))
        return model


class Diffuser(Perceptron, ModelMixin):
    def __init__(self, widths: list[int], depth: int = 1, label: str = "x") -> None:
        super().__init__(widths, depth, label)
        self.register_to_config(widths=widths, depth=depth, label=label)

    _internal: dict[str, Any] = {}  # noqa: RUF012


class Encoder(nn.Module):
    """A model of transformers inside another one, as sentence-transformers holds it."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.BertConfig(
            vocab_size=60, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4
        )
        self.bert, self.head = transformers.BertModel(config), nn.Linear(24, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.bert(input_ids=input_ids).last_hidden_state.mean(1))


def removed(model: nn.Module, example: Any, removals: dict[str, list[int]]) -> Any:
    spec = pf.trace(model, example)
    mask = pf.mask(spec, removals)
    return pf.to_module(pf.apply(pf.params(model), mask, spec=spec), spec=pf.shrink(spec, mask), model=model)


@mark.parametrize("cls", [Hub, Diffuser])
def test_a_dict_of_arguments_says_the_sizes(cls: Any, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace(ModelMixin=ModelMixin))
    model = cls([8, 8]).eval()
    small = removed(model, (X,), {"layers.0": [0, 5], "layers.1": [1, 2, 7]})
    small.save_pretrained(tmp_path)
    back = cls.from_pretrained(tmp_path).eval()
    assert torch.equal(back(X), small(X))
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["widths"], written["depth"], written["label"]) == ([6, 5], 1, "x")
    model.save_pretrained(tmp_path / "dense")
    assert json.loads((tmp_path / "dense" / "config.json").read_text())["widths"] == [8, 8]


def test_what_no_arguments_say_is_saved_with_its_plan(tmp_path: Path) -> None:
    model = Square().eval()
    model.save_pretrained(tmp_path)
    uneven = removed(model, (X,), {"a": [0, 5]})
    for small in (uneven, deepcopy(uneven)):
        with warns(UserWarning, match=r"no config of Square says the sizes .*'a\.weight' has shape .*pf\.load"):
            small.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "dense_config.json").read_text()) == {"width": 8}
        assert not (tmp_path / "config.json").exists()
        assert torch.equal(pf.load(Square().eval(), tmp_path)(X), small(X))
    even = removed(uneven, (X,), {"b": [1, 7]})  # both layers have six units now
    even.save_pretrained(tmp_path / "even")
    assert torch.equal(Square.from_pretrained(tmp_path / "even")(X), even(X))


WIDTHS: dict[str, tuple[Callable[[pf.Group], bool], bool]] = {
    "hidden": (pf.kind("hidden"), True),
    "heads": (pf.kind("heads"), False),
}


@mark.parametrize("kind", WIDTHS)
def test_a_model_of_transformers_inside_another_model(kind: str, tmp_path: Path) -> None:
    where, has_config = WIDTHS[kind]
    torch.manual_seed(0)
    model = Encoder().eval().requires_grad_(False)
    spec = pf.trace(model, (IDS,))
    mask = {n: torch.arange(g.size) % 2 == 0 for n, g in spec.groups.items() if where(g)}
    small: Any = pf.to_module(pf.apply(pf.params(model), mask, spec=spec), spec=pf.shrink(spec, mask), model=model)
    if has_config:
        small.bert.save_pretrained(tmp_path)
        back = transformers.BertModel.from_pretrained(tmp_path).eval()
        assert back.config.intermediate_size == 16
    else:
        with warns(UserWarning, match="no config of BertModel says the sizes"):
            small.bert.save_pretrained(tmp_path)
        back = pf.load(Encoder().bert.eval(), tmp_path)
    expected = small.bert(input_ids=IDS).last_hidden_state
    assert torch.equal(back(input_ids=IDS).last_hidden_state, expected)
    assert model.bert.config.intermediate_size == 32


@dataclass
class Sizes:
    widths: list[int]
    seed: int = 8


class WithDataclass(Perceptron, PyTorchModelHubMixin):
    """The mixin writes the dataclass as the config."""

    def __init__(self, config: Sizes) -> None:
        super().__init__(config.widths)


class WithDict(Perceptron, PyTorchModelHubMixin):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config["widths"])


@mark.parametrize(("cls", "config"), [(WithDataclass, Sizes([8, 6])), (WithDict, {"widths": [8, 6], "seed": 8})])
def test_a_config_in_one_argument_says_the_sizes(cls: Any, config: Any, tmp_path: Path) -> None:
    model = cls(config).eval()
    small = removed(model, (X,), {"layers.0": [3]})
    small.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == {"widths": [7, 6], "seed": 8}
    back = cls(Sizes(**written) if cls is WithDataclass else written)
    back.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(back(X), small(X))
    model.save_pretrained(tmp_path / "dense")
    assert json.loads((tmp_path / "dense" / "config.json").read_text())["widths"] == [8, 6]
