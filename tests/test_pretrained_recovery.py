"""Recovery from folder to folder: towards the dense model in another folder, resumed after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import prunefn as pf
from prunefn.files.folder import shard
from prunefn.pretrained.work import ENDING

from .llamas import tied_llama, transformers

IDS = [torch.randint(3, 50, (4, 12), generator=torch.Generator().manual_seed(i)) for i in range(32)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dense model in bfloat16 with tied tables, and what magnitude leaves of it."""
    place = tmp_path_factory.mktemp("models")
    model = tied_llama()
    model.save_pretrained(place / "dense")
    (place / "dense" / "notes.txt").write_text("as they were")
    options: dict[str, Any] = {"criterion": pf.criteria.magnitude(), "compensation": pf.compensation.none()}
    half = {"intermediate_size": model.config.intermediate_size // 2}
    pf.prune_pretrained(place / "dense", place / "small", batches=IDS, target=half, progress=False, **options)
    return place / "dense", place / "small"


def recovered(folders: tuple[Path, Path], out: Path, **options: Any) -> Any:
    settings = {"batches": IDS, "steps": 60, "lr": 1e-3, "progress": False} | options
    return pf.recover_pretrained(folders[1], out, **{"dense": folders[0], **settings})


def loaded(folder: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.use_cache = False
    return model


def distance(folder: Path, dense: Path) -> float:
    """KL to the dense model, over all tokens."""
    with torch.no_grad():
        logits: list[Tensor] = [loaded(f)(input_ids=torch.cat(IDS)).logits.log_softmax(-1) for f in (folder, dense)]
    return float((logits[1].exp() * (logits[1] - logits[0])).sum(-1).mean())


def test_the_new_folder_is_nearer_to_the_dense_one_and_like_the_source(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    dense, small = folders
    done = recovered(folders, tmp_path / "better")
    assert done.after < done.before and done.difference is not None
    assert distance(tmp_path / "better", dense) < 0.9 * distance(small, dense)
    assert (tmp_path / "better" / "notes.txt").read_text() == "as they were"
    assert (tmp_path / "better" / "config.json").read_bytes() == (small / "config.json").read_bytes()
    headers = [shard(f / "model.safetensors").entries for f in (small, tmp_path / "better")]
    shapes = [{n: (e.shape, e.dtype) for n, e in entries.items()} for entries in headers]
    assert shapes[0] == shapes[1]
    assert not (tmp_path / f"better{ENDING}").exists()


def own_distance() -> Any:
    """A distance of the user's: another function object in each process."""

    def squares(output: Any, dense: Any) -> Tensor:
        return (output.logits - dense.logits).pow(2).mean()

    return squares


def test_an_interrupted_run_resumes_with_the_same_bytes(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunefn.distillation.recovery import Recovery

    recovered(folders, tmp_path / "whole", distance=own_distance(), steps=20, save_every=5)
    real = Recovery.step

    def interrupted(self: Recovery, state: Any, batch: Any) -> Any:
        if state.step == 12:
            raise KeyboardInterrupt
        return real(self, state, batch)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Recovery, "step", interrupted)
        recovered(folders, tmp_path / "again", distance=own_distance(), steps=20, save_every=5)
    assert (tmp_path / f"again{ENDING}").exists() and not (tmp_path / "again").exists()
    with pytest.raises(pf.PruneError, match="another model, other batches or other options"):
        recovered(folders, tmp_path / "again", steps=20, lr=1e-2)
    recovered(folders, tmp_path / "again", distance=own_distance(), steps=20, save_every=5)
    files = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "again")]
    assert files[0] == files[1]


def test_logits_on_disk_stand_for_the_dense_folder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model = loaded(folders[0])
    spec = pf.trace(model, {"input_ids": IDS[0]})
    batches = [{"input_ids": ids} for ids in IDS]
    logits = pf.save_logits(pf.params(model), batches, tmp_path / "logits", spec=spec, top_k=50, dtype=torch.float32)
    done = [recovered(folders, tmp_path / str(n), dense=d, steps=10) for n, d in enumerate((folders[0], logits))]
    assert done[1].after == pytest.approx(done[0].after, rel=1e-3)


def test_what_is_wrong_is_said(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(pf.PruneError, match="one of the two"):
        recovered(folders, tmp_path / "out", text="a text")
    with pytest.raises(pf.PruneError, match="held_out"):
        recovered(folders, tmp_path / "out", held_out=1.5)
    config = json.loads((folders[0] / "config.json").read_text())
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**config, "vocab_size": 60}))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(pf.BatchError, match="logits have shape"):
        recovered(folders, tmp_path / "out", dense=tmp_path / "other")
    assert not (tmp_path / "out").exists() and not (tmp_path / f"out{ENDING}").exists()
