"""Check that diffnb/ is what the notebooks export, that notebooks are clean and whole, that README.md is current, and that style and types hold."""

import argparse
import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def run(*command, cwd=ROOT) -> bool:
    """Run a command from the virtual environment, or else one that is found elsewhere; print what it says if it fails."""
    program = shutil.which(command[0], path=os.pathsep.join((str(BIN), os.environ.get("PATH", ""))))
    if program is None:
        print(f"{command[0]} is not installed: pip install -e '.[dev]'")
        return False
    result = subprocess.run([program, *command[1:]], cwd=cwd, capture_output=True, text=True)
    if result.returncode:
        print(f"$ {' '.join(command)}\n{result.stdout}{result.stderr}")
    return result.returncode == 0


def same_after(command, folder, pattern, advice) -> bool:
    """Run a command on a copy of the project and compare the files of a folder with those that stand here."""
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp) / "project"
        copy.mkdir()
        for name in ("nbs", "diffnb"):
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        for name in ("pyproject.toml", "settings.ini", "setup.py", "_quarto.yml", "README.md"):
            shutil.copy(ROOT / name, copy / name)
        if not run(command, cwd=copy):
            return False
        here, there = ({p.relative_to(base) for p in (base / folder).rglob(pattern) if ".ipynb_checkpoints" not in p.parts} for base in (ROOT, copy))
        wrong = sorted(map(str, here ^ there)) + sorted(str(p) for p in here & there if not filecmp.cmp(ROOT / p, copy / p, shallow=False))
    if wrong:
        print(f"{', '.join(wrong)}: {advice}")
    return not wrong


def controls_are_stored() -> bool:
    """Look for the state of every control that a notebook's outputs show: without it the site shows a line of text in its place."""
    view, state, lost = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json", []
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf8"))
        stored = notebook["metadata"].get("widgets", {}).get(state, {}).get("state", {})
        shown = (output.get("data", {}).get(view) for cell in notebook["cells"] for output in cell.get("outputs", ()))
        if any(control and control["model_id"] not in stored for control in shown):
            lost.append(str(path.relative_to(ROOT)))
    if lost:
        print(f"{', '.join(lost)}: shows controls whose state is not stored; run it, and keep the notebook's metadata")
    return not lost


def main() -> int:
    """Run every check and report how many failed."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    passed = [
        same_after("nbdev-export", "diffnb", "*.py", "not what the notebooks export; run nbdev-export"),
        same_after("nbdev-clean", "nbs", "*.ipynb", "not clean; run nbdev-clean"),
        controls_are_stored(),
        run("python", ".ci/readme.py", "--check"),
        run("python", ".ci/shown.py", "--check"),
        run("ruff", "check", "."),
        run("ruff", "format", "--check", "nbs", "tests", "benchmarks", ".ci", "setup.py"),
        run("ruff", "check", "--select", "D", "--ignore", "D107,D209", "--exclude", "_modidx.py", "diffnb"),
        run("mypy", "--python-executable", sys.executable),
    ]
    print(f"{sum(passed)} checks passed, {len(passed) - sum(passed)} failed")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
