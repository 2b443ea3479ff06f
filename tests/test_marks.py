"""The lists of smoke tests and of sweeps name tests that are there."""

from __future__ import annotations

from pathlib import Path

from pytest import mark

from .marks import SMOKE, SWEEPS


@mark.parametrize("name", sorted({*SMOKE, *SWEEPS}))
def test_what_is_marked_is_there(name: str) -> None:
    file, test = name.split("::")
    assert f"def {test}(" in (Path(__file__).parent / file).read_text(encoding="utf-8")
