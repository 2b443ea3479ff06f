"""Local links of built pages that lead nowhere."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

IGNORED = ("404.html",)
"""Pages whose links are relative to any address."""


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag refers to, and what may be referred to."""
        for name, value in attrs:
            if value and (name == "id" or (tag == "a" and name == "name")):
                self.anchors.add(value)
            elif value and name in ("href", "src"):
                self.links.append(value)


def dead_links(site: Path) -> list[tuple[str, str]]:
    """Return (page, link) for each link to a file or an anchor that the site does not have."""
    pages = {p: _read(p) for p in sorted(site.rglob("*.html"))}
    dead = []
    for path, page in pages.items():
        if path.relative_to(site).as_posix() in IGNORED:
            continue
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            missing = (
                anchor and target in pages and anchor not in pages[target].anchors | {"__consent", "__skip", "__toc"}
            )
            if not target.exists() or missing:
                dead.append((path.relative_to(site).as_posix(), link))
    return dead


def _read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page
