"""Scripts parse their arguments: asked for help they print it and do nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [path for folder in (".ci", "benchmarks") for path in sorted((ROOT / folder).glob("*.py"))]


def calls(tree):
    """Names of what a piece of code calls, in order."""
    return [getattr(n.func, "attr", getattr(n.func, "id", "")) for n in ast.walk(tree) if isinstance(n, ast.Call)]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_parses_its_arguments(path):
    """By argparse, which knows --help and refuses what it does not know; nothing is run before, but definitions and constants."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    last = tree.body[-1]
    assert isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'"
    assert "parse_args" in calls(tree) and "argv" not in [getattr(n, "attr", "") for n in ast.walk(tree)]


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.parent.name == ".ci"], ids=lambda path: path.stem)
def test_help_of_ci_scripts_does_nothing(path):
    """The others import torch, which takes seconds each; these are quick."""
    before = {p: p.stat().st_mtime_ns for p in ROOT.iterdir() if p.is_file()}
    said = subprocess.run([sys.executable, str(path), "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.startswith("usage:") and said.stderr == ""
    assert {p: p.stat().st_mtime_ns for p in ROOT.iterdir() if p.is_file()} == before
