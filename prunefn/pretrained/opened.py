"""A folder of transformers, opened without its weights: config, class, spec, and params that stay on disk."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._extras import needs
from ..checkpoints.checkpoint import with_ties
from ..errors import ParamsError, PruneError, TraceError, nearest
from ..files.folder import Shard, shards, verify
from ..frozen_dict import FrozenDict
from ..modules.hf_config_file import CONFIG
from ..modules.libraries import TRANSFORMERS, fresh_model
from ..modules.target_outputs import sized_outputs
from ..parameters.transforms import check_names
from ..program.sharded import with_constants
from ..spec.spec import Spec
from ..tracing.api import trace
from ..types import Params
from .conversions import Conversions, conversions, tensors_on_disk, under_model_names

log = logging.getLogger(__name__)


class Opened(NamedTuple):
    """A model in a folder."""

    folder: Path
    files: tuple[Shard, ...]
    """Headers of the files, with the tensors of the model."""
    layout: Conversions
    """How the tensors of the model lie in the files."""
    config: Any
    """Of transformers."""
    cls: Any
    """Class of the model."""
    model: nn.Module
    """On `meta`."""
    spec: Spec
    params: Params
    """On disk; each is read when an op uses it."""
    stored: Mapping[str, Tensor]
    """The same in the types of the files; tied ones once."""
    dtype: torch.dtype
    """In which it is computed, whatever type the files have."""

    def stamp(self) -> list[object]:
        """Return what identifies the folder: names, sizes and times of its files, and its config."""
        stats = [(s.path.name, s.path.stat()) for s in self.files]
        return [[(n, s.st_size, s.st_mtime_ns) for n, s in stats], (self.folder / CONFIG).read_text("utf-8")]

    def model_of(self, text: str, *, tables: bool = False) -> nn.Module:
        """Return a fresh model of the text of a config, on `meta`; on request with values in its buffers."""
        config = type(self.config).from_dict(json.loads(text, object_hook=_special_float))
        if not tables:
            return fresh_model(TRANSFORMERS, self.cls, config)
        with _default_dtype(self.dtype), parameters_on_meta():
            return TRANSFORMERS.build(self.cls, config)


def _special_float(d: dict[str, Any]) -> Any:
    """Return the infinity or NaN that a dict stands for in the JSON of transformers; other dicts unchanged."""
    return float(d["__float__"]) if d.keys() == {"__float__"} else d


def config_of(folder: Path) -> tuple[Any, Any]:
    """Return the config of a folder and the class that it names.

    Raises:
        PruneError: the folder is not that of a model of transformers; says what it lacks.
    """
    with needs("hf", "a folder of transformers"):
        import transformers
    if not (folder / CONFIG).is_file():
        what = "has no config.json" if folder.is_dir() else "is no folder"
        raise PruneError(f"{folder} {what}; give the folder of a model, as save_pretrained writes it or a hub has it")
    try:
        names = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("architectures") or []
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError, AttributeError) as error:
        raise PruneError(f"{folder / CONFIG} is no config of transformers: {str(error)[:300]}") from error
    cls: Any = getattr(transformers, names[0], None) if len(names) == 1 else None
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        known = nearest(names[0], dir(transformers)) if names else ""
        raise PruneError(
            f"{folder / CONFIG} names the class {names or 'of no model'}; it must name one of transformers, such as "
            f'"architectures": ["LlamaForCausalLM"]{known}'
        )
    return config, cls


def open_folder(folder: Path, batches: Sequence[Mapping[str, Tensor]], dtype: torch.dtype) -> Opened:
    """Trace the model of a folder on `meta`, with the shapes of the first batch; its weights stay on disk.

    Raises:
        PruneError: the folder is not that of a model; or the files of tensors do not fit the config.
        TraceError: the program cannot be run on other inputs.
    """
    config, cls = config_of(folder)
    if (method := getattr(config, "quantization_config", None)) is not None:
        name = method.get("quant_method") if isinstance(method, dict) else getattr(method, "quant_method", None)
        raise PruneError(
            f"the tensors of {folder} are quantized ({name or method}), and units of groups that share a scale cannot be removed; load "
            "the model without quantization, save it in bfloat16 by save_pretrained, and prune that folder"
        )
    files = shards(folder)
    verify(files)
    with _default_dtype(dtype):
        model = fresh_model(TRANSFORMERS, cls, config).eval()
    spec = _traced(model, config, batches[0], dtype)
    layout = conversions(model, files)
    if layout.dropped:
        log.info("%s: %s does not load %s", folder, cls.__name__, ", ".join(layout.dropped))
    params = with_ties(tensors_on_disk(files, layout, dtype), spec)
    try:
        check_names(params, spec)
    except ParamsError as error:
        raise ParamsError(f"{folder}: {error}") from error
    named = under_model_names(files, layout)
    return Opened(folder, named, layout, config, cls, model, spec, params, tensors_on_disk(files, layout), dtype)


def with_free_outputs(opened: Opened, batches: Sequence[Mapping[str, Tensor]], sizes: Mapping[str, int]) -> Opened:
    """Return the model with the axes free that fields of its config size, and that are frozen for being outputs alone.

    Raises:
        PruneError: such an axis is no group.
    """
    free = sized_outputs(opened.spec, opened.model, sizes)
    if not free:
        return opened
    try:
        spec = _traced(opened.model, opened.config, batches[0], opened.dtype, free)
    except TraceError as error:
        raise PruneError(f"no pruning gives {', '.join(f'{n}={k}' for n, k in sizes.items())}: {error}") from error
    return opened._replace(spec=spec)


def _traced(
    model: nn.Module,
    config: Any,
    batch: Mapping[str, Tensor],
    dtype: torch.dtype,
    free: Mapping[str, int] = FrozenDict(),
) -> Spec:
    """Trace a model on `meta`, with the shapes of a batch and the tables that its class computes.

    Raises:
        TraceError: the program cannot be run on other inputs.
    """
    with _default_dtype(dtype):
        spec = trace(model, {n: torch.zeros_like(t, device="meta") for n, t in batch.items()}, free=free)
    if spec.capture != "exported":
        raise TraceError(
            f"{type(model).__name__} cannot be exported, so that it cannot be measured: {spec.capture_reason}"
        )
    if any(t.is_meta for t in spec.constants.tensors.values()):
        with _default_dtype(dtype), parameters_on_meta():
            spec = with_constants(spec, TRANSFORMERS.build(type(model), config))
    return spec


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Let modules that are built in the block have their parameters on `meta`, and their buffers as they compute them.

    A rotary table is computed by its module when this is built, and no file has it.
    """
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if param is not None:
            module._parameters[name] = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let modules that are built in the block have parameters of a type; tables that are float32 on purpose stay so."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
