"""Checks of what the made pages say: figures in words, formulas, spelling, code in the text, and the width of what cells print."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pypandoc

NOT_MISSPELT = "nd,theis,hart,oclock,whats,caf,smal,edn,occured"  # names of variables and people, and what tests misspell on purpose
ALSO_SPELT = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "tests", "benchmarks", ".ci")
WIDEST = 110  # characters of a table's row that the page shows without scrolling
ROW = re.compile(r"\S {2,}\S.*\S {2,}\S")  # what the site's filter (nbs/figures.lua) takes for a row of a table; other lines wrap
UNREAD = re.compile(r"Could not convert TeX math (.*?), rendering as TeX", re.DOTALL)
FENCE = re.compile(r"^```\s*\{?\.?python\b[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def prose(page) -> str:
    """Return the Markdown of a page."""
    return "\n\n".join("".join(cell["source"]) for cell in page.cells if cell["cell_type"] == "markdown")


def check_figures(pages) -> list[tuple[str, str]]:
    """Every picture says in words what it shows, for those who do not see it."""
    found = []
    for name, page in pages.items():
        found += [(name, f"![]({target}): a picture without a text between the brackets") for target in re.findall(r"!\[\s*\]\(([^)]*)", prose(page))]
        for cell in page.cells:
            source = "".join(cell["source"])
            shows = any(kind.startswith("image/") for output in cell.get("outputs", ()) for kind in output.get("data", {}))
            if shows and not re.search(r"^#\|\s*fig-alt:\s*\S", source, re.MULTILINE):
                found.append((name, f'{first_line(source)!r} draws a figure without `#| fig-alt: "..."`, which says in words what it shows'))
    return found


def first_line(source: str) -> str:
    """Return the first line of a cell that is no directive."""
    return next((line for line in source.splitlines() if line and not line.startswith("#|")), "a cell")


def check_formulas(pages) -> list[tuple[str, str]]:
    """Every formula can be written as MathML by the program that makes the pages."""
    texts = {name: prose(page) for name, page in pages.items()}
    command = [pypandoc.get_pandoc_path(), "--from=markdown", "--to=html", "--mathml"]
    said = subprocess.run(command, input="\n\n".join(texts.values()), capture_output=True, text=True, check=True, encoding="utf-8").stderr
    formulas = {formula.strip() for formula in UNREAD.findall(said)}
    return [(name, f"{formula}: not a formula that can be drawn") for formula in sorted(formulas) for name, text in texts.items() if formula in text]


def check_spelling(project: Path) -> list[tuple[str, str]]:
    """No word that a dictionary of common mistakes knows, in notebooks, tests and other texts."""
    with tempfile.TemporaryDirectory() as folder:
        for path in (project / "nbs").rglob("*.ipynb"):
            text = Path(folder) / path.relative_to(project / "nbs")
            text.parent.mkdir(parents=True, exist_ok=True)
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            text.write_text("\n".join("".join(cell["source"]) for cell in cells), encoding="utf-8")
        command = [sys.executable, "-m", "codespell_lib", f"--ignore-words-list={NOT_MISSPELT}", "--skip=*.json,*.png,*.jpg,*.safetensors", folder]
        said = subprocess.run([*command, *ALSO_SPELT], cwd=project, capture_output=True, text=True, encoding="utf-8")
    if said.returncode not in (0, 65):  # 65: it found some
        return [("spelling", said.stderr.strip())]
    lines = (re.sub(r"^(\./)+", "", line.replace(f"{folder}/", "")) for line in said.stdout.splitlines() if "==>" in line)
    return [tuple(line.split(": ", 1)) for line in lines]


def check_code(project: Path, pages) -> list[tuple[str, str]]:
    """Python in the text of a page or of the README is Python."""
    texts = {name: prose(page) for name, page in pages.items()}
    texts |= {name: (project / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")}
    found = []
    for name, text in texts.items():
        for block in FENCE.findall(text):
            try:
                compile(block, name, "exec")
            except SyntaxError as error:
                found.append((name, f"a code block does not compile: {error.msg} in {(error.text or '').strip()!r}"))
    return found


def check_outputs(pages) -> list[tuple[str, str]]:
    """No row of a printed table is wider than the page; a wide one is Markdown."""
    found = []
    for name, page in pages.items():
        for cell in page.cells:
            for output in cell.get("outputs", ()):
                data = output.get("data", {})
                text = output.get("text") or (data.get("text/plain") if data.keys() <= {"text/plain"} else "") or ""
                width = max((len(line) for line in "".join(text).splitlines() if ROW.search(line)), default=0)
                if width > WIDEST:
                    found.append(
                        (name, f"{first_line(''.join(cell['source']))!r} prints a table of {width} characters; show Markdown, or at most {WIDEST}")
                    )
    return found
