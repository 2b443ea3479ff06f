"""The texts: calls that they mention can be made, files that they link to exist, pages name every public thing."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import nbformat
from pytest import mark, raises

import prunefn as pf
from docs import api, build
from docs.fences import fenced
from docs.links import dead_links

ROOT = Path(__file__).parents[1]
TEXTS = ["README.md", "CHANGELOG.md", "bench/README.md"]
TEXTS += sorted(p.relative_to(ROOT).as_posix() for where in ("docs", "notebooks") for p in (ROOT / where).rglob("*.md"))
NOTEBOOKS = sorted(
    p.relative_to(ROOT).as_posix() for p in (ROOT / "notebooks").rglob("[!.]*.ipynb") if "." not in p.parent.name
)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s#]+)")


def prose(name: str) -> str:
    """Return a text, or the Markdown cells of a notebook, without blocks of code."""
    if name.endswith(".ipynb"):
        cells = nbformat.read(ROOT / name, as_version=4).cells
        text = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
    else:
        text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def calls(text: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield the calls of `pf.…` in the code spans of a text; what does not parse, such as `f(x=)`, is no call."""
    for span in SPAN.findall(text):
        try:
            tree = ast.parse(span.strip().replace("…", "..."))
        except SyntaxError:
            continue
        yield from ((span, node) for node in ast.walk(tree) if isinstance(node, ast.Call))


def check(call: ast.Call) -> None:
    """Check that a call of `pf.…` fits the function's signature; raise AttributeError or TypeError if not."""
    names: list[str] = []
    function: Any = call.func
    while isinstance(function, ast.Attribute):
        names.insert(0, function.attr)
        function = function.value
    if not isinstance(function, ast.Name) or function.id != "pf":
        return
    target = reduce(getattr, names, pf)
    keywords = {k.arg: None for k in call.keywords if k.arg}
    args = [a for a in call.args if not (isinstance(a, ast.Constant) and a.value is ...)]
    inspect.signature(target).bind_partial(*args, **keywords)


@mark.parametrize("name", [*TEXTS, *NOTEBOOKS])
def test_calls_in_the_texts_can_be_made(name: str) -> None:
    for span, call in calls(prose(name)):
        try:
            check(call)
        except (AttributeError, TypeError) as error:
            raise AssertionError(f"{name}: `{span}`: {error}") from error


def test_a_call_that_cannot_be_made_is_seen() -> None:
    ((_, call),) = calls("a `pf.latency_table(params, params=params)`, and `pf.kind`, `f(x=)`")
    with raises(TypeError, match="multiple values"):
        check(call)


@mark.parametrize("name", [*TEXTS, *NOTEBOOKS])
def test_links_lead_to_files_of_the_repository(name: str) -> None:
    folder = (ROOT / name).parent
    assert [link for link in LINK.findall(prose(name)) if not (folder / link).exists()] == []


def test_the_readme_has_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert 'pip install -e ".[all]" && prunefn demo' in text and 'pip install -e ".[all,dev]" && pytest' in text
    assert len(text.encode()) < 8000


def test_the_reference_has_every_public_name() -> None:
    pages = api.pages()
    assert "::: prunefn.trace\n" in pages["trace.md"] and "::: prunefn.criteria.obs\n" in pages["criteria.md"]
    nav = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    assert [p for p in pages if f"api/{p}" not in nav] == []
    written = [f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")] + NOTEBOOKS
    assert [t for t in written if t not in nav and "/course/" not in t] == [], "not in the menu of the site"


def test_links_of_the_site(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.html").write_text(
        '<a href="b/c.html#x">1</a><a href="b/c.html#y">2</a><a href="d.html">3</a><p id="z">'
    )
    (tmp_path / "b" / "c.html").write_text('<p id="x"><a href="../a.html#z">1</a><a href="https://a.b">2</a>')
    assert dead_links(tmp_path) == [("a.html", "b/c.html#y"), ("a.html", "d.html")]


def test_links_to_what_the_site_does_not_have_become_text() -> None:
    staged = {ROOT / "README.md", ROOT / "notebooks" / "README.md"}
    text = "[a](prunefn/types.py) [b](notebooks) [c](README.md#x) [d](nothing.md) [e](https://x.y)"
    expected = "a [b](notebooks/README.md) [c](README.md#x) [d](nothing.md) [e](https://x.y)"
    assert build.relinked(text, ROOT, staged) == expected


def test_doctests_in_lists_are_fenced_with_their_indent() -> None:
    assert fenced("- a\n\n  >>> 1\n  1\n\nb") == "- a\n\n  ```pycon\n  >>> 1\n  1\n  ```\n\nb"
