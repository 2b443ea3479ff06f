"""Batches of tokens, and the perplexity of language models on them."""

from __future__ import annotations

import json
from itertools import chain
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import prunefn as pf
from prunefn.data import text

from .llamas import DOCUMENTS, llama, transformers


def by_hand(model: Any, batches: Any) -> float:
    """exp of the mean over all tokens of all batches, each sequence alone."""
    nll, n = 0.0, 0
    for batch in batches:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            kept = labels != -100
            if int(kept.sum()) > 1:
                loss = model(ids[kept][None], labels=labels[kept][None]).loss
                nll, n = nll + float(loss) * (int(kept.sum()) - 1), n + int(kept.sum()) - 1
    return exp(nll / n)


# ---- perplexity


@pytest.mark.parametrize("options", [{"pack": False, "length": 9}, {"length": 6}])
def test_each_token_has_the_same_weight_and_padding_has_none(options: dict[str, Any]) -> None:
    t, batches = llama(), text(DOCUMENTS, batch_size=2, **options)
    assert len({b["input_ids"].shape for b in batches}) > 1  # the lengths differ
    expected = by_hand(t.model, batches)
    assert pf.perplexity(t.params, batches, spec=t.spec) == pytest.approx(expected, rel=1e-5)
    assert pf.perplexity(t.model, batches) == pytest.approx(expected, rel=1e-5)
    unlabelled = [{n: x for n, x in b.items() if n != "labels"} for b in batches]
    assert pf.perplexity(t.params, unlabelled, spec=t.spec) == pytest.approx(expected, rel=1e-5)
    other_padding = [{**b, "input_ids": b["input_ids"].masked_fill(b["attention_mask"] == 0, 7)} for b in batches]
    assert pf.perplexity(t.params, other_padding, spec=t.spec) == pytest.approx(expected, rel=1e-5)


def test_padding_on_the_left_predicts_nothing() -> None:
    t, batch = llama(), text(DOCUMENTS[:2], pack=False, batch_size=2)[0]
    n = batch["attention_mask"].sum(1)
    flipped = {k: torch.stack([x.roll(int(len(x) - m)) for x, m in zip(v, n, strict=True)]) for k, v in batch.items()}
    flipped["labels"] = flipped["input_ids"]
    assert pf.perplexity(t.params, [flipped], spec=t.spec) == pytest.approx(by_hand(t.model, [batch]), rel=1e-4)


def test_labels_that_do_not_count() -> None:
    t, batch = llama(), text(DOCUMENTS[:1])[0]
    labels = batch["labels"].clone()
    labels[:, :3] = -100
    logits = t.model(batch["input_ids"]).logits[0].log_softmax(-1)
    expected = exp(-(float(logits[2, 4]) + float(logits[3, 5])) / 2)  # tokens 1 … 5: 4 and 5 are left
    assert pf.perplexity(t.params, [{**batch, "labels": labels}], spec=t.spec) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(pf.BatchError, match="no token to predict"):
        pf.perplexity(t.params, [{**batch, "labels": torch.full_like(labels, -100)}], spec=t.spec)


