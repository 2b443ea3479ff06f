"""Other names of ops: each is found, means what its canonical op means, and is that op in a program."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn.tracing.rules import find
from prunefn.tracing.rules.aliases import ALIASES, canonical

from .op_toys.search import overloads

aten = torch.ops.aten
WITHOUT_RULE = {"matrix_power", "row_stack", "det"}
"""Aliases of ops without a rule."""


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_an_alias_takes_what_its_canonical_op_takes(name: str) -> None:
    ops = overloads(f"aten.{name}")
    assert ops
    for op in ops:
        to = canonical(op)
        assert to is not op and str(to).startswith(f"aten.{ALIASES[name]}.") and canonical(to) is to
        defaults = [
            [a.default_value if a.has_default_value() else None for a in o._schema.arguments if o] for o in (op, to)
        ]
        assert defaults[0] == defaults[1]
        assert (find(op, {}) is None) == (name in WITHOUT_RULE)
    packet = getattr(aten, f"{name}_", None)
    for op in [] if packet is None else [getattr(packet, o) for o in packet.overloads()]:
        assert str(canonical(op)).startswith(f"aten.{ALIASES[name]}_.")


class Spelled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.subtract(self.a(x), torch.negative(x.mean()))
        h = h.multiply_(torch.special.expit(h)).arctan_()
        h = torch.swapaxes(torch.moveaxis(torch.concat([h, torch.absolute(h)], 1), 0, 1), 0, 1)
        return self.b(torch.clip(torch.divide(h, 2), -3, 3)[:, :16] + torch.true_divide(h, 3)[:, 16:])


@pytest.mark.parametrize("capture", ["exported", "recorded"])
def test_a_model_with_other_names(capture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Spelled().eval(), torch.randn(5, 6)
    if capture == "recorded":
        monkeypatch.setattr("prunefn.tracing.api.capture", _fails)
    spec, params = pf.trace(model, (x,)), pf.params(model)
    assert spec.capture == capture and not spec.unknown and list(spec.groups) == ["a"]
    assert not {i.op.split(".")[1] for i in spec.program.instructions} & set(ALIASES)
    assert torch.equal(pf.forward(params, x, spec=spec), model(x))
    mask = {"a": torch.arange(16) % 3 != 0}
    small = pf.forward(pf.apply(params, mask, spec=spec), x, spec=pf.shrink(spec, mask))
    kept = {**params, "b.weight": params["b.weight"] * mask["a"]}
    torch.testing.assert_close(small, pf.forward(kept, x, spec=spec))


def _fails(*args: object, **kwargs: object) -> None:
    raise pf.TraceError("not today")


def test_a_rule_under_another_name_is_that_of_the_canonical_op() -> None:
    called = []

    def rule(call: pf.Call) -> object:
        called.append(call.op)
        return call.broadcast(call.tensors())

    pf.trace(Spelled().eval(), (torch.randn(5, 6),), rules={"aten::multiply": rule})
    assert called == ["aten.mul.Tensor"]
