"""Transfer of tensors and small objects between the ranks of a process group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import StatsError


class Wire:
    """The ranks of a process group, and the device that their backend sends from."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        kinds = [pair.split(":")[0] for pair in dist.get_backend_config(group).split(",")]
        kind = "cpu" if "cpu" in kinds else kinds[0]
        self.device = torch.device("cpu")
        if kind != "cpu":
            self.device = torch.device(kind, torch.accelerator.current_device_index())

    def name(self, rank: int) -> int:
        """Return the global rank of a rank of the group."""
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    def together(self, action: Callable[[], Any]) -> list[Any]:
        """Return the action's results on all ranks, in order.

        Raises:
            StatsError: on every rank, if the action fails on one.
        """
        own: tuple[Any, str | None]
        cause = None
        try:
            own = action(), None
        except Exception as e:
            own, cause = (None, f"{type(e).__name__}: {e}"), e
        results: list[Any] = [None] * self.size
        dist.all_gather_object(results, own, group=self.group)
        for r, (_, error) in enumerate(results):
            if error is not None:
                raise StatsError(f"rank {self.name(r)} cannot take part: {error}") from cause
        return [value for value, _ in results]

    def send(self, t: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...], source: int) -> Tensor:
        """Send a tensor from the source rank to all, bit-identical; return it on the wire's device.

        Args:
            t: the tensor, on the source; ignored on other ranks.
            dtype, shape: of the tensor, the same on all ranks.
            source: rank in the group.
        """
        if self.rank == source and t is not None:
            out = t.detach().to(self.device, dtype).contiguous()
        else:
            out = torch.empty(shape, dtype=dtype, device=self.device)
        if out.numel():  # sent as bytes: any dtype arrives bit-identical
            dist.broadcast(out.reshape(-1).view(torch.uint8), group=self.group, group_src=source)
        return out
