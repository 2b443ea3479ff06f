"""The largest logits of the dense network on disk: laws of the merged divergence, files, and recovery without the dense network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import prunefn as pf
from prunefn.distances import divergence
from prunefn.tokens.top import top_of

from .llamas import llama
from .small import same
from .test_token_recovery import batches, recovered, repadded, small


def written(folder: Path, data: Any = None, **options: Any) -> pf.DenseLogits:
    t = llama()
    arguments = {"top_k": 50, "dtype": torch.float32, "save_every": 3} | options
    return pf.save_logits(t.params, data or batches(), folder, spec=t.spec, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_merging_tokens_never_raises_the_divergence(temperature: float) -> None:
    """The data-processing inequality: it rises with k, up to that of the whole vocabulary."""
    dense, logits = 4 * torch.randn(2, 5, 7, 40, generator=torch.Generator().manual_seed(0)).double()
    whole = divergence(logits, dense, temperature)
    values = [top_of(dense, k, temperature).divergence(logits) for k in (1, 3, 10, 39, 40)]
    for less, more in zip(values, [*values[1:], whole], strict=True):
        assert bool((less <= more + 1e-12).all()) and bool((less >= 0).all())
    torch.testing.assert_close(values[-1], whole)
    torch.testing.assert_close(values[-2], whole)  # the rest is a single token
    assert float(values[0].mean()) < 0.9 * float(whole.mean())


def test_its_gradient_is_that_of_the_merged_distributions() -> None:
    dense, logits = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0)).double()
    x = logits.clone().requires_grad_()
    top = top_of(dense, 2)
    top.divergence(x).sum().backward()
    q = logits.softmax(-1)
    p = dense.softmax(-1)
    rest = torch.ones_like(p, dtype=torch.bool).scatter(-1, top.indices, False)
    share = (p * rest).sum(-1, keepdim=True) / (q * rest).sum(-1, keepdim=True)
    torch.testing.assert_close(x.grad, q - torch.where(rest, share * q, p))
    almost_sure = top_of(torch.tensor([[900.0, 0.0, 0.0]]), 1)
    y = torch.zeros(1, 3, requires_grad=True)
    almost_sure.divergence(y).sum().backward()
    assert y.grad is not None and bool(y.grad.isfinite().all())


def test_all_logits_on_disk_are_the_dense_network(tmp_path: Path) -> None:
    dense = written(tmp_path)
    positions = sum(int(b["attention_mask"].sum()) for b in batches())
    assert repr(dense) == f"DenseLogits(64 samples, {positions} positions, top 50 of 50 tokens)"
    for options in ({}, {"distance": pf.distances.tokens(alpha=0.3)}):
        one = recovered(dense=dense, steps=20, **options)
        two = recovered(steps=20, **{"distance": pf.distances.tokens(), **options})
        assert all(torch.allclose(one[n], two[n], rtol=1e-3, atol=1e-4) for n in one)


def test_samples_are_found_in_other_batches(tmp_path: Path) -> None:
    dense = pf.load_logits(written(tmp_path, top_k=8, dtype=torch.float16).folder)
    rows = [
        {n: x[i : i + 1, : int(b["attention_mask"][i].sum())] for n, x in b.items()} for b in batches() for i in (1, 0)
    ]
    assert all(torch.isfinite(t).all() for t in recovered(rows, dense=dense, steps=2, lr=1e-3).values())
    assert all(
        torch.isfinite(t).all() for t in recovered([*map(repadded, batches())], dense=dense, steps=2, lr=1e-3).values()
    )
    other = [{**b, "input_ids": b["input_ids"].roll(1, 1)} for b in batches()]
    with pytest.raises(pf.BatchError, match="has no logits of sample 0 of a batch"):
        recovered(other, dense=dense)
    with pytest.raises(pf.PruneError, match=r"compared by distances\.tokens alone"):
        recovered(dense=dense, distance=pf.distances.kl())
    with pytest.raises(pf.PruneError, match=r"written at temperature 1\.0; write distances\.tokens\(1.0\), not 2.0"):
        recovered(dense=dense, distance=pf.distances.tokens(2.0))
    with pytest.raises(pf.PruneError, match="runs the dense network"):
        recovered(dense=dense, by_layers=True)


def test_an_interrupted_folder_resumes_with_the_same_bytes(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    written(whole)

    def dying() -> Any:
        yield from batches()[:7]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(part, dying())
    assert len(list(part.iterdir())) == 2
    with pytest.raises(pf.PruneError, match="holds no finished logits"):
        pf.load_logits(part)
    before = [(p.name, p.stat().st_mtime_ns) for p in sorted(part.iterdir())]
    assert written(part).fingerprint == pf.load_logits(whole).fingerprint
    assert [(p.name, p.stat().st_mtime_ns) for p in sorted(part.iterdir()) if p.name in dict(before)] == before
    assert {p.name: p.read_bytes() for p in part.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}
    s = small()
    for match, call in (
        ("other logits: top_k differs", lambda: written(part, top_k=4)),
        ("logits of other batches", lambda: written(part, batches()[::-1])),
        ("logits of more batches", lambda: written(part, batches()[:2])),
        (
            "dense differs",
            lambda: pf.save_logits(s.params, batches(), part, spec=s.spec, top_k=50, dtype=torch.float32),
        ),
        ("dtype is torch.int8", lambda: written(part, dtype=torch.int8)),
        ("in a folder that exists", lambda: written(tmp_path / "none" / "a")),
        ("top_k is 51", lambda: written(tmp_path / "b", top_k=51)),
    ):
        with pytest.raises(pf.PruneError, match=match):
            call()
    file = part / "part_00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(pf.PruneError, match="is damaged"):
        pf.load_logits(part)


def test_recovery_resumes_with_logits_on_disk(tmp_path: Path) -> None:
    dense, file = written(tmp_path / "dense", top_k=16), tmp_path / "state.safetensors"
    whole = recovered(dense=dense, steps=8)
    recovered(dense=dense, steps=8, resume=file)
    same(recovered(dense=dense, steps=8, resume=file), whole)
    other = written(tmp_path / "other", top_k=15)
    with pytest.raises(pf.PruneError, match="belongs to other recovery: dense differs"):
        recovered(dense=other, steps=8, resume=file)
