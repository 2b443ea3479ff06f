"""The rooms of the package and what holds between them: imports go downwards, menus show what users should see."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType
from typing import Any

from pytest import mark

import prunefn as pf
from prunefn.sparse import criteria, pattern, scope
from prunefn.train import losses, optimizer, regularizers, schedule

ROOT = Path(__file__).parents[1] / "prunefn"
ROOMS = (
    *(
        "errors",
        "_extras",
        "_shapes",
        "_version",
        "frozen_dict",
        "names",
        "trees",
        "files",
        "drawing",
        "display",
        "tables",
        "settings",
    ),  # the ground
    *(
        "spec",
        "types",
        "doors",
        "program",
        "tracing",
        "where",
        "parameters",
        "stats",
        "tokens",
        "distances",
        "criteria",
        "selection",
    ),
    *(
        "compensation",
        "distillation",
        "gates",
        "modules",
        "checkpoints",
        "report",
        "sparse",
        "costs",
        "plans",
        "notes",
        "pipelines",
        "sensitivities",
        "submodules",
        "recipes",
    ),
    *(
        "data",
        "pretrained",
        "nets",
        "train",
        "by_name",
        "pruning",
        "sweep",
        "export",
        "prunefn",
        "cli",
        "__main__",
        "configs",
    ),
)
"""From the ground up: a room imports rooms to its left. `prunefn` is the package's own `__init__`."""
MENUS: dict[str, ModuleType] = {
    "": pf,
    **{n: getattr(pf, n) for n in pf.__all__ if inspect.ismodule(getattr(pf, n))},
    **{f"sparse.{m.__name__.rpartition('.')[2]}": m for m in (criteria, pattern, scope)},
    **{f"train.{m.__name__.rpartition('.')[2]}": m for m in (losses, optimizer, regularizers, schedule)},
}
"""Public namespaces below `pf`."""
LONGEST_FUNCTION, LONGEST_FILE = 50, 350
MOST_PARAMETERS, FEW_PARAMETERS = 8, ("train", "pruning")
"""Parameters of a function, and the rooms that hold to it."""
OPS = ("tracing", "spec")
"""Rooms that may know ops by name."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def sources() -> dict[str, Path]:
    """Module → its file."""
    return {module_of(p): p for p in sorted(ROOT.rglob("*.py"))}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(sources()[module].read_text(encoding="utf-8"))


@cache
def imports(module: str) -> frozenset[str]:
    """What a module imports of the package, in functions and for type checkers, too."""
    path, found = sources()[module], set()
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {n if (n := f"{name}.{a.name}") in sources() else name for a in node.names}
    return frozenset(found & sources().keys() - {module})


def room_of(module: str) -> str:
    return [*module.split("."), "prunefn"][1]


def functions(module: str) -> Iterator[ast.FunctionDef]:
    return (n for n in ast.walk(tree(module)) if isinstance(n, ast.FunctionDef))


def test_every_room_has_its_place() -> None:
    assert {room_of(m) for m in sources()} == set(ROOMS)


def test_imports_go_downwards() -> None:
    place = {room: i for i, room in enumerate(ROOMS)}
    assert [(m, of) for m in sources() for of in imports(m) if place[room_of(of)] > place[room_of(m)]] == []


def test_no_files_import_each_other_in_a_circle() -> None:
    TopologicalSorter({m: imports(m) for m in sources()}).prepare()


@mark.parametrize("name", MENUS)
def test_a_menu_shows_what_users_should_see(name: str) -> None:
    menu = MENUS[name]
    assert sorted(dir(menu)) == sorted(menu.__all__) and len(set(menu.__all__)) == len(menu.__all__)
    assert [n for n in menu.__all__ if not hasattr(menu, n)] == []


@mark.parametrize("name", MENUS)
def test_no_function_hides_a_module(name: str) -> None:
    menu = MENUS[name]
    values = {n for n in menu.__all__ if not inspect.ismodule(getattr(menu, n))}
    assert [m for m in sources() if m.rpartition(".")[0] == menu.__name__ and m.rpartition(".")[2] in values] == []


def public() -> dict[str, Any]:
    """Functions and classes of the menus by their names."""
    values = ((f"{room}.{n}".lstrip("."), getattr(menu, n)) for room, menu in MENUS.items() for n in menu.__all__)
    return {n: v for n, v in values if inspect.isfunction(v) or inspect.isclass(v)}


def test_a_public_name_has_a_docstring() -> None:
    for name, value in public().items():
        text = inspect.getdoc(value)
        assert text and not text.startswith(f"{value.__name__}("), f"{name}: a NamedTuple's own is none"
        if inspect.isfunction(value) and len(inspect.signature(value).parameters) > 3:
            assert "Args:" in text, name


def test_ops_are_known_by_name_in_tracing_and_the_spec_alone() -> None:
    for module in (m for m in sources() if room_of(m) not in OPS):
        texts = [n.value for n in ast.walk(tree(module)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        assert [t for t in texts if t.startswith("aten.")] == [], module


def test_nothing_is_longer_than_it_can_be_read() -> None:
    lengths = {m: len(p.read_text(encoding="utf-8").splitlines()) for m, p in sources().items()}
    assert {m: n for m, n in lengths.items() if n > LONGEST_FILE} == {}
    long = {f"{m}.{f.name}": n for m in sources() for f in functions(m) if (n := _lines(f)) > LONGEST_FUNCTION}
    assert long == {}


def test_options_are_fields_of_a_value_instead_of_parameters() -> None:
    many = {
        f"{m}.{f.name}": n
        for m in sources()
        if room_of(m) in FEW_PARAMETERS
        for f in functions(m)
        if (n := len(f.args.posonlyargs) + len(f.args.args) + len(f.args.kwonlyargs)) > MOST_PARAMETERS
    }
    assert many == {}


def _lines(function: ast.FunctionDef) -> int:
    """Lines of a function's body with its inner functions, without the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
