"""Models in folders: statistics layer by layer are those of the whole, and a folder becomes a smaller folder that its class loads."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import prunefn as pf
import prunefn.cli
from prunefn.frozen_dict import FrozenDict
from prunefn.pretrained import repaired, scored
from prunefn.pretrained.work import ENDING
from prunefn.stats.by_layer import Held, collect_segment, measures, union
from prunefn.stats.fingerprint import taken
from prunefn.types import Stats
from prunefn.where import sites_of

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64}
IDS = [torch.randint(3, 64, (4, 12), generator=torch.Generator().manual_seed(i)) for i in range(3)]


def llama() -> Any:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, num_key_value_heads=2, bos_token_id=1))
    for p in model.parameters():
        if p.ndim > 1:
            p.data.normal_(0, 0.3)
    return model.eval().requires_grad_(False)


def bert() -> Any:
    torch.manual_seed(0)
    return transformers.BertForMaskedLM(transformers.BertConfig(**SMALL)).eval().requires_grad_(False)


@pytest.mark.parametrize("make", [llama, bert])
def test_statistics_layer_by_layer_are_those_of_the_whole_to_the_bit(make: Any) -> None:
    model, masks = make(), [torch.ones_like(x) for x in IDS]
    masks[1][1, 8:] = 0
    batches = [{"input_ids": x, "attention_mask": m} for x, m in zip(IDS, masks, strict=True)]
    spec, params = pf.trace(model, batches[0]), pf.params(model)
    whole = pf.collect_stats(params, batches, spec=spec, covariance=True, criterion=pf.criteria.block_influence())
    start, states = Stats(spec, FrozenDict(params), fingerprints=FrozenDict(taken(params))), Held()
    planned = measures(spec, sites_of(spec, None), blocks=True, needs=["covariance"])
    assert len(planned) == 4 and [len(m.segment.takes) for m in planned] == [0, 1, 1, 1]  # the stream alone
    parts = [collect_segment(params, batches, states, m, start=start) for m in planned]
    found = union(parts, start)
    assert found.sites.keys() == whole.sites.keys() and (found.batches, found.samples) == (3, 12)
    for name, m in whole.sites.items():
        for field in ("mean", "m2", "scatter"):
            assert torch.equal(getattr(found.sites[name], field), getattr(m, field)), (name, field)
    assert all(torch.equal(found.sums["branches"][g], t) for g, t in whole.sums["branches"].items())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    llama().save_pretrained(folder)
    (folder / "notes.txt").write_text("as they were")
    return folder


def pruned(source: Path, out: Path, batches: list[Tensor] = IDS, **options: Any) -> Any:
    return pf.prune_pretrained(source, out, batches=batches, progress=False, **options)


@pytest.mark.parametrize(
    "target",
    [
        {"intermediate_size": 24},
        {"hidden_size": 24},
        {"num_hidden_layers": 2, "intermediate_size": 40},
        {"num_key_value_heads": 1, "num_attention_heads": 2},
    ],
    ids=lambda t: next(iter(t)),
)
def test_a_folder_becomes_a_smaller_folder(source: Path, tmp_path: Path, target: dict[str, int]) -> None:
    done = pruned(source, tmp_path / "small", target=target)
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    dense, after = (json.loads((f / "config.json").read_text()) for f in (source, tmp_path / "small"))
    assert {n: getattr(small.config, n) for n in target} == target
    assert after == {**dense, **target} and after["use_cache"] is True
    assert (tmp_path / "small" / "notes.txt").read_text() == "as they were"
    assert done.difference is not None and done.difference < 1e-4 and done.after.params == small.num_parameters()
    words = [small.generate(IDS[0][:1], max_new_tokens=5, do_sample=False, use_cache=c) for c in (True, False)]
    assert torch.equal(*words) and not (tmp_path / f"small{ENDING}").exists()


def test_layer_by_layer_is_the_sequential_pipeline(source: Path, tmp_path: Path) -> None:
    target = {"intermediate_size": 24, "num_key_value_heads": 1, "num_attention_heads": 2}
    pruned(source, tmp_path / "small", target=target)
    model = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    model.config.use_cache = False
    spec = pf.trace(model, {"input_ids": IDS[0]})
    prune = pf.pipeline(
        criterion=pf.criteria.obs(None),
        ratio=pf.target(spec, model, **target),
        where=pf.kind("hidden") | pf.kind("heads"),
        compensation=pf.compensation.affine(fallback=pf.compensation.mean()),
        sequential=True,
    )
    expected = prune(pf.params(model), IDS, spec=spec).params
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small").state_dict()
    assert found.keys() == expected.keys()
    for name, t in expected.items():
        assert torch.allclose(found[name], t, atol=1e-5), name


def test_a_layer_that_goes_is_made_up_for(tmp_path: Path) -> None:
    model = llama()
    for part in (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj):
        part.weight.mul_(0.2)  # so that it is this layer
    model.save_pretrained(tmp_path / "dense")
    ids, outputs = [torch.cat([i, i.flip(1)]) for i in IDS], []
    for n, method in enumerate((None, pf.compensation.none())):
        done = pruned(tmp_path / "dense", tmp_path / str(n), ids, target={"num_hidden_layers": 2}, compensation=method)
        assert done.sizes == {"model.layers.1": (0, 1)} and done.rewritten == (2 if n == 0 else 0)
    for folder in (tmp_path / "dense", tmp_path / "0", tmp_path / "1"):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        outputs.append(model(torch.cat(ids), use_cache=False).logits.detach())
    errors = [float((x - outputs[0]).pow(2).mean()) for x in outputs[1:]]
    assert errors[0] < 0.9 * errors[1]


def test_a_budget_is_met_by_one_width(source: Path, tmp_path: Path) -> None:
    done = pruned(source, tmp_path / "small", budget=pf.budget.params(0.8))
    assert done.after.params <= 0.8 * done.before.params and len({n for n, _ in done.sizes.values()}) == 1


KILLED = """
import os, signal, sys
import torch
import prunefn as pf
from prunefn.pretrained import repaired
calls, real = [], repaired.fit_layer
def killing(*args, **kwargs):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
repaired.fit_layer = killing
ids = [torch.randint(3, 64, (4, 12), generator=torch.Generator().manual_seed(i)) for i in range(3)]
pf.prune_pretrained(sys.argv[1], sys.argv[2], batches=ids, target={"intermediate_size": 24}, progress=False)
"""


def test_a_killed_run_resumes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, source, tmp_path / "small"], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / "small").exists()
    calls, real = list[int](), repaired.fit_layer
    monkeypatch.setattr(repaired, "fit_layer", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    monkeypatch.setattr(scored, "score", None)  # the scores of all layers were kept
    target = {"intermediate_size": 24}
    with pytest.raises(pf.PruneError, match="other options"):
        pruned(source, tmp_path / "small", target={"intermediate_size": 32})
    pruned(source, tmp_path / "small", target=target)
    assert len(calls) == 2  # of three layers, one was finished and one begun
    monkeypatch.undo()
    pruned(source, tmp_path / "again", target=target)
    a, b = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("small", "again"))
    assert a == b


def test_shards_in_half_precision_stay_so(tmp_path: Path) -> None:
    model = llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    model.config.tie_word_embeddings = True
    model.to(torch.bfloat16).save_pretrained(tmp_path / "dense", max_shard_size="30KB")
    assert len(list((tmp_path / "dense").glob("*.safetensors"))) == 2
    tied = pruned(tmp_path / "dense", tmp_path / "narrow", target={"hidden_size": 24})  # the head cannot be fitted
    assert tied.difference is not None and tied.rewritten
    pruned(tmp_path / "dense", tmp_path / "small", target={"intermediate_size": 24}, max_shard_bytes=10_000)
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert len(list((tmp_path / "small").glob("*.safetensors"))) > 2
    assert small.dtype == torch.bfloat16 and small.model.layers[0].mlp.down_proj.weight.shape == (32, 24)


# ---- the command


@pytest.fixture(scope="module")
def with_words(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a tokenizer of words, and a text beside it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("worded") / "llama"
    shutil.copytree(source, folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    text = " ".join(f"w{i}" for i in torch.cat(IDS).flatten().tolist())
    (folder.parent / "text.txt").write_text(text)
    return folder


def run(*args: str | Path, code: int = 0) -> Any:
    done = pytest.importorskip("typer.testing").CliRunner().invoke(prunefn.cli.app, ["llm", *map(str, args)])
    assert done.exit_code == code, (args, done.stdout, done.stderr, done.exception)
    return done


def test_the_command_prunes_and_measures(with_words: Path, tmp_path: Path) -> None:
    text, out = with_words.parent / "text.txt", tmp_path / "small"
    options = ["--text", text, "--length", "12", "--batch-size", "4"]
    sizes = "intermediate_size=24,num_hidden_layers=2"
    done = json.loads(run("prune", with_words, "--out", out, "--target", sizes, *options, "--json").stdout)
    config = transformers.AutoConfig.from_pretrained(out)
    assert (config.intermediate_size, config.num_hidden_layers) == (24, 2) and done["params"] < done["params_dense"]
    assert (out / "tokenizer.json").read_bytes() == (with_words / "tokenizer.json").read_bytes()
    found = json.loads(run("perplexity", out, *options, "--json").stdout)
    small = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert found["tokens"] == 144 and found["perplexity"] == pytest.approx(pf.perplexity(small, IDS), rel=1e-4)
    assert "give --dense" in run("recover", out, "--out", tmp_path / "better", *options, code=1).stderr
    training = ["--dense", with_words, "--out", tmp_path / "better", "--steps", "4", "--json"]
    trained = json.loads(run("recover", out, *training, *options).stdout)
    assert trained["after"] <= trained["before"] and trained["difference"] < 1e-4 and (tmp_path / "better").is_dir()


def test_each_command_takes_the_flags_that_it_reads(with_words: Path) -> None:
    for flag in ("--params", "--target", "--criterion", "--round-to", "--seed", "--out"):
        assert "No such option" in run("perplexity", with_words, "--text", "x", flag, "1", code=2).stderr
    assert "No such option" in run("prune", with_words, "--device", "cpu", code=2).stderr
    misspelt = run("perplexity", with_words, "--lenght", "12", code=2).stderr
    assert "--length" in misspelt
    dry = run("perplexity", with_words, "--text", "x", "--dry-run").stdout
    assert "length: 512" in dry and "criterion" not in dry and "seed" not in dry
    from prunefn.cli.commands import LANGUAGE_MODELS
    from prunefn.cli.llm_section import Llm

    assert {f for command in LANGUAGE_MODELS for f in command.only or ()} == {*Llm.model_fields, "out"}


def test_the_command_says_what_is_missing(with_words: Path, tmp_path: Path) -> None:
    text, out = with_words.parent / "text.txt", tmp_path / "small"
    assert "give one folder" in run("prune", "--out", out, "--text", text, code=1).stderr
    assert "give --out" in run("prune", with_words, "--text", text, code=1).stderr
    assert "give --text" in run("prune", with_words, "--out", out, code=1).stderr
    assert "neither is given" in run("prune", with_words, "--out", out, "--text", text, code=1).stderr
    wrong = run("prune", with_words, "--out", out, "--text", text, "--target", "intermediate_size", code=2).stderr
    assert "FIELD=NUMBER" in wrong and not out.exists()


def test_what_cannot_be_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(pf.PruneError, match=r"has no config\.json"):
        pruned(tmp_path / "empty", tmp_path / "out", target={"intermediate_size": 24})
    with pytest.raises(pf.PruneError, match="no field"):
        pruned(source, tmp_path / "out", target={"intermediate_sizes": 24})
    with pytest.raises(pf.PruneError, match="neither is given"):
        pruned(source, tmp_path / "out")
    with pytest.raises(pf.PruneError, match="has no tokenizer"):
        pf.prune_pretrained(source, tmp_path / "out", text=["a text"], target={"intermediate_size": 24})
    with pytest.raises(pf.PruneError, match="exists"):
        pruned(source, source, target={"intermediate_size": 24})


def test_a_bias_that_the_class_lacks_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(pf.ParamsError, match="would add a bias"):
        pruned(source, tmp_path / "out", target={"intermediate_size": 24}, compensation=pf.compensation.mean())
    assert not (tmp_path / "out").exists()
