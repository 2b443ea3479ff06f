"""Build the site of texts, notebooks and API reference into `build/site`: `python -m docs`."""

from __future__ import annotations

import sys

from .build import main

sys.exit(main(sys.argv[1:]))
