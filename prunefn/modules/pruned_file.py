"""The metadata of a file of pruned tensors: sizes, masks of every round, attributes, ties, versions."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import FormatError, ParamsError, nearest
from ..files.folder import AGAIN, Shard, read_all, shards, verify
from ..files.tensors import SEAL
from ..parameters.transforms import compose
from ..types import Mask
from .plan import Plan, plan_of

FORMAT = "2"
KIND_MODULE, KIND_PARAMS = "module", "params"


class Content(NamedTuple):
    """The content of a file or state dict."""

    tensors: dict[str, Tensor]
    """Name → tensor; tied names have the same tensor object."""
    kind: str = ""
    """`params`: for the program of a spec; `module`: for a class, which may compute scales itself; empty: unknown."""
    plan: Plan | None = None
    """Attributes of the modules; None if the source does not state them."""
    sizes: Mapping[str, int] | None = None
    """Group → units; None if the source does not state them."""
    masks: tuple[Mask, ...] = ()
    """The mask of every round, each over the units that the round before it left."""
    where: str = "the state dict"
    """The source, as error messages name it."""

    @property
    def mask(self) -> Mask:
        """The masks of all rounds composed into one."""
        return reduce(compose, self.masks, {})


def notes(
    kind: str,
    *,
    plan: Plan | None = None,
    names: Sequence[str] | None = None,
    tied: Mapping[str, str] | None = None,
    sizes: Mapping[str, int] | None = None,
    masks: Sequence[Mask] = (),
) -> dict[str, str]:
    """Return the metadata of a file; `names` is the order of the tensors, tied ones included."""
    from .._version import __version__

    return {
        "format": "pt",  # for readers of transformers
        "prunefn": FORMAT,
        "kind": kind,
        "versions": json.dumps({"prunefn": __version__, "torch": str(torch.__version__)}),
        "plan": json.dumps(plan),
        "names": json.dumps(None if names is None else list(names)),
        "tied": json.dumps(dict(tied or {})),
        "sizes": json.dumps(None if sizes is None else dict(sizes)),
        "masks": json.dumps([{g: _pack_mask(m) for g, m in mask.items()} for mask in masks]),
    }


def _pack_mask(mask: Tensor) -> list[Any]:
    """Return the number of units and their bits in base64, the first unit in the highest bit."""
    return [len(mask), base64.b64encode(np.packbits(mask.cpu().numpy()).tobytes()).decode()]


def _unpack_mask(units: int, text: str) -> Tensor:
    """Return the mask that `_pack_mask` packed.

    Raises:
        FormatError: the text does not have one bit a unit.
    """
    bits = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if len(bits) != -(-units // 8):
        raise FormatError(f"a mask of {units} units has {len(bits)} bytes")
    return torch.from_numpy(np.unpackbits(bits, count=units).astype(bool))


def read_content(source: str | os.PathLike[str] | Mapping[str, Tensor], *, check: bool = True) -> Content:
    """Return the content of a state dict or of a file.

    Args:
        source: a state dict; a safetensors file, or a folder of them with an index; or a file that `torch.save` wrote.
        check: whether to verify the checksums of files that prunefn wrote.

    Raises:
        ParamsError: the file is damaged or of another kind; names the file and the reason.
    """
    if isinstance(source, Mapping):
        return Content(dict(source), plan=plan_of(source))
    path = Path(source)
    if not path.is_dir() and path.suffix != ".safetensors" and _is_pickle(path):
        return _read_torch_file(path)
    files = shards(path)
    for s in files:
        _check_format(s, files[0])
    if check:
        verify(files)
    tensors = read_all(files)
    if "prunefn" not in files[0].metadata:
        return Content(tensors, where=str(path))
    try:
        return _content_from_metadata(tensors, files[0].metadata, str(path))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ParamsError(f"{path} is damaged: its metadata cannot be read ({error!r:.200}); {AGAIN}") from error


def _check_format(s: Shard, first: Shard) -> None:
    """Raise a ParamsError unless prunefn can read the shard and the same run wrote it and the first."""
    file_format = s.metadata.get("prunefn")
    if file_format is None and SEAL in s.metadata:
        raise ParamsError(f"{s.path} is a file of prunefn that pf.save did not write, or it is damaged; {AGAIN}")
    if file_format not in (None, FORMAT):
        raise ParamsError(f"{s.path} has format {file_format!r}; this version reads format {FORMAT!r}")
    ours = [{k: v for k, v in x.metadata.items() if k != SEAL} for x in (s, first) if "prunefn" in x.metadata]
    if len(ours) == 1 or (ours and ours[0] != ours[1]):
        raise ParamsError(f"{s.path} and {first.path} were written by different runs; {AGAIN}")


def _content_from_metadata(tensors: dict[str, Tensor], metadata: Mapping[str, str], where: str) -> Content:
    """Return the tensors, tied ones included, with everything that the metadata states."""
    plan, sizes = json.loads(metadata["plan"]), json.loads(metadata["sizes"])
    for name, first in json.loads(metadata["tied"]).items():
        tensors[name] = tensors[first]
    if (names := json.loads(metadata["names"])) is not None:
        tensors = {str(n): tensors[n] for n in names}
    return Content(
        tensors,
        metadata["kind"],
        None if plan is None else [(str(p), str(a), tuple(v) if isinstance(v, list) else v) for p, a, v in plan],
        None if sizes is None else {str(g): int(n) for g, n in sizes.items()},
        tuple({g: _unpack_mask(*m) for g, m in mask.items()} for mask in json.loads(metadata["masks"])),
        where,
    )


def _is_pickle(path: Path) -> bool:
    """Return whether a file begins like one of `torch.save`: as a zip, or as the pickle of old versions.

    The first bytes of a safetensors file are the length of its header, which may look like either. After these eight bytes
    its header begins with `{`.
    """
    with path.open("rb") as file:
        head = file.read(9)
    return head[:2] in (b"PK", b"\x80\x02") and head[8:] != b"{"


WRAPPERS = ("model", "state_dict", "model_state_dict", "net")
"""Keys under which training scripts save the state dict."""


def _read_torch_file(path: Path) -> Content:
    """Read a state dict that `torch.save` wrote; `weights_only` admits only tensors and plain containers."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch's reader may raise anything on damaged files
        raise ParamsError(
            f"{path} is damaged, or holds more than tensors, which is not loaded ({type(e).__name__}); {AGAIN}, as safetensors"
        ) from e
    if not _is_state_dict(state):
        inner = {key: state[key] for key in WRAPPERS if isinstance(state, Mapping) and _is_state_dict(state.get(key))}
        if len(inner) != 1:
            raise ParamsError(
                f"{path} holds no state dict (name → tensor), neither at its top level nor under one of {', '.join(WRAPPERS)}; "
                "pass the state dict itself"
            )
        (state,) = inner.values()
    return Content(dict(state), plan=plan_of(state), where=str(path))


def _is_state_dict(value: Any) -> bool:
    """Return whether a value is a mapping of tensors that is not empty."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(t, Tensor) for t in value.values())


def check_masks(masks: Sequence[Mask], sizes: Mapping[str, int], traced: Mapping[str, int]) -> None:
    """Check that the masks of all rounds lead from the traced sizes to these sizes.

    Raises:
        MaskError: a mask does not fit the round before it.
        ParamsError: the sizes differ; names the group and both sizes.
    """
    total = reduce(compose, masks, {})
    if unknown := next((g for g in total if g not in traced), None):
        raise ParamsError(f"the spec has no group {unknown!r}, but the masks have{nearest(unknown, traced)}")
    for g, n in ((g, traced[g]) for g in sizes if g in traced):  # the groups of removed layers are gone
        m = total.get(g)
        units, kept = (n, n) if m is None else (len(m), int(m.sum()))
        if (units, kept) != (n, sizes[g]):
            raise ParamsError(
                f"the masks leave {kept} of {units} units of group {g!r}, but the spec has {sizes[g]} of {n}; give the masks of "
                "every round, the first of them over the traced sizes, and the spec that they led to"
            )
