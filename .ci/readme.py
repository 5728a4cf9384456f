"""Make README.md from nbs/index.ipynb, or with --check say whether it is current."""

import argparse
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent


def readme() -> str:
    """Return the text of the README: the cells of the index notebook without hidden ones, directives and pictures made by cells."""
    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    notebook.metadata.language_info = {"name": "python"}  # so that code fences say python
    cells = [c for c in notebook.cells if c.cell_type != "raw" and not c.source.startswith("#| hide")]
    for cell in cells:
        if cell.cell_type == "code":
            cell.source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|"))
            cell.outputs = [o for o in cell.outputs if "image/png" not in o.get("data", {})]
    notebook.cells = [c for c in cells if c.source.strip()]
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
