"""The check of the site's pages finds what it is for."""

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parent.parent / ".ci" / "docs.py"
SPEC = importlib.util.spec_from_file_location("docs_check", PATH)
docs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(docs)

SITE, REPOSITORY = "https://site.example/lib", "https://code.example/lib"


@pytest.fixture
def site(tmp_path):
    """Write notebooks of Markdown cells, as they are before and after page making, and read the pages."""

    def write(**texts):
        for name, text in {"b": "## There\n\n## There", "images": "", **texts}.items():
            cells = [{"cell_type": "markdown", "source": part} for part in text.split("\n---\n")]
            for folder in ("nbs", "_proc"):
                (tmp_path / folder).mkdir(exist_ok=True)
                (tmp_path / folder / f"{name}.ipynb").write_text(json.dumps({"cells": cells}))
        (tmp_path / "README.md").write_text("one line")
        (tmp_path / "_proc" / "picture.png").write_text("")
        return docs.read_pages(tmp_path / "_proc")

    return write


@pytest.mark.parametrize(
    "heading, name",
    [  # the examples of pandoc's manual, and a documented method
        ("Heading identifiers in HTML", "heading-identifiers-in-html"),
        ("Maître d'hôtel", "maître-dhôtel"),
        ("*Dogs*?--in *my* house?", "dogs--in-my-house"),
        ("[HTML], [S5], or [RTF]?", "html-s5-or-rtf"),
        ("3. Applications", "applications"),
        ("33", "section"),
        ("Registry.register", "registry.register"),
    ],
)
def test_heading_id(heading, name):
    """As pandoc makes it, which Quarto uses."""
    assert docs.heading_id(heading) == name


@pytest.mark.parametrize(
    "text, fault",
    [
        ("[a](b.ipynb)", None),
        ("[a](b.ipynb#there)", None),
        ("[a](b.ipynb#there-1)", None),
        ("[a](b.ipynb#there-2)", "no such heading"),
        ("[a](c.ipynb)", "not a page or file"),
        ("[a](../README.md)", "not a page or file"),
        ("![a](picture.png)", None),
        ("![a](photo.png)", "not a page or file"),
        ('<img src="photo.png">', "not a page or file"),
        ("[a](#here)\n\n## Here", None),
        ("[a](#here)", "no such heading"),
        ("## A `b` [c](b.ipynb)\n\n[a](#a-b-c)", None),
        ("[[`X`](b.ipynb)](b.ipynb)", "a link inside a link"),
        ("`[a](c.ipynb)` and $[a](c.ipynb)$", None),
        ("```\n[a](c.ipynb)\n```", None),
        (f"[a]({SITE}/b.html#there)", None),
        (f"[a]({SITE}/b.html#nowhere)", "no such heading"),
        (f"[a]({SITE}/c.html)", "not a page or file"),
        (f"[a]({SITE}/draw/index.html)", None),
        (f"[a]({SITE}/draw/index.html#there)", "not a page or file"),
        (f"[a]({SITE}/draw/page.html)", "not a page or file"),
        (f"[a]({REPOSITORY}/blob/main/README.md#L1)", None),
        (f"[a]({REPOSITORY}/blob/main/README.md#L2)", "no such line"),
        (f"[a]({REPOSITORY}/blob/main/README.md#LNone)", "no such line"),
        (f"[a]({REPOSITORY}/blob/main/LICENSE)", "no such file"),
        ("[a](https://elsewhere.example/c.html)", None),
    ],
)
def test_links(site, tmp_path, text, fault):
    """Links, anchors and pictures, followed as in the site."""
    found = docs.check_links(tmp_path, tmp_path / "_proc", site(a=text), SITE, REPOSITORY)
    assert [name for name, _ in found] == (["a.ipynb"] if fault else []) and all(fault in said for _, said in found)


@pytest.mark.parametrize(
    "text, fault",
    [
        ("# A\n\n> What it is.", None),
        ("# A\n\n> What it is.\n---\nMore.", None),
        ("# A\n\n> What it is.\n\nMore.", "the page loses 'More.'"),
        ("# A\n\n> What it is,\n> in two lines.", "one line of summary"),
        ("# A", "one line of summary"),
        ("Prose", "not a title"),
    ],
)
def test_titles(site, tmp_path, text, fault):
    """What nbdev would drop of the first cell."""
    found = docs.check_titles(tmp_path, {"a.ipynb": site(a=text)["a.ipynb"]})
    assert len(found) == bool(fault) and all(fault in said for _, said in found)


def test_addresses():
    """The numbers of files and folders do not tell two pages apart."""
    assert docs.check_addresses(["01_a/02_b.ipynb", "01_a/02_c.ipynb", "02_b.ipynb", "x/b.ipynb"]) == []
    assert len(docs.check_addresses(["01_a/02_b.ipynb", "01_a/03c_b.ipynb"])) == 1
    assert len(docs.check_addresses(["01_a/02_b.ipynb", "04_a/02_b.ipynb"])) == 1


