"""Tokenizers with fewer entries: texts of kept tokens get the same tokens, and what would be lost without a word is refused."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from pytest import fixture, importorskip, mark, raises

import prunefn as pf

tokenizers = importorskip("tokenizers")
CORPUS = ["low lower lowest", "new newer newest", "wide wider widest slow slower slowest", "the newest low widest"] * 3
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def trained(kind: str):
    """A tiny tokenizer of a kind, with a template that adds special tokens."""
    models, trainers = tokenizers.models, tokenizers.trainers
    model, trainer = {
        "WordPiece": lambda: (
            models.WordPiece(unk_token="[UNK]"),
            trainers.WordPieceTrainer(vocab_size=60, special_tokens=SPECIAL),
        ),
        "BPE": lambda: (models.BPE(unk_token="[UNK]"), trainers.BpeTrainer(vocab_size=50, special_tokens=SPECIAL)),
        "Unigram": lambda: (
            models.Unigram(),
            trainers.UnigramTrainer(vocab_size=40, special_tokens=SPECIAL, unk_token="[UNK]"),
        ),
    }[kind]()
    t = tokenizers.Tokenizer(model)
    t.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    t.train_from_iterator(CORPUS, trainer)
    ids = [(s, t.token_to_id(s)) for s in ("[CLS]", "[SEP]")]
    t.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    t.enable_padding(pad_id=t.token_to_id("[PAD]"), pad_token="[PAD]")
    return t


@fixture(params=["WordPiece", "BPE", "Unigram"])
def folder(request, tmp_path: Path):
    t = trained(request.param)
    (tmp_path / "dense").mkdir()
    t.save(str(tmp_path / "dense" / "tokenizer.json"))
    return t, tmp_path / "dense", tmp_path / "small"


def test_texts_of_kept_tokens_have_the_same_tokens_with_new_ids(folder) -> None:
    dense, src, dst = folder
    text = "lower newest slow"
    used = torch.tensor(sorted(set(dense.encode(text).ids)))
    kept = pf.needed_tokens(src, used)
    assert set(used.tolist()) <= set(kept.tolist()) and len(kept) < dense.get_vocab_size()
    (file,) = pf.shrink_tokenizer(src, dst, kept)
    small = tokenizers.Tokenizer.from_file(str(file))
    assert small.get_vocab_size() == len(kept)
    before, after = dense.encode(text), small.encode(text)
    assert after.tokens == before.tokens
    assert [int(kept[n]) for n in after.ids] == before.ids
    assert [small.token_to_id(t) for t in SPECIAL] == [kept.tolist().index(dense.token_to_id(t)) for t in SPECIAL]
    padded = small.encode_batch(["low", "lower newest slow"])[0]
    assert padded.tokens[-1] == "[PAD]" and padded.ids[-1] == small.token_to_id("[PAD]")
    other = small.encode("widest")  # of tokens that went: other pieces, or the unknown token, but no wrong id
    unknown = small.token_to_id("[UNK]")
    assert all(
        n == (unknown if small.token_to_id(t) is None else small.token_to_id(t))
        for t, n in zip(other.tokens, other.ids, strict=True)
    )


def test_special_tokens_are_refused(folder) -> None:
    dense, src, dst = folder
    without = torch.tensor([n for n in range(dense.get_vocab_size()) if n != dense.token_to_id("[SEP]")])
    with raises(pf.PruneError, match=r"\[SEP\].*special token.*needed_tokens"):
        pf.shrink_tokenizer(src, dst, without)
    assert not dst.exists()


def test_a_token_without_its_parts_is_refused(tmp_path: Path) -> None:
    vocab = {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "bc": 5}
    model = {"type": "BPE", "vocab": vocab, "merges": ["a b", "ab c", "b c"], "unk_token": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    with raises(pf.PruneError, match=r"token 3 \('ab'\).*merged"):
        pf.shrink_tokenizer(tmp_path, tmp_path / "small", torch.tensor([0, 1, 2, 4]))
    with raises(pf.PruneError, match=r"token 2 \('c'\).*single characters"):
        pf.shrink_tokenizer(tmp_path, tmp_path / "small", torch.tensor([0, 1, 3]))
    assert pf.needed_tokens(tmp_path, torch.tensor([4])).tolist() == [0, 1, 2, 3, 4]
    (file,) = pf.shrink_tokenizer(tmp_path, tmp_path / "small", torch.tensor([0, 1, 2, 3, 4]))
    assert json.loads(file.read_text())["model"]["merges"] == ["a b", "ab c"]


def test_older_files(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "<end>": 2, "ab": 3, "ba": 4}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nb a\n")
    config = {"added_tokens_decoder": {"2": {"content": "<end>", "special": True}}, "model_max_length": 8}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    files = pf.shrink_tokenizer(tmp_path, tmp_path / "small", torch.tensor([0, 1, 2, 4]))
    assert [f.name for f in files] == ["vocab.json", "merges.txt", "tokenizer_config.json"]
    assert json.loads(files[0].read_text()) == {"a": 0, "b": 1, "<end>": 2, "ba": 3}
    assert files[1].read_text() == "#version: 0.2\nb a\n"
    assert list(json.loads(files[2].read_text())["added_tokens_decoder"]) == ["2"]
    with raises(pf.PruneError, match="<end>"):
        pf.shrink_tokenizer(tmp_path, tmp_path / "small", torch.tensor([0, 1, 3, 4]))


@mark.parametrize("kept", [[3, 1], [1, 1], []])
def test_ids_are_ascending(tmp_path: Path, kept: list[int]) -> None:
    with raises(pf.PruneError, match="ascending"):
        pf.shrink_tokenizer(tmp_path, tmp_path / "small", torch.tensor(kept, dtype=torch.long))


def test_no_tokenizer(tmp_path: Path) -> None:
    with raises(pf.PruneError, match=r"tokenizer\.json"):
        pf.shrink_tokenizer(tmp_path, tmp_path / "small", torch.tensor([0]))
    with raises(pf.PruneError, match="folder of the source"):
        pf.shrink_tokenizer(tmp_path, tmp_path, torch.tensor([0]))
