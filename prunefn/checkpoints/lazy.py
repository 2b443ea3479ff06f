"""`lazy_params`: params that stay on disk until an op reads them."""

from __future__ import annotations

import os

import torch

from ..doors import door
from ..errors import ParamsError
from ..files.folder import entries_of, shards
from ..files.folder import verify as verify_seals
from ..files.on_disk import OnDisk
from ..modules.hf_config_file import layout_hint
from ..parameters.transforms import check_names
from ..spec.spec import Spec
from ..types import Params
from .checkpoint import with_ties


@door
def lazy_params(
    source: str | os.PathLike[str],
    *,
    spec: Spec,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    verify: bool = True,
) -> Params:
    """Return the params of a checkpoint larger than memory: each is read when an op uses it, and dropped after its last use.

    `collect_stats` and `forward` read a tensor just before the first op that uses it, so that no more than the tensors of that op
    are in memory; each batch reads the whole checkpoint, so make batches large. `apply` and `compensate` read one tensor after
    the other, and the tensors that they change stay in memory; `apply_checkpoint` goes from file to file instead. Every other
    op of torch reads such a tensor each time. Nothing is ever written to the files.

    Args:
        source: safetensors, as for `apply_checkpoint`, at the spec's sizes.
        spec: spec of the checkpoint; it needs no weights: trace a model on `meta`, and give it its tables by
            `sharded.with_constants`.
        dtype: type of all floating-point tensors once they are read; default: the type in the file.
        device: device to read the tensors to.
        verify: whether to check the hashes of files that prunefn wrote, which reads them once.

    Returns:
        Name → tensor on disk; tied names have the same tensor object.

    Raises:
        ParamsError: the checkpoint does not fit the spec, or is damaged; also later, when a tensor is read, if the file has
            changed.

    >>> import tempfile, prunefn as pf
    >>> from safetensors.torch import save_file
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec, x = pf.trace(model, (torch.randn(2, 4),)), torch.randn(8, 4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file(pf.params(model), f"{folder}/large.safetensors")
    ...     params = lazy_params(f"{folder}/large.safetensors", spec=spec)
    ...     stats = pf.collect_stats(params, [x], spec=spec)
    >>> torch.equal(stats.sites["2"].mean, pf.collect_stats(pf.params(model), [x], spec=spec).sites["2"].mean)
    True
    """
    files = shards(source)
    if verify:
        verify_seals(files)
    resolved_device = torch.empty(0, device=device).device
    tensors = {}
    for name, (path, entry) in entries_of(files).items():
        t = OnDisk(path, name, entry, None, resolved_device)
        tensors[name] = OnDisk(path, name, entry, dtype, resolved_device) if dtype and t.is_floating_point() else t
    params = with_ties(tensors, spec)
    try:
        check_names(params, spec)
    except ParamsError as error:
        raise ParamsError(f"{source}: {error}{layout_hint(source)}") from error
    return params
