"""The notebooks, executed afresh, each in an empty folder: they say what is committed.

    python -m tests.test_notebooks notebooks/1_quick_start.ipynb …

executes notebooks and writes them back: on one machine the same bytes each time, but for times.

A cell with the tag `varies` prints numbers that depend on the machine (trained accuracies, times, rounding): there, the words are
compared and the numbers are not.
"""

from __future__ import annotations

import base64
import os
import re
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import nbformat
from ipykernel.kernelspec import write_kernel_spec
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image
from pytest import mark

from prunefn.files import atomic

ROOT = Path(__file__).parents[1]
ALL = [p.relative_to(ROOT / "notebooks") for p in (ROOT / "notebooks").rglob("*.ipynb")]
NAMES = sorted(p.as_posix() for p in ALL if not any(part.startswith(".") for part in p.parts))
LARGEST = 400_000
"""Bytes of a notebook."""
WIDEST, TONES = 900, 128
"""Pixels across and colours of a picture that is written."""
SECONDS = 300
"""So long may a cell take on a machine that does much else."""
VARIES = "varies"
NUMBER = re.compile(r"[-−+]?\b\d[\d.]*(e[-+]?\d+)?")
PATH = re.compile(r"(?<![\w.:/<>*)\]])(/[\w.-]+){2,}|\b[A-Za-z]:\\\\?\w")


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """A copy with what its cells say now, by this interpreter, with one thread, on the CPU, in `folder/work`, which is empty."""
    fresh = nbformat.from_dict(notebook)
    work, kernels = folder / "work", folder / "kernels"
    work.mkdir()
    write_kernel_spec(str(kernels / "python3"))
    specs = KernelSpecManager(kernel_dirs=[str(kernels)], ensure_native_kernel=False)
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
    where = {"metadata": {"path": str(work)}}
    client = NotebookClient(fresh, km=manager, timeout=SECONDS, coalesce_streams=True, resources=where)
    client.execute(env=_environment(folder), cleanup_kc=True)
    return fresh


def _environment(folder: Path) -> dict[str, str]:
    """Nothing of the user's IPython or matplotlib, and no remarks that only some machines make."""
    others = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "MATPLOTLIBRC")}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"PYTHONPATH": paths, "IPYTHONDIR": str(folder / "ipython"), "PRUNEFN_CACHE": str(folder / "cache")}
    own |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    own |= {"TORCH_LOGS": "-torch.utils.cpp_extension"}  # that there is a compiler for a GPU, but no GPU
    own |= {"PYTHONWARNINGS": "ignore:IProgress not found"}  # that ipywidgets is not installed
    return others | own


def cleaned(notebook: NotebookNode) -> NotebookNode:
    """Without what changes from one run to the next, with small pictures."""
    out = nbformat.from_dict(notebook)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    out.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    for i, cell in enumerate(out.cells):
        tags = cell.metadata.get("tags", [])
        cell.id, cell.metadata = f"cell-{i + 1}", nbformat.from_dict({"tags": tags} if tags else {})
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _small(output.data["image/png"])
    return out


def _small(png: str) -> str:
    """A picture with fewer pixels and colours, in base64."""
    image = Image.open(BytesIO(base64.b64decode(png))).convert("RGB")
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
    file = BytesIO()
    image.quantize(TONES, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode() + "\n"


def read(name: str) -> NotebookNode:
    """A notebook as it is committed."""
    return nbformat.read(ROOT / "notebooks" / name, as_version=4)


def said(cell: NotebookNode) -> list[str]:
    """What a cell printed and showed: texts as they are, of pictures only that they are there."""
    found = []
    for output in cell.get("outputs", []):
        shown = output.get("data", {})
        texts = [output.get("text", ""), *(shown[k] for k in sorted(shown) if k.startswith("text/"))]
        kinds = [output.output_type, *sorted(k for k in shown if not k.startswith("text/"))]
        found.append("\n".join([" ".join(kinds), *filter(None, texts)]))
    return found


def words(texts: list[str]) -> list[str]:
    """Without the numbers, and without the widths of columns that these have."""
    return [" ".join(re.sub(r"[-─]{2,}", "-", NUMBER.sub("0", t)).split()) for t in texts]


@mark.parametrize("name", NAMES)
def test_executed_afresh_it_says_what_is_committed(name: str, tmp_path: Path) -> None:
    committed = read(name)
    fresh = execute(committed, tmp_path)
    for before, now in zip(committed.cells, fresh.cells, strict=True):
        compared = words if VARIES in before.metadata.get("tags", []) else list[str]
        assert compared(said(now)) == compared(said(before)), f"{name}, {before.id}:\n{before.source}"


@mark.parametrize("name", NAMES)
def test_it_can_be_read_where_it_lies(name: str) -> None:
    path, notebook = ROOT / "notebooks" / name, read(name)
    nbformat.validate(notebook)
    assert path.stat().st_size < LARGEST
    assert notebook.cells[0].source.startswith("# "), "the first cell has the title"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert not [c.id for c in notebook.cells if set(c.metadata) - {"tags"}], "times of execution and the like"
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1)), "executed once, from the top"
    outputs = [o for c in code for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    for text in (t for c in code for t in said(c)):
        assert not PATH.search(text), text
        assert "Warning" not in text and "\r" not in text and "\x1b" not in text, text
    assert not [c.source for c in notebook.cells if PATH.search(c.source)]


def test_the_list_of_notebooks_is_whole() -> None:
    listed = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    here, guides = ([n for n in NAMES if n.count("/") == depth and "course" not in n] for depth in (0, 1))
    assert [n for n in (*here, *guides) if f"]({n})" not in listed] == []
    assert [n[0] for n in here] == [str(i + 1) for i in range(len(here))] and len(here) >= 7


def test_what_is_compared() -> None:
    assert words(["stream\ntop-1  97.5 %, −3.1e-05"]) == words(["stream\ntop-1  8 %,  2.0e-3"])
    assert words(["stream\nmean 1"]) != words(["stream\naffine 1"])
    assert [bool(PATH.search(t)) for t in ("in /home/me/x", "(/tmp/a)", "a/b/c", "p10 / p90", "https://a.b/c/d")] == [
        *(True, True, False, False, False)
    ]


def main(paths: list[str]) -> None:
    """Execute notebooks and write them back."""
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            done = cleaned(execute(nbformat.read(path, as_version=4), Path(folder)))
        atomic.write_text(path, nbformat.writes(done) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
