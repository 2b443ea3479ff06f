"""Training around pruning: pure losses and schedules, and the state of optimizers."""

from . import losses, schedule

__all__ = ["losses", "schedule"]
