"""Doors: checks of the arguments of public functions before they run."""

from .batch import check_batch as check_batch
from .batch import check_run as check_run
from .door import check_fields as check_fields
from .door import door as door
