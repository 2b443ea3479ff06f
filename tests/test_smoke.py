"""The list of smoke tests names tests that are there."""

from __future__ import annotations

from pathlib import Path

from pytest import mark

from .smoke import SMOKE


@mark.parametrize("name", SMOKE)
def test_a_smoke_test_is_there(name: str) -> None:
    file, test = name.split("::")
    assert f"def {test}(" in (Path(__file__).parent / file).read_text(encoding="utf-8")
