"""Refuse code from config files: a file is data, and code must be named or trusted on the command line."""

from __future__ import annotations

from typing import Any

from ..errors import PruneError

CODE = ("trust_remote_code", "auto_map", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")
"""Options of timm and transformers that run code of a folder or hub, or unpickle a file."""
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation")
"""Options of transformers that fetch and run a kernel where their value is the name of a repository."""


def check_trust(name: str, typed: bool, trust: bool) -> None:
    """Refuse `module:function` unless it was typed or trusted.

    Args:
        name: of the model.
        typed: whether the command line has this very text.
        trust: whether `--trust` was given.

    Raises:
        PruneError: it comes from a file; the text states how to allow it.
    """
    if ":" in name and not (typed or trust):
        raise PruneError(
            f"model.name is {name!r} in a config file, and that would run code; a config is data: type the same name on the "
            "command line, or give --trust if you know what it runs"
        )


def check_options(value: Any, where: str = "model.options") -> None:
    """Refuse options by which a library would run code, at any depth; a checkpoint has an option of its own.

    Raises:
        PruneError: there is such an option; names it.
    """
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        at = f"{where}.{key}"
        if key in CODE or (key in KERNELS and isinstance(inner, str) and "/" in inner):
            raise PruneError(
                f"{at} is {inner!r}, by which foreign code could run; leave it out (weights are given by --checkpoint, a "
                "class of your own as module:function)"
            )
        if isinstance(inner, dict | list):
            check_options(inner, at)