def test_words_know_whether_they_are_links(site):
    """In a page; in a summary nbdev makes no links."""
    assert site(a="`One` and [`Two`](b.ipynb)")["a.ipynb"].words == [("One", False), ("Two", True)]


@pytest.mark.parametrize(
    "name, linked, fault",
    [
        ("OrderedDict", True, None),
        ("OrderedDict", False, "did not become a link"),
        ("OrderedDict.popitem", False, None),
        ("OrderedDict.push", False, "has no push"),
        ("load", True, "a name of json and of pickle"),
        ("Heard", False, None),
        ("Unheard", False, "looks like a public name"),
        ("Unheard.x", False, "looks like a public name"),
        ("unheard", False, None),
        ("T", False, None),
        ("diffnb.core", False, None),
        ("diffnb.core.Registry", False, None),
        ("diffnb.core.Nothing", False, "no such module or name"),
        ("diffnb.nothing", False, "no such module or name"),
    ],
)
def test_names(name, linked, fault):
    """Words in backticks that are ours, or look as if they were."""
    symbols = {"OrderedDict": ["collections"], "load": ["json", "pickle"]}
    said = docs.fault_of_name(name, linked, symbols, {"Heard"}, "pickle.py")
    assert (said is None) if fault is None else fault in said


def test_a_name_of_two_modules_is_meant_on_the_page_of_the_first():
    """There nbdev's link leads where it should."""
    assert docs.fault_of_name("load", True, {"load": ["json", "pickle"]}, set(), "json.py") is None


@pytest.mark.parametrize(
    "sidebar, faults",
    [
        (["a.ipynb", {"section": "B", "contents": ["b.ipynb", "images.ipynb"]}], []),
        (["a.ipynb", {"section": "B", "contents": "[bi]*.ipynb"}], []),
        (["a.ipynb", {"section": "B", "href": "b.ipynb", "contents": ["images.ipynb", "b.ipynb"]}], ["b.ipynb: stands 2 times in the sidebar"]),
        (["a.ipynb", "b.ipynb"], ["images.ipynb: stands 0 times in the sidebar"]),
        (["a.ipynb", "b.ipynb", "images.ipynb", "c.ipynb"], ["c.ipynb: stands in the sidebar, and is no page"]),
    ],
)
def test_sidebar(site, tmp_path, sidebar, faults):
    """Every page once, and nothing else."""
    pages = site(a="")
    (tmp_path / "_proc" / "_quarto.yml").write_text(json.dumps({"website": {"sidebar": {"style": "floating"}}, "metadata-files": ["sidebar.yml"]}))
    (tmp_path / "_proc" / "sidebar.yml").write_text(json.dumps({"website": {"sidebar": {"contents": sidebar}}}))
    assert [": ".join(pair) for pair in docs.check_sidebar(tmp_path / "_proc", pages)] == faults


@pytest.mark.parametrize(
    "change, same",
    [
        ({}, True),
        ({"id": "other"}, True),
        ({"metadata": {"execution": {"total": 2}}}, True),
        ({"metadata": {"language": "R"}}, False),
        ({"source": "another"}, False),
        ({"outputs": [{"text": "another"}]}, False),
    ],
)
def test_order(tmp_path, change, same):
    """What is another page, and what only another making of it."""
    for folder, more in (("forward", {}), ("backward", change)):
        (tmp_path / folder).mkdir()
        cell = {"id": "a", "metadata": {"execution": {"total": 1}}, "source": "", "outputs": [], **more}
        (tmp_path / folder / "a.ipynb").write_text(json.dumps({"cells": [cell]}))
    assert (docs.check_order(tmp_path / "forward", tmp_path / "backward") == []) is same


def test_order_misses_no_file(tmp_path):
    """A page that one order lacks."""
    for folder in ("forward", "backward"):
        (tmp_path / folder).mkdir()
    (tmp_path / "forward" / "a.yml").write_text("")
    assert [name for name, _ in docs.check_order(tmp_path / "forward", tmp_path / "backward")] == ["a.yml"]


def test_added_pages(tmp_path):
    """What the workflow shall add, and where the bar at the top leads to."""
    folder = tmp_path / ".github" / "workflows"
    folder.mkdir(parents=True)
    (folder / "docs.yml").write_text((docs.ROOT / ".github" / "workflows" / "docs.yml").read_text())
    bar = "website: {navbar: {left: [{href: a.ipynb}, {href: 'SITE/draw/index.html'}]}}".replace("SITE", SITE)
    (tmp_path / "_quarto.yml").write_text(bar)
    (tmp_path / "a.ipynb").write_text("{}")
    assert docs.check_added(tmp_path, tmp_path, SITE) == []
    (tmp_path / "_quarto.yml").write_text(bar.replace("draw/", "drawn/"))
    assert docs.check_added(tmp_path, tmp_path, SITE) == [("_quarto.yml", f"{SITE}/drawn/index.html: not a page of the site")]
    (tmp_path / "_quarto.yml").write_text(bar)
    (folder / "docs.yml").write_text("steps: []")
    assert docs.check_added(tmp_path, tmp_path, SITE) == [(".github/workflows/docs.yml", "does not make draw/index.html")]
