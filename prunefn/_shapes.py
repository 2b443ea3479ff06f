"""Shapes in signatures, checked by jaxtyping and beartype in the tests; elsewhere they are plain tensors.

`Float[Tensor, "units k"]` is a floating tensor of two dims; a name that occurs twice in a signature is the same size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64
else:
    try:
        from jaxtyping import Bool, Float, Int64
    except ImportError:  # not installed for users

        class _Plain:
            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Int64 = _Plain

__all__ = ["Bool", "Float", "Int64"]
