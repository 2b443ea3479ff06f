"""The `save_pretrained` of pruned models of libraries that no config describes: it writes weights and attributes for `load`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import PruneError, warn
from ..files import atomic
from ..files.folder import INDEX, SINGLE
from ..files.tensors import save_sealed
from .fields import ALIKE
from .libraries import Library
from .plan import plan_in
from .pruned_file import KIND_MODULE, notes

DENSE_CONFIG = "dense_config.json"
"""File of the config before pruning: under its usual name, the library would load the weights into wrong sizes."""


def save_with_plan(module: nn.Module, library: Library, why: str, advice: str = ALIKE) -> None:
    """Make `module.save_pretrained` write a file for `prunefn.load`, and warn that the library itself cannot load it.

    Args:
        module: the pruned model.
        library: its library.
        why: reason why no config describes it.
        advice: how to prune so that there may be one.
    """
    module.save_pretrained = _Saver(module, library, why, advice)  # type: ignore[assignment]


def refusal(module: nn.Module) -> str | None:
    """Return why no config describes the module; None if its own config does."""
    saver = vars(module).get("save_pretrained")
    return saver.why if isinstance(saver, _Saver) else None


class _Saver:
    """The `save_pretrained` of one module. A pickle stores the method of its class instead, so it loads without prunefn."""

    def __init__(self, module: nn.Module, library: Library, why: str, advice: str) -> None:
        self.module, self.library, self.why, self.advice = module, library, why, advice

    def __deepcopy__(self, memo: dict[int, Any]) -> _Saver:
        return _Saver(memo.get(id(self.module), self.module), self.library, self.why, self.advice)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.module, "save_pretrained")

    def __call__(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **_: Any,
    ) -> None:
        """Write `model.safetensors` with the attributes of the modules, and the config under another name.

        Args:
            save_directory: folder, which is created if it does not exist.
            is_main_process: whether this process writes.
            state_dict: the tensors to write; default: the module's own.
            push_to_hub: must be False.

        Raises:
            PruneError: `push_to_hub` is True.
        """
        name = type(self.module).__name__
        if push_to_hub:
            raise PruneError(
                "push_to_hub=True needs a config of the model, but no config describes it; save it, and upload the folder"
            )
        if not is_main_process:
            return
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        warn(
            f"{name}.from_pretrained cannot load what is saved in {folder}, since no config of {name} says the sizes of this pruned "
            f"model: {self.why}. Load it by pf.load({name}(config), {str(folder)!r}), with the config of the dense model, which is in "
            f"{DENSE_CONFIG}. {self.advice}",
        )
        _write_checkpoint(self.module, self.library, folder, state_dict)


def _write_checkpoint(module: Any, library: Library, folder: Path, state_dict: Mapping[str, Tensor] | None) -> None:
    """Write the weights, the dense config and the generation config, and remove files of an earlier checkpoint."""
    own = module.state_dict()
    state = own if state_dict is None else dict(state_dict)
    first_names: dict[int, str] = {}
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    tied = {n: first_names[id(t)] for n, t in tensors.items() if n in own and first_names.setdefault(id(t), n) != n}
    state = {**{n: state[first] for n, first in tied.items() if first in state}, **state}
    untied = {n: t for n, t in state.items() if n not in tied}
    metadata = notes(KIND_MODULE, plan=plan_in(module), names=list(state), tied=tied)
    for pattern in ("model-*.safetensors", "diffusion_pytorch_model*", INDEX, "config.json"):
        for path in folder.glob(pattern):
            path.unlink()
    atomic.write(folder / SINGLE, lambda name: save_sealed(name, untied, metadata))
    atomic.write_text(folder / DENSE_CONFIG, library.text(module))
    if library.base.module == "transformers" and module.can_generate() and module.generation_config is not None:
        module.generation_config.save_pretrained(folder)
