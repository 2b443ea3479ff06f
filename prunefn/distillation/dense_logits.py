"""The largest logits of the dense network on disk, so that recovery need not run it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..doors import door
from ..errors import BatchError, FormatError, ParamsError, PruneError
from ..files import atomic
from ..files.nest import read_nest, write_nest
from ..files.tensors import SEAL, Reader, check_seal, save_sealed
from ..parameters.transforms import check_names
from ..program.batches import device_of, each, split
from ..program.run import forward_flat
from ..spec.spec import Spec, check_eval_mode, check_runnable
from ..tokens.keys import sample_keys, token_shape
from ..tokens.likelihood import logits_of
from ..tokens.positions import Positions, positions_of
from ..tokens.top import TopLogits, top_of
from ..types import Batch, Params
from .passes import settings_of

FORMAT, KEY, INDEX = 1, "prunefn_logits", "logits.safetensors"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TENSORS = ("values", "indices", "rest")


class Place(NamedTuple):
    """Where the positions of a sample are."""

    file: str
    start: int
    stop: int


class DenseLogits:
    """A folder of `save_logits`: for each sample, the largest logits of the dense network at the positions that count."""

    def __init__(self, folder: Path, content: Mapping[str, Any], places: Mapping[bytes, Place]) -> None:
        self.folder, self.places = folder, places
        self.top_k, self.vocabulary = int(content["top_k"]), int(content["vocabulary"])
        self.temperature = float(content["temperature"])
        self.settings: dict[str, str] = dict(content["settings"])
        """Texts that identify the dense network and the options."""
        self.fingerprint = str(content["fingerprint"])
        """Of the network, the options and the batches."""

    def __repr__(self) -> str:
        positions = sum(p.stop - p.start for p in self.places.values())
        return f"DenseLogits({len(self.places)} samples, {positions} positions, top {self.top_k} of {self.vocabulary} tokens)"

    def read(self, inputs: Mapping[str, Tensor], positions: Positions) -> TopLogits:
        """Return the logits of a batch, [samples, length, top_k]; those of padding are zeros.

        Samples are recognised by their tokens, in batches of any size, order and padding on the right.

        Args:
            inputs: of the program by name.
            positions: that count.

        Raises:
            BatchError: a sample is not in the folder.
        """
        samples, length = token_shape(inputs)
        mask = positions.mask((samples, length))
        counted = torch.ones(samples, length, dtype=torch.bool) if mask is None else mask.cpu()
        found = [self.places.get(key) for key in sample_keys(inputs, positions)]
        if None in found:
            raise BatchError(
                f"{self.folder} has no logits of sample {found.index(None)} of a batch; write them for all batches by pf.save_logits"
            )
        parts = [self._rows(place) for place in found if place is not None]
        out = []
        for tensors in zip(*parts, strict=True):
            rows = torch.cat(tensors)
            whole = rows.new_zeros(samples, length, *rows.shape[1:])
            whole[counted] = rows
            out.append(whole.to(next(iter(inputs.values())).device))
        return TopLogits(out[0], out[1], out[2], self.vocabulary, self.temperature).normalized()

    def _rows(self, place: Place) -> tuple[Tensor, Tensor, Tensor]:
        """Read the values, indices and rests of a sample."""
        with Reader(self.folder / place.file) as file:
            values, indices, rest = (file.rows(name, place.start, place.stop) for name in TENSORS)
        wide = torch.promote_types(values.dtype, torch.float32)
        return values.to(wide), indices.long(), rest.to(wide)


@door
def save_logits(
    params: Params,
    batches: Iterable[Batch],
    folder: str | os.PathLike[str],
    *,
    spec: Spec,
    top_k: int = 64,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float16,
    max_batches: int | None = None,
    save_every: int = 50,
    progress: bool = False,
) -> DenseLogits:
    """Write the largest logits of the dense network for batches of tokens, so that `recover` reads them instead of running it.

    For each position that is no padding, there are the `top_k` largest log-probabilities, their tokens, and the log-probability of
    all other tokens together. An interrupted call resumes after the last finished file. All files are sealed.

    Args:
        params: of the dense network.
        batches: of tokens, as for `recover`.
        folder: where the files go; it is made if its parent exists.
        spec: of the params, traced in eval mode.
        top_k: number of logits of a position, at most the size of the vocabulary.
        temperature: of the probabilities, the same as that of `distances.tokens` later.
        dtype: of the log-probabilities on disk: torch.float16, bfloat16, float32 or float64.
        max_batches: write this many batches.
        save_every: number of batches in a file.
        progress: show a progress bar.

    Raises:
        BatchError: a batch does not fit, or the network has no logits [batch, length, vocabulary].
        PruneError: the folder holds logits of another network, of other options or batches, or is damaged.
        ParamsError, TraceError: the spec was traced in train mode, or recorded.

    >>> import tempfile
    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Embedding(8, 4), torch.nn.Linear(4, 8)).eval()
    >>> tokens = torch.arange(8).reshape(2, 4)
    >>> spec = pf.trace(model, (tokens,))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_logits(pf.params(model), [tokens], folder, spec=spec, top_k=3)
    DenseLogits(2 samples, 8 positions, top 3 of 8 tokens)
    """
    check_names(params, spec)
    check_eval_mode(spec, "save_logits")
    check_runnable(spec)
    if dtype not in DTYPES or top_k < 1 or not temperature > 0 or save_every < 1:
        raise PruneError(
            f"dtype is {dtype}, top_k {top_k}, temperature {temperature} and save_every {save_every}; dtype must be float16, bfloat16, "
            "float32 or float64, temperature above 0, and the others at least 1"
        )
    place = Path(folder)
    if not place.parent.is_dir() or place.is_file():
        raise PruneError(f"folder is {str(folder)!r}; give a folder, which is made, in a folder that exists")
    place.mkdir(exist_ok=True)
    settings = settings_of({"dense": (params, spec)}, top_k=top_k, temperature=temperature, dtype=dtype)
    writer = _Writer(place, settings, top_k, temperature, dtype, save_every)
    for batch in each(batches, max_batches=max_batches, progress=progress, text="logits"):
        writer.add(params, batch, spec)
    writer.finish()
    return load_logits(place)


@door
def load_logits(folder: str | os.PathLike[str]) -> DenseLogits:
    """Open a folder of `save_logits`, for `recover(…, dense=)`. The logits stay on disk; each batch reads its own.

    Raises:
        PruneError: there is no such folder, it is not finished, or a file is damaged or of other logits; names the file.
    """
    place = Path(folder)
    if not (place / INDEX).is_file():
        raise PruneError(f"{place} holds no finished logits (no {INDEX}); write them by pf.save_logits, which resumes")
    try:
        content = read_nest(place / INDEX)
        if content["format"] != FORMAT:
            raise FormatError(f"its format is {content['format']!r} instead of {FORMAT}")
        places: dict[bytes, Place] = {}
        for file, seal in content["files"].items():
            shard = _read_shard(place / file)
            if shard.seal != seal:
                raise FormatError(f"{file} is not the file that was written with it")
            places |= dict(shard.places(file))
    except (ParamsError, FormatError, KeyError, TypeError, OSError) as error:
        raise PruneError(f"{place} is damaged, or holds no logits: {error}; write them again") from error
    return DenseLogits(place, content, places)


# ---- files


class _Shard(NamedTuple):
    """The samples of a file."""

    settings: Mapping[str, str]
    batches: int
    vocabulary: int
    keys: Tensor
    """int64 [samples, 2]."""
    starts: Tensor
    """First position of each sample, and their number: int64 [samples + 1]."""
    seal: str

    def places(self, file: str) -> Iterator[tuple[bytes, Place]]:
        """Yield key → place of each sample."""
        starts = self.starts.tolist()
        for key, start, stop in zip(self.keys, starts, starts[1:], strict=False):
            yield key.numpy().tobytes(), Place(file, start, stop)


def _read_shard(path: Path) -> _Shard:
    """Read what a file holds, without its logits; raise FormatError if it is damaged."""
    check_seal(path)
    with Reader(path) as file:
        head = json.loads(file.metadata[KEY])
        keys, starts = file.tensor("keys"), file.tensor("starts")
        return _Shard(head["settings"], head["batches"], head["vocabulary"], keys, starts, file.metadata[SEAL])


class _Writer:
    """Writes the files of a folder, after those that are there."""

    def __init__(
        self, folder: Path, settings: Mapping[str, str], top_k: int, temperature: float, dtype: torch.dtype, every: int
    ) -> None:
        self.folder, self.settings, self.every = folder, dict(settings), every
        self.top_k, self.temperature, self.dtype = top_k, temperature, dtype
        self.files: dict[str, str] = {}
        self.known: list[bytes] = []
        """Keys of the samples in the files that were there, in order."""
        self.checked = 0
        """Number of these that the batches have repeated."""
        self.digest = blake2b(digest_size=16)
        self.vocabulary = 0
        self.waiting: list[tuple[list[bytes], list[int], TopLogits]] = []
        """Keys, positions of each sample and logits of the batches of the next file."""
        while (path := folder / self._name()).exists():
            self._resume(path)

    def _name(self) -> str:
        return f"part_{len(self.files):05d}.safetensors"

    def _resume(self, path: Path) -> None:
        """Check a file that is there, and count its samples."""
        try:
            shard = _read_shard(path)
        except (FormatError, KeyError, TypeError, ValueError, OSError) as error:
            raise PruneError(f"{path} is damaged, or holds no logits: {error}; delete it") from error
        for name in sorted({*shard.settings, *self.settings}):
            if shard.settings.get(name) != self.settings.get(name):
                raise PruneError(f"{path} holds other logits: {name} differs; use another folder")
        self.files[path.name], self.vocabulary = shard.seal, shard.vocabulary
        self.known += [key for key, _ in shard.places(path.name)]

    def add(self, params: Params, batch: Batch, spec: Spec) -> None:
        """Add a batch; its logits are computed unless a file has them."""
        found = split(batch, spec=spec, device=device_of(params))
        positions = positions_of(batch, found, spec)
        inputs = dict(zip((i.name for i in spec.program.inputs), found.inputs, strict=True))
        keys = sample_keys(inputs, positions)
        self.digest.update(b"".join(keys))
        if self.checked < len(self.known):
            if self.known[self.checked : self.checked + len(keys)] != keys:
                raise PruneError(
                    f"{self.folder} holds logits of other batches; give the same ones in the same order, or another folder"
                )
            self.checked += len(keys)
            return
        with torch.no_grad():
            logits = logits_of(forward_flat(params, found.inputs, spec))
        mask = positions.mask(logits.shape[:2])
        counted = torch.ones(logits.shape[:2], dtype=torch.bool) if mask is None else mask.cpu()
        wide = logits[counted.to(logits.device)].to(torch.promote_types(logits.dtype, torch.float32))
        self.vocabulary = wide.shape[-1]
        self.waiting.append((keys, counted.sum(1).tolist(), top_of(wide, self.top_k, self.temperature)))
        if len(self.waiting) == self.every:
            self._write()

    def _write(self) -> None:
        """Write the waiting batches as a file."""
        tops = [top for _, _, top in self.waiting]
        small = torch.uint16 if self.vocabulary <= 1 << 16 else torch.int32
        sizes = torch.tensor([0, *(n for _, counts, _ in self.waiting for n in counts)])
        keys = b"".join(key for keys, _, _ in self.waiting for key in keys)
        tensors = {
            "values": torch.cat([t.values for t in tops]).to(self.dtype),
            "indices": torch.cat([t.indices for t in tops]).to(small),
            "rest": torch.cat([t.rest for t in tops]).to(torch.promote_types(self.dtype, torch.float32)),
            "keys": torch.frombuffer(bytearray(keys), dtype=torch.int64).reshape(-1, 2),
            "starts": sizes.cumsum(0),
        }
        head = {"settings": self.settings, "batches": len(self.waiting), "vocabulary": self.vocabulary}
        path = self.folder / self._name()
        atomic.write(path, lambda name: save_sealed(name, tensors, {KEY: json.dumps(head)}))
        with Reader(path) as file:
            self.files[path.name] = file.metadata[SEAL]
        self.waiting = []

    def finish(self) -> None:
        """Write what is waiting, and the index that makes the folder complete."""
        if self.checked < len(self.known):
            raise PruneError(
                f"{self.folder} holds logits of more batches; give the same ones in the same order, or another folder"
            )
        if self.waiting:
            self._write()
        self.digest.update(json.dumps(self.settings, sort_keys=True).encode())
        content = {
            "format": FORMAT,
            "settings": self.settings,
            "top_k": self.top_k,
            "temperature": self.temperature,
            "vocabulary": self.vocabulary,
            "fingerprint": self.digest.hexdigest(),
            "files": self.files,
        }
        atomic.write(self.folder / INDEX, lambda name: write_nest(name, content))
