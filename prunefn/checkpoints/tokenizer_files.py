"""Tokenizers with fewer entries: the files of transformers and tokenizers, rewritten for the ids that a vocabulary keeps.

`tokenizer.json` with a model of WordPiece, WordLevel, BPE or Unigram, and the older `vocab.txt`, `vocab.json` and `merges.txt`
are JSON and text, so that no library is needed. A text whose tokens are all kept gets the same tokens as before, with new ids.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..doors import door
from ..errors import PruneError
from ..files import atomic

WHOLE, CONFIG = "tokenizer.json", "tokenizer_config.json"
LINES, TABLE, MERGES, ADDED = "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json"
SAME = ("special_tokens_map.json", "chat_template.jinja", "chat_template.json")
"""Files that name tokens by their text, which stay as they are."""

Ids = Mapping[int, int]
"""Id that is kept → its new id."""


@door
def shrink_tokenizer(src: str | os.PathLike[str], dst: str | os.PathLike[str], kept: Tensor) -> tuple[Path, ...]:
    """Write the tokenizer of a folder with fewer entries, for a model whose vocabulary lost tokens.

    For BPE, merges whose parts or result were removed go. A token whose parts were removed could not be reached any more, and
    without an unknown token a character that was removed would be lost without a word: such ids are refused, and
    `needed_tokens` adds what is lacking.

    Args:
        src: a folder as `save_pretrained` writes it, with `tokenizer.json` (WordPiece, WordLevel, BPE, Unigram) or `vocab.txt`, or
            `vocab.json` with `merges.txt`.
        dst: another folder; it is created if it does not exist, and its tokenizer files are replaced.
        kept: ids that stay, in ascending order: `pf.kept(mask, spec)[group]`.

    Returns:
        The files that were written. A binary `*.model` of sentencepiece is left out, since it would have the old ids.

    Raises:
        PruneError: the folder has no such tokenizer; a special token, or one that others need, was removed; names it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "vocab.txt").write_text("[PAD]\\n[UNK]\\nthe\\ncat\\n##s\\n")
    ...     (file,) = shrink_tokenizer(folder, f"{folder}/small", torch.tensor([0, 1, 3, 4]))
    ...     file.read_text().split()
    ['[PAD]', '[UNK]', 'cat', '##s']
    """
    source, target, ids = Path(src), Path(dst), _read_ids(kept)
    if target.resolve() == source.resolve():
        raise PruneError(f"{target} is the folder of the source; give another")
    texts = dict(_written(source, ids))
    if not texts.keys() & {WHOLE, LINES, TABLE}:
        raise PruneError(
            f"{source} has no {WHOLE}, {LINES} or {TABLE}; other tokenizers, such as a sentencepiece model, are not read"
        )
    target.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        atomic.write_text(target / name, text)
    return tuple(target / name for name in texts)


@door
def needed_tokens(src: str | os.PathLike[str], kept: Tensor) -> Tensor:
    """Return the ids that must stay in the tokenizer of a folder so that these can: int64, ascending.

    They are the ids themselves, special tokens, the unknown token, for BPE the parts of all merges that lead to a kept token, and,
    where there is no unknown token, all single characters.

    Args:
        src: as in `shrink_tokenizer`.
        kept: ids that should stay.

    Raises:
        PruneError: the folder has no tokenizer that is read.

    >>> import tempfile
    >>> model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "abb": 3}, "merges": [["a", "b"], ["ab", "b"]], "unk_token": None}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "tokenizer.json").write_text(json.dumps({"model": model}))
    ...     needed_tokens(folder, torch.tensor([3]))
    tensor([0, 1, 2, 3])
    """
    source, ids = Path(src), set(_read_ids(kept))
    if (source / WHOLE).exists():
        whole = _read(source / WHOLE)
        ids |= _needed(whole["model"], ids) | _named(whole).keys()
        ids |= _needed(whole["model"], ids)
    elif (source / TABLE).exists():
        ids |= _needed(_table_model(source), ids)
    elif (source / LINES).exists():
        ids |= _specials(_lines(source)).keys()
    else:
        raise PruneError(f"{source} has no {WHOLE}, {LINES} or {TABLE}")
    return torch.tensor(sorted(ids))


def _read_ids(kept: Tensor) -> dict[int, int]:
    """Return id → new id.

    Raises:
        PruneError: they are no integers in ascending order.
    """
    if (
        kept.dtype not in (torch.int64, torch.int32)
        or kept.ndim != 1
        or bool((kept.diff() <= 0).any())
        or not len(kept)
    ):
        raise PruneError(
            "kept must be the ids that stay, integers in ascending order: pf.kept(mask, spec)['….vocabulary']"
        )
    return {old: new for new, old in enumerate(kept.tolist())}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _lines(source: Path) -> list[str]:
    return (source / LINES).read_text(encoding="utf-8").rstrip("\n").split("\n")


def _specials(lines: list[str]) -> dict[int, str]:
    """Return the special tokens of a `vocab.txt`: those in brackets, but not the `[unused7]` of BERT."""
    return {n: t for n, t in enumerate(lines) if t[:1] == "[" and t[-1:] == "]" and len(t) > 2 and "unused" not in t}


def _written(source: Path, ids: Ids) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of each file of the smaller tokenizer."""
    if (source / WHOLE).exists():
        yield WHOLE, json.dumps(_whole(_read(source / WHOLE), ids), indent=2, ensure_ascii=False)
    if (source / LINES).exists():
        lines = _lines(source)
        if not (source / WHOLE).exists():
            _check_named(_specials(lines), ids)
        yield LINES, "".join(f"{lines[n]}\n" for n in ids if n < len(lines))
    if (source / TABLE).exists():
        model = _bpe(_table_model(source), ids)
        yield TABLE, json.dumps(model["vocab"], ensure_ascii=False)
        yield MERGES, "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"])
    if (source / ADDED).exists():
        yield ADDED, json.dumps(_vocab(_read(source / ADDED), ids), indent=2, ensure_ascii=False)
    if (source / CONFIG).exists():
        config = _read(source / CONFIG)
        if "added_tokens_decoder" in config:
            decoder = {int(n): token for n, token in config["added_tokens_decoder"].items()}
            _check_named({n: token.get("content", "") for n, token in decoder.items() if token.get("special")}, ids)
            config["added_tokens_decoder"] = {str(ids[n]): token for n, token in decoder.items() if n in ids}
        yield CONFIG, json.dumps(config, indent=2, ensure_ascii=False)
    yield from ((name, (source / name).read_text(encoding="utf-8")) for name in SAME if (source / name).exists())


