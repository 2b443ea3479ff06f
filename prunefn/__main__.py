"""`python -m prunefn`, for torchrun."""

from .cli import app

app()
