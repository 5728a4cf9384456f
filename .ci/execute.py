"""Run pages of the site and store their outputs, with the looks that all figures share, at twice the resolution at which they are shown.

    python .ci/execute.py nbs/01_noise/01_sdes.ipynb nbs/03_samplers/01_ode.ipynb

Matplotlib reads its settings from a file that the environment names, .ci/matplotlibrc, and the kernel is told to draw for screens of twice as many
dots. Pages set neither.
"""

import argparse
import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def smaller(png: str) -> str:
    """Store a figure with 256 colours, which is a third of its bytes; its dots an inch, by which the site knows how large to show it, are kept."""
    picture, stored = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    if "dpi" not in picture.info:  # a picture that is shown dot for dot
        return png
    picture.convert("RGBA").quantize(256, Image.Quantize.FASTOCTREE).save(stored, "png", optimize=True, dpi=picture.info["dpi"])
    return min(png, base64.b64encode(stored.getvalue()).decode(), key=len)


def execute(path: Path):
    """Run a page in its own folder, and write it with what its cells have said."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=1200, kernel_name="python3", coalesce_streams=True, resources={"metadata": {"path": str(path.parent)}})
    client.extra_arguments = ["--InlineBackend.figure_formats=retina"]
    client.execute()
    for cell in notebook.cells:
        if re.search(r"^show_doc\(", cell.source, re.MULTILINE):
            cell.outputs = []  # made anew whenever the page is
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    shown = (output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ()))
    if not any("application/vnd.jupyter.widget-view+json" in data for data in shown):
        notebook.metadata.pop("widgets", None)  # widgets that a page makes and does not show
    nbformat.write(notebook, path)


def main():
    """Run the pages that are named, then clean them as nbdev does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path, help="notebooks below nbs/")
    os.environ["MATPLOTLIBRC"] = str(ROOT / ".ci" / "matplotlibrc")
    os.environ["PYTHONWARNINGS"] = "ignore::FutureWarning"  # what libraries have to say to each other
    for page in parser.parse_args().pages:
        execute(page.resolve())
        print(page)
    subprocess.run([str(Path(sys.executable).parent / "nbdev-clean")], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
