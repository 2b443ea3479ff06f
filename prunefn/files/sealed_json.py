"""JSON files with a seal: the first entry is a hash of the file, which detects every changed bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..errors import FormatError
from . import atomic

BLANK = "0" * 64
"""Placeholder of the seal while the hash is computed."""


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object with its seal; the file gets its name only when it is complete.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_sealed(Path(folder, "a"), {"x": 1})
    ...     read_sealed(Path(folder, "a"))
    {'x': 1}
    """
    blank = json.dumps({"seal": BLANK, **content}, indent=0)
    atomic.write_text(path, blank.replace(BLANK, _hash(blank.encode()), 1))


def read_sealed(path: Path) -> dict[str, Any]:
    """Return the object that `write_sealed` wrote.

    Raises:
        FormatError: a bit has changed, or the file has no seal; the caller adds the name of the file.
    """
    raw = path.read_bytes()
    content = json.loads(raw.decode())
    seal = content.pop("seal", None) if isinstance(content, dict) else None
    if not isinstance(seal, str) or len(seal) != len(BLANK):
        raise FormatError("it has no seal")
    if _hash(raw.replace(seal.encode(), BLANK.encode(), 1)) != seal:
        raise FormatError("its bytes do not match its seal: some of them have changed")
    return content


def _hash(data: bytes) -> str:
    """Return the BLAKE2b hash of the bytes, as 64 hexadecimal digits."""
    return blake2b(data, digest_size=32).hexdigest()