# ---- tokenizer.json


def _whole(whole: dict[str, Any], ids: Ids) -> dict[str, Any]:
    """Return the contents of a `tokenizer.json` with fewer entries."""
    _check_named(_named(whole), ids)
    model = whole["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "WordPiece")
    if kind not in MODELS:
        raise PruneError(f"a tokenizer of model {kind!r} is not read; these are: {', '.join(MODELS)}")
    small = {**whole, "model": MODELS[kind](model, ids)}
    added = [{**t, "id": ids[t["id"]]} for t in whole.get("added_tokens") or [] if t["id"] in ids]
    small["added_tokens"] = sorted(added, key=lambda t: t["id"])
    if whole.get("post_processor"):
        small["post_processor"] = _processor(whole["post_processor"], ids)
    if whole.get("padding"):
        small["padding"] = {**whole["padding"], "pad_id": ids[whole["padding"]["pad_id"]]}
    return small


def _named(whole: Mapping[str, Any]) -> dict[int, str]:
    """Return the ids that other parts of a tokenizer name: special and unknown tokens, padding, templates."""
    model, named = whole["model"], {}
    if isinstance(model["vocab"], dict) and model.get("unk_token") in model["vocab"]:
        named[model["vocab"][model["unk_token"]]] = model["unk_token"]
    if model.get("unk_id") is not None:
        named[model["unk_id"]] = "the unknown token"
    named |= {t["id"]: t["content"] for t in whole.get("added_tokens") or [] if t.get("special")}
    if whole.get("padding"):
        named[whole["padding"]["pad_id"]] = whole["padding"].get("pad_token", "padding")
    _processor(whole.get("post_processor") or {}, _Recorder(named))
    return named


class _Recorder(dict[int, int]):
    """A mapping from each id to itself that writes down which ids are read."""

    def __init__(self, read: dict[int, str]) -> None:
        super().__init__()
        self.read = read

    def __missing__(self, n: int) -> int:
        self.read.setdefault(n, "a token that is added to every text")
        return n


def _processor(processor: Mapping[str, Any], ids: Ids) -> dict[str, Any]:
    """Return a post-processor with new ids: templates, pairs of a token and its id, or a sequence of processors."""
    small = dict(processor)
    if "processors" in small:
        small["processors"] = [_processor(p, ids) for p in small["processors"]]
    for key in ("sep", "cls"):
        if isinstance(small.get(key), list | tuple):
            small[key] = [small[key][0], ids[small[key][1]]]
    if isinstance(small.get("special_tokens"), dict):
        tokens = small["special_tokens"].items()
        small["special_tokens"] = {name: {**t, "ids": [ids[n] for n in t["ids"]]} for name, t in tokens}
    return small


def _check_named(named: Mapping[int, str], ids: Ids) -> None:
    """Check that tokens which the tokenizer itself names are kept.

    Raises:
        PruneError: one was removed.
    """
    for n, text in named.items():
        if n not in ids:
            raise PruneError(
                f"token {n} ({text}) is a special token of the tokenizer: keep it, as pf.needed_tokens says"
            )


# ---- models


def _vocab(vocab: Mapping[str, int], ids: Ids) -> dict[str, int]:
    """Return token → new id, in the order of ids."""
    return {token: ids[n] for token, n in sorted(vocab.items(), key=lambda item: item[1]) if n in ids}


def _words(model: Mapping[str, Any], ids: Ids) -> dict[str, Any]:
    return {**model, "vocab": _vocab(model["vocab"], ids)}


def _unigram(model: Mapping[str, Any], ids: Ids) -> dict[str, Any]:
    _check_needed(model, ids)
    small = {**model, "vocab": [model["vocab"][n] for n in ids if n < len(model["vocab"])]}
    return small if model.get("unk_id") is None else {**small, "unk_id": ids[model["unk_id"]]}


def _bpe(model: Mapping[str, Any], ids: Ids) -> dict[str, Any]:
    _check_needed(model, ids)
    vocab = _vocab(model["vocab"], ids)
    prefix = model.get("continuing_subword_prefix") or ""
    pairs = zip(model["merges"], map(_pair, model["merges"]), strict=True)
    return {**model, "vocab": vocab, "merges": [m for m, p in pairs if {*p, _joined(p, prefix)} <= vocab.keys()]}


MODELS: dict[str, Callable[[Mapping[str, Any], Ids], dict[str, Any]]] = {
    "WordPiece": _words,
    "WordLevel": _words,
    "BPE": _bpe,
    "Unigram": _unigram,
}


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """Return the two parts of a merge, which older files write as one text."""
    a, b = merge.split(" ") if isinstance(merge, str) else merge
    return a, b


def _joined(pair: tuple[str, str], prefix: str) -> str:
    return pair[0] + pair[1].removeprefix(prefix)


def _table_model(source: Path) -> dict[str, Any]:
    """Return the BPE model of `vocab.json` and `merges.txt`."""
    lines = (source / MERGES).read_text(encoding="utf-8").split("\n")
    merges = [list(_pair(line)) for line in lines if line and not line.startswith("#version")]
    return {"type": "BPE", "vocab": _read(source / TABLE), "merges": merges, "unk_token": None}


def _needed(model: Mapping[str, Any], kept: set[int]) -> set[int]:
    """Return the ids that a model needs so that these can be reached, and so that no character is lost."""
    vocab = model["vocab"]
    if not isinstance(vocab, dict):  # Unigram
        tokens = [token for token, _ in vocab]
        fallback = [n for n, t in enumerate(tokens) if _is_byte(t)] if model.get("byte_fallback") else []
        alphabet = [n for n, t in enumerate(tokens) if len(t) == 1] if model.get("unk_id") is None else []
        return {*fallback, *alphabet}
    prefix, parts = model.get("continuing_subword_prefix") or "", dict[str, set[str]]()
    for pair in map(_pair, model.get("merges", ())):
        parts.setdefault(_joined(pair, prefix), set()).update(pair)
    token_of = {n: token for token, n in vocab.items()}
    todo = [token_of[n] for n in kept if n in token_of]
    if (model.get("type") == "BPE" or parts) and (model.get("unk_token") is None or model.get("byte_fallback")):
        suffix = model.get("end_of_word_suffix") or ""
        alphabet = (t for t in vocab if t not in parts and len(t.removeprefix(prefix).removesuffix(suffix)) == 1)
        todo += [*alphabet, *(t for t in vocab if _is_byte(t))]
    needed = set[str]()
    while todo:
        token = todo.pop()
        if token not in needed:
            needed.add(token)
            todo += parts.get(token, ())
    return {vocab[token] for token in needed if token in vocab}


def _is_byte(token: str) -> bool:
    """Return whether a token stands for a byte: `<0x0A>`."""
    return token.startswith("<0x") and token.endswith(">")


def _check_needed(model: Mapping[str, Any], ids: Ids) -> None:
    """Check that all tokens are there which the kept ones need.

    Raises:
        PruneError: one was removed; names it.
    """
    if lacking := sorted(_needed(model, set(ids)) - ids.keys()):
        vocab = model["vocab"]
        token = (
            next(t for t, n in vocab.items() if n == lacking[0]) if isinstance(vocab, dict) else vocab[lacking[0]][0]
        )
        raise PruneError(
            f"token {lacking[0]} ({token!r}) and {len(lacking) - 1} others were removed, but kept tokens are merged from them, or a "
            "text may need them as single characters; keep pf.needed_tokens(src, kept)"
        )
