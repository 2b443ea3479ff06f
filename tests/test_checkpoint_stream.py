"""Checkpoints larger than memory: pruned from file to file, and statistics with params on disk."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import prunefn as pf
from prunefn.checkpoints import stream, stream_jobs
from prunefn.files.on_disk import OnDisk
from prunefn.files.tensors import Writer

from .ranks import streaming
from .small import Attention, Tied, Traced, bits, cnn, randn, same, traced

ROOT = Path(__file__).parent.parent


def masks_of(spec: pf.Spec) -> pf.Mask:
    """Every third unit of every group goes, beginning with the second."""
    return {g: torch.arange(n) % 3 != 1 for g, n in spec.sizes.items()}


def spread(params: pf.Params, folder: Path, files: int = 1) -> None:
    """As transformers writes them."""
    folder.mkdir()
    names = [f"model-{i + 1:05}-of-{files:05}.safetensors" if files > 1 else "model.safetensors" for i in range(files)]
    parts = [dict(list(params.items())[i::files]) for i in range(files)]
    for name, part in zip(names, parts, strict=True):
        save_file({n: t.clone() for n, t in part.items()}, folder / name, {"format": "pt"})
    if files > 1:
        places = {n: name for name, part in zip(names, parts, strict=True) for n in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


NETS: dict[str, Callable[[], Traced]] = {
    "cnn": lambda: traced(cnn(), randn(2, 3, 6, 6)),
    "attention": lambda: traced(Attention(12, 4, 6), randn(2, 5, 12)),
    "bfloat16": lambda: traced(Attention(12, 4, 6), randn(2, 5, 12).bfloat16()),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("files", "limit", "written"), [(1, 10**9, 1), (3, 10**9, 1), (3, 300, None), (1, 1, None)])
def test_the_same_bits_as_apply(net: str, files: int, limit: int, written: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    t = NETS[net]()
    mask = masks_of(t.spec)
    spread(t.params, tmp_path / "src", files)
    done = pf.apply_checkpoint(
        tmp_path / "src", tmp_path / "dst", mask, spec=t.spec, progress=False, max_shard_bytes=limit
    )
    small = pf.apply(t.params, mask, spec=t.spec)
    assert done.written == len(done.files) == (written or done.written)
    assert done.nbytes == sum(p.nbytes for p in small.values())
    assert (len(done.files) > 1) == (written is None)
    back = pf.load_params(tmp_path / "dst", spec=t.spec)
    same({n: back.params[n] for n in small}, small)
    assert back.spec == pf.shrink(t.spec, mask)
    assert all(torch.equal(back.masks[0][g], m) for g, m in mask.items())
    assert all(f.stat().st_size < 5000 + max(limit, max(p.nbytes for p in small.values())) for f in done.files)
    foreign: dict[str, Tensor] = {}
    for file in done.files:
        foreign |= load_file(file)
    same({n: foreign[n] for n in small}, small)


def test_pieces_of_any_size_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    t = NETS["cnn"]()
    mask = masks_of(t.spec)
    small = pf.apply(t.params, mask, spec=t.spec)
    spread(t.params, tmp_path / "src")
    for piece in (1, 100, 1000):
        monkeypatch.setattr(stream_jobs, "PIECE", piece)
        pf.apply_checkpoint(tmp_path / "src", tmp_path / str(piece), mask, spec=t.spec, progress=False)
        back = pf.load_params(tmp_path / str(piece), spec=t.spec).params
        same({n: back[n] for n in small}, small)


def test_one_of_two_tied_tensors_is_enough(tmp_path: Path) -> None:
    model = Tied()
    spec, params = pf.trace(model, (torch.tensor([[1, 2]]),)), pf.params(model)
    mask = {g: torch.arange(n) != 1 for g, n in spec.sizes.items()}
    small = pf.apply(params, mask, spec=spec)
    for gone in ("out.weight", "embed.weight"):
        spread({n: t for n, t in params.items() if n != gone}, tmp_path / f"src {gone}")
        pf.apply_checkpoint(tmp_path / f"src {gone}", tmp_path / gone, mask, spec=spec, progress=False)
        back = pf.load_params(tmp_path / gone, spec=spec).params
        same({n: back[n] for n in small}, small)
        assert back["out.weight"] is back["embed.weight"]
        lazy = pf.lazy_params(tmp_path / gone, spec=pf.shrink(spec, mask))
        assert lazy["out.weight"] is lazy["embed.weight"]


# ---- what was interrupted goes on


def test_a_run_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    t = NETS["cnn"]()
    mask = masks_of(t.spec)
    spread(t.params, tmp_path / "src", 2)

    def prune(mask: pf.Mask = mask, limit: int = 200) -> stream.Streamed:
        return pf.apply_checkpoint(
            tmp_path / "src", tmp_path / "dst", mask, spec=t.spec, progress=False, max_shard_bytes=limit
        )

    left, write = list(range(8)), Writer.write

    def failing(self: Writer, data: Any) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        write(self, data)

    with monkeypatch.context() as m:
        m.setattr(Writer, "write", failing)
        with pytest.raises(KeyboardInterrupt):
            prune()
    half = sorted(p.name for p in (tmp_path / "dst").iterdir())
    assert half
    assert all(n.endswith(".safetensors") for n in half)  # no index, and no part of a file
    with pytest.raises(pf.ParamsError, match="has neither"):
        pf.load_params(tmp_path / "dst", spec=t.spec)
    done = prune()
    assert done.written == len(done.files) - len(half)
    assert prune().written == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "dst").iterdir()}
    for name in before:
        (tmp_path / "dst" / name).unlink()
    prune()
    assert {p.name: p.read_bytes() for p in (tmp_path / "dst").iterdir()} == before

    group = next(iter(mask))
    for other in ({**mask, group: ~mask[group]}, {g: m for g, m in mask.items() if g != group}):
        with pytest.raises(pf.PruneError, match="is of another source, mask, spec or max_shard_bytes"):
            prune(other)
    with pytest.raises(pf.PruneError, match="is of another source, mask, spec or max_shard_bytes"):
        prune(limit=10**9)
    bad = bytearray(done.files[1].read_bytes())
    bad[-1] ^= 1
    done.files[1].write_bytes(bad)
    with pytest.raises(pf.PruneError, match=r"00002-of-.* is damaged: .* delete it, and call again"):
        prune()
    done.files[1].unlink()
    assert prune().written == 1
    os.utime(tmp_path / "src" / "model-00001-of-00002.safetensors", (1, 1))
    with pytest.raises(pf.PruneError, match="is of another source"):
        prune()


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    t = NETS["cnn"]()
    mask, src, dst = masks_of(t.spec), tmp_path / "src", tmp_path / "dst"
    spread(t.params, src, 2)
    (src / "tokenizer.txt").write_text("of the source")

    def prune(limit: int = 10**9, **options: bool) -> stream.Streamed:
        return pf.apply_checkpoint(
            src, dst, mask, spec=t.spec, progress=False, max_shard_bytes=limit, **options
        )  # fmt: skip

    dst.write_text("a file")
    with pytest.raises(pf.PruneError, match="dst is a file; give a folder"):
        prune(overwrite=True)
    dst.unlink()
    dst.mkdir()
    (dst / "notes.txt").write_text("of the user")
    (dst / "tokenizer.txt").write_text("of the user")
    with pytest.raises(pf.PruneError, match=r"tokenizer.txt exists and differs from .*overwrite=True"):
        prune()
    assert sorted(p.name for p in dst.iterdir()) == ["notes.txt", "tokenizer.txt"]
    assert (dst / "tokenizer.txt").read_text() == "of the user"
    prune(limit=200, overwrite=True)
    assert (dst / "tokenizer.txt").read_text() == "of the source"
    with pytest.raises(pf.PruneError, match="overwrite=True"):
        prune()
    prune(overwrite=True)
    assert sorted(p.name for p in dst.iterdir()) == ["model.safetensors", "notes.txt", "tokenizer.txt"]
    assert (dst / "notes.txt").read_text() == "of the user"
    small = pf.apply(t.params, mask, spec=t.spec)
    assert all(torch.equal(v, small[n]) for n, v in pf.load_params(dst, spec=t.spec).params.items())
    (dst / "model.safetensors").unlink()
    (dst / "model.safetensors").symlink_to(next(src.glob("*.safetensors")))
    with pytest.raises(pf.PruneError, match="is a link"):
        prune(overwrite=True)


def test_what_does_not_fit(tmp_path: Path) -> None:
    t = NETS["cnn"]()
    mask, name = masks_of(t.spec), next(iter(t.params))

    def prune(params: pf.Params, folder: str, mask: pf.Mask = mask) -> None:
        spread(params, tmp_path / folder)
        pf.apply_checkpoint(tmp_path / folder, tmp_path / "dst", mask, spec=t.spec, progress=False)

    with pytest.raises(pf.ParamsError, match=f"lacks '{name}'"):
        prune({n: p for n, p in t.params.items() if n != name}, "lacking")
    with pytest.raises(pf.ParamsError, match=f"the spec has no tensor '{name}s'; did you mean '{name}'"):
        prune({**t.params, f"{name}s": t.params[name]}, "foreign")
    with pytest.raises(pf.ParamsError, match=f"'{name}' has shape .*, but the spec says"):
        prune({**t.params, name: t.params[name][1:]}, "shorter")
    with pytest.raises(pf.MaskError, match="the mask has a group 'nobody'"):
        prune(t.params, "mask", {"nobody": bits("10")})
    spread(t.params, tmp_path / "src")
    with pytest.raises(pf.PruneError, match="is the folder of the source"):
        pf.apply_checkpoint(tmp_path / "src", tmp_path / "src", mask, spec=t.spec)
    assert not (tmp_path / "dst").exists()
    assert os.listdir(tmp_path / "src") == ["model.safetensors"]


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    t = NETS["cnn"]()
    spread(t.params, tmp_path / "src")
    for name, gone in (("a", 0), ("b", 1)):
        mask = {g: torch.arange(n) != gone for g, n in t.spec.sizes.items()}
        done = pf.apply_checkpoint(
            tmp_path / "src", tmp_path / name, mask, spec=t.spec, progress=False, max_shard_bytes=300
        )
    other = tmp_path / "a" / done.files[0].name
    other.write_bytes(done.files[0].read_bytes())
    with pytest.raises(pf.ParamsError, match="were written by different runs"):
        pf.load_params(tmp_path / "a", spec=t.spec)


# ---- transformers


@pytest.mark.parametrize("tie", [False, True])
def test_a_llama_goes_in_and_a_llama_comes_out(tie: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=50,
        max_position_embeddings=32,
        use_cache=False,
        tie_word_embeddings=tie,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "src", max_shard_size="20KB")
    (tmp_path / "src" / "tokenizer.json").write_text("{}")
    (tmp_path / "src" / "pytorch_model.bin").write_bytes(b"dense")
    with torch.device("meta"):
        outline = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 50, (2, 8))
    spec = pf.trace(outline, (), {"input_ids": ids.to("meta")})
    even = {g.name: torch.arange(g.size) % 4 != 1 for g in spec.groups.values() if g.kind in ("hidden", "residual")}
    even |= {g.name: torch.arange(4) > 1 for g in spec.groups.values() if g.kind == "heads" and g.size == 4}
    done = pf.apply_checkpoint(
        tmp_path / "src", tmp_path / "dst", even, spec=spec, progress=False, max_shard_bytes=9000
    )
    assert len(done.files) > 1
    assert done.config == tmp_path / "dst" / "config.json"
    assert (tmp_path / "dst" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "dst" / "pytorch_model.bin").exists()
    small = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "dst").eval()
    real = pf.sharded.with_constants(spec, model)
    params = pf.apply(pf.params(model), even, spec=real)
    y = pf.forward(params, input_ids=ids, spec=pf.shrink(real, even))
    torch.testing.assert_close(small(input_ids=ids).logits, y.logits)
    uneven = {next(g for g, m in even.items() if len(m) == 48): torch.arange(48) > 5}
    turned = {g.name: torch.arange(g.size) > 0 for g in spec.groups.values() if g.kind == "head_dim" and g.size == 2}
    for name, mask in (("uneven", uneven), ("tables", turned)):
        assert mask
        done = pf.apply_checkpoint(tmp_path / "src", tmp_path / name, mask, spec=spec, progress=False)
        assert done.config is None
        assert not (tmp_path / name / "config.json").exists()
        dense = json.loads((tmp_path / name / "dense_config.json").read_text())
        assert dense == json.loads((tmp_path / "src" / "config.json").read_text())
        back = pf.load_params(tmp_path / name, spec=real)
        whole = pf.apply(pf.params(model), mask, spec=real)
        same({n: back.params[n] for n in whole}, whole)


# ---- params on disk


@pytest.fixture
def lazy(tmp_path: Path) -> tuple[pf.Params, Traced]:
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU())]
    t = traced(nn.Sequential(*layers), randn(3, 5, 8))
    spread(t.params, tmp_path / "src", 2)
    return pf.lazy_params(tmp_path / "src", spec=t.spec), t


def test_statistics_to_the_bit_with_one_layer_in_memory(
    lazy: tuple[pf.Params, Traced], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, t = lazy
    batches = [randn(3, 5, 8, seed=i) for i in range(3)]
    alive: set[int] = set()
    most, reads, read = [0], [0], OnDisk.read

    def counted(self: OnDisk) -> Tensor:
        whole, number = read(self), reads[0]
        alive.add(number)
        weakref.finalize(whole, alive.discard, number)
        most[0], reads[0] = max(most[0], len(alive)), number + 1
        return whole

    monkeypatch.setattr(OnDisk, "read", counted)
    for more in ({}, {"covariance": True}, {"resume": tmp_path / "stats"}):
        mine = pf.collect_stats(params, batches, spec=t.spec, **more)
        assert not alive
        (tmp_path / "stats").unlink(missing_ok=True)
        theirs = pf.collect_stats(t.params, batches, spec=t.spec, **more)
        assert list(mine.sites) == list(theirs.sites)
        for site, m in theirs.sites.items():
            assert torch.equal(mine.sites[site].mean, m.mean)
            assert torch.equal(mine.sites[site].m2, m.m2)
            assert (m.scatter is None) or torch.equal(mine.sites[site].scatter, m.scatter)
    assert most[0] == 2  # a weight and its bias
    assert reads[0] == 3 * 3 * 12 + 16  # each batch reads what comes before the last site; then, fingerprints of all
    for criterion in (pf.criteria.variance(), pf.criteria.magnitude()):
        scores = pf.score(mine, criterion=criterion)
        assert all(torch.equal(s, pf.score(theirs, criterion=criterion)[g]) for g, s in scores.items())


def test_everything_takes_params_on_disk(lazy: tuple[pf.Params, Traced], tmp_path: Path) -> None:
    params, t = lazy
    x = randn(3, 5, 8, seed=7)
    assert torch.equal(pf.forward(params, x, spec=t.spec), pf.forward(t.params, x, spec=t.spec))
    step = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.5, compensation=pf.compensation.affine())
    mine, theirs = (step(p, [x], spec=t.spec) for p in (params, t.params))
    assert any(isinstance(p, OnDisk) for p in mine.params.values())  # what lost nothing
    assert all(torch.equal(mine.params[n], p) for n, p in theirs.params.items())
    pf.save(mine.params, tmp_path / "small", spec=mine.spec, masks=mine.mask)
    back = pf.load_params(tmp_path / "small", spec=t.spec).params
    assert all(torch.equal(back[n], p) for n, p in theirs.params.items())
    labelled = [(x, randn(3, 5, 8, seed=8))]
    loss = nn.functional.mse_loss
    for criterion in (pf.criteria.taylor(loss=loss), pf.criteria.fisher(loss=loss)):
        a, b = (
            pf.score(pf.collect_stats(p, labelled, spec=t.spec, criterion=criterion), criterion=criterion)
            for p in (params, t.params)
        )
        assert all(torch.equal(a[g], b[g]) for g in b)
    for module in (pf.to_module(params, spec=t.spec), pf.to_module(params, spec=t.spec, model=t.model)):
        assert torch.equal(module(x), t.model(x))
        assert not any(isinstance(p, OnDisk) for p in module.state_dict().values())
    w = params["0.weight"]
    assert isinstance(copy.deepcopy(params)["0.weight"], OnDisk)
    assert torch.equal(w.mT @ w, t.params["0.weight"].mT @ t.params["0.weight"])
    assert repr(w).startswith("OnDisk('0.weight', (8, 8), torch.float64")


def test_types_devices_and_files_that_change(lazy: tuple[pf.Params, Traced], tmp_path: Path) -> None:
    _, t = lazy
    narrow = pf.lazy_params(tmp_path / "src", spec=t.spec, dtype=torch.bfloat16)
    assert narrow["0.weight"].dtype == torch.bfloat16
    assert torch.equal(narrow["0.weight"] * 1, t.params["0.weight"].bfloat16())
    with pytest.raises(pf.ParamsError, match=r"'0.weight' is on disk and cannot be written to by aten.add_"):
        narrow["0.weight"].add_(1)
    with pytest.raises(pf.ParamsError, match=r"src: '0.weight' has shape \(8, 8\), but the spec says"):
        pf.lazy_params(tmp_path / "src", spec=pf.shrink(t.spec, masks_of(t.spec)))
    for path in (tmp_path / "src").glob("*.safetensors"):
        os.utime(path, (1, 1))
    with pytest.raises(
        pf.ParamsError, match="has changed since it was opened: its size or its time of modification differs"
    ):
        narrow["0.weight"] + 1


# ---- memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_no_more_than_two_of_the_largest_tensors_are_held(tmp_path: Path) -> None:
    """A checkpoint of 200 MB, in a process of its own."""
    call = [sys.executable, "-m", "tests.ranks.streaming", str(tmp_path)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["whole"] == streaming.LAYERS * streaming.LARGEST
    assert found["apply"] < 2 * streaming.LARGEST
    assert found["statistics"] < 2 * streaming.LARGEST
