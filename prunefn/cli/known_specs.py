"""Specs of named models on disk, so that only the first command that needs one traces."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import spec as specs
from .. import tracing
from .._version import __version__
from ..checkpoints.spec_file import load_spec, save_spec
from ..errors import PruneError
from ..files.cache import folder_of
from ..files.tensors import bytes_of
from ..spec.spec import Spec

MOST = 64
"""Number of specs that are kept; the ones that were used last stay."""


def known_spec(
    origin: Iterable[str],
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    options: Mapping[str, Any],
    trace: Callable[..., Spec],
) -> Spec:
    """Return the spec of a model; if there is none on disk, trace and keep it, unless the model had to be recorded.

    A file that cannot be read, and a folder that cannot be written to, cost a trace and nothing else.

    Args:
        origin: what built the model, of `origin_of`; if it is empty, nothing is kept.
        model: in the mode in which it is traced.
        inputs: of the trace.
        options: of the trace.
        trace: takes the options.
    """
    if not origin:
        return trace(**options)
    path = folder_of(None, "specs") / f"{_key(origin, model, inputs, options)}.safetensors"
    try:
        spec = load_spec(path)
        os.utime(path)
    except (OSError, PruneError):
        spec = trace(**options)
        if spec.capture == "exported":
            _keep(spec, path)
    return spec


def _keep(spec: Spec, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_spec(spec, path)
        files = sorted(path.parent.glob("*.safetensors"), key=lambda f: f.stat().st_mtime)
        for old in files[:-MOST]:
            old.unlink(missing_ok=True)
    except (OSError, PruneError):
        return


def _key(origin: Iterable[str], model: nn.Module, inputs: Mapping[str, Tensor], options: Mapping[str, Any]) -> str:
    """Return a hash of all that a spec depends on."""
    digest = blake2b(digest_size=16)
    persistent = model.state_dict(keep_vars=True)
    hidden = {n: t for n, t in model.named_buffers() if n not in persistent}
    whole = {
        n: t for n, t in {**hidden, **inputs}.items() if not t.is_meta and (n in hidden or not t.is_floating_point())
    }
    described = {
        "origin": list(origin),
        "state": {n: [list(t.shape), str(t.dtype), t.requires_grad] for n, t in persistent.items()},
        "inputs": {n: [list(t.shape), str(t.dtype)] for n, t in inputs.items()},
        "options": {k: repr(v) for k, v in options.items()},
        "versions": [__version__, *map(_version, ("torch", "torchvision", "timm", "transformers"))],
        "rules": _sources(),
        "values": list(whole),
    }
    digest.update(json.dumps(described, sort_keys=True).encode())
    for t in whole.values():
        digest.update(bytes_of(t))
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _sources() -> list[list[Any]]:
    """Return names, sizes and times of the files that make specs: a development version keeps its number while they change."""
    folders = [Path(p) for room in (specs, tracing) for p in room.__path__]
    files = sorted(f for folder in folders for f in folder.rglob("*.py"))
    return [[f.name, (s := f.stat()).st_size, s.st_mtime_ns] for f in files]


def origin_of(name: str, options: Any, seed: int, checkpoint: str | os.PathLike[str] | None) -> tuple[str, ...]:
    """Return what a model is built from; empty for a function, whose code may depend on anything.

    >>> origin_of("timm/vit_tiny_patch16_224", {}, 0, None), origin_of("nets.py:net", {}, 0, None)
    (('timm/vit_tiny_patch16_224', '{}', '0'), ())
    """
    if ":" in name:
        return ()
    files = [*([name] if Path(name).is_dir() else []), *([] if checkpoint is None else [checkpoint])]
    return name, repr(options), str(seed), *map(_identity, files)


def _identity(path: str | os.PathLike[str]) -> str:
    """Return the place, size and time of a file, or of the files in a folder."""
    root = Path(path)
    files = sorted(f for f in root.rglob("*") if f.is_file()) if root.is_dir() else [root]
    return json.dumps([[str(f.resolve()), (s := f.stat()).st_size, s.st_mtime_ns] for f in files])
