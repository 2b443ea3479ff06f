"""JSON files whose every bit is accounted for: a hash of the file stands in its first entry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from . import atomic

BLANK = "0" * 64


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object with its seal, whole or not at all.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_sealed(Path(folder, "a"), {"x": 1})
    ...     read_sealed(Path(folder, "a"))
    {'x': 1}
    """
    blank = json.dumps({"seal": BLANK, **content}, indent=0)
    atomic.write_text(path, blank.replace(BLANK, _hash(blank.encode()), 1))


def read_sealed(path: Path) -> dict[str, Any]:
    """Return what `write_sealed` wrote.

    Raises:
        ValueError: a bit has changed, or there is no seal; says which, and leaves it to the caller to name the file.
    """
    raw = path.read_bytes()
    found = json.loads(raw.decode())
    if not isinstance(found, dict) or not isinstance(seal := found.pop("seal", None), str) or len(seal) != len(BLANK):
        raise ValueError("it has no seal")
    if _hash(raw.replace(seal.encode(), BLANK.encode(), 1)) != seal:
        raise ValueError("its bytes are not those that its seal was put on")
    return found


def _hash(data: bytes) -> str:
    return blake2b(data, digest_size=32).hexdigest()
