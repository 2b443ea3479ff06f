"""Criteria: values that say how units are scored; higher = keep. One idea a file."""

from .magnitude import magnitude
from .random import random
from .variance import variance

__all__ = ["magnitude", "random", "variance"]
