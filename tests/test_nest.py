"""Files of nests: what goes in comes out, and what is damaged is an error."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

import prunefn as pf
from prunefn.files.nest import read_nest, write_nest

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5)
TENSORS = st.sampled_from(
    [torch.arange(6).reshape(2, 3), torch.tensor(1.5).bfloat16(), torch.tensor([True, False]), torch.zeros(0, 2)]
)
NESTS = st.recursive(
    SCALARS | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=12,
)


def equal(a: object, b: object) -> bool:
    x, left = pytree.tree_flatten(a)
    y, right = pytree.tree_flatten(b)
    return left == right and all(
        torch.equal(u, v) and u.dtype == v.dtype if isinstance(u, torch.Tensor) else u == v and type(u) is type(v)
        for u, v in zip(x, y, strict=True)
    )


@given(value=NESTS)
@settings(max_examples=60)
def test_what_goes_in_comes_out(value: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("nest") / "a.safetensors"
    write_nest(path, value)
    assert equal(read_nest(path), value)


def test_tensors_that_share_memory_views_and_numbers_that_are_none(tmp_path: Path) -> None:
    t = torch.arange(12.0).reshape(3, 4)
    value = {"a": t, "b": t, "c": t[:, 1], "d": t.mT, 0: torch.ones(1), "0": torch.zeros(1), "e": math.inf}
    write_nest(tmp_path / "a", value)
    assert equal(read_nest(tmp_path / "a"), value)
    write_nest(tmp_path / "b", math.nan)
    assert math.isnan(read_nest(tmp_path / "b"))


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(pf.ParamsError, match="/a/0 is set, which is no tensor"):
        write_nest(tmp_path / "a", {"a": [{1}]})
    with pytest.raises(pf.ParamsError, match=r"has the key \(1, 2\)"):
        write_nest(tmp_path / "a", {(1, 2): 3})


def test_damaged_files_are_errors(tmp_path: Path) -> None:
    """Five hundred mutations, each an error that names the file: every bit counts, those of the padding, too."""
    path = tmp_path / "a.safetensors"
    value = {"weights": {"x": torch.arange(20.0)}, "rows": [{"epoch": 1, "top1": 0.5}], "step": 3}
    write_nest(path, value)
    good, rng = path.read_bytes(), random.Random(0)
    for n in range(500):
        bad = bytearray(good)
        if n % 5 == 0:
            bad = bad[: rng.randrange(len(bad))]
        else:
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(pf.ParamsError, match="is no file of prunefn, or is damaged") as raised:
            read_nest(path)
        assert str(path) in str(raised.value)
