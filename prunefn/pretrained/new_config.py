"""The config of the smaller model, found and checked before anything is written, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..errors import PruneError
from ..modules.fields import HEADS, Field
from ..modules.hf_config_file import CONFIG, config_text
from ..modules.layers import renaming
from ..spec.spec import Spec
from .opened import Opened


def config_of_sizes(opened: Opened, small: Spec, stated: Mapping[Field, int]) -> str:
    """Return the text of the config at the sizes of a spec.

    Args:
        opened: the dense model.
        small: its spec at the new sizes.
        stated: fields of the config that a target states.

    Raises:
        PruneError: no config has these sizes, or its class would compute something else; says why.
    """
    try:
        text = config_text(opened.folder / CONFIG, small, stated)
    except PruneError as error:
        raise PruneError(f"{error}{_width_hint(opened, small, stated)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PruneError(f"the config of {opened.folder} cannot be edited: {error}") from error
    _check_tables(opened, small, text, renaming(opened.model, small))
    return text


def _width_hint(opened: Opened, small: Spec, stated: Mapping[Field, int]) -> str:
    """Return a hint if heads would be narrower, of whose width most classes compute a scale or a table; else nothing."""
    dense = opened.spec
    if not any(
        g.kind == "head_dim" and small.sizes.get(g.name, 0) < dense.sizes[g.name] for g in dense.groups.values()
    ):
        return ""
    counts = {n: k for n, k in vars(opened.config).items() if HEADS.search(n) and type(k) is int}
    ways = [(n, f.get(opened.config)) for f, n in stated.items() if not HEADS.search(f.name)]
    numbers = [[f"{c}={k * n // now}" for c, k in counts.items() if now and k * n % now == 0] for n, now in ways]
    fitting = next((", ".join(texts) for texts in numbers if len(texts) == len(counts)), "")
    return (
        "; heads would be narrower, and classes compute scales and tables of their width: give fewer heads, too, so that it stays"
        + (f", such as {fitting}" if fitting else "")
    )


def _check_tables(opened: Opened, small: Spec, text: str, rename: Callable[[str], str]) -> None:
    """Check that the tables and scales that no file has are those of the smaller class.

    Raises:
        PruneError: the class computes another number for its new sizes.
    """
    model = opened.model_of(text, tables=True)
    for name, path in small.constants.sources.items():
        value: object = model
        for part in rename(path).split("."):
            value = getattr(value, part, None)
        kept = small.constants.tensors[name]
        if (
            isinstance(value, Tensor)
            and not value.is_meta
            and value.shape == kept.shape
            and not _are_close(value, kept)
        ):
            at = int((value.double() - kept.double()).abs().flatten().argmax())
            raise PruneError(
                f"{opened.cls.__name__} computes {path!r} from its sizes: {float(value.flatten()[at]):.4g} at the new ones, "
                f"{float(kept.flatten()[at]):.4g} at the present ones, so that no config gives a class that computes what the pruned model "
                "computes; leave the size that it depends on as it is"
            )


def _are_close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=1e-6, atol=1e-9, equal_nan=True)
