"""A spec as a notebook shows it."""

from __future__ import annotations

from html import escape
from importlib.util import find_spec

from .data import SpecData
from .picture import svg_text, themed
from .views import table

MOST_DRAWN = 120
"""Groups of the largest spec that a notebook shows as a picture."""
PAGE_COLOURS = "; ".join(
    (
        "--ink: var(--jp-content-font-color1, var(--vscode-editor-foreground, currentColor))",
        "--soft: color-mix(in srgb, var(--ink) 60%, transparent)",
        "--paper: var(--jp-layout-color0, var(--vscode-editor-background, transparent))",
    )
)
"""Colours of the page that a notebook is shown in, light or dark: JupyterLab's, VS Code's, or those of its text."""


def in_notebook(spec: SpecData) -> str:
    """Return HTML that shows a spec in a notebook: its picture; its table where it is large or matplotlib is not installed."""
    if not 0 < len(spec.groups) <= MOST_DRAWN or find_spec("matplotlib") is None:
        return f'<pre style="overflow-x:auto">{escape(table(spec))}</pre>'
    drawn = themed(svg_text(spec)).replace("<svg ", '<svg style="max-width:100%;height:auto" ', 1)
    return f'<div style="{PAGE_COLOURS}">{drawn}</div>'