class Plain(nn.Module):
    """A table of logits for each token, in the form asked for."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.table = form, nn.Embedding(4, 4)
        with torch.no_grad():
            self.table.weight.copy_(torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log().expand(4, 4))

    def forward(self, ids: Tensor) -> Any:
        logits = self.table(ids)
        return {"tensor": logits, "tuple": (logits, ids), "dict": {"hidden": logits[..., :1], "logits": logits}}[
            self.form
        ]


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict"])
def test_golden_perplexity_of_any_output(form: str) -> None:
    model, ids = Plain(form).eval(), torch.tensor([[3, 0, 1, 2]])
    spec = pf.trace(model, (torch.zeros(2, 3, dtype=torch.long),))
    expected = exp((log(2) + log(4) + log(8)) / 3)
    for batch in (ids, (ids,), (ids, ids), {"ids": ids}, {"ids": ids, "labels": ids}):
        assert pf.perplexity(pf.params(model), [batch], spec=spec) == pytest.approx(expected)
        assert pf.perplexity(model, [batch]) == pytest.approx(expected)
    aligned = torch.tensor([[0, 0, 1, 1]])
    same_place = pf.perplexity(pf.params(model), [(ids, aligned)], spec=spec, shift=False)
    assert same_place == pytest.approx(exp((2 * log(2) + 2 * log(4)) / 4))


def test_what_has_no_perplexity() -> None:
    model, ids = Plain("tensor").eval(), torch.tensor([[3, 0, 1, 2]])
    spec, params = pf.trace(model, (ids,)), pf.params(model)
    with pytest.raises(pf.ParamsError, match="params need their spec="):
        pf.perplexity(params, [ids])
    with pytest.raises(pf.ParamsError, match="a module has no spec="):
        pf.perplexity(model, [ids], spec=spec)
    with pytest.raises(pf.BatchError, match="labels range from 0 to 9, but there are logits for 0 to 3"):
        pf.perplexity(params, [(ids, torch.tensor([[0, 1, 9, 0]]))], spec=spec)
    with pytest.raises(pf.BatchError, match="one label for each position"):
        pf.perplexity(params, [(ids, ids[:, :2])], spec=spec)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(pf.BatchError, match=r"returns a Tensor of shape \(1, 2\); perplexity needs logits"):
        pf.perplexity(flat, [(torch.ones(1, 4), ids)])


# ---- batches of tokens


def words(line: str) -> list[int]:
    return [len(w) for w in line.split()]


class Chatty:
    """A tokenizer with a template of chats, as transformers has them."""

    eos_token_id, pad_token_id = 99, 98

    def __call__(self, line: str) -> dict[str, list[int]]:
        return {"input_ids": words(line), "attention_mask": [1] * len(words(line))}

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool = False
    ) -> list[int]:
        assert tokenize
        ids = [i for m in messages for i in (50 if m["role"] == "user" else 51, *words(m["content"]))]
        return [*ids, 51] if add_generation_prompt else ids


def ids_of(batches: Any) -> list[list[int]]:
    return [
        row[mask.bool()].tolist()
        for b in batches
        for row, mask in zip(b["input_ids"], b["attention_mask"], strict=True)
    ]


def test_packing_loses_nothing_and_keeps_the_order() -> None:
    batches = text(DOCUMENTS, length=4, batch_size=3, eos_id=0)
    rows = ids_of(batches)
    assert [*chain(*rows)] == [*chain(*([*d, 0] for d in DOCUMENTS))]
    assert {len(r) for r in rows[:-1]} == {4} and len(batches) == -(-len(rows) // 3)
    assert batches.tokens == sum(map(len, DOCUMENTS)) + 4
    assert {len(r) for r in ids_of(text(DOCUMENTS, length=4, drop_last=True))} == {4}
    assert ids_of(text(DOCUMENTS, length=10, pack=False)) == [
        DOCUMENTS[0],
        DOCUMENTS[1][:10],
        DOCUMENTS[1][10:],
        *DOCUMENTS[2:],
    ]


def test_the_seed_decides_the_order() -> None:
    def shuffled(seed: int, **options: Any) -> list[list[int]]:
        return ids_of(text(DOCUMENTS, length=2, shuffle=True, seed=seed, **options))

    plain = ids_of(text(DOCUMENTS, length=2))
    torch.manual_seed(0)
    first = shuffled(1)
    torch.manual_seed(1)
    assert shuffled(1) == first != shuffled(2) and sorted(first) == sorted(plain) != first
    assert shuffled(1, sequences=3) == first[:3]
    assert ids_of(text(DOCUMENTS, length=2, sequences=3)) == plain[:3]


def test_files_and_memory_give_the_same(tmp_path: Path) -> None:
    lines = ["a bb ccc", "dddd a"]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in lines) + "\n\n")
    (tmp_path / "b.txt").write_text(lines[0])
    expected = ids_of(text(lines, tokenizer=words, pack=False))
    assert expected == [[1, 2, 3], [4, 1]]
    assert ids_of(text(tmp_path / "a.jsonl", tokenizer=words, pack=False)) == expected
    assert ids_of(text(tmp_path, tokenizer=words, pack=False)) == [*expected, expected[0]]
    stream = np.arange(1, 12, dtype=np.uint16)
    stream.tofile(tmp_path / "c.bin")
    np.save(tmp_path / "d.npy", stream)
    np.save(tmp_path / "e.npy", stream[:10].reshape(2, 5))
    whole = ids_of(text(torch.arange(1, 12), length=4))
    assert whole == ids_of(text(tmp_path / "c.bin", length=4)) == ids_of(text(tmp_path / "d.npy", length=4))
    rows = [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert ids_of(text(tmp_path / "e.npy", pack=False)) == rows
    documents = {"b": torch.from_numpy(stream[:10].reshape(2, 5)), "a": torch.tensor([4, 2])}
    save_file(documents, tmp_path / "f.safetensors")
    assert ids_of(text(tmp_path / "f.safetensors", pack=False)) == [[4, 2], *rows]
    (tmp_path / "g.jsonl").write_text(json.dumps({"ids": [3, 1]}))
    assert ids_of(text(tmp_path / "g.jsonl", field="ids", pack=False)) == [[3, 1]]


def test_tokenizers_and_chats(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "a bb"}, {"role": "assistant", "content": "ccc"}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": chat}) + "\n" + json.dumps({"messages": chat[:1]}))
    rows = [[50, 1, 2, 51, 3], [50, 1, 2]]
    batches = text(tmp_path / "chats.jsonl", tokenizer=Chatty(), pack=False)
    assert ids_of(batches) == rows and batches[0]["input_ids"][1].tolist() == [50, 1, 2, 98, 98]
    assert [*chain(*ids_of(text([chat, chat[:1]], tokenizer=Chatty(), length=4)))] == [*rows[0], 99, *rows[1], 99]
    with pytest.raises(pf.PruneError, match="line 1 is a chat, but the tokenizer has no apply_chat_template"):
        text(tmp_path / "chats.jsonl", tokenizer=words)


class Forgetful(Chatty):
    """A template that leaves out answers before the last one."""

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> list[int]:
        kept = [m for i, m in enumerate(messages) if m["role"] == "user" or i == len(messages) - 1]
        return super().apply_chat_template(kept, **options)


def fast_tokenizer() -> Any:
    """A tokenizer of transformers with a chat template."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<eos>", "<user>", "<assistant>", "a", "bb", "ccc"])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>", pad_token="<pad>")
    messages = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    fast.chat_template = messages + "{% if add_generation_prompt %}<assistant> {% endif %}"
    return fast


