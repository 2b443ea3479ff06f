"""SVG pictures: tooltips on their parts, and a form for HTML pages with a light and a dark theme."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from html import escape

TAGS = frozenset(("svg", "g", "defs", "path", "use", "text", "tspan", "title", "clipPath", "rect", "circle", "line"))
"""Elements that only draw: they neither load nor run anything."""
DROPPED = frozenset(("xmlns", "version"))
"""Attributes that a part of an HTML page does not need."""


def titled(svg: str, titles: Mapping[str, str]) -> str:
    """Give groups a title, which browsers show when the pointer rests on them.

    Args:
        svg: a picture as matplotlib writes it.
        titles: id of a `<g>` → its title.

    >>> titled('<svg><g id="a"><path/></g></svg>', {"a": "1 < 2"})
    '<svg><g id="a"><title>1 &lt; 2</title><path/></g></svg>'
    """

    def add_title(group: re.Match[str]) -> str:
        title = titles.get(group[1])
        return group[0] if title is None else f"{group[0]}<title>{escape(title, quote=False)}</title>"

    style = "text{pointer-events:none}</style>"  # text over a box must not hide the box from the pointer
    return re.sub(r'<g id="([^"]*)">\s*', add_title, svg).replace("</style>", style, 1)


def inline(svg: str, colours: Mapping[str, str]) -> str:
    """Return the picture as a part of an HTML page: drawing elements only, no addresses, colours replaced by those of the page.

    Args:
        svg: content of an SVG file.
        colours: `#rrggbb`, in lower case → its replacement in CSS, such as `var(--ink)`.

    Raises:
        xml.etree.ElementTree.ParseError: `svg` is no XML.

    >>> inline('<svg><script>x</script><path style="fill: #222222" onclick="x"/></svg>', {"#222222": "var(--ink)"})
    '<svg stroke-linejoin="round"><path style="fill: var(--ink)" /></svg>'
    """
    root = _clean(ET.fromstring(svg), colours)
    root.set("stroke-linejoin", "round")
    return ET.tostring(root, "unicode")


def _clean(element: ET.Element, colours: Mapping[str, str]) -> ET.Element:
    """Return a copy of an element without tags and attributes that load or run something, with replaced colours."""
    copy = ET.Element(_local_name(element.tag))
    copy.text, copy.tail = element.text, element.tail
    for key, value in element.attrib.items():
        name = _local_name(key)
        loads = (name == "href" and not value.startswith("#")) or re.search(r"url\((?!#)|//|javascript:", value)
        if loads or name in DROPPED or name.startswith("on"):  # onclick, onload, …
            continue
        if name == "style":
            value = re.sub("#[0-9a-f]{6}", lambda m: colours.get(m[0], m[0]), value)
        copy.set(name, value)
    copy.extend(_clean(child, colours) for child in element if _local_name(child.tag) in TAGS)
    return copy


def _local_name(name: object) -> str:
    """Return a name without its namespace; empty for comments, which have no name."""
    return name.rpartition("}")[2] if isinstance(name, str) else ""
