"""Training around pruning: pure losses and schedules, and the state of optimizers."""

from . import losses, optimizer, schedule

__all__ = ["losses", "optimizer", "schedule"]