def test_labels_of_answers_alone() -> None:
    chat = [
        {"role": role, "content": text}
        for role, text in zip(["user", "assistant"] * 2, ["a bb", "ccc", "a", "bb a"], strict=True)
    ]
    for tokenizer, tokens in ((Chatty(), [1, 2, 3]), (fast_tokenizer(), [4, 5, 6])):
        a, b, c = tokens
        (batch,) = text([chat, chat[:2]], tokenizer=tokenizer, answers_only=True, pack=False)
        assert batch["labels"].tolist() == [[-100] * 4 + [c] + [-100] * 3 + [b, a], [-100] * 4 + [c] + [-100] * 5]
        assert batch["attention_mask"].sum(1).tolist() == [10, 5]
        (packed,) = text([chat[:2], chat[:2]], tokenizer=tokenizer, answers_only=True, length=6)
        end = tokenizer.eos_token_id
        assert packed["labels"].tolist() == [[-100] * 4 + [c, end]] * 2
        assert packed["input_ids"][0, -2:].tolist() == [c, end]
    with pytest.raises(pf.PruneError, match="writes the first 2 messages in another way than in the whole chat"):
        text([chat], tokenizer=Forgetful(), answers_only=True)
    with pytest.raises(pf.PruneError, match="document 0 is no chat, but answers_only=True needs messages"):
        text(["a"], tokenizer=words, answers_only=True)


