"""Read the pages as they are stored: every figure is described in words and looks like the others, formulas can be drawn, words are spelt right,
Python in the text is Python, imports stand in cells of their own, and no table that a cell prints is wider than the page.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_MISSPELT = "autor,clases,pares,titel,nd,theis,hart,oclock,whats,caf,smal,edn,occured,variantes"  # names, a Spanish word, and what tests misspell
ALSO_SPELT = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "tests", "benchmarks", ".ci")
WIDEST = 112  # characters of a table's row that a page shows with little scrolling
ROW = re.compile(r"\S {2,}\S.*\S {2,}\S")  # what the site's filter (nbs/pages.lua) takes for a row of a table; other lines wrap
# what tells a reader nothing: the name of an object in the place of its picture or of nothing at all, a warning with the file of a kernel, and a font
# that was not found
EMPTY_WORDS = re.compile(
    r"<Figure size|^\(?<(?:IPython|diffnb|function|class|Axes)\b|^\(None(?:, None)*\)$|torch\.autograd\.grad_mode"
    r"|ipykernel_\d|^findfont:|\bat 0x[0-9a-f]{6}",
    re.MULTILINE,
)
LIBRARIES = re.compile(r"/\S*/site-packages/")  # where a machine keeps them
FINEST = 190  # dots an inch that a figure has at least; .ci/execute.py stores 192
OTHER_LOOKS = {  # figures that look otherwise, by page and cell, and why
    ("09_training/10_plans.ipynb", "pl16"): "a callback of fastai draws it anew after each epoch, at the dots of a plain screen",
    ("12_apps/17_workshop_pages.ipynb", "59a5d0e9"): "it is the picture that the dashboard sends to a browser, dot for dot",
}
UNREAD = re.compile(r"Could not convert TeX math (.*?), rendering as TeX", re.DOTALL)
FENCE = re.compile(r"^```\s*\{?\.?python\b[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def read_pages() -> dict[str, list[dict]]:
    """Read the cells of every notebook that its page shows; the keys are paths below nbs/."""
    pages = {}
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            shown = [cell for cell in cells if not re.search(r"^#\|\s*hide\s*$", "".join(cell["source"]), re.MULTILINE)]
            pages[path.relative_to(ROOT / "nbs").as_posix()] = shown
    return pages


def prose(cells) -> str:
    """Return the Markdown of a page."""
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def check_figures(pages) -> list[tuple[str, str]]:
    """Every picture says in words what it shows, for those who do not see it."""
    found = []
    for name, cells in pages.items():
        found += [
            (name, f"![]({target}): a picture without a text between the brackets") for target in re.findall(r"!\[\s*\]\(([^)]*)", prose(cells))
        ]
        for cell in cells:
            source = "".join(cell["source"])
            shows = any(kind.startswith("image/") for output in cell.get("outputs", ()) for kind in output.get("data", {}))
            if shows and not re.search(r"^#\|\s*fig-alt:[ \t]*\S", source, re.MULTILINE):
                found.append((name, f'{first_line(source)!r} draws a figure without `#| fig-alt: "..."`, which says in words what it shows'))
    return found


def first_line(source: str) -> str:
    """Return the first line of a cell that is no directive."""
    return next((line for line in source.splitlines() if line and not line.startswith("#|")), "a cell")


def check_looks(pages) -> list[tuple[str, str]]:
    """A figure of Matplotlib has enough dots for a fine screen and no ground of its own, as .ci/matplotlibrc and .ci/execute.py make it."""
    from PIL import Image

    found = []
    for name, cells in pages.items():
        for cell in cells:
            pictures = [output["data"]["image/png"] for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})]
            faults = set()
            for picture in (Image.open(io.BytesIO(base64.b64decode("".join(png)))) for png in pictures):
                if "dpi" not in picture.info:  # it is shown dot for dot, and was not made by Matplotlib
                    continue
                dots = round(picture.info["dpi"][0])
                right, bottom = picture.width - 1, picture.height - 1
                pixels = picture.convert("RGBA")
                corners = [pixels.getpixel(place) for place in ((0, 0), (right, 0), (0, bottom), (right, bottom))]
                faults |= {f"has {dots} dots an inch, fewer than {FINEST}"} if dots < FINEST else set()
                faults |= {"has a ground of its own"} if any(corner[3] for corner in corners) else set()
            if faults and (name, cell["id"]) not in OTHER_LOOKS:
                said = " and ".join(sorted(faults))
                found.append((name, f"{first_line(''.join(cell['source']))!r} shows a figure that {said}: run the page with .ci/execute.py"))
    return found


def check_formulas(pages) -> list[tuple[str, str]]:
    """Every formula can be written as MathML by the program that makes the pages."""
    import pypandoc

    texts = {name: prose(cells) for name, cells in pages.items()}
    command = [pypandoc.get_pandoc_path(), "--from=markdown", "--to=html", "--mathml"]
    said = subprocess.run(command, input="\n\n".join(texts.values()), capture_output=True, text=True, check=True, encoding="utf-8").stderr
    formulas = {" ".join(formula.split()) for formula in UNREAD.findall(said)}  # the lines of a long one are indented in what is said
    lines = {name: " ".join(text.split()) for name, text in texts.items()}
    places = {formula: [name for name, text in lines.items() if formula in text] or ["a page"] for formula in sorted(formulas)}
    return [(name, f"{formula}: not a formula that can be drawn") for formula, names in places.items() for name in names]


def check_spelling(pages) -> list[tuple[str, str]]:
    """No word that a dictionary of common mistakes knows, in notebooks, tests and other texts."""
    with tempfile.TemporaryDirectory() as folder:
        for name, cells in pages.items():
            text = Path(folder) / name
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("\n".join("".join(cell["source"]) for cell in cells), encoding="utf-8")
        command = [sys.executable, "-m", "codespell_lib", f"--ignore-words-list={NOT_MISSPELT}", "--skip=*.json,*.png,*.jpg,*.safetensors", folder]
        said = subprocess.run([*command, *ALSO_SPELT], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    if said.returncode not in (0, 65):  # 65: it found some
        return [("spelling", said.stderr.strip())]
    lines = (re.sub(r"^(\./)+", "", line.replace(f"{folder}/", "")) for line in said.stdout.splitlines() if "==>" in line)
    return [tuple(line.split(": ", 1)) for line in lines]


def check_code(pages) -> list[tuple[str, str]]:
    """Python in the text of a page or of the README is Python."""
    texts = {name: prose(cells) for name, cells in pages.items()}
    texts |= {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")}
    found = []
    for name, text in texts.items():
        for block in FENCE.findall(text):
            try:
                compile(block, name, "exec")
            except SyntaxError as error:
                found.append((name, f"a code block does not compile: {error.msg} in {(error.text or '').strip()!r}"))
    return found


def check_imports(pages) -> list[tuple[str, str]]:
    """Imports stand in cells of their own: nbdev runs those when it makes a page, and cells that do anything else it leaves out."""
    found = []
    for name, cells in pages.items():
        for source in ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"):
            with contextlib.suppress(SyntaxError):  # a command for IPython
                kinds = {isinstance(one, (ast.Import, ast.ImportFrom)) for one in ast.parse(source).body}
                if len(kinds) == 2:
                    found.append((name, f"{first_line(source)!r} imports and does something else: make it two cells"))
    return found


def check_outputs(pages) -> list[tuple[str, str]]:
    """No printed table is wider than the page, since a wide one is Markdown, no path is of one machine, and no output is the name of an object."""
    found = []
    for name, cells in pages.items():
        for cell in cells:
            lines = [line for output in cell.get("outputs", ()) for line in printed(output).splitlines()]
            if place := LIBRARIES.search("\n".join(lines)):
                found.append((name, f"{first_line(''.join(cell['source']))!r} shows {place[0]}, a path of one machine: run the page again"))
            if words := EMPTY_WORDS.search("\n".join(lines)):
                said = f"shows {words[0]!r}, which tells nothing: end the cell with a semicolon, or run the page again"
                found.append((name, f"{first_line(''.join(cell['source']))!r} {said}"))
            rows = [line for line in lines if ROW.search(line)]
            if len(rows) > 2 and max(map(len, rows)) > WIDEST:
                said = f"prints a table of {max(map(len, rows))} characters: at most {WIDEST}, or show Markdown"
                found.append((name, f"{first_line(''.join(cell['source']))!r} {said}"))
    return found


def printed(output) -> str:
    """Return what an output shows as plain text."""
    data = output.get("data", {})
    return "".join(output.get("text") or (data.get("text/plain", "") if data.keys() <= {"text/plain"} else ""))


def main() -> int:
    """Check all pages, and say what is wrong."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    start, pages = time.monotonic(), read_pages()
    checks = (check_figures, check_looks, check_formulas, check_spelling, check_code, check_imports, check_outputs)
    found = [fault for check in checks for fault in check(pages)]
    for name, fault in found:
        print(f"{name}: {fault}")
    print(f"{len(found)} faults in the texts of {len(pages)} pages, looked for in {time.monotonic() - start:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
