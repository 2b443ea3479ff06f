"""Save specs to disk and load them, so that a model is traced once."""

from __future__ import annotations

import json
import os

import torch

from .._version import __version__
from ..doors import door
from ..errors import FormatError, TraceError
from ..files import atomic
from ..files.tensors import Reader, check_seal, save_sealed
from ..spec.plain_data import RECORDS, fields_of, from_plain, to_plain
from ..spec.spec import Spec

FORMAT = "spec 1"


@door
def save_spec(spec: Spec, path: str | os.PathLike[str]) -> None:
    """Write a spec, pruned or not, to a new file or over an existing one: JSON and tensors in a sealed safetensors file, no pickle.

    Args:
        spec: of `trace`, or of a pruned network.
        path: the file. A temporary file in the same folder is written first and then renamed, so `path` is never half-written.

    Raises:
        TraceError: the inputs of the trace, or its outputs, hold an object that is no plain data; the message names its class.

    >>> import torch, prunefn as pf, tempfile
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_spec(spec, f"{folder}/spec.safetensors")
    ...     load_spec(f"{folder}/spec.safetensors") == spec
    True
    """
    try:
        plain, tensors = to_plain(spec)
    except FormatError as e:
        raise TraceError(f"the spec cannot be saved: {e}") from e
    content = {"torch": torch.__version__, "fields": _fields(), "spec": plain}
    metadata = {"prunefn": FORMAT, "version": __version__, "header": json.dumps(content, separators=(",", ":"))}
    atomic.write(path, lambda name: save_sealed(name, tensors, metadata))


@door
def load_spec(path: str | os.PathLike[str]) -> Spec:
    """Load a spec that `save_spec` wrote; it equals the saved one. Its constants are on the CPU.

    Nothing of the model is needed. Classes of outputs of transformers, timm and torchvision are imported; those of others, and
    modules that register ops of their own, must be imported before.

    Args:
        path: a file of `save_spec`.

    Raises:
        TraceError: the file is no spec, is damaged, was written by another version of prunefn, or names an op or a class that
            is unknown here.
    """
    try:
        with Reader(path) as file:
            if file.metadata.get("prunefn") != FORMAT:
                raise FormatError(f"its format is {file.metadata.get('prunefn')!r} instead of {FORMAT!r}")
            check_seal(path)
            content = json.loads(file.metadata["header"])
            if content["fields"] != _fields():
                raise FormatError(f"prunefn {file.metadata['version']} wrote it, and specs have changed since")
            return from_plain(content["spec"], file.tensor)
    except FormatError as e:
        raise TraceError(f"{path} cannot be loaded as a spec: {e}; trace the model again") from e
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
        raise TraceError(f"{path} is damaged, or no file of pf.save_spec: {e}; trace the model again") from e


def _fields() -> dict[str, list[str]]:
    """Return the classes of the parts of a spec, each with its fields."""
    return {name: list(fields_of(cls)) for name, cls in sorted(RECORDS.items())}