def test_sources_that_are_wrong_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    (tmp_path / "broken.jsonl").write_text("{")
    np.save(tmp_path / "float.npy", np.ones(3))
    save_file({"x": torch.ones(3)}, tmp_path / "float.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    for source, options, match in (
        (tmp_path / "none.txt", {}, "there is no file"),
        (
            tmp_path / "bad.jsonl",
            {"tokenizer": words},
            "line 2 has no field 'messages'; did|line 2 has no field 'messages'; known",
        ),
        (tmp_path / "broken.jsonl", {"tokenizer": words}, "line 1 is no JSON"),
        (tmp_path / "float.npy", {}, "must have whole numbers"),
        (tmp_path / "float.safetensors", {}, r"float\.safetensors, x has shape .* must have whole numbers"),
        (tmp_path / "cut.safetensors", {}, "is no array of tokens"),
        (["a"], {}, "document 0 is text; give tokenizer="),
        ([[1.5]], {}, "not a list of whole numbers"),
        ([], {}, "no sequence of tokens"),
        ([[1]], {"length": 0}, "length is 0; it must be 1 or more"),
    ):
        with pytest.raises(pf.PruneError, match=match):
            text(source, **options)


def test_a_pipeline_calibrates_on_them() -> None:
    t, batches = llama(), text(DOCUMENTS, length=6, batch_size=2)
    stats = pf.collect_stats(t.params, batches, spec=t.spec)
    assert {m.count for m in stats.sites.values()} == {batches.tokens}
    small = pf.pipeline(criterion="variance", where=pf.kind("hidden"), ratio=0.25, scope="uniform")(
        t.params, batches, spec=t.spec
    )
    assert pf.perplexity(small.params, batches, spec=small.spec) > 1


# ---- training


def test_token_metrics_of_a_training_are_the_perplexity() -> None:
    from prunefn.train import Setup, evaluate, token_metrics

    t, batches = llama(), text(DOCUMENTS, pack=False, batch_size=2)
    found = evaluate(t.model, Setup([], held_out=batches, metrics=token_metrics(), device="cpu"))
    assert found["perplexity"] == pytest.approx(by_hand(t.model, batches), rel=1e-5)
    assert found["loss"] == pytest.approx(log(found["perplexity"]))


def test_distillation_of_tokens_is_the_mean_over_those_that_count() -> None:
    from prunefn.train.losses import distillation

    student, teacher = torch.randn(2, 8, 12, 64, generator=torch.Generator().manual_seed(0)).unbind()
    labels = torch.arange(8 * 12).reshape(8, 12) % 64
    flat = distillation(student.flatten(0, 1), teacher.flatten(0, 1), labels.flatten())
    assert torch.equal(distillation(student, teacher, labels), flat)
    padded = labels.masked_fill(torch.arange(12) > 5, -100)
    kept = distillation(student[:, :6], teacher[:, :6], labels[:, :6])
    torch.testing.assert_close(distillation(student, teacher, padded), kept)
    with pytest.raises(pf.BatchError, match="labels are classes"):
        distillation(student, teacher, labels[:, 1:])


def test_a_teacher_of_a_language_model_counts_where_there_is_no_padding() -> None:
    from prunefn.train import Distill
    from prunefn.train.objective import BatchLoss
    from prunefn.train.recipe import Recipe

    t, batch = llama(), text(DOCUMENTS[:2], pack=False, batch_size=2)[0]
    teacher = transformers.LlamaForCausalLM(t.model.config).eval()
    loss = BatchLoss(Recipe(), Distill(teacher, alpha=0.25, temperature=1.0), 1, 0)(t.model, batch)
    one, two = (m(**batch).logits.log_softmax(-1) for m in (t.model, teacher))
    kl = ((two - one) * two.exp()).sum(-1)[batch["attention_mask"].bool()].mean()
    torch.testing.assert_close(loss, 0.25 * t.model(**batch).loss + 0.75 * kl)


def test_tokens_of_a_plain_model_train() -> None:
    from prunefn.train import Recipe, Setup, train

    x = torch.randint(0, 4, (8, 12), generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 5))
    done = train(model, Setup([(x, x)], held_out=[(x, x)], device="cpu"), Recipe(epochs=30, lr=0.1))
    assert done.metrics["top1"] == 1.0
    for samples in ([(x[0].float(), 3)], [{"input_ids": x[0]}]):
        with pytest.raises(pf.BatchError, match="the list holds samples"):
            train(model, Setup(samples, device="cpu"), Recipe(epochs=1))


def test_a_single_sample_is_no_batch() -> None:
    t = llama()
    with pytest.raises(pf.BatchError, match=r"a single sample is no batch: write x\[None\]"):
        pf.collect_stats(t.params, [{n: x[0] for n, x in text(DOCUMENTS)[0].items()}], spec=t.spec)
