"""From the repository's texts, notebooks and docstrings to a site.

The pages are staged in the same tree as in the repository, so that links between them hold in both places. Links to source files,
which the site does not have, become links to the reference or plain text. Warnings are errors, and all local links are checked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from . import api
from .links import dead_links

ROOT = Path(__file__).parents[1]
STAGE, SITE = ROOT / "build" / "pages", ROOT / "build" / "site"
TEXTS = (
    "README.md",
    "CHANGELOG.md",
    "docs/*.md",
    "docs/*.svg",
    "docs/*.css",
    "notebooks/**/*.md",
    "notebooks/**/*.ipynb",
    "bench/README.md",
)
RESULTS = ("bench/results/**/*.md", "bench/results/**/*.png")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")
UNIT = re.compile(r"(?<=\d) (?=(?:ms|µs|s|[kMG]?B|[kMGT]|%|×)(?: |$))")
"""The space between a number and its unit."""
NOTEBOOK_LINK = re.compile(r"(\]\((?!https?:)[^)\s#]*?)(README\.md|\.ipynb|\.md)(?=[)#])")
"""A link in a notebook to a page: mkdocs does not resolve these."""


def stage() -> Path:
    """Copy all pages below `STAGE`, add those of the reference, and return the folder."""
    pages = STAGE / "pages"
    shutil.rmtree(STAGE, ignore_errors=True)
    paths = [p for pattern in (*TEXTS, *RESULTS) for p in sorted(ROOT.glob(pattern)) if not _hidden(p)]
    for path in paths:
        target = pages / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            text = unbroken(path.read_text(encoding="utf-8"))
            target.write_text(relinked(text, path.parent, set(paths)), encoding="utf-8")
        elif path.suffix == ".ipynb":
            target.write_text(NOTEBOOK_LINK.sub(_built, path.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            shutil.copyfile(path, target)
    for name, text in api.pages().items():
        target = pages / "api" / name
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return pages


def unbroken(text: str) -> str:
    """Return a page whose tables break no line between a number and its unit.

    >>> unbroken("| 28.0 ms | 5 of 9 |").replace("\u00a0", "~")
    '| 28.0~ms | 5 of 9 |'
    """
    lines = text.splitlines(keepends=True)
    return "".join(UNIT.sub("\u00a0", line) if line.startswith("|") else line for line in lines)


def _built(found: re.Match[str]) -> str:
    """Return a notebook's link to a page as a link to the built page."""
    return found[1] + ("index.html" if found[2] == "README.md" else ".html")


def _hidden(path: Path) -> bool:
    """Return whether a part of the path below the root is hidden."""
    return any(part.startswith(".") for part in path.relative_to(ROOT).parts)


def relinked(text: str, folder: Path, staged: set[Path]) -> str:
    """Return a page in which links to what the site does not have are plain text; folders become their README.

    A link to nothing at all stays, so that the build reports it.

    Args:
        text: Markdown.
        folder: of the page, in the repository.
        staged: files that the site has.
    """

    def link(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / found[2]))
        if target in staged or not target.exists():
            return found[0]
        if target / "README.md" in staged:
            return f"[{found[1]}]({found[2].rstrip('/')}/README.md)"
        return found[1]

    return LINK.sub(link, text)


def main(arguments: list[str]) -> int:
    """Build the site, check its links, print where it is; return 0, or 1 if something is wrong."""
    if arguments:
        print("python -m docs takes no arguments", file=sys.stderr)
        return 1
    stage()
    config = shutil.copyfile(ROOT / "docs" / "mkdocs.yml", STAGE / "mkdocs.yml")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--clean", "--config-file", str(config)]
    if subprocess.run([*command, "--site-dir", str(SITE)], env=environment, check=False).returncode:
        return 1
    if dead := dead_links(SITE):
        print("\n".join(f"{page}: {target}" for page, target in dead), file=sys.stderr)
        return 1
    print(f"{SITE.relative_to(ROOT)}/index.html: {len(list(SITE.rglob('*.html')))} pages, no dead links")
    return 0
