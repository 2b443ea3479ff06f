"""SVG pictures: text that shows when the pointer rests on a part, and a form that a page of HTML can hold, light and dark."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from html import escape

TAGS = frozenset(("svg", "g", "defs", "path", "use", "text", "tspan", "title", "clipPath", "rect", "circle", "line"))
"""Elements that draw, and that load and run nothing."""
DROPPED = frozenset(("xmlns", "version"))


def titled(svg: str, titles: Mapping[str, str]) -> str:
    """Give groups a text that browsers show when the pointer rests on them.

    Args:
        svg: as matplotlib writes it.
        titles: id of a `<g>` → its text.

    >>> titled('<svg><g id="a"><path/></g></svg>', {"a": "1 < 2"})
    '<svg><g id="a"><title>1 &lt; 2</title><path/></g></svg>'
    """

    def add(found: re.Match[str]) -> str:
        text = titles.get(found[1])
        return found[0] if text is None else f"{found[0]}<title>{escape(text, quote=False)}</title>"

    through = "text{pointer-events:none}</style>"  # words over a box do not hide it from the pointer
    return re.sub(r'<g id="([^"]*)">\s*', add, svg).replace("</style>", through, 1)


def inline(svg: str, colours: Mapping[str, str]) -> str:
    """The picture as a part of a page: elements that draw and nothing else, no addresses, colours as the page has them.

    Args:
        svg: a file's content.
        colours: `#rrggbb`, in lower case → what CSS shall have for it, such as `var(--ink)`.

    Raises:
        xml.etree.ElementTree.ParseError: it is no XML.

    >>> inline('<svg><script>x</script><path style="fill: #222222" onclick="x"/></svg>', {"#222222": "var(--ink)"})
    '<svg stroke-linejoin="round"><path style="fill: var(--ink)" /></svg>'
    """
    root = _clean(ET.fromstring(svg), colours)
    root.set("stroke-linejoin", "round")
    return ET.tostring(root, "unicode")


def _clean(old: ET.Element, colours: Mapping[str, str]) -> ET.Element:
    new = ET.Element(_local(old.tag))
    new.text, new.tail = old.text, old.tail
    for key, value in old.attrib.items():
        name = _local(key)
        loads = (name == "href" and not value.startswith("#")) or re.search(r"url\((?!#)|//|javascript:", value)
        if not (loads or name in DROPPED or name.startswith("on")):
            new.set(
                name, re.sub("#[0-9a-f]{6}", lambda m: colours.get(m[0], m[0]), value) if name == "style" else value
            )
    new.extend(_clean(child, colours) for child in old if _local(child.tag) in TAGS)
    return new


def _local(name: object) -> str:
    """A name without its namespace; comments have none."""
    return name.rpartition("}")[2] if isinstance(name, str) else ""
