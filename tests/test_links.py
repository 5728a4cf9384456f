"""Links of the notebooks and of the README lead to files that are there, and the index leads to every notebook."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def links(text):
    """Targets of relative links; code and formulas are left out, where brackets mean something else."""
    text = re.sub(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$", "", text, flags=re.DOTALL)
    return [target for target in LINK.findall(text) if not re.match(r"\w+:", target)]


def prose(path):
    """Markdown of a notebook."""
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook(path):
    """Files that a notebook links to."""
    assert [target for target in links(prose(path)) if not (path.parent / target).exists()] == []


def test_links_of_the_readme():
    """The same for the page that GitHub shows."""
    found = links((ROOT / "README.md").read_text())
    assert len(found) > 50 and [target for target in found if not (ROOT / target).exists()] == []


def test_cited_works_are_in_the_bibliography():
    """A key that the bibliography lacks would stand on the page as it is written."""
    known = set(re.findall(r"^@\w+\{(\w+),$", (ROOT / "nbs" / "references.bib").read_text(encoding="utf-8"), flags=re.MULTILINE))
    cited = {path.name: set(re.findall(r"@(\w+)", " ".join(re.findall(r"\[[^]@]*@\w+\d{4}[^]]*\]", prose(path))))) for path in NOTEBOOKS}
    assert len(set().union(*cited.values())) > 20 and {name: keys - known for name, keys in cited.items() if keys - known} == {}


def test_the_index_leads_to_every_notebook():
    """None is to be found only by search."""
    index = ROOT / "nbs" / "index.ipynb"
    reached = {(index.parent / target).resolve() for target in links(prose(index))}
    assert [path.name for path in NOTEBOOKS if path.resolve() not in reached and path != index] == []
