"""What a type checker says of a user's script: pyright, strict, with the package as an installation has it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "typed" / "user_script.py"


def complaints(folder: Path, text: str) -> list[str]:
    """Check a script in a folder of its own, where the package is not the project but a library that is found."""
    (folder / "script.py").write_text(text, encoding="utf-8")
    config = {"include": ["script.py"], "extraPaths": [str(ROOT)], "typeCheckingMode": "strict"}
    (folder / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", "-p", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1, done.stderr
    return [f"{d['range']['start']['line'] + 1}: {d['message']}" for d in report["generalDiagnostics"]]


def test_a_users_script_is_typed(tmp_path: Path) -> None:
    assert complaints(tmp_path, SCRIPT.read_text(encoding="utf-8")) == []


def test_a_wrong_call_is_seen(tmp_path: Path) -> None:
    """So that the script does not pass because nothing is known of the package."""
    found = complaints(tmp_path, "import prunefn as pf\n\nprint(pf.budget.macs('half'), pf.budgets)\n")
    assert len(found) >= 2 and any("budgets" in f for f in found), found
