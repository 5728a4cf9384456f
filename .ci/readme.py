"""Make README.md from nbs/index.ipynb, or with --check say whether it is current."""

import argparse
import ast
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent


def with_imports(cells: list) -> list:
    """Return the cells, with those that only import joined to the code below them: what is copied from the README is copied whole."""
    joined = []
    for cell in cells:
        before = joined[-1] if joined else None
        if before is not None and cell.cell_type == before.cell_type == "code" and not before.outputs and only_imports(before.source):
            joined.pop()
            cell.source = f"{before.source}\n\n{cell.source}"
        joined.append(cell)
    return joined


def only_imports(source: str) -> bool:
    """Return whether a cell does nothing but import."""
    return all(isinstance(one, (ast.Import, ast.ImportFrom)) for one in ast.parse(source).body)


def readme() -> str:
    """Return the text of the README: the cells of the index notebook without hidden ones, directives and pictures made by cells."""
    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    notebook.metadata.language_info = {"name": "python"}  # so that code fences say python
    cells = [c for c in notebook.cells if c.cell_type != "raw" and not c.source.startswith("#| hide")]
    for cell in cells:
        if cell.cell_type == "code":
            cell.source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|"))
            cell.outputs = [o for o in cell.outputs if "image/png" not in o.get("data", {})]
    notebook.cells = with_imports([c for c in cells if c.source.strip()])
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    # pictures stand beside the notebook; links to other notebooks lead to their sources
    text = re.sub(r"\]\((images/|(?:\w+/)?\w+\.ipynb\))", r"](nbs/\1", text)
    lines = [line.rstrip() for line in text.strip().splitlines()]
    out = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    return "<!-- made from nbs/index.ipynb by `make readme`; edit that -->\n\n" + "\n".join(out) + "\n"


def main():
    """Write the README, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if README.md is not what the notebook makes")
    check = parser.parse_args().check
    target, text = ROOT / "README.md", readme()
    if not check:
        target.write_text(text, encoding="utf-8")
    elif not target.exists() or target.read_text(encoding="utf-8") != text:
        sys.exit("README.md is not what nbs/index.ipynb makes: run `make readme`")


if __name__ == "__main__":
    main()
