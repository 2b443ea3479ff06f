"""The lists of smoke tests and of sweeps name tests that are there."""

from __future__ import annotations

from pathlib import Path

from pytest import mark

from .marks import SAMPLED, SMOKE, SWEEPS, is_slow


@mark.parametrize("name", sorted({*SMOKE, *SWEEPS, *SAMPLED}))
def test_what_is_marked_is_there(name: str) -> None:
    file, test = name.split("::")
    assert f"def {test}(" in (Path(__file__).parent / file).read_text(encoding="utf-8")


def test_a_subject_is_sampled_alike_in_every_test() -> None:
    tests = [n for n, every in SAMPLED.items() if n.startswith("test_toys.py") and every == 3]
    for subject in ("attention", "mixer", "norm", "conv", "pool", "glu"):
        assert len({is_slow(f"tests/{n}[{p}{subject}]") for n in tests for p in ("", "1-")}) == 1
    assert not is_slow("tests/test_toys.py::test_keeping_all_is_the_identity[residual]")
