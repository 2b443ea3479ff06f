"""Files of specs: what else they say, and what they refuse."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn.files.tensors import Reader, save_sealed
from prunefn.spec import axis, constants, costs, domain, example, interface, parts, program
from prunefn.spec.plain_data import RECORDS

from .small import mlp, randn, traced


def test_another_process_needs_the_file_only(tmp_path: Path) -> None:
    t = traced(mlp(4, 3, 2), randn(2, 4))
    pf.save_spec(t.spec, tmp_path / "spec")
    pf.save(t.params, tmp_path / "params", spec=t.spec)
    code = (
        "import sys, torch, prunefn as pf\n"
        "spec = pf.load_spec(sys.argv[1])\n"
        "print(spec.sizes, pf.forward(pf.load_params(sys.argv[2], spec=spec).params, torch.ones(1, 4).double(), spec=spec).tolist())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "spec", tmp_path / "params"], capture_output=True, text=True, check=True
    )
    out = pf.forward(t.params, torch.ones(1, 4).double(), spec=t.spec)
    assert run.stdout.strip() == f"{t.spec.sizes} {out.tolist()}"


def test_a_class_of_outputs_is_found_again(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    size = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 50,
    }
    model = transformers.BertModel(transformers.BertConfig(**size)).eval()
    ids = torch.randint(0, 50, (2, 8), generator=torch.Generator().manual_seed(0))
    spec = pf.trace(model, (), {"input_ids": ids})
    pf.save_spec(spec, tmp_path / "spec")
    run = subprocess.run(
        [sys.executable, "-c", f"import prunefn as pf; print(pf.load_spec({str(tmp_path / 'spec')!r}).program.out_spec.type)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "BaseModelOutputWithPooling" in run.stdout and pf.load_spec(tmp_path / "spec").configured == ("",)


class Odd:
    """No plain data."""


class Takes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, how: Odd | None = None) -> Tensor:
        return self.fc(x)


def test_what_cannot_be_saved_or_loaded_is_said(tmp_path: Path) -> None:
    spec = pf.trace(Takes().eval(), (torch.randn(2, 4),))
    odd = spec.example._replace(leaves=(*spec.example.leaves, Odd()))
    with pytest.raises(pf.TraceError, match="a value of the class Odd is no plain data"):
        pf.save_spec(replaced(spec, example=odd), tmp_path / "spec")
    assert not list(tmp_path.iterdir())
    calls = spec.program.instructions
    strange = spec.program._replace(instructions=(calls[0]._replace(op="mylib.op.default"), *calls[1:]))
    pf.save_spec(replaced(spec, program=strange), tmp_path / "spec")
    with pytest.raises(pf.TraceError, match=r"calls the op 'mylib\.op\.default'.*import the module that registers it"):
        pf.load_spec(tmp_path / "spec")


def test_a_damaged_file_an_old_one_and_another_one_are_refused(tmp_path: Path) -> None:
    t = traced(mlp(4, 3, 2), randn(2, 4))
    path = tmp_path / "spec"
    pf.save_spec(t.spec, path)
    with Reader(path) as file:
        metadata = dict(file.metadata)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"aten.linear", b"aten.lonear", 1))
    with pytest.raises(pf.TraceError, match=r"do not match its seal|have changed"):
        pf.load_spec(path)
    old = metadata["header"].replace('["name"]', '["label"]', 1)
    save_sealed(path, {}, {**metadata, "header": old, "version": "0.0.9"})
    with pytest.raises(
        pf.TraceError, match=r"prunefn 0\.0\.9 wrote it, and specs have changed since; trace the model again"
    ):
        pf.load_spec(path)
    pf.save(t.params, path, spec=t.spec)
    with pytest.raises(pf.TraceError, match=r"its format is .* instead of 'spec 1'"):
        pf.load_spec(path)
    with pytest.raises(FileNotFoundError):
        pf.load_spec(tmp_path / "none")


def replaced(spec: pf.Spec, **fields: Any) -> pf.Spec:
    return replace(spec, **fields)


@pytest.mark.parametrize(
    "room", [axis, constants, costs, domain, example, interface, parts, program], ids=lambda m: m.__name__
)
def test_every_part_of_a_spec_can_be_written(room: ModuleType) -> None:
    own = [c for c in vars(room).values() if isinstance(c, type) and c.__module__ == room.__name__]
    made = {c for c in own if is_dataclass(c) or hasattr(c, "_fields")} - {
        parts.Cost
    }  # a cost is computed, and in no spec
    assert made and made <= set(RECORDS.values())
